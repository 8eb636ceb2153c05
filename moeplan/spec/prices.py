"""Dated prices and the rules of a budget, in US dollars; other currencies are converted at the scenario's rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.provenance import Source


@dataclass(frozen=True, slots=True)
class Offer:
    """A rented GPU hour at a dated price."""

    name: str  # "runpod/h200-sxm/on-demand", or "scenario" for the user's own
    hardware: str  # slug
    usd_per_gpu_hour: float
    n_gpus_per_instance: int  # smallest unit that can be rented
    term: Literal["on_demand", "spot", "own"]
    price_date: str
    source: Source


@dataclass(frozen=True, slots=True)
class ApiOffer:
    """A hosted model priced per token."""

    name: str
    model: str
    usd_per_input_token: float
    usd_per_output_token: float
    price_date: str
    source: Source


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent, and over which time."""

    limit_usd: float
    per: Literal["month", "run", "total"]
    deadline_s: float | None  # wall time for a training run


@dataclass(frozen=True, slots=True)
class Money:
    """Everything that turns GPU hours into dollars."""

    offer: Offer
    storage_usd_per_month: float
    egress_usd_per_month: float
    people_usd_per_month: float
    tax_frac: float
    hours_per_month: float
    budget: Budget | None
