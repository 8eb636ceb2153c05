"""Expert loads that the measured MoE tables stand for: how `balanced` and `power_law_a` spread tokens over experts.

The tables state the distribution, not the counts. Their source draws one load per expert from a power law of density
x^-a, truncated to [1, 0.8 T] (to [0.01, 2] when there are fewer token-expert pairs than experts), scales the draws to
T x top_k pairs, rounds, and measures the rank with most pairs; `balanced` deals pairs round robin and measures an
average rank. Its seeds are unknown, so we average the same construction over a few seeded draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
import numpy.typing as npt

_N_DRAWS = 8


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Expected load of the measured rank."""

    assignments: float  # token-expert pairs
    distinct: float  # experts with at least one token
    max_load: float  # tokens of its busiest expert


@lru_cache(maxsize=200_000)
def rank_loads(n_tokens: int, top_k: int, n_experts: int, n_ranks: int, exponent: float | None) -> RankLoads:
    """Load of the measured rank among ``n_ranks``; ``exponent`` None means balanced."""
    n_pairs = n_tokens * top_k
    n_local = max(n_experts // n_ranks, 1)
    if exponent is None:
        share = max(n_pairs / n_ranks, 1.0)
        return RankLoads(share, min(n_local, share), max(1.0, share / n_local))
    seed = crc32(f"{n_tokens}/{top_k}/{n_experts}/{exponent}".encode())
    rng = np.random.default_rng(seed)
    found = np.zeros(3)
    for _ in range(_N_DRAWS):
        loads = _power_law_counts(n_tokens, n_pairs, n_experts, exponent, rng)
        ranks = loads[: n_local * n_ranks].reshape(n_ranks, n_local)
        busiest = ranks[np.argmax(ranks.sum(axis=1))]
        found += (busiest.sum(), np.count_nonzero(busiest), busiest.max())
    found /= _N_DRAWS
    return RankLoads(*(float(x) for x in np.maximum(found, 1.0)))


def _power_law_counts(
    n_tokens: int, n_pairs: int, n_experts: int, exponent: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    low, high = (1.0, 0.8 * n_tokens) if n_pairs > n_experts else (0.01, 2.0)
    high = max(high, low * 1.000001)
    a = 1.0 - exponent
    uniform = rng.random(n_experts)
    draws = low * (high / low) ** uniform if abs(a) < 1e-9 else (low**a + (high**a - low**a) * uniform) ** (1.0 / a)
    loads = np.rint(draws / draws.sum() * n_pairs).astype(np.int64)
    # Rounding leaves a few pairs over or short: they go to, or come from, the fullest experts.
    order = np.lexsort((rng.random(n_experts), -loads))
    short = n_pairs - int(loads.sum())
    if short > 0:
        loads += short // n_experts
        loads[order[: short % n_experts]] += 1
    for index in order:
        if short >= 0:
            break
        step = min(int(loads[index]), -short, max(int(loads[index]) // 2, 1))
        loads[index] -= step
        short += step
    return np.minimum(loads, n_tokens)
