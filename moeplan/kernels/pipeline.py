"""Pipeline schedules by events: what each rank does in which order, and when it is done.

An order is an array of shape (n_operations, 5) per rank: kind, chain, position, micro batch, joined. A *position* is
one of the pp * vpp consecutive parts of the model, a *chain* a direction in which micro batches travel through them. A
joined operation runs together with the next one. tests/oracles/test_pipeline.py holds the closed forms.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeplan.kernels import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, BACKWARD = 0, 1, 2, 3  # BACKWARD: input, then weight gradient
ONE_F_ONE_B, ZERO_BUBBLE, DUALPIPE = 0, 1, 2
_COLUMNS = 5


@compiled
def _put(order: Ints, at: int, kind: int, chain: int, position: int, micro: int, joined: int) -> int:
    order[at, 0], order[at, 1], order[at, 2], order[at, 3], order[at, 4] = kind, chain, position, micro, joined
    return at + 1


@compiled
def one_f_one_b(rank: int, pp: int, vpp: int, n_micro: int, order: Ints) -> int:
    """1F1B and, with vpp > 1, its interleaved form (Megatron-LM, arXiv:2104.04473, section 2.2): number of operations.

    Interleaved, pp micro batches pass one virtual stage, then the same pp the next; ``n_micro`` is a multiple of pp.
    """
    total = n_micro * vpp
    chunks, micros = np.empty(total, np.int64), np.empty(total, np.int64)
    at = 0
    for first in range(0, n_micro, pp):
        for chunk in range(vpp):
            for micro in range(first, min(first + pp, n_micro)):
                chunks[at], micros[at] = chunk, micro
                at += 1
    ahead = pp - rank - 1 if vpp == 1 else 2 * (pp - rank - 1) + (vpp - 1) * pp
    ahead = min(ahead, total)
    at = 0
    for i in range(total + ahead):
        if i < total:
            at = _put(order, at, FORWARD, 0, chunks[i] * pp + rank, micros[i], 0)
        if i >= ahead:
            j = i - ahead
            at = _put(order, at, BACKWARD, 0, (vpp - 1 - chunks[j]) * pp + rank, micros[j], 0)
    return at


@compiled
def zero_bubble(rank: int, pp: int, n_micro: int, order: Ints) -> int:
    """ZB-H1 (arXiv:2401.10241, section 2.3): 1F1B whose rank r leaves r weight gradients for the end."""
    ahead = min(pp - rank - 1, n_micro)
    at = done = 0
    for i in range(n_micro + ahead):
        if i < n_micro:
            at = _put(order, at, FORWARD, 0, rank, i, 0)
        if i >= ahead:
            at = _put(order, at, INPUT_GRADIENT, 0, rank, i - ahead, 0)
            if i - ahead >= rank:
                at = _put(order, at, WEIGHT_GRADIENT, 0, rank, done, 0)
                done += 1
    while done < n_micro:
        at = _put(order, at, WEIGHT_GRADIENT, 0, rank, done, 0)
        done += 1
    return at


@compiled
def dualpipe(rank: int, pp: int, n_micro: int, order: Ints) -> int:
    """DualPipe (DeepSeek-V3, arXiv:2412.19437, section 3.2.1, figure 5): half the micro batches from either end.

    ``pp`` even, ``n_micro`` even and at least 2 pp. Rank r holds positions r and pp - 1 - r.
    """
    half = min(rank, pp - 1 - rank)
    swap = 1 if rank >= pp // 2 else 0  # the near chain: the one that enters at this rank's end
    position = np.empty(2, np.int64)
    position[0], position[1] = rank, pp - 1 - rank
    forwards, backwards = np.zeros(2, np.int64), np.zeros(2, np.int64)
    waiting = np.empty((n_micro, 2), np.int64)  # weight gradients put off, first in first out
    put_off = taken = at = 0
    middle = pp // 2 - half - 1
    # steps of (near forward, far forward, near backward, far backward), see the figure's eight phases
    for _ in range(2 * middle):
        at = _put(order, at, FORWARD, swap, position[swap], forwards[swap], 0)
        forwards[swap] += 1
    for _ in range(half + 1):
        for chain in (swap, 1 - swap):
            at = _put(order, at, FORWARD, chain, position[chain], forwards[chain], 0)
            forwards[chain] += 1
    far = 1 - swap
    for _ in range(middle):
        at = _put(order, at, INPUT_GRADIENT, far, position[far], backwards[far], 0)
        waiting[put_off, 0], waiting[put_off, 1] = far, backwards[far]
        put_off += 1
        backwards[far] += 1
        at = _put(order, at, WEIGHT_GRADIENT, waiting[taken, 0], position[waiting[taken, 0]], waiting[taken, 1], 0)
        taken += 1
        at = _put(order, at, FORWARD, far, position[far], forwards[far], 0)
        forwards[far] += 1
    for i in range(n_micro // 2 - pp + half + 1):
        for ahead in (swap, far):
            back = 1 - ahead
            # the middle ranks have nothing to hide the first exchange behind
            joined = 0 if i == 0 and ahead == swap and half == pp // 2 - 1 else 1
            at = _put(order, at, FORWARD, ahead, position[ahead], forwards[ahead], joined)
            at = _put(order, at, BACKWARD, back, position[back], backwards[back], 0)
            forwards[ahead] += 1
            backwards[back] += 1
    for _ in range(middle):
        at = _put(order, at, BACKWARD, far, position[far], backwards[far], 0)
        backwards[far] += 1
        at = _put(order, at, FORWARD, far, position[far], forwards[far], 1)
        at = _put(order, at, BACKWARD, swap, position[swap], backwards[swap], 0)
        forwards[far] += 1
        backwards[swap] += 1
    split = False
    for i in range(half + 1):
        for chain in (far, swap):
            if i == (half + 1) // 2 and (half % 2 == 1 or chain == swap):
                split = True
            kind = INPUT_GRADIENT if split else BACKWARD
            at = _put(order, at, kind, chain, position[chain], backwards[chain], 0)
            if split:
                waiting[put_off, 0], waiting[put_off, 1] = chain, backwards[chain]
                put_off += 1
            backwards[chain] += 1
    for _ in range(middle):
        at = _put(order, at, WEIGHT_GRADIENT, waiting[taken, 0], position[waiting[taken, 0]], waiting[taken, 1], 0)
        taken += 1
        at = _put(order, at, INPUT_GRADIENT, swap, position[swap], backwards[swap], 0)
        waiting[put_off, 0], waiting[put_off, 1] = swap, backwards[swap]
        put_off += 1
        backwards[swap] += 1
    while taken < put_off:
        at = _put(order, at, WEIGHT_GRADIENT, waiting[taken, 0], position[waiting[taken, 0]], waiting[taken, 1], 0)
        taken += 1
    return at


@compiled
def makespan_s(
    schedule: int,
    pp: int,
    vpp: int,
    n_micro: int,
    forward_s: Floats,
    input_gradient_s: Floats,
    weight_gradient_s: Floats,
    send_s: float,
) -> float:
    """From the first forward pass to the last gradient [s]; arrays of shape (pp * vpp,) by position.

    A rank takes its operations in order and waits for what they need: the position before (forward) or after (backward)
    and ``send_s`` between. NaN when the order deadlocks.
    """
    n_positions, n_chains = pp * vpp, 2 if schedule == DUALPIPE else 1
    most = 3 * n_micro * vpp * n_chains
    orders, lengths = np.empty((pp, most, _COLUMNS), np.int64), np.empty(pp, np.int64)
    for rank in range(pp):
        if schedule == ONE_F_ONE_B:
            lengths[rank] = one_f_one_b(rank, pp, vpp, n_micro, orders[rank])
        elif schedule == ZERO_BUBBLE:
            lengths[rank] = zero_bubble(rank, pp, n_micro, orders[rank])
        else:
            lengths[rank] = dualpipe(rank, pp, n_micro, orders[rank])
    done = np.full((2, n_chains, n_positions, n_micro), -1.0)  # forward, input gradient
    clock, at = np.zeros(pp), np.zeros(pp, np.int64)
    left = lengths.sum()
    while left > 0:
        before = left
        for rank in range(pp):
            while at[rank] < lengths[rank]:
                n_ops = 1 + orders[rank, at[rank], 4]
                start, lasts = clock[rank], 0.0
                ready = True
                for i in range(at[rank], at[rank] + n_ops):
                    kind, chain, position = orders[rank, i, 0], orders[rank, i, 1], orders[rank, i, 2]
                    micro = orders[rank, i, 3]
                    needs = 0.0
                    if kind == FORWARD:
                        lasts += forward_s[position]
                        if position > 0:
                            needs = done[0, chain, position - 1, micro]
                    elif kind != WEIGHT_GRADIENT:
                        lasts += input_gradient_s[position]
                        if kind == BACKWARD:
                            lasts += weight_gradient_s[position]
                        if position < n_positions - 1:
                            needs = done[1, chain, position + 1, micro]
                    else:
                        lasts += weight_gradient_s[position]
                    if needs < 0.0:
                        ready = False
                        break
                    if needs > 0.0:
                        start = max(start, needs + send_s)
                if not ready:
                    break
                clock[rank] = start + lasts
                for i in range(at[rank], at[rank] + n_ops):
                    kind, chain, position = orders[rank, i, 0], orders[rank, i, 1], orders[rank, i, 2]
                    if kind == FORWARD:
                        done[0, chain, position, orders[rank, i, 3]] = clock[rank]
                    elif kind != WEIGHT_GRADIENT:
                        done[1, chain, position, orders[rank, i, 3]] = clock[rank]
                at[rank] += n_ops
                left -= n_ops
        if left == before:
            return np.nan
    longest: float = clock.max()
    return longest
