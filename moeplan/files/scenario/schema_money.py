"""The money sections of a scenario: price, budget, other costs, energy, lifecycle, alternatives."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, model_validator

from moeplan.files.scenario.schema_types import (
    MOST_USD,
    BudgetLimit,
    Bytes,
    Degree,
    Duration,
    Fraction,
    GpuHourPrice,
    Money,
    MonthlyMoney,
    Number,
    Power,
    Rule,
    Section,
    Text,
    choice,
    one_of,
    quantity,
    reject,
    whole,
)
from moeplan.units import HOUR_S, HOURS_PER_MONTH

MOST_MONTHS = 1200  # of a lifecycle
_MOST_GROWTH = 1e6  # of the demand over its lifecycle
_DATE = re.compile(r"[12][0-9]{3}(-[0-9]{2}(-[0-9]{2})?)?", re.ASCII)


def first_day(text: str) -> date:
    """The first day of ``2026-11-27``, ``2026-11`` or ``2026``. Raises ValueError for anything else."""
    if not _DATE.fullmatch(text):
        raise ValueError(text)
    return date.fromisoformat(text + "-01" * (2 - text.count("-")))


def _check_date(value: Any, _info: ValidationInfo) -> str:
    text = value.isoformat() if isinstance(value, date) else str(value)  # YAML reads 2026-11-27 as a date
    try:
        first_day(text)
    except ValueError:
        raise reject("expected a date", "2026-11-27, 2026-11, 2026") from None
    return text


def _check_electricity(value: Any, info: ValidationInfo) -> float | str:
    """A price, or the name of one in the catalogue."""
    if isinstance(value, str) and value.strip() and value.strip()[0] not in "0123456789+-.$":
        return value.strip()
    rule = quantity("usd_per_energy", least=0.0, most=MOST_USD)
    return float(rule.check(value, info))


Date = Annotated[str, Rule(_check_date, "date, `2026-11-27`", {"type": "string"})]
Electricity = Annotated[
    float | str,
    Rule(_check_electricity, "a price of energy, `0.12 USD/kWh`, or a name in `moeplan catalog prices`",
         {"type": "string"}),
]  # fmt: skip
Discount = Annotated[float, quantity("fraction", least=0.0, most=0.99)]


class OwnFile(Section):
    """Bought hardware: its capital cost month by month, used or not, plus hosting and the electricity it draws."""

    purchase: Money = Field(description="Purchase price per GPU with its share of server and network.")
    lifetime: Duration = Field(description="Time over which the purchase is written off, straight-line.")
    residual: Fraction = Field(default=0.0, description="Share of the price recovered by resale at the end.")
    interest: Annotated[float, quantity("fraction", least=0.0, most=1.0)] = Field(
        default=0.0, description="Interest a year on the capital, repaid as an annuity; 0: own money, no interest."
    )
    electricity: Electricity = Field(description="Price of energy, or the name of one in the catalogue.")
    power: Power | None = Field(
        default=None,
        description="Draw per GPU at full load with its host's share; default: from the profile. "
        "Less is charged when the GPU is less busy.",
    )
    hosting: MonthlyMoney = Field(default=0.0, description="Rack space or colocation, and maintenance, per GPU.")
    date: Date = Field(description="Date of the purchase quote, as far as you know it: 2026-11-27, 2026-11 or 2026.")


class CommitmentFile(Section):
    """Reserved capacity: a lower price for a whole term, paid whether used or not."""

    term: Duration = Field(description="How long is paid for, for example 12 months.")
    discount: Discount = Field(
        default=0.0, description="Off the price above; 0 when that is the reserved price itself."
    )


class PriceFile(Section):
    """What a GPU hour costs: a dated offer of the catalogue, a price of the user's own, or bought hardware."""

    exclusive = ("offer", "per_gpu_hour", "own")
    offer: Text | None = Field(default=None, description="Name in `moeplan catalog prices`.")
    per_gpu_hour: GpuHourPrice | None = Field(
        default=None, description="A price you were quoted; as a section it needs its `date`."
    )
    own: OwnFile | None = Field(default=None, description="Bought hardware.")
    date: Date | None = Field(default=None, description="Date of the quote.")
    term: Annotated[str, choice("on_demand", "spot", "reserved")] = Field(
        default="on_demand", description="Kind of the quoted price."
    )
    gpus_per_instance: Degree = Field(
        default=1, description="Smallest number of GPUs that can be rented (quoted price)."
    )
    commitment: CommitmentFile | None = Field(default=None, description="Reserved or committed capacity.")

    @classmethod
    def shorthand_key(cls, value: Any) -> str | None:
        """A number with a unit is a price; any other text is the name of an offer."""
        return "per_gpu_hour" if str(value)[:1] in tuple("0123456789+-.$") else "offer"

    @model_validator(mode="after")
    def _one(self) -> PriceFile:
        one_of(self, *self.exclusive)
        if self.term == "reserved" and self.commitment is None:
            raise reject("a reserved price needs its term", hint="commitment: {term: 12 months}")
        if self.own is not None and self.commitment is not None:
            raise reject("bought hardware has no commitment")
        return self


class BudgetFile(Section):
    """What may be spent, and by when a training run must end."""

    shorthand = "limit"
    limit: BudgetLimit = Field(
        description="`3000 USD/month` for serving, `60000 USD` for a training run or a lifecycle."
    )
    deadline: Duration | None = Field(default=None, description="Longest wall-clock time of the training run.")


