"""How much of a training run's calendar time makes progress."""

from __future__ import annotations

from moeplan.spec.workload import Reliability


def goodput_frac(n_gpus: int, reliability: Reliability) -> float:
    """Expected share of wall time that is training progress.

    ETTR of Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters",
    arXiv:2410.21680: ``(1 - N r (u + d/2)) / (1 + w/d)`` with failure rate r per GPU, restart time u, checkpoint
    interval d, and blocking checkpoint time w. First order in N r d: valid while failures are rarer than checkpoints.

    Returns 0 where the formula leaves its range: failures cost more time than passes between them.
    """
    lost_per_failure_s = reliability.restart_s + reliability.checkpoint_interval_s / 2.0
    lost_frac = n_gpus * reliability.failures_per_gpu_s * lost_per_failure_s
    overhead_frac = reliability.checkpoint_write_s / reliability.checkpoint_interval_s
    return max(0.0, 1.0 - lost_frac) / (1.0 + overhead_frac)
