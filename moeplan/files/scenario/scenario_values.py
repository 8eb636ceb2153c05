"""A resolved scenario as a flat list of values, each with where it was set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from moeplan.provenance import Origin
from moeplan.spec.scenario import Scenario

# shown as a whole by their name: layers are the model's own business, fits and errors have commands of their own
_OPAQUE = (
    "layers",
    "mtp_layers",
    "efficiency",
    "model_error",
    "origins",
    "trace",
    "histogram",
    "placement_map",
    "offers",
    "api_offers",
)
_CATALOGUED = {
    "model": "model",
    "comparison.model": "model",
    "hardware": "hardware",
    "training_hardware": "hardware",
}


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a scenario, in SI units, with its origin."""

    path: str
    value: Any
    origin: Origin


def scenario_values(scenario: Scenario) -> list[Value]:
    """Every value of ``scenario`` in the order of its fields."""
    found = []
    for path, value in _flat(scenario, ""):
        found.append(Value(path, value, _origin(path, scenario)))
    return found


def _flat(item: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(item) and not isinstance(item, type):
        for f in fields(item):
            value = getattr(item, f.name)
            below = f"{path}.{f.name}" if path else f.name
            if f.name == "trace" and value is not None:
                yield below, f"{value.name} ({len(value.arrival_s)} requests)"
            elif f.name not in _OPAQUE and not (value is None and not path):
                yield from _flat(value, below)
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield from _flat(value, f"{path}.{key}")
    elif isinstance(item, tuple):
        for i, value in enumerate(item):
            yield from _flat(value, f"{path}[{i}]")
    else:
        yield path, item.value if isinstance(item, Enum) else item


def _origin(path: str, scenario: Scenario) -> Origin:
    """Origin of the value itself, else of the nearest value around it."""
    exact = scenario.origins.get(path)
    if exact is not None:
        return exact
    prefix = path
    while prefix:
        prefix = prefix.rpartition(".")[0]
        around = scenario.origins.get(prefix)
        if around is not None:
            if prefix in _CATALOGUED:
                return Origin("catalog", f"{_CATALOGUED[prefix]} named at {around.where}")
            return around
    return Origin("file" if path.startswith("references") else "derived", "the scenario")
