"""Intervals learnt from runs: quantiles by group, coverage on groups never seen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moeplan.calibrate.model_error import Errors, cross_coverage, gather, learn, learn_all
from moeplan.calibrate.serving_runs import Answer, RowResult
from moeplan.cli import main
from moeplan.files.model_data import load_model_error, model_error_text
from moeplan.planner.intervals import exact
from moeplan.provenance import Tier
from moeplan.spec.uncertainty import LogError, ModelError


def results(log_errors: list[float], metric: str = "tpot", tier: Tier = Tier.FITTED) -> list[RowResult]:
    answers = [Answer(metric, math.exp(e), exact(1.0)) for e in log_errors]
    return [RowResult(f"r{i}", tier, (answer,), (), "closed_loop") for i, answer in enumerate(answers)]


def test_time_and_rate_say_the_same_with_opposite_sign() -> None:
    slow = gather(results([0.2], "step_time"), ["g"], "training_step", Tier.FITTED)
    rate = gather(results([-0.2], "tokens_per_s"), ["g"], "training_step", Tier.FITTED)
    assert slow.log_error == pytest.approx(rate.log_error)


def test_bursts_teach_nothing_about_steady_steps() -> None:
    burst = [replace(result, load="burst") for result in results([0.2] * 30)]
    assert gather(burst, ["g"] * 30, "step", Tier.FITTED).log_error.size == 0


def test_a_group_weighs_as_the_square_root_of_its_rows() -> None:
    errors = Errors(np.zeros(10), np.array(["a"] * 8 + ["b"] * 2))
    assert errors.weight[:8].sum() / errors.weight[8:].sum() == pytest.approx(math.sqrt(8 / 2))
    assert errors.weight.sum() == pytest.approx(1.0)


def test_a_group_with_a_thousand_rows_does_not_decide_the_interval() -> None:
    groups = ["big"] * 1000 + [f"g{i}" for i in range(9) for _ in range(5)]
    values = [0.0] * 1000 + [0.4] * 45
    found = learn(gather(results(values), groups, "step", Tier.FITTED), "test")
    assert found is not None
    assert found.high == pytest.approx(0.4)


def test_too_few_runs_or_groups_teach_nothing() -> None:
    assert learn(gather(results([0.1] * 100), ["a"] * 100, "step", Tier.FITTED), "test") is None
    assert learn(gather(results([0.1] * 5), list("abcde"), "step", Tier.FITTED), "test") is None


def test_interval_always_holds_the_prediction() -> None:
    groups = [f"g{i % 6}" for i in range(60)]
    found = learn(gather(results([0.3 + 0.001 * i for i in range(60)]), groups, "step", Tier.FITTED), "test")
    assert found is not None
    assert found.low == 0.0
    assert found.high > 0.3


def test_coverage_of_unseen_groups_is_what_it_claims() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(20):
        shift = rng.normal(0.0, 0.15, 60)
        values = (shift[:, None] + rng.normal(0.0, 0.05, (60, 10))).ravel()
        groups = np.repeat([f"g{i}" for i in range(60)], 10)
        covered.append(cross_coverage(Errors(values, groups)))
    assert 0.87 < float(np.mean(covered)) < 0.96


def test_lower_tiers_are_never_narrower() -> None:
    estimate = {tier: LogError(-0.1, 0.1, 0, "estimate") for tier in Tier}
    known = ModelError({m: dict(estimate) for m in ("step", "ttft", "throughput", "training_step")})
    groups = [f"g{i % 10}" for i in range(100)]
    rng = np.random.default_rng(0)
    learnt, summary = learn_all(results(list(rng.normal(0, 0.3, 100))), groups, known, "test", serving=True)
    step = learnt.by_metric["step"]
    assert step[Tier.FITTED].n_runs == 100
    assert step[Tier.ESTIMATE].high >= step[Tier.TRANSFERRED].high >= step[Tier.FITTED].high
    assert step[Tier.ESTIMATE].low <= step[Tier.TRANSFERRED].low <= step[Tier.FITTED].low
    assert learnt.by_metric["training_step"] == known.by_metric["training_step"]
    assert [line["metric"] for line in summary] == ["step"]


def test_shipped_file_reads_back_as_written() -> None:
    from importlib.resources import files

    text = (Path(str(files("moeplan"))) / "data" / "model_error.yaml").read_text(encoding="utf-8")
    assert model_error_text(load_model_error()) == text


def test_command_writes_the_file_it_is_told(tmp_path: Path) -> None:
    header = "run_id,model,hardware,n_gpus,engine,load,input_tokens,output_tokens,concurrency,tpot_ms\n"
    row = "s-1,Qwen3-30B-A3B,h200-sxm,1,vllm,closed_loop,256,32,2,6.0\n"
    (tmp_path / "runs.csv").write_text(header + row)
    target = tmp_path / "errors.yaml"
    result = CliRunner().invoke(main, ["calibrate", str(tmp_path / "runs.csv"), "--out", str(target)])
    assert result.exit_code == 0, result.output
    assert target.read_text() == model_error_text(load_model_error()), "one run teaches nothing"
