"""What a batch of tokens asks of the experts: loads, distinct experts, and the busiest GPU, in closed form.

A token selects top_k experts without replacement in proportion to weights (Plackett-Luce; ``kernels.routing`` draws it
token by token). Exact here: selection probabilities, mean loads, distinct experts. Maxima over experts and GPUs take
loads as normal with the exact variance. ``docs/method/routing.md`` has the equations; tests compare with the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betainc

from moeplan.costs.placement import place, slot_share
from moeplan.kernels import routing as kernel
from moeplan.kernels.inclusion import inclusion_probabilities
from moeplan.kernels.maxima import expected_maxima
from moeplan.spec.model import MoeMlp
from moeplan.spec.routing import Correlation, Popularity, RoutingAssumption

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

N_LAYERS_AVERAGED = 16  # draws of a popularity law whose mean stands for a model's layers
_FEW = 8  # token counts up to which each is integrated; more are interpolated in logarithms, half octaves apart
_OCTAVES = (14, 18, 28)
_GROUPED_TOKENS = 10_000  # tokens routed per layer where group limits leave no closed form
_SALT = {"popularity": 1, "topic": 2, "hash": 3}
_TINY = 1e-12
_EVEN_FRAC = 0.1  # coefficient of variation of weights below which group limits are left out


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Expected load of the busiest GPU of one layer, mean over layers; arrays like the token counts asked for."""

    assignments: Array  # token-expert pairs on the GPU with most of them
    distinct: Array  # experts touched on the GPU that touches most
    max_load: Array  # tokens of the fullest expert (copy) anywhere
    mean_assignments: Array  # pairs on an average GPU
    kept_frac: Array  # pairs not dropped


def layer_weights(block: MoeMlp, routing: RoutingAssumption, layer: int) -> Array:
    """Selection weights of a layer, summing to 1: of the experts and identity experts; of token ids under hashing.

    A law is drawn anew for every layer (layer l of a given seed is always the same); rows of a histogram repeat. A
    histogram holds how often experts were selected; under top-k that is inverted by -log(1 - p), the exponential-clock
    approximation (Rosen 1997, J. Stat. Plann. Inference 62, 135). Identity experts weigh the mean of the others.
    """
    if routing.router == "hash":
        row = _law_row(routing.law, routing.n_token_ids, 1, 1, layer, routing.seed)
    else:
        row = _law_row(routing.law, block.n_experts, block.top_k, block.n_group, layer, routing.seed)
    if block.n_zero_experts and routing.router == "top_k":
        row = np.concatenate([row, np.full(block.n_zero_experts, row.mean())])
    return np.asarray(row / row.sum())


