"""Human quantities to SI floats and back: ``parse("80 GB", "bytes") == 8e10``.

Every quantity of a file is a number and a unit in one string. A unit is never assumed; the only dimensions whose
plain number has a meaning are counts ("tokens", "count") and fractions. Decimal prefixes are powers of 1000 ("GB"),
binary ones powers of 1024 ("GiB"); capital B is byte, small b is bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal, get_args

Dimension = Literal[
    "bytes",
    "bytes_per_s",
    "memory_bytes_per_s",
    "duration",
    "request_rate",
    "token_rate",
    "tokens",
    "usd",
    "usd_per_hour",
    "usd_per_gpu_hour",
    "usd_per_month",
    "usd_per_token",
    "usd_per_energy",
    "usd_per_bytes",
    "usd_per_bytes_month",
    "carbon_intensity",
    "power",
    "energy",
    "fraction",
    "flop_rate",
    "frequency",
    "count",
]

HOURS_PER_MONTH = 730.0  # 8760 h / 12, the convention of cloud price lists
HOUR_S = 3600.0
DAY_S = 86400.0
_MONTH_S = HOURS_PER_MONTH * HOUR_S
_MAX_CHARS = 80

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SHORT = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

_BYTES = {p + "B": f for p, f in (_DECIMAL | _BINARY).items()}
_BITS = {p + b: f / 8.0 for p, f in (_DECIMAL | _BINARY).items() for b in ("b", "bit")}
_BYTE_RATE = {u + "/s": f for u, f in _BYTES.items()}
_BIT_RATE = {u + "/s": f for u, f in _BITS.items()} | {p + "bps": f / 8.0 for p, f in _DECIMAL.items()}
_DURATION = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": HOUR_S,
    "d": DAY_S, "day": DAY_S, "days": DAY_S, "week": 604800.0, "weeks": 604800.0,
    "month": _MONTH_S, "months": _MONTH_S, "year": 12 * _MONTH_S, "years": 12 * _MONTH_S,
}  # fmt: skip
_PER = {"s": 1.0, "min": 60.0, "h": HOUR_S, "d": DAY_S, "day": DAY_S, "month": _MONTH_S, "year": 12 * _MONTH_S}
_TOKEN_COUNT = {"": 1.0, "token": 1.0, "tokens": 1.0} | {
    p + w: f for p, f in _SHORT.items() for w in ("", "tokens", " tokens")
}
_MONEY = {"USD": 1.0, "kUSD": 1e3, "MUSD": 1e6}
_MONEY_RATE_PER_S = {f"USD/{t}": 1.0 / s for t, s in _PER.items() if t not in ("s", "min")}
_PER_GPU = {u.replace("/", basis): f for u, f in _MONEY_RATE_PER_S.items() for basis in ("/", "/GPU/", "/GPU-")}

_UNITS: dict[Dimension, dict[str, float]] = {
    "bytes": _BYTES,
    "bytes_per_s": _BYTE_RATE | _BIT_RATE,
    "memory_bytes_per_s": _BYTE_RATE,
    "duration": _DURATION,
    "request_rate": {f"{w}/{t}": 1.0 / s for t, s in _PER.items() for w in ("req", "requests", "", "1")},
    "token_rate": {f"{p}{w}/{t}": f / s for p, f in _SHORT.items() | {("", 1.0)} for w in ("tokens", "tok")
                   for t, s in _PER.items()},
    "tokens": _TOKEN_COUNT,
    "usd": _MONEY,
    "usd_per_hour": {u: f * HOUR_S for u, f in _MONEY_RATE_PER_S.items()},
    "usd_per_gpu_hour": {u: f * HOUR_S for u, f in _PER_GPU.items()},
    "usd_per_month": {u: f * _MONTH_S for u, f in _MONEY_RATE_PER_S.items()},
    "usd_per_token": {"USD/token": 1.0, "USD/Mtokens": 1e-6, "USD/M tokens": 1e-6, "USD/1M tokens": 1e-6},
    "usd_per_energy": {"USD/kWh": 1.0 / 3.6e6, "USD/MWh": 1.0 / 3.6e9},
    "usd_per_bytes": {f"USD/{u}": 1.0 / f for u, f in _BYTES.items() if u != "B"},
    "usd_per_bytes_month": {f"USD/{u}/month": 1.0 / f for u, f in _BYTES.items() if u != "B"},
    "carbon_intensity": {f"{m}/{e}": g / j for m, g in (("g", 1e-3), ("gCO2e", 1e-3), ("kg", 1.0), ("kgCO2e", 1.0))
                         for e, j in (("kWh", 3.6e6), ("MWh", 3.6e9))},
    "power": {p + "W": f for p, f in _DECIMAL.items()},
    "energy": {p + "J": f for p, f in _DECIMAL.items()} | {p + "Wh": f * 3600.0 for p, f in _DECIMAL.items()},
    "fraction": {"": 1.0, "%": 0.01},
    "flop_rate": {p + "FLOP/s": f for p, f in (_DECIMAL | {"E": 1e18}).items()},
    "frequency": {p + "Hz": f for p, f in _DECIMAL.items()},
    "count": {"": 1.0},
}  # fmt: skip

# What a message shows: the name of the dimension and spellings to copy.
_NAMES: dict[Dimension, tuple[str, str]] = {
    "bytes": ("a size in bytes", "80 GB, 80 GiB, 512 MB"),
    "bytes_per_s": ("a bandwidth", "50 GB/s, 400 Gb/s"),
    "memory_bytes_per_s": ("a bandwidth in bytes", "3.35 TB/s, 936 GB/s"),
    "duration": ("a duration", "50 ms, 2 s, 5 min, 3 h, 30 d, 12 months"),
    "request_rate": ("a request rate", "4 req/s, 90 req/min"),
    "token_rate": ("a token rate", "1000 tokens/s"),
    "tokens": ("a number of tokens", "4096, 2.5B tokens, 1T tokens"),
    "usd": ("an amount of money", "8000 USD"),
    "usd_per_hour": ("a price per hour", "3.5 USD/h"),
    "usd_per_gpu_hour": ("a price per GPU and hour", "3.5 USD/h, 3.5 USD/GPU/h"),
    "usd_per_month": ("an amount per month", "3000 USD/month"),
    "usd_per_token": ("a price per token", "0.6 USD/M tokens"),
    "usd_per_energy": ("a price of energy", "0.12 USD/kWh"),
    "usd_per_bytes": ("a price of traffic", "0.09 USD/GB"),
    "usd_per_bytes_month": ("a price of storage", "0.023 USD/GB/month"),
    "carbon_intensity": ("emissions per energy", "380 g/kWh"),
    "power": ("a power", "700 W, 10 kW"),
    "energy": ("an energy", "5 kWh, 300 J"),
    "fraction": ("a fraction", "0.2, 20 %"),
    "flop_rate": ("an arithmetic rate", "989 TFLOP/s"),
    "frequency": ("a frequency", "1.98 GHz"),
    "count": ("a plain number", "256"),
}

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

# No repetition inside a repetition can match the same text twice: time is linear in the (bounded) length.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_CURRENCY = re.compile(r"[kM]?([A-Z]{3})(?=/|$)", re.ASCII)


class UnitError(ValueError):
    """A quantity that cannot be understood: what is wrong, what is allowed, and a hint ("" when there is none)."""

    def __init__(self, what: str, allowed: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        return self.what + allowed + (f"; hint: {self.hint}" if self.hint else "")


def describe(dimension: Dimension) -> tuple[str, str]:
    """The dimension in words, and example spellings."""
    return _NAMES[dimension]


def parse(value: object, dimension: Dimension, currencies: Mapping[str, float] | None = None) -> float:
    """A quantity such as ``"80 GB"`` in SI units (money: US dollars, per hour or month as the dimension's name says;
    emissions: kilograms per joule).

    ``currencies`` maps a currency code to US dollars per unit; without it only USD is known. The sign is kept: ranges
    are the caller's business. Raises UnitError for a missing or unknown unit, another dimension, a number not finite.
    """
    name, examples = _NAMES[dimension]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnitError(f"expected {name}", examples)
    units = _UNITS[dimension]
    if not isinstance(value, str):
        if "" not in units:
            raise UnitError(f"missing unit, expected {name}", examples)
        return _finite(value, name)
    number, unit = _split(value, name, examples)
    if unit in units:
        return _scaled(number, units[unit], name)
    if not unit:
        raise UnitError(f"missing unit, expected {name}", examples)
    if dimension.startswith("usd"):
        converted = _in_usd(unit, units, currencies)
        if converted is not None:
            return _scaled(number, converted, name)
    raise _unknown_unit(number, unit, dimension)


def _split(text: str, name: str, examples: str) -> tuple[float, str]:
    """Number and unit; several blanks count as one."""
    if len(text) > _MAX_CHARS:
        raise UnitError(f"expected {name}, not a text of {len(text)} characters", examples)
    stripped = text.strip()
    match = _NUMBER.match(stripped)
    digits = match.group() if match else ""
    if not digits:
        bare = stripped.lstrip("+-.").casefold()
        if bare.startswith(("nan", "inf")):
            raise UnitError("not a finite number", examples)
        hint = f"write the number first, then the unit: {stripped[1:].strip()} USD" if stripped.startswith("$") else ""
        raise UnitError(f"expected {name}", examples, hint)
    rest = stripped[len(digits) :]
    if rest[:1] == "," and rest[1:2].isdigit():
        raise UnitError("a comma in a number", examples, "no thousands separators, and a decimal point: 1250.5")
    if rest[:1] in (".", "_"):
        raise UnitError(f"expected {name}", examples, "malformed number")
    value = float(digits.replace("_", ""))
    if value == 0.0 and any(c in "123456789" for c in digits.lower().partition("e")[0]):
        raise UnitError("number too small to represent", examples)
    return value, " ".join(rest.split())


def _finite(value: float, name: str) -> float:
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if math.isnan(result):
        raise UnitError(f"not a finite number, expected {name}")
    if math.isinf(result):
        raise UnitError(f"number too large or infinite, expected {name}")
    return result


def _scaled(number: float, factor: float, name: str) -> float:
    return _finite(_finite(number, name) * factor, name)


def _in_usd(unit: str, units: Mapping[str, float], currencies: Mapping[str, float] | None) -> float | None:
    """Dollars per ``unit`` of another currency; None when the unit is not money at all."""
    match = _CURRENCY.match(unit)
    if match is None:
        return None
    code = match.group(1)
    in_dollars = unit[: match.start(1)] + "USD" + unit[match.end(1) :]
    if in_dollars not in units or code == "USD":
        return None
    known = currencies or {}
    if code not in known:
        raise UnitError(
            f"unknown currency {code}",
            ", ".join(["USD", *known]),
            f'state its rate in the scenario: exchange_rates: {{{code}: "1.10 USD"}} (value of 1 {code})',
        )
    return units[in_dollars] * known[code]


def _unknown_unit(number: float, unit: str, dimension: Dimension) -> UnitError:
    name, examples = _NAMES[dimension]
    if dimension in ("bytes", "memory_bytes_per_s"):
        bits = _BITS | _BIT_RATE
        if unit in bits:
            byte_unit = "GB" if dimension == "bytes" else "GB/s"
            return UnitError(
                "bits where bytes are expected",
                examples,
                f"{unit} is bits: {number:g} {unit} = {number * bits[unit] / 1e9:g} {byte_unit} (capital B is byte)",
            )
    others = [other for other, units in _UNITS.items() if unit in units]
    if others:
        # the dimension for which this unit is the natural one: USD/month is an amount per month, not per hour
        natural = min(others, key=lambda other: _UNITS[other][unit] != 1.0)
        return UnitError(f"{unit} is {_NAMES[natural][0]}, expected {name}", examples)
    folded = {u.casefold(): u for u in _UNITS[dimension] if u}
    near = get_close_matches(unit.casefold(), list(folded), n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]}? (capitals matter)" if near else ""
    return UnitError(f"unknown unit {unit!r:.40}, expected {name}", examples, hint)


def _prefixed(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    factor, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    scaled = value / factor
    return f"{scaled:.0f} {unit}" if abs(scaled) >= 100 else f"{scaled:.3g} {unit}"


def format_bytes(value: float) -> str:
    """Bytes with a decimal prefix: "141 GB"."""
    return _prefixed(value, ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def format_bandwidth(value: float) -> str:
    """Bytes per second: "4.8 TB/s"."""
    return format_bytes(value) + "/s"


def format_tokens(value: float) -> str:
    """A count of tokens or parameters: "14.8T", "30.5B", "4096"."""
    if abs(value) < 1e5:
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
    return _prefixed(value, ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))).replace(" ", "")


def format_flop_rate(value: float) -> str:
    """FLOP per second: "989 TFLOP/s"."""
    return _prefixed(value, ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s")))
