"""A run that something was fitted to is not validation, under whatever name or unit it comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from moeplan.calibrate.leakage import leakage
from moeplan.cli import main
from moeplan.errors import InputError
from moeplan.files.runs.run_ledger import hashes, ledger_rows, read_ledger, write_ledger

RUN: dict[str, Any] = {
    "run_id": "a", "source": "somewhere", "licence": "MIT", "measured_on": "2026-01-01", "model": "Qwen3-30B-A3B",
    "hardware": "h200-sxm", "n_gpus": 1.0, "engine": "vllm", "tp": 1.0, "load": "closed_loop", "concurrency": 16.0,
    "input_tokens": 1024.0, "output_tokens": 256.0, "ttft_ms": 80.0, "tpot_ms": 12.0, "notes": "first",
}  # fmt: skip


def test_a_renamed_copy_is_the_same_run() -> None:
    copy = RUN | {"run_id": "b", "source": "elsewhere", "notes": "", "measured_on": "", "engine_version": "0.11"}
    assert hashes("serving", copy) == hashes("serving", RUN)


@given(st.floats(-4e-5, 4e-5))
def test_rounding_does_not_make_another_run(noise: float) -> None:
    assert hashes("serving", RUN | {"tpot_ms": 12.0 * (1.0 + noise)}) == hashes("serving", RUN)


def test_the_same_setup_measured_again_is_near() -> None:
    again = RUN | {"tpot_ms": 12.4}
    assert hashes("serving", again)[1] == hashes("serving", RUN)[1]
    assert hashes("serving", again)[0] != hashes("serving", RUN)[0]


@pytest.mark.parametrize("change", [{"tp": 2.0}, {"model": "Qwen3-32B"}, {"concurrency": 8.0}, {"load": "burst"}])
def test_another_setup_is_another_setup(change: dict[str, Any]) -> None:
    assert hashes("serving", RUN | change)[1] != hashes("serving", RUN)[1]


def test_masks() -> None:
    rows = [RUN, RUN | {"tpot_ms": 12.5}, RUN | {"concurrency": 1.0}, RUN | {"concurrency": 1.0, "run_id": "x"}]
    found = leakage("serving", rows, ledger_rows("serving", [RUN], "intervals"))
    assert found.fitted == (True, False, False, False)
    assert found.near == (True, True, False, False)
    assert found.repeated == (False, False, False, True)
    assert found.validation == (False, True, True, False)
    assert found.summary()["used_for"] == {"intervals": 1}


def test_ledger_keeps_other_purposes(tmp_path: Path) -> None:
    path = tmp_path / "fitted_runs.csv"
    other = RUN | {"concurrency": 2.0}
    write_ledger(path, ledger_rows("serving", [RUN, other], "intervals"))
    write_ledger(path, ledger_rows("serving", [RUN], "overheads"))
    write_ledger(path, ledger_rows("serving", [RUN], "intervals"))
    assert sorted(row.used_for for row in read_ledger(path)) == ["intervals", "overheads"]
    assert "80" not in {cell for row in read_ledger(path) for cell in (row.content, row.setup, row.source)}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "content,setup,used_for,source,licence,measured_on\n1,2\n"])
def test_a_bad_ledger_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text)
    with pytest.raises(InputError):
        read_ledger(path)


def test_accuracy_counts_only_what_was_not_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, runs = tmp_path / "ledger.csv", tmp_path / "runs.csv"
    fresh = RUN | {"run_id": "new", "concurrency": 4.0}
    pd.DataFrame([RUN, fresh]).to_csv(runs, index=False)
    write_ledger(ledger, ledger_rows("serving", [RUN], "intervals"))
    monkeypatch.setattr("moeplan.files.runs.run_ledger.shipped_ledger", lambda: ledger)
    result = CliRunner().invoke(main, ["accuracy", str(runs), "--json"])
    report = json.loads(result.stdout)
    assert report["metrics"]["tpot"]["n"] == 2
    assert report["validation"]["tpot"]["n"] == 1
    assert report["leakage"]["fitted"] == 1
    shown = CliRunner().invoke(main, ["accuracy", str(runs)]).stdout
    assert "Used to fit: 1 rows (1 for intervals)" in shown
