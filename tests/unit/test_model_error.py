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
from moeplan.files.catalog.model_data import load_model_error, model_error_text
from moeplan.planner.intervals import exact
from moeplan.provenance import Tier
from moeplan.spec.uncertainty import LogError, ModelError


def results(log_errors: list[float], metric: str = "tpot", tier: Tier = Tier.FITTED) -> list[RowResult]:
    answers = [Answer(metric, math.exp(e), exact(1.0)) for e in log_errors]
    return [RowResult(f"r{i}", tier, (answer,), (), "steady/vllm") for i, answer in enumerate(answers)]


def training_results(values: list[float], metric: str) -> list[RowResult]:
    return [replace(result, situation="pretrain/any") for result in results(values, metric)]


def gathered(
    values: list[float], groups: list[str], metric: str = "step", key: str = "steady/any", of: str = "tpot"
) -> Errors:
    return gather(results(values, of), groups, metric, Tier.FITTED)[key]


def test_time_and_rate_say_the_same_with_opposite_sign() -> None:
    slow, rate = (
        gather(training_results([error], of), ["m, h, f"], "training_step", Tier.FITTED)["pretrain/any"]
        for error, of in ((0.2, "step_time"), (-0.2, "tokens_per_s"))
    )
    assert slow.log_error == pytest.approx(rate.log_error)


def test_bursts_teach_nothing_about_steady_steps() -> None:
    burst = [replace(result, situation="flood/vllm") for result in results([0.2] * 30)]
    assert set(gather(burst, ["g"] * 30, "step", Tier.FITTED)) == {"flood/vllm", "flood/any"}


def test_untuned_runs_teach_memory_but_no_times() -> None:
    for metric, of, taught in (("training_step", "step_time", 0), ("training_memory", "memory", 30)):
        runs = [replace(result, representative=False) for result in training_results([0.2] * 30, of)]
        assert sum(e.log_error.size for e in gather(runs, ["m, h, f"] * 30, metric, Tier.FITTED).values()) == taught


def test_training_errs_alike_within_a_family_on_a_device() -> None:
    groups = [
        "Llama-3.1-8B, h100-sxm, a",
        "Llama-3.1-70B, h100-sxm, b, c",
        "Llama-2-7B, h200-sxm, a",
        "Qwen3-8B, h100-sxm, a",
    ]
    for metric, of, key in (("training_memory", "memory", "any/any"), ("training_step", "step_time", "pretrain/any")):
        errors = gather(training_results([0.1] * 4, of), groups, metric, Tier.FITTED)[key]
        assert errors.group.tolist() == ["Llama, h100-sxm", "Llama, h100-sxm", "Llama, h200-sxm", "Qwen, h100-sxm"]


def test_a_group_weighs_as_the_square_root_of_its_rows() -> None:
    errors = Errors(np.zeros(10), np.array(["a"] * 8 + ["b"] * 2))
    assert errors.weight[:8].sum() / errors.weight[8:].sum() == pytest.approx(math.sqrt(8 / 2))
    assert errors.weight.sum() == pytest.approx(1.0)


def test_a_group_with_a_thousand_rows_does_not_decide_the_interval() -> None:
    groups = ["big"] * 1000 + [f"g{i}" for i in range(9) for _ in range(5)]
    values = [0.0] * 1000 + [0.4] * 45
    found = learn(gathered(values, groups), "test")
    assert found is not None
    assert found.high == pytest.approx(0.4)


def test_too_few_runs_or_groups_teach_nothing() -> None:
    assert learn(gathered([0.1] * 100, ["a"] * 100), "test") is None
    assert learn(gathered([0.1] * 5, list("abcde")), "test") is None


def test_interval_always_holds_the_prediction() -> None:
    groups = [f"g{i % 6}" for i in range(60)]
    found = learn(gathered([0.3 + 0.001 * i for i in range(60)], groups), "test")
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


