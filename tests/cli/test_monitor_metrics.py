"""`moeplan monitor` on exported metrics: replicas that come and go, several models, another model, nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moeplan.cli import main
from moeplan.files.runs.observed import read_observed


def matrix(name: str, labels: dict[str, str], values: list[tuple[float, float]]) -> dict[str, object]:
    return {"metric": {"__name__": name, **labels}, "values": [[t, str(v)] for t, v in values]}


def export(path: Path, *series: dict[str, object]) -> Path:
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [*series]}}))
    return path


def growing(first: int, last: int) -> list[tuple[float, float]]:
    """Ten more a minute in scrapes first to last."""
    return [(60.0 * i, 500.0 + 10.0 * (i - first)) for i in range(first, last + 1)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert CliRunner().invoke(main, ["simulate", "scenarios/quickstart.yaml", "--out", str(path)]).exit_code == 0
    return path


def test_a_replaced_replica_and_a_late_label_lose_no_windows(tmp_path: Path) -> None:
    """Pod a until scrape 10, b from scrape 9; the label of aborted requests appears at scrape 5."""
    done = "vllm:request_success_total"
    path = export(
        tmp_path / "m.json",
        matrix(done, {"pod": "a", "finished_reason": "stop"}, growing(0, 10)),
        matrix(done, {"pod": "b", "finished_reason": "stop"}, growing(9, 20)),
        matrix(done, {"pod": "a", "finished_reason": "abort"}, [(60.0 * i, 1.0) for i in range(5, 11)]),
    )
    rates = read_observed(path).series["requests_per_s"] * 60.0
    assert rates.tolist() == pytest.approx([10.0] * 9 + [20.0] + [10.0] * 10)


def test_a_missed_scrape_is_a_gap(tmp_path: Path) -> None:
    tokens = "vllm:generation_tokens_total"
    values = growing(0, 9)
    path = export(
        tmp_path / "m.json",
        matrix(tokens, {"pod": "a"}, values),
        matrix(tokens, {"pod": "b"}, values[:4] + values[5:]),
    )
    rates = read_observed(path).series["output_tokens_per_s"]
    assert [i for i, rate in enumerate(rates) if rate != rate] == [3, 4]


def test_a_thousand_label_sets(tmp_path: Path) -> None:
    tokens = "sglang:generation_tokens_total"
    path = export(tmp_path / "m.json", *(matrix(tokens, {"pod": str(i)}, growing(0, 5)) for i in range(1000)))
    assert read_observed(path).series["output_tokens_per_s"] * 60.0 == pytest.approx([10_000.0] * 5)


def refused(plan: Path, path: Path) -> str:
    result = CliRunner().invoke(main, ["monitor", str(plan), str(path)])
    assert result.exit_code == 2, result.output
    return str(result.stderr)


def test_several_models_together(plan: Path, tmp_path: Path) -> None:
    tokens = "vllm:generation_tokens_total"
    series = (matrix(tokens, {"model_name": name}, growing(0, 5)) for name in ("a", "b\x1b[31m"))
    said = refused(plan, export(tmp_path / "m.json", *series))
    assert "metrics of 2 models together" in said
    assert "\x1b" not in said


def test_telemetry_of_another_model(plan: Path, tmp_path: Path) -> None:
    name = {"model_name": "deepseek-ai/DeepSeek-V3"}
    path = export(tmp_path / "m.json", matrix("vllm:generation_tokens_total", name, growing(0, 5)))
    assert "another model than the plan's (got DeepSeek-V3)" in refused(plan, path)


def test_scrapes_that_never_meet(plan: Path, tmp_path: Path) -> None:
    """Exit code 0 would say that all is as planned."""
    tokens = "vllm:generation_tokens_total"
    later = [(t + 1.0, v) for t, v in growing(0, 5)]
    path = export(tmp_path / "m.json", matrix(tokens, {"pod": "a"}, growing(0, 5)), matrix(tokens, {"pod": "b"}, later))
    assert "no window between two scrapes" in refused(plan, path)


@pytest.mark.parametrize("cells", ["", "0"])
def test_nothing_to_compare_is_not_as_planned(cells: str, plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text(f"time,tpot_ms\n1,{cells}\n2,{cells}\n")
    assert "nothing in it that the plan states" in refused(plan, path)
