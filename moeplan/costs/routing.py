"""What a batch of tokens asks of the experts: loads, distinct experts, and the busiest GPU, in closed form.

A token selects top_k experts without replacement in proportion to weights (Plackett-Luce; ``kernels.routing`` draws it
token by token). Exact here: selection probabilities, mean loads, distinct experts. Maxima over experts and GPUs take
loads as normal with the exact variance. ``docs/method/routing.md`` has the equations; tests compare with the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betainc

from moeplan.costs.choices import LayerChoices, capacity_of, layer_choices, route_tokens, with_weights
from moeplan.costs.expert_exchange import distinct_groups
from moeplan.costs.placement import Slots, place, slot_share
from moeplan.costs.popularity import long_run
from moeplan.kernels import routing as kernel
from moeplan.kernels.maxima import expected_maxima
from moeplan.spec.model import MoeMlp
from moeplan.spec.routing import RoutingAssumption

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

N_LAYERS_AVERAGED = 16  # draws of a popularity law whose mean stands for a model's layers
_FEW = 8  # token counts up to which each is integrated; more are interpolated in logarithms, half octaves apart
_OCTAVES = (14, 18, 28)
_COPIED_LAYERS, _COPIED_TOKENS = 4, 4096  # routed to see where copies of a token go: within 1 % of their mean
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Expected load of the busiest GPU of one layer, mean over layers; arrays like the token counts asked for."""

    assignments: Array  # token-expert pairs on the GPU with most of them
    distinct: Array  # experts touched on the GPU that touches most
    max_load: Array  # tokens of the fullest expert (copy) anywhere
    mean_assignments: Array  # pairs on an average GPU
    kept_frac: Array  # pairs not dropped

    def where(self, mine: npt.NDArray[np.bool_], other: RankLoads) -> RankLoads:
        """These loads where ``mine`` is true, those of ``other`` elsewhere."""
        return RankLoads(*(np.where(mine, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


def n_layers_averaged(routing: RoutingAssumption) -> int:
    """Layers whose mean stands for all: one where they are alike."""
    return 1 if routing.law.law == "uniform" and routing.router != "hash" else N_LAYERS_AVERAGED


@lru_cache(maxsize=64)
def _pairs_per_token(block: MoeMlp, routing: RoutingAssumption) -> float:
    """Pairs of a token and a routed expert: top_k, less the identity experts it chooses."""
    n_layers = n_layers_averaged(routing)
    return sum(float(layer_choices(block, routing, i).selected.mean(axis=0).sum()) for i in range(n_layers)) / n_layers


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
    mean = flat * _pairs_per_token(block, routing) / n_ranks
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
    found = []
    for layer in range(n_layers):
        for state in long_run(block, routing, layer):
            if routing.balance == "none":
                choices = layer_choices(block, routing, layer)
            else:
                choices = with_weights(block, routing, layer, state.weights)
            found.append(np.stack(_layer_loads(block, at, n_ranks, routing, n_nodes, choices, state.placed_by)))
    return np.asarray(np.mean(found, axis=0))


@dataclass(frozen=True, slots=True)
class TokenCopies:
    """Where the copies of one token go, its own GPU and node counted; means over layers."""

    n_ranks: float  # distinct GPUs
    n_nodes: float  # distinct scale-up domains


@lru_cache(maxsize=256)
def token_copies(block: MoeMlp, n_ranks: int, routing: RoutingAssumption, *, n_nodes: int = 1) -> TokenCopies:
    """Distinct GPUs and nodes that hold a token's experts: closed form where all are alike, else routed tokens."""
    even = routing.law.law == "uniform" and routing.router == "top_k" and block.topk_group == block.n_group
    if even and not block.n_zero_experts and not routing.n_redundant_experts and block.n_experts % n_ranks == 0:
        return TokenCopies(*(float(distinct_groups(block.top_k, block.n_experts, n)) for n in (n_ranks, n_nodes)))
    n_layers, found = min(n_layers_averaged(routing), _COPIED_LAYERS), np.zeros(2)
    for layer in range(n_layers):
        choices = layer_choices(block, routing, layer)
        placed = placement_of(block, routing, choices.selected.mean(axis=0), n_ranks, n_nodes)
        sums = route_tokens(
            block, routing, choices, Slots.of(placed, block.n_experts), _COPIED_TOKENS, n_nodes=n_nodes, layer=layer
        ).sums
        found += sums[[kernel.N_COPIES, kernel.N_NODE_COPIES]] / (n_layers * _COPIED_TOKENS)
    return TokenCopies(*found.tolist())


def placement_of(block: MoeMlp, routing: RoutingAssumption, load: Array, n_ranks: int, n_nodes: int) -> Ints:
    """Expert held by each slot, (n_ranks, slots per rank); a stated map holds for the number of GPUs it is made for."""
    if routing.placement_map is not None and len(routing.placement_map) == n_ranks:
        return np.array(routing.placement_map, np.int64)
    n_redundant = routing.n_redundant_experts if n_ranks > 1 else 0  # one GPU gains nothing from copies
    over = (block.n_experts + n_redundant) % n_ranks  # a layout the copies were not chosen for takes fewer
    n_redundant -= over if over <= n_redundant else 0
    return place(routing.placement, load, n_ranks, n_redundant=n_redundant, n_nodes=n_nodes, n_group=block.n_group)


def _layer_loads(
    block: MoeMlp,
    tokens: Array,
    n_ranks: int,
    routing: RoutingAssumption,
    n_nodes: int,
    choices: LayerChoices,
    placed_by: Array | None,
) -> tuple[Array, Array, Array, Array]:
    popular = choices.selected.mean(axis=0)
    placed = placement_of(block, routing, popular if placed_by is None else placed_by, n_ranks, n_nodes)
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
        fullest = np.minimum(fullest, n_ranks * capacity_of(tokens / n_ranks, block, routing.capacity_factor))
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


def kept_pairs(tokens: Array, selected: Array, block: MoeMlp, n_ranks: int, routing: RoutingAssumption) -> Array:
    """Expected pairs each expert computes, shape (T, n_experts): all, or the mean of min(load, capacity).

    Every GPU applies the capacity to its own tokens. With load N ~ Bin(n, p):
    E min(N, C) = n p P(Bin(n - 1, p) <= C - 1) + C P(N > C), and P(Bin(n, p) <= c) = I_(1-p)(n - c, c + 1).
    """
    offered = np.multiply.outer(tokens, selected)
    if routing.capacity_factor is None or routing.router == "expert_choice":
        return np.asarray(offered)
    own = tokens[:, None] / n_ranks
    capacity = capacity_of(own, block, routing.capacity_factor)

    def at_most(n: Array, c: Array) -> Array:
        inside = betainc(np.maximum(n - c, _TINY), np.maximum(c, 0.0) + 1.0, 1.0 - selected)
        return np.where(n > c, np.where(c < 0.0, 0.0, inside), 1.0)

    kept = own * selected * at_most(own - 1.0, capacity - 1.0) + capacity * (1.0 - at_most(own, capacity))
    return np.asarray(np.clip(kept * n_ranks, 0.0, offered))
