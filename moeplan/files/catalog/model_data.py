"""Small data files behind every scenario: reliability of clusters, expert popularity, errors of predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from moeplan import units
from moeplan.files.yaml_tree import load_yaml
from moeplan.provenance import Tier
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.uncertainty import LogError, ModelError

FLEET = "fleet.yaml"
RELIABILITY = "reliability.yaml"
MODEL_ERROR = "model_error.yaml"
ROUTING = "routing.yaml"
FEW_EXPERTS = 16


@cache
def _read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = load_yaml(Path(str(files("moeplan"))) / "data" / name, what="data").plain()
    return tree


def reliability_defaults() -> tuple[dict[str, float], dict[str, str]]:
    """Values in SI of `reliability.yaml` by key, and where each comes from."""
    table = _read(RELIABILITY)
    sources = {key: f"{entry['source']} ({entry['kind']}, {entry['date']})" for key, entry in table.items()}
    kind: dict[str, units.Dimension] = {"storage_bandwidth": "bytes_per_s"}
    values = {key: units.parse(entry["value"], kind.get(key, "duration")) for key, entry in table.items()}
    return values, sources


@dataclass(frozen=True, slots=True)
class FleetDefault:
    """One default of a fleet in SI units with its citation."""

    value: float
    source: str


@cache
def fleet_defaults() -> Mapping[str, FleetDefault]:
    """How replicas start, scale and go where the scenario does not say, by the key of the scenario."""
    dimensions: dict[str, units.Dimension] = {"s": "duration", "bytes/s": "bytes_per_s"}
    return {
        key: FleetDefault(
            units.parse(entry["value"], dimensions.get(entry["unit"], "fraction")),
            f"{entry['source']} ({entry['kind']}, {entry['date']})",
        )
        for key, entry in _read(FLEET).items()
    }


def default_routing(model: ModelArchitecture, *, training: bool = False) -> RoutingAssumption:
    """Expert popularity where the scenario states none; the note is its source."""
    few = max((block.n_experts for block in model.moe_blocks), default=0) <= FEW_EXPERTS
    data = _read(ROUTING)
    entry = data["training" if training else "serving_few_experts" if few else "serving"]
    preset = None if training else data["recorded"].get(model.name)
    known = f" (its own routing was recorded: `routing: {preset}`)" if preset else ""
    note = f"default{known}, {entry['kind']} {entry['date']}: {entry['source']}"
    return RoutingAssumption(float(entry["value"]), note)


def load_model_error() -> ModelError:
    """Errors of end-to-end predictions by metric, tier and situation."""
    return ModelError(
        {
            metric: {
                Tier(tier): {
                    key: LogError(float(e["low"]), float(e["high"]), int(e["n_runs"]), str(e["source"]))
                    for key, e in situations.items()
                }
                for tier, situations in tiers.items()
            }
            for metric, tiers in _read(MODEL_ERROR).items()
        }
    )


def model_error_path() -> Path:
    """The installed file of prediction errors."""
    return Path(str(files("moeplan"))) / "data" / MODEL_ERROR


def model_error_text(error: ModelError) -> str:
    """``error`` as the data file."""
    lines = [
        "# How wrong whole predictions are: the interval of ln(measured / predicted) that holds nine runs of ten, by",
        "# metric, by the worst tier of the operation parameters behind a prediction, and by situation (load/engine)",
        "# (docs/method/uncertainty.md). n_runs 0 marks an estimate.",
    ]
    for metric, tiers in error.by_metric.items():
        lines.append(f"{metric}:")
        for tier, situations in tiers.items():
            lines.append(f"  {tier.value}:")
            for key, e in situations.items():
                numbers = f"low: {e.low:g}, high: {e.high:g}, n_runs: {e.n_runs}"
                lines.append(f"    {key}: {{{numbers}, source: {json.dumps(e.source)}}}")
    return "\n".join(lines) + "\n"
