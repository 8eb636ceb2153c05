"""Popularity of experts: the weights of a layer, its topics, and how both wander over the steps of a long run.

``docs/method/routing.md`` has the laws and where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moeplan.spec.model import MoeMlp
from moeplan.spec.routing import Correlation, Popularity, RoutingAssumption

Array = npt.NDArray[np.float64]

_SALT = {"popularity": 1, "topic": 2, "hash": 3, "course": 5}
_TINY = 1e-12
_WINDOWS = 8  # moments at which popularity is looked at between two placements, or in a half-life
_MOST_MOMENTS = 1_000  # between two questions
_CONTROL_MOVE = 0.01  # of a log weight, that a controller makes at once
_N_STATES = 2  # of a course that stand for a long run


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


class Course:
    """How the popularity of one layer wanders: drift, a balancing controller that acts on it, and re-placements.

    Log weights follow a stationary autoregression of first order, exact over any number of steps. A controller sees the
    loads of a step and moves the log weights against them. Experts are placed by the loads since the last placement.
    A ``settled`` course no longer remembers its start, nor does a placement that was made once; ``path`` tells apart
    courses from one start.
    """

    def __init__(
        self, block: MoeMlp, routing: RoutingAssumption, layer: int, *, settled: bool = True, path: int = 0
    ) -> None:
        self.routing, self._top_k, self._n_experts = routing, block.top_k, block.n_experts
        weights = layer_weights(block, routing, layer)
        log = np.log(np.maximum(weights, 1e-300))
        self._log = log - log.mean()
        self._spread = float(self._log.std())
        self._bias = np.zeros(log.size)
        self._rng = np.random.default_rng((_SALT["course"], routing.seed, layer, path))
        self._hashed = None
        if routing.router == "hash":
            self._hashed = hash_tables(routing.n_token_ids, block.n_experts, block.top_k, routing.seed, layer)
        self.still = not routing.wanders or self._spread < _TINY
        self.placed_by = self.expected_load()
        self._seen = np.zeros(block.n_experts)
        self._since = 0  # steps since the last placement
        if settled:
            every = routing.rebalance_steps or 1
            self.advance(every * (1 + -(-_settling_steps(routing, self._spread) // every)))

    @property
    def weights(self) -> Array:
        """Weights now, shape (n_choices,), summing to 1."""
        weights = np.exp(self._log + self._bias)
        return np.asarray(weights / weights.sum())

    def expected_load(self) -> Array:
        """Selections of each expert per token, shape (n_experts,), good to a few per cent: 1 - exp(-w t) that add up to
        k (Rosen 1997).
        """
        weights = self.weights
        if self._hashed is not None:
            load = np.bincount(self._hashed.ravel(), np.repeat(weights, self._top_k), self._n_experts)
            return np.asarray(load, np.float64)
        t = float(self._top_k)
        for _ in range(20):  # Newton's rule from below, on a concave function
            miss = np.exp(-weights * t)
            step = (self._top_k - (1.0 - miss).sum()) / max((weights * miss).sum(), _TINY)
            t += step
            if abs(step) < 1e-6 * t:
                break
        return np.asarray(-np.expm1(-weights[: self._n_experts] * t))

    def advance(self, n_steps: int, observed: Array | None = None) -> bool:
        """Let ``n_steps`` pass; whether experts were placed anew.

        ``observed`` (n_experts,): selections per token in the first of them; expected loads stand for the others.
        """
        if self.still or n_steps == 0:
            return False
        placed, every = False, self.routing.rebalance_steps
        if observed is not None:
            placed, n_steps = self._count(observed, 1), n_steps - 1
        if every is not None:
            unseen = n_steps - (self._since + n_steps) % every - every  # before the window of the last placement
            if unseen > 0:
                for n in _pieces(unseen, self._moment(unseen)):
                    self._move(self.expected_load(), n)
                self._seen[:], self._since, n_steps = 0.0, 0, n_steps - unseen
        moment = self._moment(n_steps)
        while n_steps:
            n = min(n_steps, moment if every is None else min(moment, every - self._since))
            placed |= self._count(self.expected_load(), n)
            n_steps -= n
        return placed

    def mean_load(self, n_steps: int) -> Array:
        """Let ``n_steps`` pass; selections of each expert per token in them."""
        before = self._seen.copy()
        self.advance(n_steps)
        return np.asarray((self._seen - before) / n_steps) if not self.still else self.expected_load()

    def _count(self, load: Array, n: int) -> bool:
        """``n`` steps of this load per token pass, at the end of which experts may be due for a placement."""
        self._seen += n * load
        self._since += n
        self._move(load, n)
        if self._since != self.routing.rebalance_steps:
            return False
        self.placed_by, self._seen, self._since = self._seen, np.zeros_like(self._seen), 0
        return True

    def _move(self, load: Array, n: int) -> None:
        self._control(load, n)
        self._drift(n)

    def _moment(self, n_steps: int) -> int:
        """Steps of ``n_steps`` that may pass at once: few against whatever changes."""
        r = self.routing
        spans = [s for s in (r.drift_half_life_steps, r.rebalance_steps) if s is not None]
        if r.balance != "none" and r.balance_rate > 0.0:
            spans.append(_WINDOWS * _CONTROL_MOVE / r.balance_rate)
        return max(1, int(min(spans, default=1.0) / _WINDOWS), n_steps // _MOST_MOMENTS)

    def _drift(self, n: int) -> None:
        if self.routing.drift_half_life_steps is None:
            return
        keep = 0.5 ** (n / self.routing.drift_half_life_steps)
        noise = np.sqrt(1.0 - keep**2) * self._spread * self._rng.standard_normal(self._log.size)
        self._log = keep * self._log + noise

    def _control(self, load: Array, n: int) -> None:
        r = self.routing
        if r.balance == "none":
            return
        excess = load / max(load.mean(), _TINY) - 1.0
        if r.balance == "aux_loss":
            change = (1.0 - max(0.0, 1.0 - r.balance_rate) ** n) * excess
        else:  # a step of the rate against the sign; many steps do not run past the aim
            change = np.sign(excess) * np.minimum(n * r.balance_rate, np.maximum(np.abs(excess), r.balance_rate))
        self._bias[: change.size] -= change


def _settling_steps(routing: RoutingAssumption, spread: float) -> int:
    """Steps after which a course has forgotten how it began."""
    steps = 8.0 * (routing.drift_half_life_steps or 0.0)
    if routing.balance == "aux_loss" and routing.balance_rate > 0.0:
        steps = max(steps, 6.0 / routing.balance_rate)
    elif routing.balance == "loss_free" and routing.balance_rate > 0.0:
        steps = max(steps, 4.0 * spread / routing.balance_rate)
    return max(1, round(steps))


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A moment of a long run: the weights (n_choices,), and the load (n_experts,) that experts were placed by."""

    weights: Array
    placed_by: Array | None  # None: by the popularity of the moment


