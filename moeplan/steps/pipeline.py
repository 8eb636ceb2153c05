"""How long a pipeline takes: the schedule run event by event over the times of its stages.

Equations: docs/method/training.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeplan.costs.schedule import Schedule, schedule_problem
from moeplan.kernels.pipeline import DUALPIPE, ONE_F_ONE_B, ZERO_BUBBLE, makespan_s

_CODES = {"1f1b": ONE_F_ONE_B, "zero_bubble": ZERO_BUBBLE, "dualpipe": DUALPIPE}
# Rounds of pp micro batches run event by event; a schedule repeats itself long before, so that later rounds add alike.
_ROUNDS = 4


def pipeline_time_s(
    schedule: Schedule,
    forward_s: Sequence[float],
    input_gradient_s: Sequence[float],
    weight_gradient_s: Sequence[float],
    n_micro: int,
    *,
    pp: int | None = None,
    vpp: int = 1,
    send_s: float = 0.0,
) -> float:
    """From the first forward pass to the last gradient of a step [s].

    The sequences hold the time of one micro batch in each of the pp stages; with ``vpp`` > 1 1F1B is interleaved
    (arXiv:2104.04473, section 2.2), and a stage is cut into that many equal virtual stages unless the sequences hold
    all pp x vpp of them. ``pp`` defaults to their length. ``send_s`` passes between a stage
    and the next. DualPipe's rank r computes stages r and pp - 1 - r, each for half the micro batches.

    Raises:
        ValueError: the schedule does not exist for these numbers, see `schedule_problem`.
    """
    pp = len(forward_s) if pp is None else pp
    problem = schedule_problem(schedule, pp, vpp, n_micro)
    if problem:
        raise ValueError(problem)
    parts = [np.asarray(s, np.float64) for s in (forward_s, input_gradient_s, weight_gradient_s)]
    if len(forward_s) == pp:
        parts = [np.tile(part / vpp, vpp) for part in parts]

    def run(n: int) -> float:
        return float(makespan_s(_CODES[schedule], pp, vpp, n, *parts, send_s))

    step = 2 * pp
    if n_micro <= _ROUNDS * step:
        return run(n_micro)
    last = n_micro % step + (_ROUNDS - 1) * step
    before, after = run(last - step), run(last)
    return after + (after - before) * (n_micro - last) / step
