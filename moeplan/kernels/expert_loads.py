"""Integer expert loads from drawn shares: missing tokens go to the emptiest experts, surplus leaves the fullest."""

from __future__ import annotations

import numpy as np

from moeplan.kernels import compiled


@compiled
def level_counts(counts, missing, cap):
    """``counts`` of shape (n_ranks, experts per rank) with ``missing`` more tokens (fewer when negative), in place.

    Ranks share the change evenly, the first ones one more; inside a rank it keeps the loads as level as possible.
    No expert gets more than ``cap``.
    """
    n_ranks, n_local = counts.shape
    base, extra = abs(missing) // n_ranks, abs(missing) % n_ranks
    for rank in range(n_ranks):
        left = base + (1 if rank < extra else 0)
        row = counts[rank]
        while left > 0:
            edge = row.min() if missing > 0 else row.max()
            if (missing > 0 and edge >= cap) or (missing < 0 and edge <= 0):
                break
            n_edge = 0
            following = cap if missing > 0 else 0
            for i in range(n_local):
                if row[i] == edge:
                    n_edge += 1
                elif missing > 0:
                    following = min(following, row[i])
                else:
                    following = max(following, row[i])
            steps = min(max(left // n_edge, 1), abs(following - edge))
            for i in range(n_local):
                if row[i] == edge and left > 0:
                    move = min(steps, left)
                    row[i] += move if missing > 0 else -move
                    left -= move
    return counts


@compiled
def tail_counts(counts, missing, cap):
    """``counts`` (n_experts,) with ``missing`` more tokens (fewer when negative), none above ``cap``, in place.

    One each to the emptiest experts, of equally empty ones the last first, and round again; surplus leaves the same
    experts, or the fullest where one of them has none. Experts that start with none lie at the end, on the last ranks.
    """
    n = counts.size
    over = 0
    order = np.argsort(-counts, kind="mergesort")
    for e in range(n):
        over += max(counts[e] - cap, 0)
        counts[e] = min(counts[e], cap)
    at = 0
    while over > 0 and at < n:  # beyond the cap of an expert: the emptiest fill up one after the other
        e = order[n - 1 - at]
        move = min(over, cap - counts[e])
        counts[e] += move
        over -= move
        at += 1
    missing += over
    order = np.argsort(-counts, kind="mergesort")
    at = 0
    while missing != 0 and at < n * (cap + 1):
        e = order[n - 1 - at % n]
        if missing > 0 and counts[e] < cap:
            counts[e] += 1
            missing -= 1
        elif missing < 0:
            if counts[e] == 0:
                e = np.argmax(counts)
            counts[e] -= 1
            missing += 1
        at += 1
    return counts


def tailed_counts(draws: np.ndarray, n_pairs: int, n_ranks: int, cap: int) -> np.ndarray:
    """As `levelled_counts`, with what rounding leaves over given out by `tail_counts`."""
    counts = np.rint(draws / draws.sum(axis=1, keepdims=True) * n_pairs).astype(np.int64)
    for one in counts:
        tail_counts(one, n_pairs - int(one.sum()), cap)
    n_local = draws.shape[1] // n_ranks
    return counts[:, : n_local * n_ranks].reshape(len(draws), n_ranks, n_local)


def levelled_counts(draws: np.ndarray, n_pairs: int, n_ranks: int, cap: int) -> np.ndarray:
    """Integer loads of shape (n_draws, n_ranks, experts per rank) that sum to ``n_pairs`` from positive ``draws``."""
    n_local = draws.shape[1] // n_ranks
    scaled = draws / draws.sum(axis=1, keepdims=True) * n_pairs
    counts = np.minimum(np.rint(scaled).astype(np.int64), cap)[:, : n_local * n_ranks]
    shaped = counts.reshape(len(draws), n_ranks, n_local)
    for one in shaped:
        level_counts(one, n_pairs - int(one.sum()), cap)
    return shaped
