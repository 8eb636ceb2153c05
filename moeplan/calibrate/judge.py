"""Predicts every measured row and says how far off the predictions and their intervals are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from moeplan.calibrate.fit import accuracy, bounds_of
from moeplan.calibrate.tables import Cut, Group
from moeplan.costs.parameters import lookup
from moeplan.spec.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Judged:
    """Truths of one metric with their predictions and 90 % intervals; any kind of run ends here.

    Arrays of shape (n,) in the metric's own unit; ``by`` says what the rows have in common.
    """

    metric: str
    by: Mapping[str, str]
    truth: np.ndarray
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Rows of ``metric`` without a prediction, and why."""

    metric: str
    run_id: str
    why: str
    n: int


def judge_cut(table_name: str, cut: Cut, hardware: Hardware, metric: str) -> tuple[list[Judged], list[Unanswered]]:
    """Predict the rows of one op table."""
    missing = [Unanswered(metric, table_name, why, n) for why, n in cut.left_out.items()]
    return [one for group in cut.groups for one in _judge_group(group, hardware, metric)], missing


def predict(group: Group, hardware: Hardware) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted seconds and the ends of the 90 % interval for every row of a group."""
    found = lookup(hardware, group.model.op, group.engine, group.fmt)
    # A loan may come from a format with more parameters than this one's; the model's own starts fill the rest.
    values = {parameter.name: parameter.start for parameter in group.model.parameters} | dict(found.values)
    inputs = group.model.inputs(group.frame, hardware, group.fmt)
    predicted = np.asarray(group.model.time_s(inputs, hardware, group.fmt, values), np.float64)
    low, high = bounds_of(group.regime, found.log_residual, found.regimes)
    return predicted, predicted * low, predicted * high


def _judge_group(group: Group, hardware: Hardware, metric: str) -> list[Judged]:
    predicted, low, high = predict(group, hardware)
    truth = group.frame["measured_s"].to_numpy()
    found = []
    for name, rows in group.regime.reset_index(drop=True).groupby(group.regime.to_numpy()).groups.items():
        by = {
            "op": group.model.op,
            "hardware": group.place.hardware,
            "engine": group.engine,
            "dtype": group.fmt,
            "regime": str(name),
        }
        found.append(Judged(metric, by, truth[rows], predicted[rows], low[rows], high[rows]))
    return found


def report(judged: Sequence[Judged], missing: Sequence[Unanswered]) -> dict[str, Any]:
    """The JSON of ``moeplan accuracy``: by metric, by group, and what has no answer."""
    metrics: dict[str, dict[str, float]] = {}
    n_missing: dict[str, int] = {}
    for gap in missing:
        n_missing[gap.metric] = n_missing.get(gap.metric, 0) + gap.n
    for metric in dict.fromkeys([*(j.metric for j in judged), *n_missing]):
        metrics[metric] = _errors([j for j in judged if j.metric == metric], n_missing.get(metric, 0))
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.metric, tuple(one.by.items())), []).append(one)
    return {
        "metrics": metrics,
        "groups": [{"by": dict(by), metric: _errors(rows, 0)} for (metric, by), rows in groups.items()],
        "unanswered": [{"run_id": gap.run_id, "why": gap.why, "n": gap.n} for gap in missing],
    }


def rows_of(judged: Sequence[Judged]) -> pd.DataFrame:
    """Every judged row with its prediction and interval."""
    parts = [
        pd.DataFrame(
            {
                "metric": one.metric,
                **one.by,
                "measured": one.truth,
                "predicted": one.predicted,
                "low": one.low,
                "high": one.high,
            }
        )
        for one in judged
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _errors(judged: Sequence[Judged], n_missing: int) -> dict[str, float]:
    """``n`` counts the rows that state the metric, answered or not."""
    if not judged:
        return {"n": n_missing, "answered_frac": 0.0}
    truth, predicted, low, high = (
        np.concatenate([getattr(one, name) for one in judged]) for name in ("truth", "predicted", "low", "high")
    )
    errors = asdict(accuracy(truth / predicted, low / predicted, high / predicted))
    n = errors.pop("n") + n_missing
    return {"n": n, "answered_frac": len(truth) / n, **{name: round(x, 5) for name, x in errors.items()}}
