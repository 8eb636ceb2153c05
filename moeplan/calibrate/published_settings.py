"""Engine settings of published benchmarks whose start scripts are public: ``moeplan/data/benchmarks/*.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from moeplan.files.engine_defaults import in_si
from moeplan.files.locate import data_folder
from moeplan.files.measured_runs import text_of
from moeplan.files.yaml_tree import load_yaml

Row = Mapping[str, Any]


def published_settings(row: Row) -> dict[str, Any]:
    """The server's settings by scenario key, in SI units (and ``kv_cache``); empty where no known run is named."""
    notes = text_of(row, "notes")
    found: dict[str, Any] = {}
    for benchmark in _benchmarks():
        if benchmark["marker"] in notes:
            for entry in benchmark["settings"]:
                if all(_holds(row, key, wanted) for key, wanted in entry["when"].items()):
                    found.update({key: in_si(key, value) for key, value in entry["set"].items()})
    return found


def _holds(row: Row, key: str, wanted: Any) -> bool:
    if key.endswith("_at_least"):
        return float(row[key.removesuffix("_at_least")]) >= float(wanted)
    if key.endswith("_below"):
        return float(row[key.removesuffix("_below")]) < float(wanted)
    if isinstance(wanted, list):
        return any(_holds(row, key, each) for each in wanted)
    if isinstance(wanted, str):
        return text_of(row, key) == wanted
    return float(row[key]) == float(wanted)


@cache
def _benchmarks() -> tuple[Mapping[str, Any], ...]:
    folder = data_folder("benchmarks")
    return tuple(load_yaml(path, what="benchmark").plain() for path in sorted(folder.glob("*.yaml")))
