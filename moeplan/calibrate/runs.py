"""Judge a table of measured runs: serving or training rows to the same records as operation tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moeplan.calibrate import serving_runs, training_runs
from moeplan.calibrate.judge import Judged, Unanswered
from moeplan.calibrate.serving_runs import RowResult
from moeplan.files.runs.measured_runs import RunTable, text_of
from moeplan.spec.uncertainty import ModelError

Row = Mapping[str, Any]


def predict(table: RunTable, error: ModelError, say: Callable[[str], None]) -> list[RowResult]:
    """What the planner says of every row, in order."""
    one = serving_runs.predict_row if table.kind == "serving" else training_runs.predict_row
    results = []
    rows = table.frame.to_dict("records")
    for i, row in enumerate(rows):
        if i % 20 == 0:
            say(f"{table.kind} run {i} of {len(rows)}")
        results.append(one(row, error))
    return results


def judge(table: RunTable, results: Sequence[RowResult]) -> tuple[list[Judged], list[Unanswered]]:
    """Answers grouped by what their rows have in common; gaps with their reason."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[serving_runs.Answer]] = {}
    missing: list[Unanswered] = []
    for row, result in zip(table.frame.to_dict("records"), results, strict=True):
        by = tuple(_by(table.kind, row).items())
        for answer in result.answers:
            groups.setdefault((answer.metric, by), []).append(answer)
        missing += [Unanswered(metric, result.run_id, why, 1) for metric, why in result.unanswered]
    judged = [
        Judged(
            metric,
            dict(by),
            np.array([a.truth for a in answers]),
            np.array([a.predicted.value for a in answers]),
            np.array([a.predicted.low for a in answers]),
            np.array([a.predicted.high for a in answers]),
        )
        for (metric, by), answers in groups.items()
    ]
    return judged, missing


def rows_of(table: RunTable, results: Sequence[RowResult]) -> pd.DataFrame:
    """Every row as it was read, with prediction, interval and reason for each metric it states."""
    extra: list[dict[str, object]] = []
    for result in results:
        cells: dict[str, object] = {"tier": result.tier.value}
        for answer in result.answers:
            q = answer.predicted
            cells |= {f"{answer.metric}_measured": answer.truth, f"{answer.metric}_predicted": q.value}
            cells |= {f"{answer.metric}_low": q.low, f"{answer.metric}_high": q.high}
        for metric, why in result.unanswered:
            cells[f"{metric}_why"] = why
        extra.append(cells)
    return pd.concat([table.frame.reset_index(drop=True), pd.DataFrame(extra)], axis=1)


def without(table: RunTable, sources: Mapping[str, str]) -> tuple[RunTable, dict[str, int]]:
    """``table`` less the runs whose source contains a key of ``sources``; how many each key took."""
    source = table.frame.get("source", pd.Series("", index=table.frame.index))
    taken = {key: source.str.contains(key, regex=False) for key in sources}
    keep = ~np.logical_or.reduce([mask.to_numpy() for mask in taken.values()])
    return replace(table, frame=table.frame[keep]), {key: int(mask.sum()) for key, mask in taken.items()}


def group_of(kind: str, row: Row) -> str:
    """Runs that err together: one model on one hardware under one engine or framework."""
    by = _by(kind, row)
    return ", ".join((by["model"], by["hardware"], by["engine"]))


def _by(kind: str, row: Row) -> dict[str, str]:
    common = {"model": text_of(row, "model"), "hardware": text_of(row, "hardware")}
    if kind == "serving":
        return {**common, "engine": text_of(row, "engine"), "load": text_of(row, "load")}
    return {**common, "engine": text_of(row, "framework"), "precision": text_of(row, "precision")}
