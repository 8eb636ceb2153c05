"""How long a pipeline takes: the schedule run event by event over the times of its stages.

Equations: docs/method/training.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from moeplan.kernels.pipeline import DUALPIPE, ONE_F_ONE_B, ZERO_BUBBLE, makespan_s

Schedule = Literal["1f1b", "zero_bubble", "dualpipe"]
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
    vpp: int = 1,
    send_s: float = 0.0,
) -> float:
    """From the first forward pass to the last gradient of a step [s].

    The sequences hold the time of one micro batch in each of the pp stages; with ``vpp`` > 1 a stage is cut into that
    many equal virtual stages and 1F1B is interleaved (arXiv:2104.04473, section 2.2). ``send_s`` passes between a stage
    and the next. DualPipe's rank r computes stages r and pp - 1 - r, each for half the micro batches.

    Raises:
        ValueError: the schedule does not exist for these numbers, see `schedule_problem`.
    """
    pp = len(forward_s)
    problem = schedule_problem(schedule, pp, vpp, n_micro)
    if problem:
        raise ValueError(problem)
    parts = [np.tile(np.asarray(s, np.float64) / vpp, vpp) for s in (forward_s, input_gradient_s, weight_gradient_s)]

    def run(n: int) -> float:
        return float(makespan_s(_CODES[schedule], pp, vpp, n, *parts, send_s))

    step = 2 * pp
    if n_micro <= _ROUNDS * step:
        return run(n_micro)
    last = n_micro % step + (_ROUNDS - 1) * step
    before, after = run(last - step), run(last)
    return after + (after - before) * (n_micro - last) / step


def schedule_problem(schedule: Schedule, pp: int, vpp: int, n_micro: int) -> str | None:
    """Why a schedule cannot run, None if it can.

    Interleaving hands over pp micro batches at a time (arXiv:2104.04473, section 2.2.2). DualPipe fills the pipeline
    from both ends (arXiv:2412.19437, section 3.2.1): even stages, even micro batches, at least two rounds of them.
    """
    if schedule != "1f1b" and vpp > 1:
        return f"the {schedule} schedule has no virtual stages (vpp {vpp})"
    if vpp > 1 and n_micro % pp:
        return f"the interleaved schedule needs a multiple of pp = {pp} micro batches, not {n_micro}"
    if schedule == "dualpipe":
        if pp % 2:
            return f"dualpipe needs an even number of stages, not {pp}"
        if n_micro % 2 or n_micro < 2 * pp:
            return f"dualpipe needs an even number of micro batches, at least 2 x pp = {2 * pp}, not {n_micro}"
    return None


def micro_batches_in_flight(schedule: Schedule, stage: int, pp: int, vpp: int, n_micro: int) -> float:
    """Micro batches whose activations a rank holds at the peak, in units of its whole share of layers.

    1F1B: pp - stage (arXiv:2104.04473, section 2.2); interleaved: times 1 + (pp - 1) / (pp vpp) on the first stage
    (arXiv:2205.05198, section 4.2.3). ZB-H1: pp on every rank, weight gradients put off keep their inputs
    (arXiv:2401.10241, section 2.3). DualPipe: pp + 1 (arXiv:2412.19437, table 2).
    """
    if pp == 1:
        return 1.0
    if schedule == "zero_bubble":
        return float(min(pp, n_micro))
    if schedule == "dualpipe":
        return float(min(pp + 1, n_micro))
    if vpp == 1:
        return float(min(pp - stage, n_micro))
    # warm-up chunks of rank `stage`: 2 (pp - stage - 1) + (vpp - 1) pp, plus the one running
    chunks = 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
    return min(chunks / vpp, float(n_micro))
