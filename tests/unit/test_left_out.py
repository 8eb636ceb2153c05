"""Runs judged by what was learnt without them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from moeplan.calibrate.left_out import leave_out
from moeplan.calibrate.serving_runs import Answer, RowResult
from moeplan.files.catalog.model_data import load_model_error
from moeplan.planner.intervals import exact
from moeplan.provenance import Tier
from moeplan.report.serving_accuracy import serving_sections


def runs(shift: dict[str, float], n: int = 10) -> tuple[list[RowResult], list[str]]:
    """Runs of groups that are wrong by ``shift`` each, with a little spread."""
    results, groups = [], []
    for group, off in shift.items():
        for i, e in enumerate(off + np.linspace(-0.02, 0.02, n)):
            answer = Answer("tpot", math.exp(e), exact(1.0))
            results.append(RowResult(f"{group}{i}", Tier.FITTED, (answer,), (), "steady/vllm"))
            groups.append(group)
    return results, groups


def test_a_group_like_none_other_is_not_covered_by_what_the_others_teach() -> None:
    results, groups = runs({**{f"g{i}": 0.01 * i for i in range(20)}, "odd": 2.0})
    (found,) = leave_out(results, groups, {"group": groups}, load_model_error())
    assert found.n == 210
    assert found.coverage_frac == pytest.approx(200 / 210, abs=0.06)
    assert found.coverage_frac < 1.0
    assert found.median_width_frac < 1.0


def test_what_is_left_out_together_does_not_teach_itself() -> None:
    """Two models, each with its own error: seen group by group they cover each other, left out whole they do not."""
    shift = {f"a{i}": 0.0 for i in range(8)} | {f"b{i}": 0.5 for i in range(8)}
    results, groups = runs(shift)
    models = [group[0] for group in groups]
    by = {
        one.left_out: one for one in leave_out(results, groups, {"group": groups, "model": models}, load_model_error())
    }
    assert by["group"].coverage_frac >= 0.85
    assert by["model"].coverage_frac < by["group"].coverage_frac


def test_sections_compare_the_same_runs_with_the_peer() -> None:
    rows = pd.DataFrame(
        {
            "run_id": ["a", "b", "c"], "load": "closed_loop", "model": "m", "hardware": "h", "engine": "e",
            "tpot_measured": [10.0, 10.0, 10.0], "tpot_predicted": [11.0, 11.0, 50.0],
            "ttft_measured": [100.0] * 3, "ttft_predicted": [100.0] * 3,
            "output_throughput_measured": [1.0] * 3, "output_throughput_predicted": [1.0] * 3,
        }
    )  # fmt: skip
    peer = pd.DataFrame(
        {"run_id": ["a", "b"], "peer_tpot_ms": [12.0, 8.0], "peer_ttft_ms": [150.0, 50.0], "peer": "p 1"}
    )
    text = serving_sections(rows, [], peer)
    assert "| tpot | 20.0 % | 20.0 % | 0.0 % | 10.0 % | 10.0 % | 10.0 % |" in text
    assert "answers 2 of the 3 closed-loop runs" in text
    assert "| tpot | m | h | e | closed_loop | 3 | 10.0 % |" in text
