"""The suffix of a name is its unit (docs/contributing.md); here pint reads it so.

Everything a cost function sees gets the unit its name states: arguments, fields of dataclasses, parameters ``p`` and
the module's own constants. FLOP are a count, bytes and dollars are dimensions of their own.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pint

import moeplan.costs

registry = pint.UnitRegistry(None)
for _definition in (
    "second = [time] = s",
    "hour = 3600 * second",
    "month = 730 * hour",
    "joule = [energy] = J",
    "watt = joule / second",
    "byte = [information]",
    "USD = [currency]",
):
    registry.define(_definition)
Quantity = registry.Quantity

# The first suffix that fits wins.
SUFFIXES = {
    "hours_per_month": "hour / month",
    "usd_per_month_per_byte": "USD / month / byte",
    "usd_per_byte": "USD / byte",
    "usd_per_j": "USD / joule",
    "months": "month",
    "hours": "hour",
    "usd_per_million_tokens": "USD",
    "usd_per_month": "USD / month",
    "usd_per_gpu_hour": "USD / hour",
    "usd_per_hour": "USD / hour",
    "usd": "USD",
    "bytes_per_s": "byte / second",
    "bytes_per_value": "byte",
    "bytes_per_token": "byte",
    "bytes_per_sequence": "byte",
    "bytes": "byte",
    "bits": "byte",  # divided by a bare 8 where it becomes bytes
    "per_gpu_s": "1 / second",
    "per_s": "1 / second",  # FLOP, tokens, requests
    "w_per_gpu": "watt",
    "j": "joule",
    "w": "watt",
    "s": "second",
}


def unit_of(name: str, *, count_bytes: bool = False) -> str | None:
    """Unit that a name's suffix states, None for a plain number; ``count_bytes``: bytes are plain numbers too."""
    lower = name.lower().lstrip("_")
    unit = next((unit for suffix, unit in SUFFIXES.items() if lower == suffix or lower.endswith("_" + suffix)), None)
    if unit is None or not count_bytes:
        return unit
    return None if unit == "byte" else unit.replace("byte", "1")


def with_units(name: str, value: Any, *, count_bytes: bool = False) -> Any:
    """``value`` with the unit of ``name``, through dataclasses and mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(value, **{k: with_units(k, v, count_bytes=count_bytes) for k, v in inside.items()})
    if isinstance(value, Mapping):
        of_all = unit_of(name) is not None  # OPTIMIZER_BYTES: one unit for all entries
        return {k: with_units(name if of_all else str(k), v, count_bytes=count_bytes) for k, v in value.items()}
    unit = unit_of(name, count_bytes=count_bytes)
    if unit is None or isinstance(value, bool) or not isinstance(value, int | float | np.ndarray):
        return value
    return Quantity(value, unit)


def cost_modules() -> list[ModuleType]:
    found = pkgutil.iter_modules(moeplan.costs.__path__, "moeplan.costs.")
    return [importlib.import_module(module.name) for module in found]


def public_functions() -> dict[str, Any]:
    """Functions of the costs room whose name states a unit, by module and name."""
    found = {}
    for module in cost_modules():
        for name, value in vars(module).items():
            mine = callable(value) and getattr(value, "__module__", None) == module.__name__
            if mine and not name.startswith("_") and unit_of(name) is not None:
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = value
    return found


class NumpyWithUnits:
    """numpy, but for the few functions that would strip units or do not know them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def asarray(self, value: Any, dtype: Any = None) -> Any:
        return value if isinstance(value, Quantity) else np.asarray(value, dtype)

    def full(self, shape: Any, value: Any) -> Any:
        return value * np.ones(shape)

    def full_like(self, like: Any, value: Any) -> Any:
        return self.full(np.shape(like), value)

    def divide(self, a: Any, b: Any, *, out: Any, where: Any) -> Any:
        return np.where(where, a / np.where(where, b, Quantity(1.0, b.units) if isinstance(b, Quantity) else 1.0), out)

    def broadcast_arrays(self, *arrays: Any) -> list[Any]:
        plain = np.broadcast_arrays(*(a.magnitude if isinstance(a, Quantity) else a for a in arrays))
        return [Quantity(p, a.units) if isinstance(a, Quantity) else p for p, a in zip(plain, arrays, strict=True)]


def put_units_in_costs(monkeypatch: Any, *, count_bytes: bool = False) -> None:
    """Constants of every cost module get the unit of their name; numpy there keeps units."""
    for module in cost_modules():
        for name, value in list(vars(module).items()):
            if name == "np":
                monkeypatch.setattr(module, name, NumpyWithUnits())
            elif name.isupper():
                monkeypatch.setattr(module, name, with_units(name, value, count_bytes=count_bytes))
