"""Field types of the scenario language: quantities with units, counts, names, and the errors they raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moeplan import units
from moeplan.errors import did_you_mean
from moeplan.spec.precision import FORMATS
from moeplan.units import Dimension, UnitError

MAX_COUNT = 10**9
MAX_TEXT = 2000
MOST_USD = 1e15  # of any one amount: sums stay far from where floats end


def reject(what: str, allowed: str = "", hint: str = "") -> PydanticCustomError:
    """A validation error in the three parts of ``errors.Problem``."""
    # braces belong to pydantic's template; the parts travel in the context
    return PydanticCustomError("moeplan", "{what}", {"what": what, "allowed": allowed, "hint": hint})


class Section(BaseModel):
    """A mapping of the scenario file.

    ``shorthand`` is the key a single value stands for ("engine: vllm"). Of the ``exclusive`` keys the one set
    last, in the order base file, file, ``--set``, takes the place of the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    shorthand: ClassVar[str | None] = None
    exclusive: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def expand(cls, value: Any) -> Any:
        """The mapping a shorthand stands for; anything else unchanged."""
        if value is None or isinstance(value, dict | list | BaseModel):
            return value
        key = cls.shorthand_key(value)
        return value if key is None else {key: value}

    @classmethod
    def shorthand_key(cls, _value: Any) -> str | None:
        """The key that a single value in the place of this mapping sets."""
        return cls.shorthand

    @classmethod
    def has_shorthand(cls) -> bool:
        """Whether a single value may stand in the place of this mapping."""
        return cls.shorthand_key("") is not None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return cls.expand(value)


def one_of(section: Section, *keys: str) -> None:
    """Raise unless exactly one of ``keys`` is set."""
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        what = f"only one of these may be set: {', '.join(given)}" if given else "one of these keys is needed"
        raise reject(what, ", ".join(keys))


@dataclass(frozen=True, eq=False)
class Rule:
    """How a single value is read: ``check`` returns it in SI or raises ``reject``; ``json_schema`` describes it."""

    check: Callable[[Any, ValidationInfo], Any]
    words: str  # for the reference page
    json_schema: Mapping[str, Any] = field(default_factory=dict)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return dict(self.json_schema)


def quantity(
    dimension: Dimension, *, least: float | None = None, most: float | None = None, above: float | None = None
) -> Rule:
    """A number with a unit of ``dimension``, in SI, within a range."""
    name, examples = units.describe(dimension)

    def check(value: Any, info: ValidationInfo) -> float:
        currencies: Mapping[str, float] | None = (info.context or {}).get("currencies")
        try:
            number = units.parse(value, dimension, currencies)
        except UnitError as error:
            raise reject(error.what, error.allowed, error.hint) from None
        bound = least if least is not None else above
        if bound is not None and (number < bound or (least is None and number == bound)):
            what = "too small" if bound else ("must not be zero" if number == 0.0 else "must not be negative")
            raise reject(what, f"{'at least' if least is not None else 'above'} {bound:g}")
        if most is not None and number > most:
            hint = "per cent has its sign: 20 %" if dimension == "fraction" and "%" not in str(value) else ""
            raise reject("too large", f"at most {most:g}", hint)
        return number

    bare = dimension in ("tokens", "fraction", "count")
    json_type = {"type": ["string", "number"] if bare else "string", "examples": examples.split(", ")}
    return Rule(check, f"{name}: {examples}", json_type)


def whole(least: int, most: int = MAX_COUNT) -> Rule:
    """A whole number of a range; 4096, "4096", 1e6 and "8K tokens" are the same kind of number."""
    allowed = f"{least} to {most}"

    def check(value: Any, _info: ValidationInfo) -> int:
        try:
            # a float holds 53 bits: an int the user wrote is taken as it is
            exact = isinstance(value, int) and not isinstance(value, bool)
            number = value if exact else units.parse(value, "tokens")
        except UnitError as error:
            raise reject("expected a whole number", allowed, error.hint) from None
        if number != int(number):
            raise reject("expected a whole number", allowed)
        if number < least:
            what = "must not be negative" if number < 0 else ("must not be zero" if number == 0 else "too small")
            raise reject(what, allowed)
        if number > most:
            raise reject("too large", allowed)
        return int(number)

    return Rule(check, f"whole number, {allowed}", {"type": ["integer", "string"], "minimum": least, "maximum": most})


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget: dollars a month, or once."""

    usd: float
    per_month: bool


def _check_limit(value: Any, info: ValidationInfo) -> Limit:
    per_month = isinstance(value, str) and "/" in value
    rule = quantity("usd_per_month" if per_month else "usd", above=0.0, most=MOST_USD)
    return Limit(rule.check(value, info), per_month)


def choice(*names: str) -> Rule:
    """One name out of a few."""

    def check(value: Any, _info: ValidationInfo) -> str:
        if not isinstance(value, str) or value not in names:
            raise reject("unknown value", ", ".join(names), did_you_mean(str(value), names))
        return value

    return Rule(check, "one of " + ", ".join(f"`{name}`" for name in names), {"enum": list(names)})


def _check_text(value: Any, _info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise reject("expected text", hint="quote it")
    if not value.strip():
        raise reject("must not be empty")
    if len(value) > MAX_TEXT:
        raise reject("text too long", f"at most {MAX_TEXT} characters")
    return value.strip()


def _check_flag(value: Any, _info: ValidationInfo) -> bool:
    if not isinstance(value, bool):
        raise reject("expected true or false", "true, false")
    return value


Text = Annotated[str, Rule(_check_text, "text", {"type": "string"})]
Flag = Annotated[bool, Rule(_check_flag, "true or false", {"type": "boolean"})]
Degree = Annotated[int, whole(1, 1_000_000)]
Count = Annotated[int, whole(1)]
CountOrZero = Annotated[int, whole(0)]
Tokens = Annotated[int, whole(1)]
Duration = Annotated[float, quantity("duration", above=0.0)]
DurationOrZero = Annotated[float, quantity("duration", least=0.0)]
Fraction = Annotated[float, quantity("fraction", least=0.0, most=1.0)]
PositiveFraction = Annotated[float, quantity("fraction", above=0.0, most=1.0)]
Rate = Annotated[float, quantity("request_rate", above=0.0)]
Bytes = Annotated[float, quantity("bytes", least=0.0)]
Bandwidth = Annotated[float, quantity("bytes_per_s", above=0.0)]
Power = Annotated[float, quantity("power", above=0.0)]
GpuHourPrice = Annotated[float, quantity("usd_per_gpu_hour", above=0.0, most=MOST_USD)]
Money = Annotated[float, quantity("usd", above=0.0, most=MOST_USD)]
MonthlyMoney = Annotated[float, quantity("usd_per_month", least=0.0, most=MOST_USD)]
Number = Annotated[float, quantity("count")]
WeightFormat = Annotated[str, choice("native", *FORMATS)]
CacheFormat = Annotated[str, choice("auto", "bf16", "fp16", "fp8", "int8", "q8_0", "q4_0", "nvfp4")]
BudgetLimit = Annotated[Limit, Rule(_check_limit, "an amount of money, or one per month", {"type": "string"})]
# exchange rates are read before everything else, by the resolver: every other amount needs them
ExchangeRate = Annotated[object, Rule(lambda value, _info: value, "an amount of money: 1.08 USD", {"type": "string"})]
