"""How tokens choose experts, and where experts lie: what routing is assumed to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Law: TypeAlias = Literal["uniform", "zipf", "dirichlet", "lognormal", "histogram"]
Placement: TypeAlias = Literal["contiguous", "round_robin", "greedy", "hierarchical"]


@dataclass(frozen=True, slots=True)
class Popularity:
    """Weights with which tokens choose experts; each layer has its own draw of a law, or its own row of a histogram.

    ``value``: Zipf exponent; concentration of the Dirichlet; standard deviation of the log-normal's logarithm, of which
    ``group_spread`` is shared by the experts of a gate's group (root of the variance).
    """

    law: Law
    value: float = 0.0
    group_spread: float = 0.0
    histogram: tuple[tuple[float, ...], ...] = ()  # (n_layers or 1, n_experts) selections, for law histogram


@dataclass(frozen=True, slots=True)
class Correlation:
    """Runs of ``burst_tokens`` tokens share one of ``n_topics`` topics, each with preferences of its own.

    ``spread``: standard deviation of the log of a topic's preference for an expert; the mean over topics is the
    popularity.
    """

    n_topics: int = 1
    spread: float = 0.0
    burst_tokens: int = 1


@dataclass(frozen=True, slots=True)
class RoutingAssumption:
    """Everything about routing that is not in the model: popularity, dropping, drift, placement."""

    zipf_exponent: float  # of expert popularity, rank^-exponent in a random order per layer; 0 = uniform
    note: str  # where the assumption comes from
    popularity: Popularity | None = None  # another law in place of Zipf's
    router: Literal["top_k", "expert_choice", "hash"] = "top_k"
    capacity_factor: float | None = None  # pairs an expert takes over its even share; None: nothing is dropped
    drop: Literal["order", "priority"] = "order"
    correlation: Correlation = field(default_factory=Correlation)
    drift_half_life_steps: float | None = None  # steps after which half of the popularity's logarithm is new
    balance: Literal["none", "aux_loss", "loss_free"] = "none"  # controller that acts on popularity every step
    balance_rate: float = 0.0
    placement: Placement = "contiguous"
    placement_map: tuple[tuple[int, ...], ...] | None = None  # experts of each GPU, in place of ``placement``
    n_redundant_experts: int = 0  # slots beyond one per expert
    rebalance_steps: int | None = None  # steps between placements under drift; None: placed once
    n_token_ids: int = 0  # vocabulary, for the hash router
    seed: int = 0

    @property
    def law(self) -> Popularity:
        """The popularity law in force."""
        if self.popularity is not None:
            return self.popularity
        return Popularity("zipf", self.zipf_exponent) if self.zipf_exponent else Popularity("uniform")

    @property
    def wanders(self) -> bool:
        """Whether popularity changes from step to step."""
        return self.drift_half_life_steps is not None or self.balance != "none"

    @property
    def placed_by_load(self) -> bool:
        """Whether the placement depends on the experts' loads."""
        return self.placement_map is None and self.placement in ("greedy", "hierarchical")

    def in_order(self) -> RoutingAssumption:
        """The same with experts placed in their own order, without copies."""
        return replace(self, placement="contiguous", placement_map=None, n_redundant_experts=0, rebalance_steps=None)

    def one_by_one(self) -> RoutingAssumption:
        """The same for tokens that do not follow each other: each has a topic of its own."""
        return replace(self, correlation=replace(self.correlation, burst_tokens=1))

    def with_skew(self, factor: float) -> RoutingAssumption:
        """The same with popularity's logarithm times ``factor``: 0 is uniform, 1 unchanged."""
        law = self.law
        if factor == 1.0 or law.law == "uniform":
            return self
        match law.law:
            case "zipf" | "lognormal":
                scaled = Popularity(law.law, law.value * factor, law.group_spread * factor)
            case "dirichlet":  # its coefficient of variation is concentration^-1/2
                scaled = Popularity(law.law, law.value / factor**2) if factor else Popularity("uniform")
            case "histogram":
                rows = tuple(tuple(max(count, 0.5) ** factor for count in row) for row in law.histogram)
                scaled = Popularity(law.law, histogram=rows)
        return replace(self, popularity=scaled)


BALANCED = RoutingAssumption(0.0, "uniform popularity, independent tokens")
