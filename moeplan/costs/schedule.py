"""Pipeline schedules in closed form: when they exist, and what they keep in memory."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["1f1b", "zero_bubble", "dualpipe"]


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
