"""Counters of vLLM and SGLang in Prometheus' text format (one or many scrapes) or as its API's range queries."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.json_text import parse_json

# metric name -> label set -> [(seconds, value)]
Samples: TypeAlias = Mapping[str, Mapping[str, list[tuple[float, float]]]]

# Our counter -> names it has, newest first; the first that is there counts.
# vLLM: docs.vllm.ai, usage/metrics; SGLang: docs.sglang.ai, references/production_metrics.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "requests": ("vllm:request_success_total", "sglang:num_requests_total"),
    "input_tokens": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "output_tokens": ("vllm:generation_tokens_total", "sglang:generation_tokens_total"),
}
_HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "ttft": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "tpot": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    "e2e": ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Counter:
    """A counter over time, by label set. Arrays ``times_s`` (n,) of all scrapes, ``values`` (n,) summed over labels."""

    times_s: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    by_label: tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]

    def increments(self, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Growth between successive ``times_s``, shape (n - 1,); NaN where a server restarted or was not scraped.

        Label sets come and go (replicas, reasons to finish): none adds before its first sample or after its last.
        """
        grown, seen = np.zeros(len(times_s) - 1), np.zeros(len(times_s) - 1, np.bool_)
        for seen_s, values in self.by_label:
            at = np.searchsorted(times_s, seen_s)
            samples = np.full(at[-1] - at[0] + 1, math.nan)
            samples[at - at[0]] = values
            step = np.diff(samples)
            grown[at[0] : at[-1]] += np.where(step < 0.0, math.nan, step)
            seen[at[0] : at[-1]] = True
        return np.where(seen, grown, math.nan)


def read_text(path: Path, text: bytes) -> Samples:
    """Samples of Prometheus' text format; scrapes one after another are told apart by the samples' timestamps.

    Raises:
        InputError: not that format, or several scrapes without timestamps.
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    try:
        for family in text_string_to_metric_families(text.decode("utf-8")):
            for sample in family.samples:
                stamp = 0.0 if sample.timestamp is None else float(sample.timestamp)
                found[sample.name][json.dumps(sample.labels, sort_keys=True)].append((stamp, float(sample.value)))
    except (ValueError, IndexError, KeyError) as error:
        raise input_error(path, "not Prometheus text", got=str(error).splitlines()[0] if str(error) else "") from None
    for name, labels in found.items():
        for seen in labels.values():
            if len(seen) > 1 and len({stamp for stamp, _ in seen}) < len(seen):
                hint = "export with timestamps, or a range query as JSON"
                raise input_error(path, f"{name} stands twice at one time", hint=hint)
    return found


def read_json(path: Path, text: bytes) -> Samples:
    """Samples of answers of ``/api/v1/query_range``: one, or a list of several.

    Raises:
        InputError: not such an answer; located.
    """
    document = parse_json(path, text)
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for number, answer in enumerate(document if isinstance(document, list) else [document]):
        for name, labels, pairs in _series(path, number, answer):
            found[name][labels] += pairs
    return found


def _series(path: Path, number: int, answer: Any) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
    def refuse(where: str, what: str) -> InputError:
        return InputError([Problem(str(path), None, None, f"[{number}].{where}", what)])

    data = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(data, Mapping) or data.get("resultType") != "matrix" or not isinstance(data.get("result"), list):
        raise refuse("data", 'not the answer of a range query ("resultType": "matrix")')
    for i, one in enumerate(data["result"]):
        labels = one.get("metric") if isinstance(one, Mapping) else None
        if not isinstance(labels, Mapping) or "__name__" not in labels:
            raise refuse(f"data.result.{i}.metric", "has no __name__: query plain counters, not rates of them")
        rest = {str(k): str(v) for k, v in labels.items() if k != "__name__"}
        try:
            pairs = [(float(t), float(v)) for t, v in one["values"]]
        except (KeyError, TypeError, ValueError):
            raise refuse(f"data.result.{i}.values", "not a list of [time, value]") from None
        yield str(labels["__name__"]), json.dumps(rest, sort_keys=True), pairs


def models(samples: Samples) -> list[str]:
    """Names of the models that the engines' samples are of."""
    labels = {text for name, seen in samples.items() if name.startswith(("vllm:", "sglang:")) for text in seen}
    return sorted({str(found) for text in labels if (found := json.loads(text).get("model_name"))})


def counters(samples: Samples) -> dict[str, Counter]:
    """Our counters among the samples. Samples that are not finite are left out."""
    wanted = dict(_NAMES)
    for ours, names in _HISTOGRAMS.items():
        wanted |= {f"{ours}_{part}": tuple(f"{name}_{part}" for name in names) for part in ("sum", "count")}
    found = {}
    for ours, names in wanted.items():
        name = next((name for name in names if name in samples), None)
        if name is None:
            continue
        series = [sorted(pair for pair in seen if math.isfinite(pair[1])) for seen in samples[name].values()]
        by_label = tuple((np.array([t for t, _ in one]), np.array([v for _, v in one])) for one in series if one)
        if by_label:
            times = np.unique(np.concatenate([seen_s for seen_s, _ in by_label]))
            total = sum(np.interp(times, seen_s, values) for seen_s, values in by_label)
            found[ours] = Counter(times, np.asarray(total), by_label)
    return found
