"""`moeplan measure` on a machine without a GPU."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from moeplan.cli import main


def run(*args: str):
    return CliRunner().invoke(main, ["measure", *args])


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("--out", str(tmp_path / "m"))
    assert result.exit_code == 2
    assert "PyTorch is not installed" in result.stderr
    assert "moeplan[measure]" in result.stderr
    assert not (tmp_path / "m").exists()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    class Torch:
        class cuda:  # noqa: N801
            is_available = staticmethod(lambda: False)

    monkeypatch.setitem(sys.modules, "torch", Torch)
    result = run("--out", str(tmp_path / "m"))
    assert result.exit_code == 2
    assert "no GPU" in result.stderr
    assert not (tmp_path / "m").exists()


def test_list_needs_no_gpu() -> None:
    result = run("--list", "--op", "gemm", "--json")
    assert result.exit_code == 0
    assert {case["op"] for case in json.loads(result.stdout)["cases"]} == {"gemm"}


def test_unknown_operation() -> None:
    result = run("--list", "--op", "gemn")
    assert result.exit_code == 2
    assert "did you mean" in result.stderr
