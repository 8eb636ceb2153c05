"""The resolved scenario: frozen, SI, nothing unset that a plan needs, an Origin for every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.provenance import Origin
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import Precision
from moeplan.spec.prices import Money
from moeplan.spec.routing import RoutingAssumption
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


@dataclass(frozen=True, slots=True)
class Training:
    """A training run."""

    layout: TrainingLayout
    work: TrainingWork
    reliability: Reliability


@dataclass(frozen=True, slots=True)
class Reference:
    """A published figure the plan is compared with (shown, never used to compute)."""

    quantity: str  # path into the plan JSON, e.g. "training.gpu_hours"
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another model the user calls equal in quality, served under the same traffic and prices."""

    model: ModelArchitecture
    serving: Serving
    quality_note: str


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
    training_hardware: Hardware | None  # lifecycle: where it differs from ``hardware``
    training_money: Money | None
    comparison: Comparison | None
    references: tuple[Reference, ...]
    model_error: ModelError
    origins: Mapping[str, Origin]
