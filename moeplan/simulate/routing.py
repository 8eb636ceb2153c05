"""Steps of one kind routed many times: load, stragglers, distinct experts, drops and traffic as distributions.

Tokens are routed one by one where that is affordable; where only counts matter and a step has too many tokens, the
counts of a layer are drawn at once (`sample_counts`). The result says which of the two ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.costs import choices as costs
from moeplan.costs.placement import Slots
from moeplan.costs.popularity import Course
from moeplan.costs.routing import placement_of
from moeplan.kernels import routing as kernel
from moeplan.spec.model import MoeMlp
from moeplan.spec.routing import RoutingAssumption

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TOKEN_LAYERS = 12_000_000  # tokens x layers routed one by one in a simulation: a few seconds
_GROUPED_FRAC = 0.2  # of them where group limits need more draws per token
MOST_STEPS, LEAST_STEPS, FEWEST_STEPS = 200, 8, 3
TILE_ROWS = 16  # rows of the smallest block of a fused MoE kernel: every touched expert is padded to it
_SAMPLED_TOKENS = 256  # per source, for the traffic of a step whose counts are drawn at once
_BINOMIAL_VARIANCE = 50.0  # below it a count is drawn binomially, above it as a normal


@dataclass(frozen=True, slots=True)
class RoutingStep:
    """One kind of step: what meets in each MoE layer, and between which GPUs."""

    name: str
    blocks: tuple[MoeMlp, ...]  # of the model's MoE layers, in order
    tokens_per_gpu: int  # of each source GPU
    n_ranks: int  # expert-parallel GPUs; each is also a source
    n_nodes: int  # scale-up domains they lie in
    dispatch_bytes_per_value: float
    combine_bytes_per_value: float
    in_runs: bool = True  # tokens follow each other in a text; decoding ones are of a sequence each

    @property
    def n_tokens(self) -> int:
        return self.tokens_per_gpu * self.n_ranks


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity over steps."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class RoutingSimulation:
    """What routing did in ``n_steps`` steps. Loads of a step are sums over its layers; per token means per layer."""

    name: str
    path: str  # "tokens" or "counts"
    n_steps: int
    n_layers: int  # simulated, evenly spaced over the model's
    n_tokens: int  # per step
    n_ranks: int
    n_nodes: int
    straggler_over_mean: Spread  # sum over layers of the busiest GPU's pairs, over the mean GPU's
    expert_max_over_mean: Spread  # fullest expert over the mean one, mean over layers
    straggler_pairs: Spread  # token-expert pairs of the busiest GPU, mean over layers
    distinct_experts: Spread  # of all GPUs, mean over layers
    distinct_on_straggler: Spread  # most distinct experts on one GPU, mean over layers
    padding_frac: Spread  # rows computed that hold no token
    dropped_frac: Spread
    lost_token_frac: Spread  # tokens that no expert computes, mean over layers
    gpus_per_token: Spread  # copies of a token, one per distinct GPU
    nodes_per_token: Spread
    intra_node_bytes_per_gpu: Spread  # dispatch and combine, all layers of the model, busiest sender
    inter_node_bytes_per_gpu: Spread
    traffic_tokens: Array  # (n_ranks, n_ranks) mean tokens from GPU to GPU in one layer
    n_redundant_experts: int


def simulate_routing(
    step: RoutingStep,
    routing: RoutingAssumption,
    *,
    n_steps: int | None = None,
    n_layers: int | None = None,
    token_layers: int = TOKEN_LAYERS,
) -> RoutingSimulation:
    """Route ``n_steps`` steps through ``n_layers`` layers at most (default: all).

    Under drift the steps are spaced over two placements and four half-lives of a run that has long been going on.
    Without ``n_steps`` as many as the budget ``token_layers`` allows, 3 to 200; layers are thinned out to afford 8.

    Raises ValueError when experts and copies do not divide over GPUs or nodes.
    """
    routing = routing if step.in_runs else routing.one_by_one()
    per_layer = max(step.n_tokens, 1)
    plain = all(costs.layer_choices(b, routing, 0).method == kernel.PLAIN for b in set(step.blocks))
    affordable = int(token_layers * (1.0 if plain else _GROUPED_FRAC))
    wanted = min(n_layers or len(step.blocks), len(step.blocks))
    layers = _spaced(len(step.blocks), min(wanted, max(1, affordable // (LEAST_STEPS * per_layer))))
    by_counts = plain and routing.capacity_factor is None and len(layers) < wanted
    if by_counts:
        layers = _spaced(len(step.blocks), wanted)
        n_steps = n_steps or MOST_STEPS // 4
    elif n_steps is None:
        n_steps = int(np.clip(affordable // (per_layer * len(layers)), FEWEST_STEPS, MOST_STEPS))
    apart = _steps_apart(routing, n_steps)
    links = _Links(step)
    states = [_Layer(step, routing, layer, apart, by_counts, links) for layer in layers]
    advance: Callable[[_Layer, int], _Outcome] = _Layer.by_counts if by_counts else _Layer.by_tokens
    outcomes = []
    with ThreadPoolExecutor(min(len(states), os.cpu_count() or 1)) as pool:
        for number in range(n_steps):
            outcomes.append(list(pool.map(advance, states, [number] * len(states))))
    traffic = sum((state.traffic for state in states), np.zeros(1)) / (n_steps * len(states))
    return _summary(step, routing, "counts" if by_counts else "tokens", layers, outcomes, traffic)


def _steps_apart(routing: RoutingAssumption, n_steps: int) -> int:
    """So that ``n_steps`` span two placements and four half-lives: what is simulated stands for a long run."""
    span = max(4.0 * (routing.drift_half_life_steps or 0.0), 2.0 * (routing.rebalance_steps or 0))
    return max(1, round(span / n_steps))


def before_and_after(
    step: RoutingStep, routing: RoutingAssumption, *, n_steps: int | None = None
) -> tuple[RoutingSimulation, RoutingSimulation]:
    """The same tokens with experts in their own order, and as placed; the same object twice where that is one thing."""
    after = simulate_routing(step, routing, n_steps=n_steps)
    if step.n_ranks == 1 or routing == routing.in_order():
        return after, after
    return simulate_routing(step, routing.in_order(), n_steps=after.n_steps), after


def _spaced(n: int, most: int) -> tuple[int, ...]:
    return tuple(np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist())


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One layer of one step."""

    counts: Ints  # (n_experts,) selections
    slot_counts: Ints  # (n_ranks, slots)
    distinct: Ints  # (n_ranks,) experts touched
    sent_inside: Array  # (n_ranks,) copies that a GPU sends over its node's links, those it forwards included
    sent_outside: Array  # (n_ranks,) copies that it sends to other nodes
    sums: Array  # as the kernel's


