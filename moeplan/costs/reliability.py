"""How much of a training run's calendar time makes progress, in closed form; `simulate.training_run` runs it by events.

Equations: docs/method/training.md.
"""

from __future__ import annotations

import math

from moeplan.spec.workload import Reliability

NODE_LOST = ("gpu", "node", "network", "preemption")  # causes that take a node away


def failure_rates_per_s(n_gpus: int, n_gpus_per_node: int, reliability: Reliability) -> dict[str, float]:
    """Interruptions of a whole job by cause [1/s]."""
    nodes = math.ceil(n_gpus / n_gpus_per_node)
    return {
        "gpu": n_gpus * reliability.gpu_failures_per_s,
        "node": nodes * reliability.node_failures_per_s,
        "network": n_gpus * reliability.network_failures_per_s,
        "software": n_gpus * reliability.software_failures_per_s,
        "preemption": nodes * reliability.preemptions_per_s,
    }


def goodput_frac(n_gpus: int, n_gpus_per_node: int, reliability: Reliability) -> float:
    """Expected share of wall time that is training progress, with a spare at hand for every failure and no slow node.

    Renewal argument (Daly, Future Generation Computer Systems 22, 2006, section 2; no failures while the job is down):
    a segment of work t and stall d takes (1/r + D) (exp(r (t + d)) - 1) on average at failure rate r and downtime D. Of
    an asynchronous checkpoint the part that is not yet durable is lost too, to first order.

    0 where failures undo the work faster than it is done.
    """
    rate_per_s = sum(failure_rates_per_s(n_gpus, n_gpus_per_node, reliability).values())
    work_s, stall_s = reliability.checkpoint_interval_s, reliability.checkpoint_stall_s
    segment_s = work_s + stall_s
    if rate_per_s * segment_s <= 0.0:
        return work_s / segment_s
    exponent = rate_per_s * segment_s
    if exponent > 500.0:
        return 0.0
    late_s = (reliability.checkpoint_write_s - stall_s) / segment_s * work_s
    down_s = reliability.detection_s + reliability.restart_s + late_s
    return work_s / ((1.0 / rate_per_s + down_s) * math.expm1(exponent))


def young_interval_s(stall_s: float, mean_time_between_failures_s: float) -> float:
    """First-order optimum of work between checkpoints [s] (Young, Communications of the ACM 17(9), 1974)."""
    interval_s: float = (2.0 * stall_s * mean_time_between_failures_s) ** 0.5
    return interval_s


def daly_interval_s(stall_s: float, mean_time_between_failures_s: float) -> float:
    """Higher-order optimum of work between checkpoints [s] (Daly, FGCS 22, 2006, equation 37)."""
    if stall_s >= 2.0 * mean_time_between_failures_s:
        return mean_time_between_failures_s
    share = stall_s / (2.0 * mean_time_between_failures_s)
    first = young_interval_s(stall_s, mean_time_between_failures_s)
    return first * (1.0 + math.sqrt(share) / 3.0 + share / 9.0) - stall_s
