"""`moeplan calibrate` and `moeplan accuracy` on made-up tables, good and bad."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from table_cases import TRUTH, gemm_frame, write_table

from moeplan.cli import main
from moeplan.errors import InputError


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def problems(*arguments: object) -> str:
    """Text of the errors; exit code 2 as a user sees it."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return result.output + (str(result.exception) if isinstance(result.exception, InputError) else "")


def test_tables_in_fitted_file_out(tmp_path):
    write_table(tmp_path / "in", gemm_frame())
    result = run("calibrate", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["not_converged"] == []
    (path,) = (tmp_path / "out" / "h100-sxm" / "fitted").iterdir()
    assert found["written"] == [str(path)]
    fit = yaml.safe_load(path.read_text())["fits"][0]
    assert (fit["op"], fit["engine"], fit["dtype"], fit["tier"]) == ("gemm", "vllm", "bf16", "fitted")
    assert fit["values"]["memory_frac"] == pytest.approx(TRUTH["memory_frac"], rel=0.05)
    assert len(fit["covariance"]) == len(fit["values"])
    assert set(fit["heldout"]) == {"n", "mdape", "mape", "bias", "coverage"}
    assert len(fit["tables"][0]["sha256"]) == 64
    assert fit["tables"][0]["kernel_source"] == ["made up"]


def test_the_same_tables_give_the_same_file(tmp_path):
    """Byte for byte, whatever was written before."""
    write_table(tmp_path / "in", gemm_frame(n=500))
    written = []
    for name in ("one", "two"):
        found = run("calibrate", tmp_path / "in", "--out", tmp_path / name, "--seed", 3, "--json")
        assert found.exit_code == 0
        (path,) = (tmp_path / name / "h100-sxm" / "fitted").iterdir()
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_fits_of_other_operations_are_carried_over(tmp_path):
    write_table(tmp_path / "in", gemm_frame())
    old = tmp_path / "out" / "h100-sxm" / "fitted" / "2020-01-01.yaml"
    old.parent.mkdir(parents=True)
    kept = {"op": "moe", "engine": "vllm", "dtype": "bf16", "tier": "fitted", "values": {"x": 1.0},
            "log_residual": [-0.1, 0.0, 0.1], "source": "before"}  # fmt: skip
    old.write_text(yaml.safe_dump({"fits": [kept]}))
    assert run("calibrate", tmp_path / "in", "--out", tmp_path / "out", "--json").exit_code == 0
    (new,) = (p for p in old.parent.iterdir() if p != old)
    assert [fit["op"] for fit in yaml.safe_load(new.read_text())["fits"]] == ["gemm", "moe"]


def test_a_fit_that_does_not_converge_keeps_the_old_file(tmp_path, monkeypatch):
    from moeplan.calibrate import fit

    real = fit.least_squares
    monkeypatch.setattr(fit, "least_squares", lambda *a, **k: real(*a, **{**k, "max_nfev": 1}))
    write_table(tmp_path / "in", gemm_frame())
    result = run("calibrate", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 2
    assert "old file kept" in result.stderr
    assert not (tmp_path / "out").exists()


BAD = {
    "missing column": (lambda f: f.drop(columns="k"), "column k is missing"),
    "another unit in the name": (lambda f: f.rename(columns={"latency_ms": "latency_us"}), "not latency_us"),
    "another unit in the values": (lambda f: f.assign(latency_ms=f["latency_ms"] * 1e3), "wrong unit"),
    "nan": (lambda f: f.assign(latency_ms=f["latency_ms"].where(f.index != 7)), "missing, negative or not finite"),
    "negative": (lambda f: f.assign(latency_ms=-f["latency_ms"]), "missing, negative or not finite"),
    "infinite": (lambda f: f.assign(latency_ms=np.inf), "missing, negative or not finite"),
    "text": (lambda f: f.assign(m="many"), "not numeric"),
    "empty": (lambda f: f.iloc[:0], "no rows"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["calibrate", "accuracy"])
def test_a_bad_table_is_one_clear_problem_and_nothing_is_written(tmp_path, case, command):
    change, message = BAD[case]
    write_table(tmp_path / "in", gemm_frame(n=300))
    write_table(tmp_path / "in", change(gemm_frame(n=300)), name="gemm.sglang.parquet")
    out = ["--out", tmp_path / "out"] if command == "calibrate" else []
    text = problems(command, tmp_path / "in", *out)
    assert message in text
    assert text.count("gemm.sglang.parquet") == 1
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused(tmp_path):
    path = write_table(tmp_path, gemm_frame(n=300))
    path.write_bytes(path.read_bytes()[:500])
    assert "not a readable parquet file" in problems("calibrate", tmp_path, "--out", tmp_path / "out")


def test_unknown_names_are_refused_with_a_hint(tmp_path):
    write_table(tmp_path / "a", gemm_frame(n=300), name="gemn.vllm.parquet")
    assert "did you mean gemm" in problems("calibrate", tmp_path / "a")
    write_table(tmp_path / "b", gemm_frame(n=300), hardware="h100-sxn")
    assert "no known device" in problems("accuracy", tmp_path / "b")
    assert "did you mean h100-sxm" in problems("calibrate", tmp_path / "b", "--device", "h100-sxn")
    assert "no such file" in problems("accuracy", tmp_path / "c")
    (tmp_path / "d").mkdir()
    assert "no tables here" in problems("accuracy", tmp_path / "d")
    (tmp_path / "runs.csv").write_text("a,b\n")
    assert "column run_id" in problems("accuracy", tmp_path / "runs.csv")
    (tmp_path / "runs.txt").write_text("a,b\n")
    assert "parquet" in problems("accuracy", tmp_path / "runs.txt")


def test_accuracy_answers_or_counts_every_row(tmp_path):
    frame = gemm_frame(n=400)
    unknown = frame.head(30).assign(gemm_dtype="int3")
    known_bad = frame[frame["m"] <= 256].head(20).assign(gemm_dtype="fp8_block")
    write_table(tmp_path, pd.concat([frame.assign(surprise=1), unknown, known_bad], ignore_index=True))
    result = run("accuracy", tmp_path, "--json", "--out", tmp_path / "rows.csv")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found) == ["metrics", "groups", "unanswered"]
    errors = found["metrics"]["gemm"]
    assert set(errors) == {
        "n", "answered_frac", "mdape_frac", "mape_frac", "bias_frac", "coverage_frac", "median_width_frac",
    }  # fmt: skip
    assert errors["n"] == 450
    assert errors["answered_frac"] == pytest.approx(400 / 450)
    assert {gap["n"] for gap in found["unanswered"]} == {30, 20}
    assert sum(group["gemm"]["n"] for group in found["groups"]) == 400
    assert set(found["groups"][0]["by"]) == {"op", "hardware", "engine", "dtype", "regime"}
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert len(rows) == 400
    assert (rows["low"] <= rows["high"]).all()


def test_held_out_rows_are_a_part_and_the_page_has_every_table(tmp_path):
    path = write_table(tmp_path, gemm_frame(n=1000))
    whole = json.loads(run("accuracy", path, "--json").stdout)["metrics"]["gemm"]["n"]
    part = json.loads(run("accuracy", path, "--json", "--held-out").stdout)["metrics"]["gemm"]["n"]
    assert whole == 1000
    assert 120 < part < 280
    page = run("accuracy", path, "--markdown").stdout
    assert page.startswith("# Accuracy against measured runs")
    assert "| gemm | 1000 |" in page