class _Links:
    """Which of a step's copies take which links: to another node once, to the GPU of the sender's own index there,
    which forwards it to the others.
    """

    def __init__(self, step: RoutingStep) -> None:
        rank = np.arange(step.n_ranks)
        node, local = rank * step.n_nodes // step.n_ranks, rank % max(step.n_ranks // step.n_nodes, 1)
        away = node[:, None] != node[None, :]
        self._inside = np.where(away, local[:, None] != local[None, :], rank[:, None] != rank[None, :])
        self._outside = node[:, None] != np.arange(step.n_nodes)[None, :]

    def sent(self, traffic: Ints, node_traffic: Ints) -> tuple[Array, Array]:
        """Copies sent inside and outside by each GPU, of ``traffic`` (n_ranks, n_ranks) and (n_ranks, n_nodes)."""
        inside = traffic.sum(axis=1, where=self._inside)
        return inside.astype(float), node_traffic.sum(axis=1, where=self._outside).astype(float)


class _Layer:
    """One MoE layer over the steps: its popularity drifts, its balance acts, its experts move."""

    def __init__(
        self, step: RoutingStep, routing: RoutingAssumption, layer: int, apart: int, by_counts: bool, links: _Links
    ) -> None:
        self.step, self.routing, self.layer, self.block = step, routing, layer, step.blocks[layer]
        self.apart = apart  # steps from one that is simulated to the next
        self.links, self.traffic = links, np.zeros((step.n_ranks, step.n_ranks))  # tokens sent so far
        self.selected = by_counts  # whether selection probabilities are needed
        self.course = Course(self.block, routing, layer) if routing.wanders else None
        self.rng = np.random.default_rng((4, routing.seed, layer))
        if self.course is None:
            self.choices = costs.layer_choices(self.block, routing, layer)
            self._put(self.choices.selected.mean(axis=0))
        else:
            self._choose(self.course)
            self._put(self.course.placed_by)

    def _put(self, load: Array) -> None:
        """Place experts by ``load``."""
        self.placed = placement_of(self.block, self.routing, load, self.step.n_ranks, self.step.n_nodes)
        self.slots = Slots.of(self.placed, self.block.n_experts)

    def _choose(self, course: Course) -> None:
        self.choices = costs.with_weights(self.block, self.routing, self.layer, course.weights, selected=self.selected)

    def _learn(self, counts: Ints) -> None:
        """What the balance and the placement see of a step; the time to the next."""
        if self.course is None:
            return
        if self.course.advance(self.apart, counts / max(self.step.n_tokens, 1)):
            self._put(self.course.placed_by)
        self._choose(self.course)

    def by_tokens(self, number: int) -> _Outcome:
        """Route the step token by token."""
        found = self._route(number, self.step.tokens_per_gpu)
        self._learn(found.counts)
        return found

    def _route(self, number: int, tokens_per_gpu: int) -> _Outcome:
        s = self.step
        found = costs.route_tokens(
            self.block, self.routing, self.choices, self.slots, tokens_per_gpu, n_sources=s.n_ranks, n_nodes=s.n_nodes,
            layer=self.layer, step=number,
        )  # fmt: skip
        self.traffic += found.traffic * (s.tokens_per_gpu / tokens_per_gpu)
        return _Outcome(
            found.counts, found.slot_counts, (found.slot_counts > 0).sum(axis=1),
            *self.links.sent(found.traffic, found.node_traffic), found.sums.astype(float),
        )  # fmt: skip

    def by_counts(self, number: int) -> _Outcome:
        """Draw the step's counts at once; traffic is that of a sample of tokens, scaled."""
        s, b = self.step, self.block
        topics = np.random.default_rng((6, self.routing.seed, number))  # the same in all layers
        burst = self.routing.correlation.burst_tokens
        counts = sample_counts(s.n_tokens, self.choices.selected, burst, self.rng, topics)
        sample = min(_SAMPLED_TOKENS, s.tokens_per_gpu)
        few, scale = self._route(number, sample), s.tokens_per_gpu / sample
        copies = np.bincount(self.placed.ravel(), minlength=b.n_experts)
        turn = np.zeros(b.n_experts, np.int64)  # copies are used in turn
        slots = np.zeros(self.placed.size, np.int64)
        for slot, expert in enumerate(self.placed.ravel()):
            slots[slot] = (counts[expert] + turn[expert]) // copies[expert]
            turn[expert] += 1
        by_slot = slots.reshape(self.placed.shape)
        self._learn(counts)
        sums = few.sums * scale
        sums[kernel.N_PAIRS], sums[kernel.N_DROPPED] = counts.sum(), 0.0
        distinct = (by_slot > 0).sum(axis=1)
        return _Outcome(counts, by_slot, distinct, few.sent_inside * scale, few.sent_outside * scale, sums)


