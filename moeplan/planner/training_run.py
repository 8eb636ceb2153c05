"""The run behind a training plan: how long it takes in calendar time, what it loses, whether it meets the deadline."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from moeplan.costs.reliability import daly_interval_s, failure_rates_per_s, goodput_frac
from moeplan.planner.intervals import log_error_quantiles
from moeplan.simulate.training_run import simulate_runs
from moeplan.spec.hardware import Hardware
from moeplan.spec.plan import Q, TrainingRun
from moeplan.spec.uncertainty import LogError
from moeplan.spec.workload import Reliability

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
_STEP_TIMES = 199  # equally likely step times joined with every simulated run


def plan_run(
    work_s: float,
    n_gpus: int,
    hardware: Hardware,
    reliability: Reliability,
    error: LogError,
    deadline_s: float | None,
    seed: int,
) -> tuple[TrainingRun, np.ndarray]:
    """A run that needs ``work_s`` at the predicted step time, and equally likely wall times [s], sorted.

    The share of wall time lost does not depend on how long a long run takes, so the uncertainty of the step time and
    the luck of the run multiply.
    """
    sample = simulate_runs(work_s, n_gpus, hardware.n_gpus_per_node, reliability, seed)
    stretch = sample.wall_s / work_s
    walls = np.sort(np.outer(work_s * log_error_quantiles(error, _STEP_TIMES), stretch).ravel())
    best_s = _optimal_interval_s(n_gpus, hardware, reliability)
    run = TrainingRun(
        wall_time_s={f"p{q}": float(np.percentile(walls, q)) for q in PERCENTILES},
        goodput_frac=_over_runs(work_s / sample.wall_s, work_s / float(sample.wall_s.mean())),
        n_failures=_over_runs(sample.n_failures),
        failures_by_cause={cause: float(counts.mean()) for cause, counts in sample.failures.items()},
        time_s={name: float(seconds.mean()) for name, seconds in sample.ledger_s.items()},
        checkpoint_bytes=reliability.checkpoint_bytes,
        checkpoint_interval_s=reliability.checkpoint_interval_s,
        checkpoint_stall_s=reliability.checkpoint_stall_s,
        optimal_interval_s=best_s,
        optimal_goodput_frac=None if best_s is None else _goodput_at(best_s, n_gpus, hardware, reliability),
        deadline_probability=None if deadline_s is None else float(np.mean(walls <= deadline_s)),
        n_gpus_held=n_gpus + (reliability.n_spare_nodes or 0) * hardware.n_gpus_per_node,
        n_runs_simulated=len(sample.wall_s),
    )
    return run, walls


def _over_runs(values: np.ndarray, value: float | None = None) -> Q:
    low, high = (float(x) for x in np.percentile(values, (5, 95)))
    middle = float(values.mean()) if value is None else value
    return Q(middle, min(low, middle), max(high, middle))


def _optimal_interval_s(n_gpus: int, hardware: Hardware, reliability: Reliability) -> float | None:
    """Work between checkpoints that loses least; never shorter than a checkpoint takes to become durable."""
    rate_per_s = sum(failure_rates_per_s(n_gpus, hardware.n_gpus_per_node, reliability).values())
    if rate_per_s == 0.0 or reliability.checkpoint_stall_s == 0.0:
        return None
    best = daly_interval_s(reliability.checkpoint_stall_s, 1.0 / rate_per_s)
    return max(best, reliability.checkpoint_write_s) if math.isfinite(best) else None


def _goodput_at(interval_s: float, n_gpus: int, hardware: Hardware, reliability: Reliability) -> float:
    changed = replace(reliability, checkpoint_interval_s=interval_s)
    return goodput_frac(n_gpus, hardware.n_gpus_per_node, changed)
