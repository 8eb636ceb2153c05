"""How predictions of runs fare that nothing was learnt from: intervals learnt without a group, a model, a device.

Overheads of the engines are not fitted again for each part left out (a handful of numbers over hundreds of runs); their
own held-out errors are in ``docs/method/serving.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeplan.calibrate.model_error import gather, learn
from moeplan.calibrate.serving_runs import RowResult
from moeplan.provenance import Tier
from moeplan.spec.uncertainty import ModelError

_METRICS = {"tpot": "step", "ttft": "ttft", "output_throughput": "throughput"}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Runs judged by intervals that were learnt without all runs like them."""

    metric: str
    left_out: str  # what is alike: "group", "model", "hardware", ...
    n: int
    mdape_frac: float
    bias_frac: float
    coverage_frac: float
    median_width_frac: float


def leave_out(
    results: Sequence[RowResult], groups: Sequence[str], alike: Mapping[str, Sequence[str]], known: ModelError
) -> list[LeftOut]:
    """Coverage of intervals for each way in ``alike`` to call runs alike; ``groups`` as for `learn_all`.

    The learnt error alone, without the queueing that a plan simulates at its ends. ``known`` answers for classes with
    too few runs.
    """
    found = []
    for metric, learnt in _METRICS.items():
        for what, keys in alike.items():
            rows = [_judge(results, groups, keys, key, metric, learnt, known) for key in dict.fromkeys(keys)]
            errors, inside, width = (np.concatenate(part) for part in zip(*rows, strict=True))
            if errors.size:
                found.append(
                    LeftOut(
                        metric,
                        what,
                        int(errors.size),
                        float(np.median(np.abs(np.expm1(errors)))),
                        float(np.median(np.expm1(errors))),
                        float(np.mean(inside)),
                        float(np.median(width)),
                    )
                )
    return found


def _judge(
    results: Sequence[RowResult], groups: Sequence[str], keys: Sequence[str], key: str, metric: str, learnt: str,
    known: ModelError,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """ln(predicted / measured), whether inside, and relative width, of the runs of one ``key``."""
    others = [i for i, other in enumerate(keys) if other != key]
    error = _learn([results[i] for i in others], [groups[i] for i in others], learnt, known)
    rows = []
    for result, its in zip(results, keys, strict=True):
        if its != key:
            continue
        interval = error.where(result.situation).of(learnt, result.tier)
        for answer in result.answers:
            if answer.metric == metric and answer.predicted.value > 0.0:
                off = math.log(answer.truth / answer.predicted.value)
                width = math.exp(interval.high) - math.exp(interval.low)
                rows.append((-off, interval.low <= off <= interval.high, width))
    table = np.array(rows, np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _learn(results: Sequence[RowResult], groups: Sequence[str], metric: str, known: ModelError) -> ModelError:
    """Intervals of one metric as `learn_all` would learn them; estimates where there is too little."""
    tiers = {}
    for tier in Tier:
        classes = {key: e for key, e in known.by_metric[metric][tier].items() if not e.n_runs or key == "any/any"}
        for key, errors in gather(results, groups, metric, tier).items():
            if (mine := learn(errors, "")) is not None:
                classes[key] = mine
        tiers[tier] = classes
    return replace(known, by_metric={metric: tiers})