def sample_counts(
    n_tokens: int, selected: Array, burst: int, rng: np.random.Generator, topics: np.random.Generator | None = None
) -> Ints:
    """How many of ``n_tokens`` tokens select each expert, shape (n_experts,), drawn at once.

    ``selected`` (n_topics, n_experts): selection probabilities p of one token; their sum k is a whole number except
    with identity experts. Exact for k = 1 (multinomial). Else loads are normal with the exact mean T p and variance
    T p (1 - p), conditioned on their sum (Hajek 1964, Ann. Math. Stat. 35, 1491: rejective sampling), rare experts
    binomial; right in the limit of many tokens. ``topics`` draws the topics (default: ``rng``).
    """
    topics = topics or rng
    n_topics = selected.shape[0]
    whole, rest = divmod(n_tokens, max(burst, 1))
    runs = topics.multinomial(whole, np.full(n_topics, 1.0 / n_topics)) * max(burst, 1)
    if rest:
        runs[int(topics.integers(n_topics))] += rest
    total = np.zeros(selected.shape[1], np.int64)
    for tokens, p in zip(runs, selected, strict=True):
        if tokens:
            total += _independent_counts(int(tokens), p, rng)
    return total


def _independent_counts(n_tokens: int, p: Array, rng: np.random.Generator) -> Ints:
    k = float(p.sum())
    if abs(k - 1.0) < 1e-9:
        return np.asarray(rng.multinomial(n_tokens, p / k), np.int64)
    own = np.maximum(p * (1.0 - p), 0.0)  # variance of one token's choice; p may pass 1 by rounding
    if own.sum() <= 1e-12:
        return np.rint(n_tokens * p).astype(np.int64)
    fixed = abs(k - round(k)) < 1e-6
    wide = _unconditioned(own) if fixed else own
    counts = n_tokens * p + np.sqrt(n_tokens * wide) * rng.standard_normal(p.size)
    rare = n_tokens * own < _BINOMIAL_VARIANCE
    counts[rare] = rng.binomial(n_tokens, np.minimum(p[rare], 1.0))
    if fixed:
        target = round(n_tokens * k)
        counts -= (counts.sum() - target) * wide / wide.sum()
    whole = np.clip(np.rint(counts), 0, n_tokens).astype(np.int64)
    if fixed:  # rounding leaves a few over or short
        short = target - int(whole.sum())
        order = np.argsort(-wide, kind="stable")
        at = 0
        while short:
            e = order[at % order.size]
            change = int(np.sign(short))
            if 0 <= whole[e] + change <= n_tokens:
                whole[e] += change
                short -= change
            at += 1
    return whole


