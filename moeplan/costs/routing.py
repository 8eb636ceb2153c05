"""What a batch of tokens asks of the experts, in closed form: distinct experts touched, loads, busiest rank.

Popularity is Zipf: expert of rank r is drawn in proportion to r^-s, ``top_k`` without replacement.
``docs/method/steps.md`` has the equations; `tests/oracles` compares them with sampling.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from moeplan.spec.model import MoeMlp

Array = npt.NDArray[np.float64]


@lru_cache(maxsize=256)
def selection_probabilities(n_experts: int, top_k: float, zipf_exponent: float) -> Array:
    """Probability that a token selects each expert, most popular first, shape (n_experts,); sums to ``top_k``.

    Drawing without replacement in proportion to p is a race of exponential clocks of rate p that ends at the k-th
    arrival; with the end at its typical time t, expert e is in with 1 - exp(-p t) (Rosen 1997, J. Stat. Plann.
    Inference 62, 135).

    Raises ValueError when ``top_k`` is not in (0, n_experts].
    """
    if not 0.0 < top_k <= n_experts:
        raise ValueError(f"top_k {top_k} is not in (0, {n_experts}]")
    weight = np.arange(1, n_experts + 1, dtype=np.float64) ** -zipf_exponent
    if top_k == n_experts:
        found = np.ones(n_experts)
    elif zipf_exponent == 0.0:
        found = np.full(n_experts, top_k / n_experts)
    else:
        end = float(brentq(lambda log_t: float(-np.expm1(-weight * np.exp(log_t)).sum()) - top_k, -30.0, 200.0))
        found = -np.expm1(-weight * np.exp(end))
        found *= top_k / found.sum()
    found.flags.writeable = False
    return found


def of_block(block: MoeMlp, zipf_exponent: float) -> Array:
    """Selection probabilities of a block's real experts; identity experts take their share of the choices uniformly."""
    real = block.top_k * block.n_experts / (block.n_experts + block.n_zero_experts)
    return selection_probabilities(block.n_experts, real, zipf_exponent)


def expected_distinct(n_tokens: npt.ArrayLike, probabilities: Array) -> Array:
    """Experts that at least one of ``n_tokens`` selects: the sum over experts of 1 - (1 - p)^n."""
    tokens = np.asarray(n_tokens, np.float64)
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.minimum(probabilities, 1.0))
    return np.asarray(-np.expm1(np.multiply.outer(tokens, log_miss)).sum(axis=-1))


def expected_max_load(n_tokens: npt.ArrayLike, probabilities: Array) -> Array:
    """Tokens on the fullest expert, expected: the integral of 1 - prod_e F_e.

    F_e is normal with mean n p and variance n p (1 - p).
    """
    tokens = np.asarray(n_tokens, np.float64)
    p, count = _grouped(probabilities)
    mean = np.multiply.outer(tokens, p)
    deviation = np.sqrt(np.maximum(mean * (1.0 - p), 1e-12))
    top, spread = mean[..., 0], deviation.max(axis=-1)
    steps = np.linspace(-1.0, 6.0, 29)  # the maximum is hardly below the largest mean
    level = top[..., None] + steps * spread[..., None]
    below = np.prod(ndtr((level[..., None] - mean[..., None, :]) / deviation[..., None, :]) ** count, axis=-1)
    above = 1.0 - below
    width = (steps[1] - steps[0]) * spread
    found = level[..., 0] + width * (above.sum(axis=-1) - 0.5 * (above[..., 0] + above[..., -1]))
    floor = np.maximum(np.minimum(tokens, 1.0), top)
    return np.asarray(np.clip(found, floor, tokens))


def _grouped(probabilities: Array) -> tuple[Array, Array]:
    """The most popular experts one by one, the others in groups of like popularity: (probability, size of group)."""
    single = 16
    if probabilities[0] == probabilities[-1]:
        return probabilities[:1], np.array([float(probabilities.size)])
    groups = np.array_split(probabilities[single:], 16) if probabilities.size > 2 * single else []
    if not groups:
        return probabilities, np.ones_like(probabilities)
    p = np.concatenate([probabilities[:single], [group.mean() for group in groups]])
    count = np.concatenate([np.ones(single), [float(group.size) for group in groups]])
    return p, count


def busiest_rank_assignments(n_tokens: npt.ArrayLike, probabilities: Array, n_ranks: int) -> Array:
    """Token-expert pairs on the busiest of ``n_ranks`` ranks when experts are placed without knowing their popularity.

    Mean plus the expected maximum of ``n_ranks`` normals (Blom 1958) of the placement's and the tokens' variance; at
    least what the rank with the most popular expert gets.
    """
    tokens = np.asarray(n_tokens, np.float64)
    n_experts = probabilities.size
    total = tokens * probabilities.sum()
    if n_ranks == 1:
        return np.asarray(total)
    local = n_experts / n_ranks
    placement = tokens**2 * local * (1.0 - local / n_experts) * probabilities.var() * n_experts / (n_experts - 1)
    chance = tokens * (probabilities * (1.0 - probabilities)).sum() / n_ranks
    high = float(ndtri((n_ranks - 0.375) / (n_ranks + 0.25)))
    first = tokens * probabilities[0]
    with_first = first + (total - first) * (local - 1.0) / (n_experts - 1)
    found = np.maximum(total / n_ranks + high * np.sqrt(placement + chance), with_first)
    return np.asarray(np.minimum(found, np.minimum(total, tokens * local)))
