"""Engine settings of published benchmarks whose start scripts are public: ``moeplan/data/benchmarks/*.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from moeplan.files.catalog.engine_defaults import in_si
from moeplan.files.locate import data_folder
from moeplan.files.runs.measured_runs import text_of
from moeplan.files.yaml_tree import load_yaml

Row = Mapping[str, Any]

# Flags of the engines' servers -> scenario keys.
_SWITCHES = {"--async-scheduling": "async_scheduling"}
_NUMBERS = {
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--chunked-prefill-size": "max_num_batched_tokens",
    "--max-num-seqs": "max_num_seqs",
    "--max-running-requests": "max_num_seqs",
    "--cuda-graph-max-bs": "cuda_graph_max_tokens",
}


def published_settings(row: Row) -> dict[str, Any]:
    """The server's settings by scenario key, in SI units (and ``kv_cache``); empty where no known run is named."""
    notes = text_of(row, "notes")
    found: dict[str, Any] = {}
    for benchmark in _benchmarks():
        if benchmark["marker"] in notes and benchmark.get("not_marker", "\0") not in notes:
            for entry in benchmark["settings"]:
                if all(_holds(row, key, wanted) for key, wanted in entry["when"].items()):
                    found.update({key: _value(row, key, value) for key, value in entry["set"].items()})
    return found | _flags(notes)


def _flags(notes: str) -> dict[str, Any]:
    """Settings the run's own command line states ("cmd: vllm serve ..."), as far as the notes quote it."""
    words = notes.partition("cmd:")[2].replace("=", " ").split()
    found: dict[str, Any] = {}
    for word, following in pairwise([*words, ""]):
        if word in _SWITCHES:
            found[_SWITCHES[word]] = True
        elif word in _NUMBERS and following.isdigit():
            found[_NUMBERS[word]] = int(following)
    return found


def _value(row: Row, key: str, value: Any) -> Any:
    """A setting in SI units; ``{input_tokens_plus: n}`` is sized by the run's prompts."""
    if isinstance(value, Mapping):
        return int(row["input_tokens"]) + int(value["input_tokens_plus"])
    return in_si(key, value)


def _holds(row: Row, key: str, wanted: Any) -> bool:
    if key == "engine_version_at_least":
        return _version(text_of(row, "engine_version")) >= _version(wanted)
    if key.endswith("_at_least"):
        return float(row[key.removesuffix("_at_least")]) >= float(wanted)
    if key.endswith("_below"):
        return float(row[key.removesuffix("_below")]) < float(wanted)
    if isinstance(wanted, list):
        return any(_holds(row, key, each) for each in wanted)
    if isinstance(wanted, str):
        return text_of(row, key) == wanted
    return float(row[key]) == float(wanted)


def _version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


@cache
def _benchmarks() -> tuple[Mapping[str, Any], ...]:
    folder = data_folder("benchmarks")
    return tuple(load_yaml(path, what="benchmark").plain() for path in sorted(folder.glob("*.yaml")))