def _unconditioned(own: Array) -> Array:
    """Variances d of independent counts which, given their sum, have the variances ``own``: d (1 - d / sum d) = own."""
    wide = own.copy()
    for _ in range(60):
        wide = own / np.maximum(1.0 - wide / wide.sum(), 0.05)
    return wide


def _spread(values: Array) -> Spread:
    percentiles = (float(p) for p in np.percentile(values, (50.0, 90.0, 95.0, 99.0)))
    return Spread(float(values.mean()), *percentiles, float(values.max()))


def _summary(
    step: RoutingStep,
    routing: RoutingAssumption,
    path: str,
    layers: tuple[int, ...],
    outcomes: list[list[_Outcome]],
    traffic: Array,
) -> RoutingSimulation:
    def over_steps(of_layer: Callable[[_Outcome], float]) -> Array:
        return np.array([np.mean([of_layer(o) for o in row]) for row in outcomes])

    busiest = over_steps(lambda o: o.slot_counts.sum(axis=1).max())
    mean = over_steps(lambda o: o.slot_counts.sum() / step.n_ranks)
    n_tokens = max(step.n_tokens, 1)
    intra, inter = _bytes(step, layers, outcomes)
    return RoutingSimulation(
        name=step.name,
        path=path,
        n_steps=len(outcomes),
        n_layers=len(layers),
        n_tokens=step.n_tokens,
        n_ranks=step.n_ranks,
        n_nodes=step.n_nodes,
        straggler_over_mean=_spread(busiest / np.maximum(mean, 1e-12)),
        expert_max_over_mean=_spread(over_steps(lambda o: o.counts.max() / max(o.counts.mean(), 1e-12))),
        straggler_pairs=_spread(busiest),
        distinct_experts=_spread(over_steps(lambda o: np.count_nonzero(o.counts))),
        distinct_on_straggler=_spread(over_steps(lambda o: o.distinct.max())),
        padding_frac=_spread(over_steps(lambda o: _padding(o, step, routing))),
        dropped_frac=_spread(over_steps(lambda o: o.sums[kernel.N_DROPPED] / max(o.sums[kernel.N_PAIRS], 1.0))),
        lost_token_frac=_spread(over_steps(lambda o: o.sums[kernel.N_LOST_TOKENS] / n_tokens)),
        gpus_per_token=_spread(over_steps(lambda o: o.sums[kernel.N_COPIES] / n_tokens)),
        nodes_per_token=_spread(over_steps(lambda o: o.sums[kernel.N_NODE_COPIES] / n_tokens)),
        intra_node_bytes_per_gpu=_spread(intra),
        inter_node_bytes_per_gpu=_spread(inter),
        traffic_tokens=traffic,
        n_redundant_experts=routing.n_redundant_experts,
    )


def _padding(outcome: _Outcome, step: RoutingStep, routing: RoutingAssumption) -> float:
    """Share of the rows computed that hold no token: tiles, or buffers of full capacity where there is one."""
    kept = outcome.slot_counts.sum()
    if routing.capacity_factor is not None:
        block = step.blocks[0]
        capacity = costs.capacity_tokens(step.tokens_per_gpu, block, routing.capacity_factor)
        rows = block.n_experts * step.n_ranks * capacity
    else:
        rows = (-(-outcome.slot_counts // TILE_ROWS) * TILE_ROWS).sum()
    return float(1.0 - kept / rows) if rows else 0.0


def _bytes(step: RoutingStep, layers: tuple[int, ...], outcomes: list[list[_Outcome]]) -> tuple[Array, Array]:
    """Bytes of dispatch and combine of the busiest sender, inside its node and between nodes, of each step."""
    per_value = step.dispatch_bytes_per_value + step.combine_bytes_per_value
    token_bytes = [
        step.blocks[layer].expert_hidden_size * per_value * len(step.blocks) / len(layers) for layer in layers
    ]
    sent = [
        [sum(b * getattr(o, way) for b, o in zip(token_bytes, row, strict=True)) for row in outcomes]
        for way in ("sent_inside", "sent_outside")
    ]
    intra, inter = (np.max(steps, axis=1) for steps in sent)
    return intra, inter
