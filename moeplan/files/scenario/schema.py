"""The scenario file as the user writes it. After validation every quantity is in SI units.

The description of a field is its documentation: ``moeplan schema`` and docs/reference/scenario.md are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from moeplan import units
from moeplan.files.scenario.schema_money import (
    AlternativesFile,
    BudgetFile,
    CostsFile,
    Date,
    EnergyFile,
    LifecycleFile,
    PriceFile,
)
from moeplan.files.scenario.schema_routing import RoutingFile
from moeplan.files.scenario.schema_search import OptimizeFile, VariantFile
from moeplan.files.scenario.schema_serving import PrecisionFile, ServingFile, ServingLayoutFile
from moeplan.files.scenario.schema_training import TrainingFile
from moeplan.files.scenario.schema_types import (
    Degree,
    ExchangeRate,
    Flag,
    Number,
    Section,
    Text,
    choice,
    quantity,
    reject,
    whole,
)

KINDS = ("serving", "training", "lifecycle")


class CompareFile(Section):
    """Another way to the same quality, as the user states: another model, or another route to it."""

    model: Text = Field(description="Catalogue name or path of a Hugging Face config.json.")
    quality_note: Text = Field(description="Why the two are called equal, with a source.")
    precision: PrecisionFile | None = Field(default=None, description="Default: as `serving.precision`.")
    layout: ServingLayoutFile | None = Field(
        default=None, description="Default: as `serving.layout`, without ep for dense models."
    )
    training: TrainingFile | None = Field(
        default=None,
        description="How this one is trained (from scratch, upcycled, distilled); default: as `training`.",
    )
    once: Annotated[float, quantity("usd", least=0.0)] = Field(
        default=0.0, description="Other money this route takes once: a teacher's inference, a bought checkpoint."
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
    alternatives: AlternativesFile = Field(default=AlternativesFile(), description="Rent, buy or API.")
    energy: EnergyFile = Field(default=EnergyFile(), description="Power, grid and emissions.")
    as_of: Date | None = Field(
        default=None, description="Day from which the age of prices is counted; default: today (SOURCE_DATE_EPOCH)."
    )
    strict_prices: Flag = Field(default=False, description="A price older than 90 days, or undated, is an error.")
    compare_with: CompareFile | None = Field(default=None, description="A second model at equal quality.")
    optimize: OptimizeFile = Field(default=OptimizeFile(), description="What `moeplan optimize` may choose.")
    variants: list[VariantFile] = Field(
        default_factory=list, max_length=100, description="Ways to do the same work that `moeplan compare` ranks."
    )
    calibration: Text | list[Text] = Field(
        default_factory=list, description="Files that `moeplan calibrate` wrote: own runs, or operations of own tables."
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
