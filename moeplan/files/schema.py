"""The scenario file as the user writes it. After validation every quantity is in SI units.

The description of a field is its documentation: ``moeplan schema`` and docs/reference/scenario.md are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from moeplan import units
from moeplan.files.schema_routing import RoutingFile
from moeplan.files.schema_search import OptimizeFile, VariantFile
from moeplan.files.schema_serving import PrecisionFile, ServingFile, ServingLayoutFile
from moeplan.files.schema_training import TrainingFile
from moeplan.files.schema_types import (
    BudgetLimit,
    Degree,
    Duration,
    EnergyPrice,
    ExchangeRate,
    Fraction,
    GpuHourPrice,
    Money,
    MonthlyMoney,
    Number,
    Power,
    Section,
    Text,
    choice,
    one_of,
    quantity,
    reject,
    whole,
)

KINDS = ("serving", "training", "lifecycle")


class OwnFile(Section):
    """Bought hardware: purchase spread over its life, plus electricity."""

    purchase: Money = Field(description="Purchase price per GPU with its share of server and network.")
    lifetime: Duration = Field(description="Time over which the purchase is written off.")
    residual: Fraction = Field(default=0.0, description="Share of the price recovered at the end.")
    electricity: EnergyPrice = Field(description="Price of energy.")
    power: Power | None = Field(
        default=None,
        description="Draw per GPU with its host's share; default: the profile's all-in figure.",
    )
    pue: Annotated[float, quantity("count", least=1.0, most=5.0)] = Field(
        default=1.0, description="Facility power over IT power, applied to `power` when that is stated."
    )
    hosting: MonthlyMoney = Field(default=0.0, description="Rack space and maintenance per GPU.")


class PriceFile(Section):
    """What a GPU hour costs: a dated offer of the catalogue, a price of the user's own, or bought hardware."""

    exclusive = ("offer", "per_gpu_hour", "own")
    offer: Text | None = Field(default=None, description="Name in `moeplan catalog prices`.")
    per_gpu_hour: GpuHourPrice | None = Field(default=None, description="A price you were quoted.")
    own: OwnFile | None = Field(default=None, description="Bought hardware.")
    date: Text | None = Field(default=None, description="Date of the quote.")
    term: Annotated[str, choice("on_demand", "spot")] = Field(
        default="on_demand", description="Kind of the quoted price."
    )
    gpus_per_instance: Degree = Field(
        default=1, description="Smallest number of GPUs that can be rented (quoted price)."
    )

    @classmethod
    def shorthand_key(cls, value: Any) -> str | None:
        """A number with a unit is a price; any other text is the name of an offer."""
        return "per_gpu_hour" if str(value)[:1] in tuple("0123456789+-.$") else "offer"

    @model_validator(mode="after")
    def _one(self) -> PriceFile:
        one_of(self, *self.exclusive)
        return self


class BudgetFile(Section):
    """What may be spent, and by when a training run must end."""

    shorthand = "limit"
    limit: BudgetLimit = Field(
        description="`3000 USD/month` for serving, `60000 USD` for a training run or a lifecycle."
    )
    deadline: Duration | None = Field(default=None, description="Longest wall-clock time of the training run.")


class CostsFile(Section):
    """Money beside the GPUs; nothing by default."""

    people: MonthlyMoney = Field(default=0.0, description="Staff.")
    storage: MonthlyMoney = Field(default=0.0, description="Checkpoints, datasets, images.")
    egress: MonthlyMoney = Field(default=0.0, description="Network traffic that is charged.")
    tax: Annotated[float, quantity("fraction", least=0.0, most=2.0)] = Field(
        default=0.0, description="Share added to everything."
    )


class TrainingPlaceFile(Section):
    """Where a lifecycle trains, when that is not where it serves."""

    hardware: Text | None = Field(default=None, description="Catalogue name or profile path.")
    price: PriceFile | None = Field(default=None, description="As `price`.")


class LifecycleFile(Section):
    """Train once, then serve."""

    duration: Duration = Field(description="Time in service after training.")
    training: TrainingPlaceFile = Field(
        default=TrainingPlaceFile(), description="Hardware and price of the training part."
    )


class CompareFile(Section):
    """Another model that the user states to be in the same quality class, under the same traffic and price."""

    model: Text = Field(description="Catalogue name or path of a Hugging Face config.json.")
    quality_note: Text = Field(description="Why the two are called equal, with a source.")
    precision: PrecisionFile | None = Field(default=None, description="Default: as `serving.precision`.")
    layout: ServingLayoutFile | None = Field(
        default=None, description="Default: as `serving.layout`, without ep for dense models."
    )


class ReferenceFile(Section):
    """A published figure shown beside the plan's."""

    quantity: Text = Field(description="Path in the plan's JSON, for example training.gpu_hours.")
    value: Number = Field(description="The figure in the unit of that path.")
    source: Text = Field(description="Where it is published.")


class ScenarioFile(Section):
    """One question about cost and capacity."""

    name: Text | None = Field(default=None, description="Name in reports; default: the file's name.")
    description: Text | None = Field(default=None, description="The decision behind it, for readers.")
    extends: Text | None = Field(
        default=None, description="Another scenario in this folder or below whose values this one changes."
    )
    kind: Annotated[str, choice(*KINDS)] | None = Field(
        default=None, description="Default: told by the sections present."
    )
    seed: Annotated[int, whole(0, 2**63 - 1)] = Field(default=0, description="Seed of everything random.")
    model: Text = Field(description="Catalogue name or path of a Hugging Face config.json.")
    hardware: Text = Field(description="Catalogue name or path of a profile.")
    gpus: Degree | None = Field(default=None, description="GPUs there are; the layout may not need more.")
    serving: ServingFile | None = Field(default=None, description="A deployment to plan.")
    training: TrainingFile | None = Field(default=None, description="A training run to plan.")
    routing: RoutingFile = Field(default=RoutingFile(), description="Expert popularity.")
    price: PriceFile | None = Field(
        default=None,
        description="Price of a GPU hour. Needed: no price is assumed; without one `check` lists the known offers.",
    )
    budget: BudgetFile | None = Field(default=None, description="Spending limit.")
    costs: CostsFile = Field(default=CostsFile(), description="Other costs.")
    lifecycle: LifecycleFile | None = Field(default=None, description="Train, then serve.")
    compare_with: CompareFile | None = Field(default=None, description="A second model at equal quality.")
    optimize: OptimizeFile = Field(default=OptimizeFile(), description="What `moeplan optimize` may choose.")
    variants: list[VariantFile] = Field(
        default_factory=list, max_length=100, description="Ways to do the same work that `moeplan compare` ranks."
    )
    references: list[ReferenceFile] = Field(default_factory=list, max_length=100, description="Published figures.")
    exchange_rates: dict[str, ExchangeRate] = Field(
        default_factory=dict, description="Value of one unit of another currency, for example {EUR: 1.08 USD}."
    )

    @field_validator("exchange_rates", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise reject("expected a mapping of currency codes to rates", "{EUR: 1.08 USD}")
        return value


def parse_exchange_rate(code: str, text: object) -> float:
    """US dollars per unit of a currency. Raises units.UnitError."""
    if len(code) != 3 or not code.isascii() or not code.isupper() or code == "USD":
        raise units.UnitError("not a currency code", "three capitals other than USD, for example EUR")
    rate = units.parse(text, "usd")
    if rate <= 0.0:
        raise units.UnitError("an exchange rate must be above zero")
    return rate