class CostsFile(Section):
    """Money beside the GPUs; nothing by default, and the plan says what is not counted."""

    people: MonthlyMoney = Field(default=0.0, description="Staff.")
    operations: MonthlyMoney = Field(default=0.0, description="Monitoring, support contracts, licences, on-call.")
    storage: MonthlyMoney = Field(default=0.0, description="Datasets, images and whatever else is stored.")
    storage_price: Annotated[float, quantity("usd_per_bytes_month", least=0.0, most=MOST_USD)] = Field(
        default=0.0, description="Price of the bytes the plan knows: weights, and checkpoints of a training run."
    )
    checkpoints_kept: Annotated[int, whole(1, 10_000)] = Field(
        default=1, description="Checkpoints (weights and optimizer state) kept at a time."
    )
    egress: MonthlyMoney = Field(default=0.0, description="Network traffic that is charged as an amount.")
    egress_price: Annotated[float, quantity("usd_per_bytes", least=0.0, most=MOST_USD)] = Field(
        default=0.0, description="Price of the bytes sent to users."
    )
    egress_per_token: Bytes = Field(
        default=250.0,
        description="Bytes sent per output token: one streamed JSON event of an OpenAI-style interface (estimate).",
    )
    experiments: Annotated[float, quantity("fraction", least=0.0, most=100.0)] = Field(
        default=0.0,
        description="Compute around a training run as a share of it: failed runs, ablations, evaluations, search.",
    )
    tax: Annotated[float, quantity("fraction", least=0.0, most=2.0)] = Field(
        default=0.0, description="Share added to everything."
    )


class EnergyFile(Section):
    """Where the machines stand: what surrounds the hardware, and the grid behind it."""

    region: Text = Field(
        default="World", description="Grid: a country code of `moeplan catalog prices` (USA, DEU, FIN), EU or World."
    )
    grid: Annotated[float, quantity("carbon_intensity", least=0.0)] | None = Field(
        default=None, description="Emissions of the energy, instead of the region's average, for example 30 g/kWh."
    )
    pue: Annotated[float, quantity("count", least=1.0, most=5.0)] | None = Field(
        default=None,
        description="Facility power over IT power; default: the world's average, or none where the profile's power "
        "includes cooling.",
    )


class AdoptionFile(Section):
    """An S-curve (logistic) from a first share of users to all of them."""

    start: Annotated[float, quantity("fraction", above=0.0, most=0.49)] = Field(
        description="Share of the full demand on the first day."
    )
    midpoint: Duration = Field(description="When half of the full demand is there.")


class DemandFile(Section):
    """How the traffic's rate changes over the time in service."""

    growth: Annotated[float, quantity("fraction", most=10.0)] = Field(
        default=0.0, description="Growth a month, compounding; negative shrinks, to no less than nothing."
    )
    seasonality: Annotated[float, quantity("fraction", least=0.0)] = Field(
        default=0.0, description="Swing over the year: 20 % is 1.2 times the trend at the peak, 0.8 in the trough."
    )
    peak_month: Annotated[int, whole(1, 12)] = Field(
        default=12, description="Month of service in which the season peaks, the first being 1."
    )
    adoption: AdoptionFile | None = Field(default=None, description="S-curve of adoption.")
    monthly: list[Number] | None = Field(
        default=None, min_length=1, max_length=600,
        description="The rate of each month over the traffic's, instead of the curves; the last one holds on.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _above_zero(self) -> DemandFile:
        what = "demand would shrink below zero"
        if self.growth <= -1.0:
            raise reject(f"growth: {what}", "above -100 % a month")
        if self.seasonality > 1.0:
            raise reject(f"seasonality: {what} in the trough", "at most 100 %")
        if self.monthly is not None:
            if any(factor < 0.0 for factor in self.monthly):
                raise reject(f"monthly: {what}", "factors of zero or more")
            if self.growth or self.seasonality or self.adoption is not None:
                raise reject("monthly takes the place of growth, seasonality and adoption")
        return self


class TrainingPlaceFile(Section):
    """Where a lifecycle trains, when that is not where it serves."""

    hardware: Text | None = Field(default=None, description="Catalogue name or profile path.")
    price: PriceFile | None = Field(default=None, description="As `price`.")


class LifecycleFile(Section):
    """Train once, then serve."""

    duration: Duration = Field(description="Time in service after training.")
    demand: DemandFile | None = Field(
        default=None, description="Forecast of the demand; replicas then follow it. Default: constant, as in `serving`."
    )
    training: TrainingPlaceFile = Field(
        default=TrainingPlaceFile(), description="Hardware and price of the training part."
    )

    @model_validator(mode="after")
    def _within_reason(self) -> LifecycleFile:
        months = self.duration / HOUR_S / HOURS_PER_MONTH
        if months > MOST_MONTHS:
            raise reject("duration: too long", f"at most {MOST_MONTHS} months")
        demand = self.demand
        if demand is not None:
            peak = max(demand.monthly) if demand.monthly is not None else 0.0
            if peak > _MOST_GROWTH or months * math.log1p(demand.growth) > math.log(_MOST_GROWTH):
                raise reject("demand: it would grow beyond a million times the rate of the traffic")
        return self


class AlternativesFile(Section):
    """Rent, buy or API: what the same demand is compared with."""

    api: list[Text] | None = Field(
        default=None, max_length=200, description="Hosted offers; default: all of the catalogue for this model."
    )
    own: OwnFile | None = Field(default=None, description="Buying the same hardware; not compared by default.")
    cached: Fraction = Field(default=0.0, description="Share of input tokens an API would bill at its cached price.")
    batch: Fraction = Field(default=0.0, description="Share of requests that may wait for an API's batch price.")