def _law_row(popularity: Popularity, n_experts: int, top_k: int, n_group: int, layer: int, seed: int) -> Array:
    rng = np.random.default_rng((_SALT["popularity"], seed, layer))
    match popularity.law:
        case "uniform":
            return np.ones(n_experts)
        case "zipf":
            return np.asarray(rng.permutation(np.arange(1.0, n_experts + 1) ** -popularity.value))
        case "dirichlet":
            return np.asarray(np.maximum(rng.gamma(popularity.value, 1.0, n_experts), _TINY))
        case "lognormal":
            own = np.sqrt(popularity.value**2 - popularity.group_spread**2) * rng.standard_normal(n_experts)
            shared = popularity.group_spread * rng.standard_normal(n_group)
            return np.asarray(np.exp(own + np.repeat(shared, n_experts // n_group)))
        case "histogram":
            counts = np.asarray(popularity.histogram[layer % len(popularity.histogram)], np.float64)
            counts = np.maximum(counts, 0.5)  # never seen: less often than once
            share = np.minimum(counts / counts.sum() * top_k, 1.0 - 1e-6)
            return np.asarray(-np.log1p(-share))


def topic_weights(weights: Array, correlation: Correlation, seed: int, layer: int) -> Array:
    """Weights under each topic, shape (n_topics, n), rows sum to 1 and their mean is ``weights`` (n,).

    Log-normal preferences, scaled in turn along both axes until both sums hold (Sinkhorn).
    """
    if correlation.n_topics == 1 or correlation.spread == 0.0:
        return np.ascontiguousarray(weights[None, :])
    rng = np.random.default_rng((_SALT["topic"], seed, layer))
    taste = np.exp(correlation.spread * rng.standard_normal((correlation.n_topics, weights.size))) * weights
    for _ in range(30):
        taste *= weights / np.maximum(taste.mean(axis=0), 1e-300)
        taste /= taste.sum(axis=1, keepdims=True)
    return np.asarray(taste)


def hash_tables(n_tokens_known: int, n_experts: int, top_k: int, seed: int, layer: int) -> npt.NDArray[np.int64]:
    """Experts of each token id under hash routing (Roller 2021, arXiv:2106.04426), shape (n_tokens_known, top_k)."""
    rng = np.random.default_rng((_SALT["hash"], seed, layer))
    first = rng.integers(0, n_experts, (n_tokens_known, 1))
    step = 1 + rng.integers(0, max((n_experts - 1) // max(top_k - 1, 1), 1), (n_tokens_known, 1))
    return np.asarray((first + np.arange(top_k) * step) % n_experts, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class LayerChoices:
    """How the tokens of one layer choose: what the kernel needs, and each expert's selection probability."""

    method: int  # of `kernels.routing`
    weights: Array  # (n_topics, n_choices)
    tables: npt.NDArray[np.uint64]  # alias tables of the weights
    selected: Array  # (n_topics, n_experts), each row sums to top_k less identity experts
    hashed: npt.NDArray[np.int64]  # (n_choices, top_k) under hash routing


def _method(block: MoeMlp, routing: RoutingAssumption) -> int:
    if routing.router == "hash":
        return kernel.HASH
    if routing.router == "expert_choice":
        return kernel.EXPERT_CHOICE
    timed = block.topk_group < block.n_group or (routing.capacity_factor is not None and routing.drop == "priority")
    return kernel.TIMED if timed else kernel.PLAIN


def group_rule(block: MoeMlp) -> int:
    """Score of a group: best expert (DeepSeek-V2, softmax) or the sum of the best two (DeepSeek-V3, sigmoid)."""
    return kernel.GROUP_MAX if block.scoring == "softmax" else kernel.GROUP_TOP_TWO


@lru_cache(maxsize=256)
def layer_choices(block: MoeMlp, routing: RoutingAssumption, layer: int) -> LayerChoices:
    """The choices of layer ``layer`` (from 0, MoE layers only)."""
    return with_weights(block, routing, layer, layer_weights(block, routing, layer))


def with_weights(block: MoeMlp, routing: RoutingAssumption, layer: int, weights: Array) -> LayerChoices:
    """The choices of a layer whose weights (n_choices,) are given, as under drift."""
    method = _method(block, routing)
    topics = topic_weights(weights, routing.correlation, routing.seed, layer)
    tables = np.stack([kernel.alias_table(row) for row in topics])
    hashed = np.zeros((1, block.top_k), np.int64)
    if method == kernel.HASH:
        hashed = hash_tables(routing.n_token_ids, block.n_experts, block.top_k, routing.seed, layer)
        selected = np.zeros((len(topics), block.n_experts))
        for row, topic in zip(selected, topics, strict=True):
            np.add.at(row, hashed.ravel(), np.repeat(topic, block.top_k))
    elif method == kernel.EXPERT_CHOICE:
        share = min(1.0, block.top_k * (routing.capacity_factor or 1.0) / block.n_experts)
        selected = np.full((len(topics), block.n_experts), share)
    elif block.topk_group < block.n_group:
        selected = np.stack([_sampled(block, routing, layer, row, t) for row, t in zip(topics, tables, strict=True)])
    else:
        found = [inclusion_probabilities(row, block.top_k) for row in topics]
        selected = np.stack(found)[:, : block.n_experts]
    return LayerChoices(method, topics, tables, selected, hashed)


def _sampled(
    block: MoeMlp, routing: RoutingAssumption, layer: int, weights: Array, table: npt.NDArray[np.uint64]
) -> Array:
    """Selection probabilities (n_experts,) by routing tokens: group limits leave no closed form.

    Limits move probabilities by a share of their unevenness: where there is little, sampling noise would be more.
    """
    if weights.std() < _EVEN_FRAC * weights.mean():
        return np.asarray(inclusion_probabilities(weights, block.top_k)[: block.n_experts])
    counts = np.zeros(block.n_experts, np.int64)
    one = np.zeros(1, np.int64)
    kernel.route(
        routing.seed, 0, layer, _GROUPED_TOKENS, block.top_k, kernel.TIMED, table[None], weights[None], 1,
        group_rule(block), block.n_group, block.topk_group, float(block.top_k), np.zeros((1, 1), np.int64),
        block.n_experts, 0, False, np.arange(block.n_experts + 1), np.zeros(block.n_experts, np.int64), one, counts,
        np.zeros(block.n_experts, np.int64), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64),
        np.zeros(kernel.N_SUMS, np.int64),
    )  # fmt: skip
    return np.asarray(counts / _GROUPED_TOKENS)


def n_layers_averaged(routing: RoutingAssumption) -> int:
    """Layers whose mean stands for all: one where they are alike."""
    return 1 if routing.law.law == "uniform" and routing.router != "hash" else N_LAYERS_AVERAGED


@lru_cache(maxsize=64)
def of_block(block: MoeMlp, routing: RoutingAssumption) -> tuple[Array, ...]:
    """Selection probabilities of the averaged layers, each (n_experts,)."""
    return tuple(layer_choices(block, routing, i).selected.mean(axis=0) for i in range(n_layers_averaged(routing)))


def expected_distinct(n_tokens: npt.ArrayLike, probabilities: Array) -> Array:
    """Experts that at least one of ``n_tokens`` selects: the sum over experts of 1 - (1 - p)^n."""
    tokens = np.asarray(n_tokens, np.float64)
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.minimum(probabilities, 1.0))
    return np.asarray(-np.expm1(np.multiply.outer(tokens, log_miss)).sum(axis=-1))


def rank_loads(
    block: MoeMlp, n_tokens: npt.ArrayLike, n_ranks: int, routing: RoutingAssumption, *, n_nodes: int = 1
) -> RankLoads:
    """Load of the busiest of ``n_ranks`` GPUs when ``n_tokens`` tokens meet in a layer; means over layers and steps.

    Raises ValueError when the experts and redundant copies do not divide over the ranks or nodes.
    """
    tokens = np.asarray(n_tokens, np.float64)
    flat = np.atleast_1d(tokens).ravel()
    grid = flat
    if flat.size > _FEW:  # on a grid that other layouts of the same degree share
        octaves = next((n for n in _OCTAVES if flat.max() <= 2.0**n), _OCTAVES[-1])
        grid = np.exp2(np.arange(0.0, octaves + 0.5, 0.5))
    found = _rank_loads_at(block, tuple(grid.tolist()), n_ranks, routing, n_nodes)
    if grid is not flat:
        log_grid = np.log(grid)
        at = np.log(np.maximum(flat, 1e-300))
        found = np.stack([np.exp(np.interp(at, log_grid, np.log(np.maximum(row, _TINY)))) for row in found])
    mean = flat * sum(float(p.sum()) for p in of_block(block, routing)) / n_layers_averaged(routing) / n_ranks
    assignments, distinct, fullest, kept = (row.reshape(tokens.shape) for row in found)
    mean = mean.reshape(tokens.shape)
    offered = np.maximum(mean * n_ranks, 1e-300)
    return RankLoads(assignments, distinct, fullest, mean, np.minimum(kept / offered, 1.0))


@lru_cache(maxsize=4096)
def _rank_loads_at(
    block: MoeMlp, tokens: tuple[float, ...], n_ranks: int, routing: RoutingAssumption, n_nodes: int
) -> Array:
    """Rows of assignments, distinct, fullest expert and kept pairs at ``tokens``, shape (4, n_tokens); do not write."""
    at = np.asarray(tokens)
    n_layers = n_layers_averaged(routing)
    total = np.zeros((4, at.size))
    for layer in range(n_layers):
        choices = layer_choices(block, routing, layer)
        total += np.stack(_layer_loads(block, at, n_ranks, routing, n_nodes, choices))
    return np.asarray(total / n_layers)


def placement_of(block: MoeMlp, routing: RoutingAssumption, load: Array, n_ranks: int, n_nodes: int) -> Ints:
    """Expert held by each slot, (n_ranks, slots per rank); a stated map holds for the number of GPUs it is made for."""
    if routing.placement_map is not None and len(routing.placement_map) == n_ranks:
        return np.array(routing.placement_map, np.int64)
    n_redundant = routing.n_redundant_experts if n_ranks > 1 else 0  # one GPU gains nothing from copies
    over = (block.n_experts + n_redundant) % n_ranks  # a layout the copies were not chosen for takes fewer
    n_redundant -= over if over <= n_redundant else 0
    return place(routing.placement, load, n_ranks, n_redundant=n_redundant, n_nodes=n_nodes, n_group=block.n_group)


def _layer_loads(
    block: MoeMlp, tokens: Array, n_ranks: int, routing: RoutingAssumption, n_nodes: int, choices: LayerChoices
) -> tuple[Array, Array, Array, Array]:
    popular = choices.selected.mean(axis=0)
    placed = placement_of(block, routing, popular, n_ranks, n_nodes)
    kept = kept_pairs(tokens, popular, block, n_ranks, routing)
    share = slot_share(placed, popular)  # (n_ranks, n_slots)
    ratio = slot_share(placed, np.where(popular > 0.0, 1.0, 0.0))  # of the expert's tokens that come to this slot
    kept_frac = kept / np.maximum(np.multiply.outer(tokens, popular), 1e-300)  # (T, n_experts)
    mean = tokens[:, None, None] * share * kept_frac[:, placed]
    variance = mean * (1.0 - share) if choices.method != kernel.EXPERT_CHOICE else np.zeros_like(mean)
    topics = (choices.selected[:, placed] * ratio).sum(axis=2)  # (n_topics, n_ranks) pairs per token
    bursty = max(routing.correlation.burst_tokens - 1, 0) * topics.var(axis=0)
    whole = np.maximum(variance.sum(axis=(1, 2), keepdims=True), 1e-300)
    by_rank = variance.sum(axis=2)
    # tokens select a fixed number of experts: what one GPU has more the others have less
    by_rank = by_rank * (1.0 - by_rank / whole[:, :, 0]) + np.outer(tokens, bursty)
    assignments = expected_maxima(mean.sum(axis=2), np.sqrt(by_rank))
    n_local, total = placed.shape[1], mean.sum(axis=(1, 2))
    least = np.minimum(total, 1.0)  # some GPU has at least one pair
    assignments = np.maximum(assignments, np.maximum(mean.sum(axis=2).max(axis=1), least))
    assignments = np.minimum(assignments, np.minimum(total, np.maximum(tokens * n_local, least)))
    hit = 1.0 - _miss(tokens, choices.selected[:, placed] * ratio, routing.correlation.burst_tokens)
    touched = hit.sum(axis=2)
    distinct = expected_maxima(touched, np.sqrt(np.maximum((hit * (1.0 - hit)).sum(axis=2), 0.0)))
    distinct = np.clip(distinct, np.maximum(touched.max(axis=1), least), np.minimum(n_local, assignments))
    flat, spread = mean.reshape(len(tokens), -1), variance.reshape(len(tokens), -1)
    order = np.argsort(-share.ravel(), kind="stable")
    fullest = expected_maxima(np.ascontiguousarray(flat[:, order]), np.ascontiguousarray(np.sqrt(spread[:, order])))
    fullest = np.clip(fullest, np.maximum(least, flat.max(axis=1)), np.maximum(tokens, 1e-300))
    if routing.capacity_factor is not None:
        fullest = np.minimum(fullest, n_ranks * _capacity(tokens / n_ranks, block, routing.capacity_factor))
    return assignments, distinct, np.minimum(fullest, assignments), kept.sum(axis=1)


def _miss(tokens: Array, probabilities: Array, burst: int) -> Array:
    """Chance that no token comes to a slot, (T, n_ranks, n_slots); ``probabilities`` (n_topics, n_ranks, n_slots).

    Tokens of a burst share the topic; bursts are independent.
    """
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.minimum(probabilities, 1.0))
    run = np.minimum(float(burst), np.maximum(tokens, 1e-300))  # tokens that share a topic
    of_run = np.exp(run[:, None, None, None] * log_miss).mean(axis=1)
    return np.asarray(of_run ** (tokens / run)[:, None, None])


def _capacity(n_tokens: Array, block: MoeMlp, factor: float) -> Array:
    """Pairs one expert takes of one GPU's ``n_tokens``: ceil(factor x tokens x k / experts) (arXiv:2006.16668)."""
    return np.asarray(np.ceil(factor * n_tokens * block.top_k / block.n_experts - 1e-9))


def capacity_tokens(n_tokens: float, block: MoeMlp, factor: float) -> int:
    """``_capacity`` of one count, at least 1."""
    return max(1, int(_capacity(np.asarray(n_tokens), block, factor)))


def kept_pairs(tokens: Array, selected: Array, block: MoeMlp, n_ranks: int, routing: RoutingAssumption) -> Array:
    """Expected pairs each expert computes, shape (T, n_experts): all, or the mean of min(load, capacity).

    Every GPU applies the capacity to its own tokens. With load N ~ Bin(n, p):
    E min(N, C) = n p P(Bin(n - 1, p) <= C - 1) + C P(N > C), and P(Bin(n, p) <= c) = I_(1-p)(n - c, c + 1).
    """
    offered = np.multiply.outer(tokens, selected)
    if routing.capacity_factor is None or routing.router == "expert_choice":
        return np.asarray(offered)
    own = tokens[:, None] / n_ranks
    capacity = _capacity(own, block, routing.capacity_factor)

    def at_most(n: Array, c: Array) -> Array:
        inside = betainc(np.maximum(n - c, _TINY), np.maximum(c, 0.0) + 1.0, 1.0 - selected)
        return np.where(n > c, np.where(c < 0.0, 0.0, inside), 1.0)

    kept = own * selected * at_most(own - 1.0, capacity - 1.0) + capacity * (1.0 - at_most(own, capacity))
    return np.asarray(np.clip(kept * n_ranks, 0.0, offered))
