"""Money, energy and advice of a plan: frozen, every estimate with its 90 % interval. Field names are JSON keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.spec.quantity import Q


@dataclass(frozen=True, slots=True)
class CostResult:
    """Money in USD. ``breakdown`` is by purpose: of a month (serving), a run (training), everything (lifecycle).

    Reported amounts are whole cents, and a breakdown adds up to its total to the cent.
    """

    usd_per_hour: Q
    usd_per_month: Q | None
    usd_per_million_output_tokens: Q | None
    total_usd: Q | None
    breakdown: Mapping[str, float]
    idle_usd: Q | None  # of the compute: hours in which nothing ran (serving), or without progress (training)
    not_counted: tuple[str, ...]  # purposes for which the scenario states no money


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the scenario and what the job would cost with it."""

    text: str
    usd: float  # on the basis of the budget


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """``probability_frac`` that the spending stays inside, by ``law``; ``buys`` is what the limit would pay at most."""

    limit_usd: float
    per: str
    used_usd: Q
    fits: bool
    headroom_usd: Q
    probability_frac: float
    law: str
    buys: Mapping[str, float]  # "training_tokens", "requests_per_month", "output_tokens_per_month", "months"
    change: Change | None  # the cheapest change that makes it fit, where it does not


@dataclass(frozen=True, slots=True)
class EnergyResult:
    """Energy at the meter and its emissions, over ``basis``: "month" (serving), "run" (training), "total"."""

    basis: str
    power_w_per_gpu: Q
    kwh: Q
    kgco2e: Q
    kwh_per_million_tokens: Q | None  # output tokens served, or tokens trained on
    kgco2e_per_million_tokens: Q | None
    j_per_token: Q | None
    usd: float  # paid for as electricity; 0 where it is in the rent
    region: str
    gco2e_per_kwh: float
    power_from: str  # what is in the power: the device, its host, cooling
    source: str  # of the grid intensity


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve the demand."""

    kind: str  # "rent", "own", "api"
    name: str
    usd_per_month: Q
    usd_per_million_output_tokens: Q
    price_date: str
    age_days: int | None
    stale: bool
    chosen: bool  # the scenario's own
    break_even_requests_per_month: (
        float | None
    )  # api: from here on the cheapest way of one's own is cheaper; None: never
    note: str


@dataclass(frozen=True, slots=True)
class AtLoad:
    """Cost of a million output tokens at a share of what the deployment can serve, and what is cheapest there."""

    utilization_frac: float
    usd_per_million_output_tokens: float
    cheapest: str


@dataclass(frozen=True, slots=True)
class AlternativesResult:
    """The demand priced by renting, owning and hosted offers. ``options`` are cheapest first within their kind."""

    requests_per_month: float
    input_tokens_per_month: float
    output_tokens_per_month: float
    utilization_frac: Q  # load over the most the deployment could serve, as simulated
    options: tuple[Option, ...]
    n_api_offers: int  # priced; the cheapest are listed
    cheapest: str
    flips_at_utilization_frac: float | None  # of the deployment, against the cheapest hosted offer; None: never
    certain: bool  # the verdict against the cheapest hosted offer holds over the interval of the capacity
    payback_months: float | None  # owning against renting; None: no own hardware stated, or never
    break_even_month: int | None  # lifecycle: first month in which an API would have cost more so far; None: never
    sensitivity: tuple[AtLoad, ...]
    text: str


@dataclass(frozen=True, slots=True)
class LifeMonth:
    """One month in service, the first being 1."""

    month: int
    requests_per_s: float
    replicas: int
    usd: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class LifecycleResult:
    """Train, then serve. ``shares`` is where the money goes."""

    months: float
    training_usd: Q
    serving_usd: Q
    total_usd: Q
    output_tokens: float
    usd_per_million_output_tokens: Q | None  # over life
    requests_per_s_per_replica: float  # the load at which another replica is added
    schedule: tuple[LifeMonth, ...]
    scale_at: Mapping[str, int]  # month -> replicas from then on
    shares: Mapping[str, float]
    other_name: str  # compare_with: the other way to the same quality, "" without one
    other_total_usd: float | None
    cheaper_from_month: int | None  # first month by which the scenario's own way has cost less than the other


@dataclass(frozen=True, slots=True)
class LawAdvice:
    """What one scaling law suggests for the compute; None where the law does not speak of it."""

    law: str
    source: str
    active_params: float | None
    total_params: float | None
    sparsity_frac: float | None
    tokens: float | None
    loss: float | None  # nats per token on the law's own data: not comparable between laws
    own_loss: float | None  # the user's own choice under the same law
    dense_equivalent_params: float | None  # of the user's own model, by a law that states it
    inside_range: bool
    range: str
    spread: str


@dataclass(frozen=True, slots=True)
class AdviceResult:
    """How big for this money. Advice beside the user's own choice, never a promise of quality."""

    training_flop: float  # what the budget pays (without a budget: what the run takes)
    served_tokens: float  # output and input tokens expected in service, weighed against training
    own_active_params: float
    own_total_params: float
    own_tokens: float
    laws: tuple[LawAdvice, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finance:
    """Everything of a plan that is money."""

    cost: CostResult
    budget: BudgetResult | None
    energy: EnergyResult | None
    alternatives: AlternativesResult | None
    lifecycle: LifecycleResult | None
    advice: AdviceResult | None
