"""From three own runs to a scenario that predicts them better, and says how sure it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from moeplan.cli import main

RUNS = Path(os.environ.get("MOEPLAN_SHARED", Path(__file__).parents[2].parent / "shared")) / "measured/serving.csv"
CONCURRENCY = (1, 4, 16, 64)
SCENARIO = """\
model: Qwen3-30B-A3B
hardware: h200-sxm
price: 3 USD/h
serving:
  engine: vllm
  traffic: {users: 16, input_tokens: {fixed: 1024}, output_tokens: {fixed: 128}, requests: 200}
"""


def run(*args: object):
    return CliRunner().invoke(main, [str(a) for a in args])


def own_runs(folder: Path, factor: float, hardware: str = "h200-sxm") -> Path:
    """Runs of a machine whose every iteration takes ``factor`` times as long as predicted."""
    rows = [
        {
            "run_id": f"r{n}", "model": "Qwen3-30B-A3B", "hardware": hardware, "n_gpus": 1, "tp": 1, "engine": "vllm",
            "load": "closed_loop", "input_tokens": 1024, "output_tokens": 128, "concurrency": n, "ttft_ms": 1.0,
            "tpot_ms": 1.0,
        }
        for n in CONCURRENCY
    ]  # fmt: skip
    path, judged = folder / "own.csv", folder / "judged.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    assert run("accuracy", path, "--out", judged, "--json").exit_code == 0
    predicted = pd.read_csv(judged)
    frame = pd.DataFrame(rows)
    for metric in ("ttft", "tpot"):
        frame[f"{metric}_ms"] = factor * predicted[f"{metric}_predicted"]
    frame.to_csv(path, index=False)
    return path


def test_own_runs_move_the_plan(tmp_path: Path) -> None:
    """A machine half as fast again as predicted is found out, carefully, and the interval says how sure that is."""
    result = run("calibrate", own_runs(tmp_path, 1.5), "--json")
    assert result.exit_code == 0, result.stderr
    step, first = json.loads(result.stdout)["corrections"]
    assert 0.2 < step["shift"] < np.log(1.5)
    assert step["after"] < step["before"]
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO)
    plain = json.loads(run("simulate", scenario, "--json").stdout)["serving"]["tpot_s"]["mean"]
    scenario.write_text(SCENARIO + "calibration: own.calibration.yaml\n")
    own = json.loads(run("simulate", scenario, "--json").stdout)["serving"]["tpot_s"]["mean"]
    assert own["value"] == pytest.approx(plain["value"] * np.exp(step["shift"]), rel=0.02)
    assert own["low"] < 1.5 * plain["value"] < own["high"]
    assert own["high"] / own["low"] == pytest.approx(np.exp(step["high"] - step["low"]), rel=0.25)  # and sampling
    assert first["metric"] == "ttft"


def test_runs_as_predicted_change_nothing(tmp_path: Path) -> None:
    result = run("calibrate", own_runs(tmp_path, 1.0), "--json")
    assert {c["shift"] for c in json.loads(result.stdout)["corrections"]} == {0.0}


def test_a_calibration_is_for_its_machine(tmp_path: Path) -> None:
    assert run("calibrate", own_runs(tmp_path, 1.3)).exit_code == 0
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO + "calibration: own.calibration.yaml\n")
    result = run("simulate", scenario, "--set", "hardware=h100-sxm")
    assert result.exit_code == 2
    assert "s.yaml:7:14: calibration: no correction for what this scenario runs on" in result.stderr
    assert "h200-sxm under vllm" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corrections: []\n", "fitted_on"),
        ("fitted_on: '2026'\nruns: r\ncorrections: [{hardware: h200-sxm}]\n", "engine"),
        ("fits: 3\n", "fits"),
        ("- a\n", "calibration"),
    ],
)
def test_bad_files_are_located(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    (tmp_path / "s.yaml").write_text(SCENARIO + "calibration: c.yaml\n")
    result = run("simulate", tmp_path / "s.yaml")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_file_is_located(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO + "calibration: [nowhere.yaml]\n")
    result = run("simulate", tmp_path / "s.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.stderr


def test_two_runs_are_too_few(tmp_path: Path) -> None:
    path = own_runs(tmp_path, 1.3)
    pd.read_csv(path).head(2).to_csv(path, index=False)
    result = run("calibrate", path)
    assert result.exit_code == 2
    assert "at least 3 needed" in result.stderr
    assert not (tmp_path / "own.calibration.yaml").exists()


def test_copies_of_a_run_are_one_run(tmp_path: Path) -> None:
    path = own_runs(tmp_path, 1.3)
    first = pd.read_csv(path).head(1)
    pd.concat([first.assign(run_id=f"copy{i}") for i in range(5)]).to_csv(path, index=False)
    result = run("calibrate", path)
    assert result.exit_code == 2
    assert "4 runs stand in the table twice" in result.stderr
    assert "1 runs, at least 3 needed" in result.stderr


def test_own_tables_replace_borrowed_operations(tmp_path: Path) -> None:
    """A file of `calibrate TABLES`: on a device that borrows its kernels, own ones count."""
    fit = {
        "op": "gemm", "engine": "torch", "dtype": "bf16", "tier": "fitted", "log_residual": [-0.1, 0.0, 0.1],
        "source": "own tables", "values": {"compute_frac": 0.2, "memory_frac": 0.2},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"fits": [fit]}))
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO.replace("h200-sxm", "rtx-5090") + "calibration: c.yaml\n")
    from moeplan.costs.parameters import lookup
    from moeplan.files.load import load

    assert lookup(load(scenario).hardware, "gemm", "vllm", "bf16").source == "own tables"
    assert lookup(load(scenario).hardware, "moe", "vllm", "bf16").source != "own tables"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not RUNS.is_file(), reason="measured runs are not here")
def test_three_published_runs_help_the_rest_of_their_group(tmp_path: Path) -> None:
    """Every group of eight or more published runs, three drawn at random 30 times: better on average, and for most."""
    out = tmp_path / "rows.csv"
    assert run("accuracy", RUNS, "--out", out, "--json").exit_code == 0
    from moeplan.calibrate.own_runs import Spread, update
    from moeplan.files.runs.calibration import error_spreads

    known = error_spreads()["step"]
    spread = Spread(known["between"], known["within"], known["n_runs"], known["n_groups"])
    frame = pd.read_csv(out).dropna(subset=["tpot_measured", "tpot_predicted"])
    frame["error"] = np.log(frame["tpot_measured"] / frame["tpot_predicted"])
    rng = np.random.default_rng(0)
    before, after = [], []
    for _, group in frame.groupby(["model", "hardware", "engine"]):
        errors = group["error"].to_numpy()
        if len(errors) < 8:
            continue
        draws = [rng.permutation(errors) for _ in range(30)]
        before.append(np.mean([np.median(np.abs(d[3:])) for d in draws]))
        after.append(np.mean([np.median(np.abs(d[3:] - update(list(d[:3]), spread).shift)) for d in draws]))
    assert np.mean(after) < 0.9 * np.mean(before)
    assert np.mean(np.array(after) > np.array(before) + 0.02) < 0.1
