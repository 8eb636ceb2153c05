"""The resolved scenario: frozen, SI, nothing unset that a plan needs, an Origin for every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.provenance import Origin
from moeplan.spec.fleet import PLAIN_FLEET, Fleet, PrefillPool
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import Precision
from moeplan.spec.prices import Facility, Market, Money, PriceUsed
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.scaling import ScalingLaw
from moeplan.spec.uncertainty import ModelError
from moeplan.spec.workload import Engine, Reliability, Slo, Traffic, TrainingWork


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving deployment under a traffic."""

    layout: ServingLayout
    precision: Precision
    engine: Engine
    traffic: Traffic
    slo: Slo
    max_context_tokens: int
    fleet: Fleet = PLAIN_FLEET
    prefill: PrefillPool | None = None  # disaggregated: ``layout`` then decodes only

    @property
    def n_gpus(self) -> int:
        """GPUs to begin with, both pools together."""
        return self.layout.n_gpus + (0 if self.prefill is None else self.prefill.layout.n_gpus)


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a step of reinforcement learning makes the sequences it learns from: every prompt at once."""

    serving: Serving
    colocated: bool  # on the GPUs that train, in turn with it; else on GPUs of its own, one step ahead
    reference: bool  # a second forward pass, through the reference model

    @property
    def n_sequences(self) -> int:
        return self.serving.traffic.arrivals.n_requests

    @property
    def n_own_gpus(self) -> int:
        return 0 if self.colocated else self.serving.layout.n_gpus


@dataclass(frozen=True, slots=True)
class Training:
    """A training run; ``later`` holds what comes after its first phase, on as many GPUs."""

    layout: TrainingLayout
    work: TrainingWork
    reliability: Reliability
    rollout: Rollout | None = None
    later: tuple[tuple[TrainingLayout, TrainingWork], ...] = ()

    @property
    def phases(self) -> tuple[tuple[TrainingLayout, TrainingWork], ...]:
        return ((self.layout, self.work), *self.later)

    @property
    def n_gpus(self) -> int:
        """Without spare nodes."""
        return self.layout.n_gpus + (0 if self.rollout is None else self.rollout.n_own_gpus)


@dataclass(frozen=True, slots=True)
class Reference:
    """A published figure the plan is compared with (shown, never used to compute)."""

    quantity: str  # path into the plan JSON, e.g. "training.gpu_hours"
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another way to what the user calls the same quality, under the same traffic and prices."""

    model: ModelArchitecture
    serving: Serving | None
    quality_note: str
    training: Training | None = None  # how this one is trained
    once_usd: float = 0.0  # other money it takes once


@dataclass(frozen=True, slots=True)
class Demand:
    """How a request rate changes over the time in service.

    rate(t) / rate = (1 + growth)^t * share(t) * (1 + seasonality cos(2 pi (t - peak) / 12)), t in months; share(t) is
    the logistic curve through ``adoption_start_frac`` at 0 and one half at ``adoption_midpoint_months``.
    """

    growth_frac_per_month: float
    seasonality_frac: float
    peak_month: int  # counted from 1
    adoption_start_frac: float | None
    adoption_midpoint_months: float | None
    monthly: tuple[float, ...] | None  # factors that take the place of the curves


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question, complete."""

    name: str
    kind: Literal["serving", "training", "lifecycle"]
    seed: int
    model: ModelArchitecture
    hardware: Hardware
    serving: Serving | None
    training: Training | None
    routing: RoutingAssumption  # in service
    training_routing: RoutingAssumption
    money: Money
    lifecycle_months: float | None  # serving months after training
    demand: Demand | None  # lifecycle: None = the traffic's rate throughout
    training_hardware: Hardware | None  # lifecycle: where it differs from ``hardware``
    training_money: Money | None
    comparison: Comparison | None
    references: tuple[Reference, ...]
    model_error: ModelError
    facility: Facility
    market: Market
    as_of: str  # day from which ages of prices are counted
    prices: tuple[PriceUsed, ...]
    scaling_laws: tuple[ScalingLaw, ...]
    origins: Mapping[str, Origin]
