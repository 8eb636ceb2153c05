"""Expert loads that the measured MoE tables stand for: how `balanced` and `power_law_a` spread tokens over experts.

The tables state the distribution, not the counts. Their source (AIConfigurator's collector) draws one load per expert
from a power law of density x^-a, truncated to [1, 0.8 T] (to [0.01, 2] when there are no more token-expert pairs than
experts), scales the draws to T x top_k pairs, rounds, caps an expert at T, hands what is then missing to the emptiest
experts (takes what is too much from the fullest) rank by rank, and measures the rank with most pairs. `balanced` deals
pairs round robin and measures an average rank. Among equally empty experts the tables of TensorRT-LLM 1.3.0rc10 begin
at the last one, so that a step of few tokens falls on one rank: their times hold the weights of all its experts. The
source's seeds are unknown, so we average the same construction over a few seeded draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np

from moeplan.kernels.expert_loads import levelled_counts, tailed_counts

_N_DRAWS = 8


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Expected load of the measured rank."""

    assignments: float  # token-expert pairs
    distinct: float  # experts with at least one token
    max_load: float  # tokens of its busiest expert


@lru_cache(maxsize=200_000)
def rank_loads(
    n_tokens: int, top_k: int, n_experts: int, n_ranks: int, exponent: float | None, *, tail: bool = False
) -> RankLoads:
    """Load of the measured rank among ``n_ranks``; ``exponent`` None means balanced; ``tail``: what rounding
    leaves over begins at the last experts (`tailed_counts`) instead of sharing it evenly over the ranks.
    """
    n_pairs = n_tokens * top_k
    n_local = max(n_experts // n_ranks, 1)
    if exponent is None:
        share = max(n_pairs / n_ranks, 1.0)
        return RankLoads(share, min(n_local, share), max(1.0, share / n_local))
    seed = crc32(f"{n_tokens}/{top_k}/{n_experts}/{exponent}".encode())
    rng = np.random.default_rng(seed)
    low, high = (1.0, max(0.8 * n_tokens, 1.0 + 1e-6)) if n_pairs > n_experts else (0.01, 2.0)
    a = 1.0 - exponent
    uniform = rng.random((_N_DRAWS, n_experts))
    draws = low * (high / low) ** uniform if abs(a) < 1e-9 else (low**a + (high**a - low**a) * uniform) ** (1.0 / a)
    counts = (tailed_counts if tail else levelled_counts)(draws, n_pairs, n_ranks, n_tokens)
    busiest = counts[np.arange(_N_DRAWS), np.argmax(counts.sum(axis=2), axis=1)]
    found = (busiest.sum(axis=1).mean(), np.count_nonzero(busiest, axis=1).mean(), busiest.max(axis=1).mean())
    return RankLoads(*(max(float(x), 1.0) for x in found))
