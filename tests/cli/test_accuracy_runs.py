"""``moeplan accuracy`` on tables of serving and training runs: every row is judged or counted with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from moeplan.cli import main

SERVING = {
    "run_id": "s-1", "model": "Qwen3-30B-A3B", "hardware": "h200-sxm", "n_gpus": 1, "weight_precision": "",
    "engine": "vllm", "tp": 1, "pp": 1, "dp": 1, "ep": 1, "load": "closed_loop",
    "input_tokens": 512, "output_tokens": 64,
    "length_ratio": 0.8, "concurrency": 4,
}  # fmt: skip
TRAINING = {
    "run_id": "t-1", "kind": "MoE", "model": "Qwen3-30B-A3B", "precision": "BF16", "hardware": "h100-sxm", "n_gpus": 8,
    "tp": 1, "pp": 1, "ep": 8, "etp": 1, "cp": 1, "dp": 8, "sequence_length": 4096, "global_batch": 64,
    "micro_batch": 1,
}  # fmt: skip


def table(path: Path, *rows: dict[str, object]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def accuracy(*args: object) -> Result:
    return CliRunner().invoke(main, ["accuracy", *map(str, args)], standalone_mode=True)


def report(*args: object) -> dict[str, dict[str, dict[str, float]]]:
    result = accuracy(*args, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, dict[str, dict[str, float]]] = json.loads(result.stdout)
    return found


def test_error_is_prediction_against_truth(tmp_path: Path) -> None:
    """The truth is set to what is predicted, then to twice that: the error must be zero, then minus one half."""
    path = table(tmp_path / "runs.csv", {**SERVING, "tpot_ms": 10.0})
    rows = tmp_path / "rows.csv"
    assert accuracy(path, "--out", rows).exit_code == 0
    predicted = float(pd.read_csv(rows)["tpot_predicted"].iloc[0])
    for factor, error in ((1.0, 0.0), (2.0, -0.5)):
        table(path, {**SERVING, "tpot_ms": factor * predicted})
        found = report(path)["metrics"]["tpot"]
        assert found["bias_frac"] == pytest.approx(error, abs=1e-4)
        assert found["mdape_frac"] == pytest.approx(abs(error), abs=1e-4)
        assert found["n"] == 1
        assert found["answered_frac"] == 1.0
    assert found["coverage_frac"] in (0.0, 1.0)


def test_forms_of_one_quantity_pool(tmp_path: Path) -> None:
    path = table(
        tmp_path / "runs.csv",
        {**SERVING, "tpot_ms": 10.0},
        {**SERVING, "run_id": "s-2", "tpot_ms_median": 10.0},
        {**SERVING, "run_id": "s-3", "itl_ms": 10.0},
        {**SERVING, "run_id": "s-4", "output_tokens_per_s": 400.0},
        {**SERVING, "run_id": "s-5", "output_tokens_per_s_per_gpu": 400.0},
    )
    metrics = report(path)["metrics"]
    assert metrics["tpot"]["n"] == 3
    assert metrics["output_throughput"]["n"] == 2
    assert set(metrics) == {"tpot", "output_throughput"}


def test_a_row_without_an_answer_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = table(
        tmp_path / "runs.csv",
        {**SERVING, "tpot_ms": 10.0},
        {**SERVING, "run_id": "s-2", "model": "NoSuchModel", "tpot_ms": 10.0},
        {**SERVING, "run_id": "s-3", "tp": 4, "tpot_ms": 10.0},
        {**SERVING, "run_id": "s-4", "model": "DeepSeek-V3", "tpot_ms": 10.0},
    )
    found = report(path)
    assert found["metrics"]["tpot"]["n"] == 4
    assert found["metrics"]["tpot"]["answered_frac"] == 0.25
    why = {gap["run_id"]: gap["why"] for gap in found["unanswered"]}
    assert "NoSuchModel" in why["s-2"]
    assert "GPUs stated" in why["s-3"]
    assert "memory" in why["s-4"]


def test_training_rows(tmp_path: Path) -> None:
    path = table(
        tmp_path / "runs.csv", {**TRAINING, "step_time_s": 5.0, "tokens_per_s_per_gpu": 6553.6, "memory_gb_per_gpu": 70}
    )
    metrics = report(path)["metrics"]
    assert {"step_time", "tokens_per_s", "memory"} <= set(metrics)
    assert metrics["step_time"]["answered_frac"] == 1.0


def test_unknown_columns_are_carried_through_with_a_notice(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", {**SERVING, "tpot_ms": 10.0, "weather": "rain"})
    rows = tmp_path / "rows.csv"
    result = accuracy(path, "--out", rows, "--json")
    assert "weather" in result.stderr
    assert json.loads(result.stdout)
    assert pd.read_csv(rows)["weather"].tolist() == ["rain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tpot_ms": "fast"}, "runs.csv:2: tpot_ms: not a finite number of at least 0 (got fast)"),
        ({"tpot_ms": -1}, "(got -1)"),
        ({"tpot_ms": "inf"}, "(got inf)"),
        ({"n_gpus": "nan"}, "n_gpus: not a finite number"),
    ],
)
def test_bad_cells_are_located(tmp_path: Path, change: dict[str, object], message: str) -> None:
    result = accuracy(table(tmp_path / "runs.csv", {**SERVING, "tpot_ms": 10.0, **change}))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_missing_columns_empty_and_binary_files(tmp_path: Path) -> None:
    row = dict(SERVING)
    del row["hardware"]
    assert "column hardware missing" in accuracy(table(tmp_path / "a.csv", row)).stderr
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    for name in ("b.csv", "c.csv", "missing.csv"):
        result = accuracy(tmp_path / name)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
