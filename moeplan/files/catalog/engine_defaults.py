"""What a serving engine does when not told otherwise: ``moeplan/data/engines/*.yaml``, each value with its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moeplan import units
from moeplan.files.locate import data_folder
from moeplan.files.yaml_tree import load_yaml
from moeplan.spec.hardware import Device
from moeplan.spec.workload import Engine
from moeplan.units import Dimension

_QUANTITIES: dict[str, Dimension] = {
    "reserve": "bytes",
    "step_overhead": "duration",
    "host_step": "duration",
    "host_sequence": "duration",
    "request_overhead": "duration",
    "front_request": "duration",
    "front_token": "duration",
    "eager_layer": "duration",
    "eager_experts": "duration",
    "swap_space": "bytes",
    "kv_offload": "bytes",
}


# key in the scenario and in the data file -> field of spec.workload.Engine
ENGINE_FIELDS = {
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "chunked_prefill": "chunked_prefill",
    "kv_block_tokens": "kv_block_tokens",
    "memory_utilization": "memory_utilization_frac",
    "reserve": "reserve_bytes",
    "step_overhead": "step_overhead_s",
    "host_step": "host_step_s",
    "host_sequence": "host_sequence_s",
    "request_overhead": "request_overhead_s",
    "front_request": "front_request_s",
    "front_token": "front_token_s",
    "cuda_graphs": "cuda_graphs",
    "cuda_graph_max_tokens": "cuda_graph_max_tokens",
    "eager_layer": "eager_layer_s",
    "eager_experts": "eager_experts_s",
    "async_scheduling": "async_scheduling",
    "prefill_first": "prefill_first",
    "output_reserve": "output_reserve_frac",
    "output_reserve_end": "output_reserve_end_frac",
    "output_reserve_iterations": "output_reserve_iterations",
    "receive_iterations": "receive_iterations",
    "dp_balance_iterations": "dp_balance_iterations",
    "batch_wait_iterations": "batch_wait_iterations",
    "batch_wait_tokens": "batch_wait_tokens_frac",
    "prefix_caching": "prefix_caching",
    "priority_scheduling": "priority_scheduling",
    "swap_space": "swap_bytes",
    "kv_offload": "kv_offload_bytes",
    "kv_link_overlap": "kv_link_overlap",
    "draft_tokens": "draft_tokens",
    "draft_acceptance": "draft_acceptance_frac",
    "drafts": "drafts",
    "cuda_graph_padding": "cuda_graph_padding",
    "weight_offload": "weight_offload_frac",
    "expert_offload": "expert_offload_frac",
    "expert_offload_on": "expert_offload_on",
}


@dataclass(frozen=True, slots=True)
class Default:
    """One default in SI units with its citation."""

    value: float | int | bool
    file: str
    source: str


def engine_defaults(engine: str, device: Device, tp: int, version: str = "") -> dict[str, Default]:
    """Defaults of ``engine`` ("vllm", ...) on ``device`` with tensor parallelism ``tp``, by the key of the scenario.

    version: of the engine ("0.12.0"); empty or without a number: the newest described.
    """
    path = _path(engine)
    return {
        key: Default(
            in_si(key, _chosen(entry, device, tp, version)),
            path.name,
            f"{entry['source']} ({entry['kind']}, {entry['date']})",
        )
        for key, entry in _table(path).items()
    }


def default_engine(engine: str, device: Device, tp: int, version: str = "") -> Engine:
    """``engine`` with nothing changed by the user."""
    values: dict[str, Any] = {
        ENGINE_FIELDS[key]: default.value for key, default in engine_defaults(engine, device, tp, version).items()
    }
    values.update(_kernels(_path(engine)))
    return Engine(name=engine, **values)


def cache_format(engine: str) -> str:
    """The 16-bit format of the KV cache of ``engine``, a key of ``precision.FORMATS``."""
    return str(_kernels(_path(engine))["kv_cache_16_bit"])


def _path(engine: str) -> Path:
    return data_folder("engines") / f"{engine.replace('.', '-')}.yaml"


@cache
def _kernels(path: Path) -> Mapping[str, str | tuple[str, ...]]:
    """What the engine's kernels are, which no user sets."""
    entries: Mapping[str, Any] = load_yaml(path, what="engine default").plain()["kernels"]
    values = {key: entry["value"] for key, entry in entries.items()}
    return {key: value if isinstance(value, str) else tuple(value) for key, value in values.items()}


@cache
def _table(path: Path) -> Mapping[str, Mapping[str, Any]]:
    values: Mapping[str, Mapping[str, Any]] = load_yaml(path, what="engine default").plain()["values"]
    return values


def _version(text: str) -> tuple[int, ...]:
    """(0, 12) of "0.12.0rc1"; infinitely new where no number is stated."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (10**6,)


def _chosen(entry: Mapping[str, Any], device: Device, tp: int, version: str) -> Any:
    for variant in entry.get("variants", ()):
        when = variant["when"]
        if (
            device.memory_bytes >= units.parse(when.get("memory_at_least", "0 B"), "bytes")
            and device.architecture != when.get("not_architecture")
            and tp >= when.get("tp_at_least", 1)
            and ("version_below" not in when or _version(version) < _version(when["version_below"]))
        ):
            return variant["value"]
    return entry["value"]


def in_si(key: str, value: Any) -> float | int | bool:
    if key in _QUANTITIES:
        return units.parse(value, _QUANTITIES[key])
    number: float | int | bool = value
    return number