@pytest.mark.parametrize("n_groups", [6, 12, 40])
def test_few_groups_are_stretched_until_left_out_ones_are_covered(n_groups: int) -> None:
    """Fresh groups, never seen by the learning, fall inside nine times of ten although groups differ."""
    rng = np.random.default_rng(n_groups)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        shift = rng.normal(0.0, 0.2, n)
        return (shift[:, None] + rng.normal(0.0, 0.05, (n, 8))).ravel(), np.repeat([f"g{i}" for i in range(n)], 8)

    covered = []
    for _ in range(30):
        found = learn(Errors(*draw(n_groups)), "test")
        assert found is not None
        fresh, _ = draw(200)
        covered.append(float(np.mean((fresh >= found.low) & (fresh <= found.high))))
    assert 0.84 < float(np.mean(covered)) < 0.97


def test_the_nearest_situation_counts_and_lower_tiers_are_never_narrower() -> None:
    wide, narrow, middle = (LogError(-x, x, 0, "") for x in (0.5, 0.1, 0.3))
    known = ModelError(
        {
            "step": {
                Tier.FITTED: {"any/any": wide, "steady/any": middle, "steady/vllm": narrow},
                Tier.TRANSFERRED: {"any/any": LogError(-0.2, 0.05, 0, "")},
                Tier.ESTIMATE: {"any/any": wide},
            }
        }
    )
    at = {key: known.where(key).of("step", Tier.FITTED).high for key in ("steady/vllm", "steady/sglang", "flood/vllm")}
    assert at == {"steady/vllm": 0.1, "steady/sglang": 0.3, "flood/vllm": 0.5}
    below = known.where("steady/vllm").of("step", Tier.TRANSFERRED)
    assert (below.low, below.high) == (-0.2, 0.1)


def test_what_cannot_be_learnt_stays() -> None:
    estimate = {tier: {"any/any": LogError(-0.1, 0.1, 0, "estimate")} for tier in Tier}
    known = ModelError({m: dict(estimate) for m in ("step", "ttft", "throughput", "training_step")})
    groups = [f"g{i % 10}" for i in range(100)]
    rng = np.random.default_rng(0)
    learnt, summary = learn_all(results(list(rng.normal(0, 0.3, 100))), groups, known, "test", serving=True)
    assert learnt.by_metric["step"][Tier.FITTED]["steady/vllm"].n_runs == 100
    assert learnt.by_metric["step"][Tier.ESTIMATE] == estimate[Tier.ESTIMATE]
    assert learnt.by_metric["training_step"] == known.by_metric["training_step"]
    assert [(line["metric"], line["situation"]) for line in summary] == [
        ("step", "steady/any"),
        ("step", "steady/vllm"),
    ]


def test_no_class_is_stretched_beyond_what_was_seen() -> None:
    """One group far off among a few: left out, no stretch of the others holds it, and twice of it is seen nowhere."""
    known = ModelError({m: {tier: {} for tier in Tier} for m in ("step", "ttft", "throughput")})
    near, far = [0.05, -0.05, 0.1, -0.1, 0.2, -0.2] * 4, [3.0, 2.9, 2.8, 3.1]
    groups = [f"g{i % 6}" for i in range(24)] + ["far"] * 4
    wide = [replace(r, situation="steady/sglang") for r in results([0.5 * e for e in near * 20])]
    learnt, _ = learn_all(
        [*results([*near, *far]), *wide], [*groups, *(f"w{i % 40}" for i in range(480))], known, "test", serving=True
    )
    found = learnt.by_metric["step"][Tier.FITTED]["steady/vllm"]
    assert 0.2 < found.high <= 3.1
    assert -1.0 < found.low <= -0.1


def test_shipped_file_reads_back_as_written() -> None:
    from importlib.resources import files

    text = (Path(str(files("moeplan"))) / "data" / "model_error.yaml").read_text(encoding="utf-8")
    assert model_error_text(load_model_error()) == text


def test_command_writes_the_file_it_is_told(tmp_path: Path) -> None:
    header = "run_id,model,hardware,n_gpus,engine,load,input_tokens,output_tokens,concurrency,tpot_ms\n"
    row = "s-1,Qwen3-30B-A3B,h200-sxm,1,vllm,closed_loop,256,32,2,6.0\n"
    (tmp_path / "runs.csv").write_text(header + row)
    target = tmp_path / "errors.yaml"
    result = CliRunner().invoke(main, ["calibrate", str(tmp_path / "runs.csv"), "--relearn", "--out", str(target)])
    assert result.exit_code == 0, result.output
    assert target.read_text() == model_error_text(load_model_error()), "one run teaches nothing"