@lru_cache(maxsize=1024)
def long_run(block: MoeMlp, routing: RoutingAssumption, layer: int) -> tuple[State, ...]:
    """States of a layer that stand for a long run: one where nothing wanders, else at even ages of a placement."""
    weights = layer_weights(block, routing, layer)
    if routing.balance != "none":
        return _controlled_run(block, routing, layer)
    if routing.drift_half_life_steps is None or not routing.placed_by_load:
        return (State(weights, None),)  # drift is stationary: all moments are alike
    every = routing.rebalance_steps
    oldest = _settling_steps(routing, 1.0)
    ages = [1 + int((i + 0.5) / _N_STATES * every) if every else oldest for i in range(_N_STATES)]
    # Drift is reversible in time: the past that a placement saw is distributed as the future of the present weights.
    seen = []
    for i, age in enumerate(ages):
        course = Course(block, replace(routing, rebalance_steps=None), layer, settled=False, path=i)
        course.advance(age)
        seen.append(course.mean_load(every or 1))
    return tuple(State(weights, load) for load in seen)


def _controlled_run(block: MoeMlp, routing: RoutingAssumption, layer: int) -> tuple[State, ...]:
    course = Course(block, routing, layer)
    every = routing.rebalance_steps or 1
    apart = every * -(-round(routing.drift_half_life_steps or 1.0) // every)
    found = []
    for i in range(_N_STATES):
        age = int((i + 0.5) / _N_STATES * every)
        course.advance(age)
        found.append(State(course.weights, course.placed_by))
        course.advance(apart - age)
    return tuple(found)


def _pieces(n_steps: int, most: int) -> list[int]:
    whole, rest = divmod(n_steps, most)
    return [most] * whole + [rest] * (rest > 0)
