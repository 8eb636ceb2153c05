"""Where a plan fails it says what to try, and what it says was tried."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from moeplan.cli import main

QUICKSTART = str(Path(__file__).parents[2] / "scenarios/quickstart.yaml")


def plan_of(*sets: str) -> dict[str, object]:
    args = [arg for text in sets for arg in ("--set", text)]
    return json.loads(CliRunner().invoke(main, ["simulate", QUICKSTART, *args, "--json"]).stdout)


def next_of(plan: dict[str, object]) -> list[str]:
    return [v["text"] for v in plan["verdicts"] if v["check"] == "next"]  # type: ignore[attr-defined]


def test_a_plan_that_passes_suggests_nothing() -> None:
    assert next_of(plan_of()) == []


def test_replicas_that_are_suggested_carry_the_load() -> None:
    (text,) = next_of(plan_of("serving.traffic.rate=40 req/s"))
    found = re.search(r"(\d+) replicas instead of 1 carry", text)
    assert found is not None
    better = plan_of("serving.traffic.rate=40 req/s", f"serving.layout.replicas={found[1]}")
    failed = [v["check"] for v in better["verdicts"] if not v["ok"]]  # type: ignore[attr-defined]
    assert failed in ([], ["budget"])
    assert ("over the budget" in text) == (failed == ["budget"])


def test_where_a_single_request_is_too_slow_more_replicas_are_not_advised() -> None:
    (text,) = next_of(plan_of("serving.slo.tpot=3 ms"))
    assert "more replicas do not help" in text
    assert "moeplan optimize" in text


@pytest.mark.parametrize("change", ["model=DeepSeek-R1", "budget=100 USD/month"])
def test_memory_and_budget(change: str) -> None:
    plan = plan_of(change)
    (text,) = next_of(plan)
    checks = [v["check"] for v in plan["verdicts"]]  # type: ignore[attr-defined]
    assert checks.index("next") == 1 + checks.index("budget")
    assert "moeplan " in text
