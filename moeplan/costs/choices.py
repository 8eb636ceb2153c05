"""How the tokens of one MoE layer choose experts, and routing them one by one with the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moeplan.costs.placement import Slots
from moeplan.costs.popularity import hash_tables, layer_weights, topic_weights
from moeplan.kernels import routing as kernel
from moeplan.kernels.inclusion import inclusion_probabilities
from moeplan.spec.model import MoeMlp
from moeplan.spec.routing import RoutingAssumption

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_GROUPED_TOKENS = 10_000  # tokens routed per layer where group limits leave no closed form
_EVEN_FRAC = 0.1  # coefficient of variation of weights below which group limits are left out


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


def with_weights(
    block: MoeMlp, routing: RoutingAssumption, layer: int, weights: Array, *, selected: bool = True
) -> LayerChoices:
    """The choices of a layer whose weights (n_choices,) are given, as under drift.

    ``selected`` false leaves the selection probabilities out, which drawing tokens does not need.
    """
    method = _method(block, routing)
    topics = topic_weights(weights, routing.correlation, routing.seed, layer)
    tables = np.stack([kernel.alias_table(row) for row in topics])
    hashed = np.zeros((1, block.top_k), np.int64)
    if method == kernel.HASH:
        hashed = hash_tables(routing.n_token_ids, block.n_experts, block.top_k, routing.seed, layer)
    found = np.zeros((len(topics), block.n_experts))
    if selected:
        found = _selected(block, routing, layer, method, topics, tables, hashed)
    return LayerChoices(method, topics, tables, found, hashed)


def _selected(
    block: MoeMlp,
    routing: RoutingAssumption,
    layer: int,
    method: int,
    topics: Array,
    tables: npt.NDArray[np.uint64],
    hashed: Ints,
) -> Array:
    """Selection probability of each expert under each topic, shape (n_topics, n_experts)."""
    if method == kernel.HASH:
        pairs = hashed.ravel(), np.repeat(topics, block.top_k, axis=1)
        return np.stack([np.bincount(pairs[0], row, block.n_experts) for row in pairs[1]])
    if method == kernel.EXPERT_CHOICE:
        share = min(1.0, block.top_k * (routing.capacity_factor or 1.0) / block.n_experts)
        return np.full((len(topics), block.n_experts), share)
    if block.topk_group < block.n_group:
        return np.stack([_sampled(block, routing, layer, row, t) for row, t in zip(topics, tables, strict=True)])
    found = [inclusion_probabilities(row, block.top_k) for row in topics]
    return np.asarray(np.stack(found)[:, : block.n_experts])


def _sampled(
    block: MoeMlp, routing: RoutingAssumption, layer: int, weights: Array, table: npt.NDArray[np.uint64]
) -> Array:
    """Selection probabilities (n_experts,) by routing tokens: group limits leave no closed form.

    Limits move probabilities by a share of their unevenness: where there is little, sampling noise would be more.
    """
    if weights.std() < _EVEN_FRAC * weights.mean():
        return np.asarray(inclusion_probabilities(weights, block.top_k)[: block.n_experts])
    choices = LayerChoices(kernel.TIMED, weights[None], table[None], np.zeros((1, 0)), np.zeros((1, 1), np.int64))
    free = RoutingAssumption(0.0, "", seed=routing.seed)
    one = Slots.of(np.arange(block.n_experts)[None, :], block.n_experts)
    counts = route_tokens(block, free, choices, one, _GROUPED_TOKENS, layer=layer).counts
    return np.asarray(counts / _GROUPED_TOKENS)


def capacity_of(n_tokens: npt.ArrayLike, block: MoeMlp, factor: float) -> Array:
    """Pairs one expert takes of one GPU's ``n_tokens``: ceil(factor x tokens x k / experts) (arXiv:2006.16668)."""
    return np.asarray(np.ceil(factor * np.asarray(n_tokens, np.float64) * block.top_k / block.n_experts - 1e-9))


def capacity_tokens(n_tokens: float, block: MoeMlp, factor: float) -> int:
    """``capacity_of`` of one count, at least 1."""
    return max(1, int(capacity_of(n_tokens, block, factor)))


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What became of the tokens of one layer in one step, as `kernels.routing.route` counts it."""

    counts: Ints  # (n_experts,) selections
    slot_counts: Ints  # (n_ranks, slots per rank) pairs computed
    traffic: Ints  # (n_sources, n_ranks)
    node_traffic: Ints  # (n_sources, n_nodes)
    sums: Ints


def route_tokens(
    block: MoeMlp,
    routing: RoutingAssumption,
    choices: LayerChoices,
    slots: Slots,
    tokens_per_gpu: int,
    *,
    n_sources: int = 1,
    n_nodes: int = 1,
    layer: int = 0,
    step: int = 0,
) -> Routed:
    """Route ``tokens_per_gpu`` tokens of each source GPU to the experts in ``slots``."""
    n_ranks = slots.shape[0]
    n_choices = max(choices.weights.shape[1] if choices.method != kernel.HASH else 0, block.n_experts)
    counts, computed = np.zeros(n_choices, np.int64), np.zeros(slots.order.size, np.int64)
    traffic, node_traffic = np.zeros((n_sources, n_ranks), np.int64), np.zeros((n_sources, n_nodes), np.int64)
    sums = np.zeros(kernel.N_SUMS, np.int64)
    capacity = 0
    if choices.method == kernel.EXPERT_CHOICE:
        capacity = capacity_tokens(tokens_per_gpu, block, routing.capacity_factor or 1.0)
    elif routing.capacity_factor is not None:
        capacity = capacity_tokens(tokens_per_gpu, block, routing.capacity_factor)
    kernel.route(
        routing.seed, step, layer, tokens_per_gpu, block.top_k, choices.method, choices.tables, choices.weights,
        routing.correlation.burst_tokens, group_rule(block), block.n_group, block.topk_group, float(block.top_k),
        choices.hashed, block.n_experts, capacity, routing.drop == "priority" and capacity > 0, slots.first,
        slots.rank, np.arange(n_ranks) * n_nodes // n_ranks, counts, computed, traffic, node_traffic, sums,
    )  # fmt: skip
    by_slot = np.empty(computed.size, np.int64)
    by_slot[slots.order] = computed
    return Routed(counts[: block.n_experts], by_slot.reshape(slots.shape), traffic, node_traffic, sums)
