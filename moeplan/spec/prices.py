"""Dated prices and the rules of a budget, in US dollars; other currencies are converted at the scenario's rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.provenance import Source

Term = Literal["on_demand", "spot", "reserved", "own"]


@dataclass(frozen=True, slots=True)
class Offer:
    """A GPU hour at a dated price. Bought hardware has no hourly rent: its cost is in `Ownership`."""

    name: str  # "runpod/h200-sxm/on-demand", or "scenario" for the user's own
    hardware: str  # slug
    usd_per_gpu_hour: float
    n_gpus_per_instance: int  # smallest unit that can be rented
    term: Term
    price_date: str  # ISO date as far as it is known, "" for a price of the scenario without one
    source: Source


@dataclass(frozen=True, slots=True)
class ApiOffer:
    """A hosted model priced per token. None: the provider lists no such price."""

    name: str
    model: str
    usd_per_input_token: float
    usd_per_output_token: float
    price_date: str
    source: Source
    usd_per_cached_input_token: float | None = None
    usd_per_batch_input_token: float | None = None
    usd_per_batch_output_token: float | None = None


@dataclass(frozen=True, slots=True)
class Commitment:
    """Capacity paid for over a whole term, used or not, at a discount on the offer's price."""

    term_months: float
    discount_frac: float


@dataclass(frozen=True, slots=True)
class Ownership:
    """Bought hardware, per GPU with its share of server and network."""

    purchase_usd: float
    lifetime_months: float
    resale_frac: float  # of the purchase price at the end of the lifetime
    interest_frac_per_year: float  # nominal, compounded monthly; on the money bound in the hardware
    hosting_usd_per_month: float
    usd_per_j: float  # electricity
    power_w: float | None  # at the GPU's power limit with the host's share; None: from the profile
    purchase_date: str


@dataclass(frozen=True, slots=True)
class Facility:
    """Where the energy goes and what it emits."""

    pue: float  # facility power over IT power
    pue_stated: bool  # the user stated it: where only all-in power is known, that includes cooling and needs none
    region: str  # of the grid
    kgco2e_per_j: float
    source: Source  # of the grid intensity


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent, and over which time."""

    limit_usd: float
    per: Literal["month", "run", "total"]
    deadline_s: float | None  # wall time for a training run


@dataclass(frozen=True, slots=True)
class Money:
    """Everything that turns hours, joules and bytes into dollars."""

    offer: Offer
    storage_usd_per_month: float
    egress_usd_per_month: float
    people_usd_per_month: float
    tax_frac: float
    hours_per_month: float
    budget: Budget | None
    operations_usd_per_month: float = 0.0
    storage_usd_per_month_per_byte: float = 0.0
    egress_usd_per_byte: float = 0.0
    egress_bytes_per_token: float = 0.0  # sent to the user per output token
    n_checkpoints_kept: int = 1
    experiments_frac: float = 0.0  # compute around a training run, as a share of the run
    commitment: Commitment | None = None
    ownership: Ownership | None = None


@dataclass(frozen=True, slots=True)
class PriceUsed:
    """A price a plan rests on, with how old it is on the scenario's day."""

    what: str  # "GPU hour", "hosted model", "electricity", "purchase"
    name: str
    price_date: str
    age_days: int | None  # None: undated
    stale: bool


@dataclass(frozen=True, slots=True)
class Market:
    """What the same demand could be served by instead: dated offers for this hardware and this model."""

    offers: tuple[Offer, ...]  # for the scenario's hardware, on demand first
    api_offers: tuple[ApiOffer, ...]  # for the scenario's model, or those named
    ownership: Ownership | None  # bought hardware to compare with, where the scenario states one
    cached_frac: float  # share of input tokens an API would bill as cached
    batch_frac: float  # share of requests that may wait for a batch
    why_no_api: str  # "" where there are offers

    def rentable(self, n_gpus_together: int, n_gpus_per_node: int) -> tuple[Offer, ...]:
        """On-demand offers whose instances hold GPUs that must work together, as far as one machine holds them."""
        least = min(n_gpus_together, n_gpus_per_node)
        return tuple(o for o in self.offers if o.term == "on_demand" and o.n_gpus_per_instance >= least)
