"""A plan card holds what the run knows, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from moeplan.cli import main
from moeplan.report.card import _md

ROOT = Path(__file__).parents[2]


def card_of(tmp_path: Path, *args: str) -> tuple[str, dict[str, object]]:
    out = tmp_path / "card.md"
    result = CliRunner().invoke(main, ["simulate", *args, "--json", "--card", str(out)])
    assert result.exit_code in (0, 3), result.output
    return out.read_text("utf-8"), json.loads(result.stdout)


def test_card_follows_the_four_functions_and_repeats_every_verdict(tmp_path: Path) -> None:
    card, plan = card_of(tmp_path, str(ROOT / "scenarios/quickstart.yaml"))
    assert re.findall(r"^## (\w+):", card, re.M) == ["Govern", "Map", "Measure", "Manage"]
    for verdict in plan["verdicts"]:  # type: ignore[attr-defined]
        assert _md(verdict["text"]) in card
    assert "391 days old" in card
    assert "gemm (vllm, bf16) | fitted | 7,104" in card
    assert "owner of the decision | not stated" in card
    assert "None" not in card
    assert "nan" not in card


def test_card_of_a_device_nobody_measured_says_so(tmp_path: Path) -> None:
    card, _ = card_of(tmp_path, str(ROOT / "scenarios/gpt-oss-120b-mi300x.yaml"))
    assert "not measured on this device" in card
    assert "none on this device" in card


@pytest.mark.slow
def test_card_of_a_training_run(tmp_path: Path) -> None:
    card, _ = card_of(tmp_path, str(ROOT / "scenarios/own-moe-60k.yaml"))
    assert "| GPU hours |" in card
    assert "training step" in card


@pytest.mark.parametrize("text", ["<script>", "[a](http://b)", "a|b", "`x`", "**x**", "\x1b[31m"])
def test_text_is_inert(text: str) -> None:
    assert not re.search(r"(?<!\\)[`*\[\]|]|[<>\x1b]", _md(text))
