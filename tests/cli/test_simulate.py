"""``moeplan simulate`` as a user runs it: every shipped scenario, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from moeplan.cli import main
from moeplan.files.plan_json import plan_from_json, plan_schema, plan_to_json

SCENARIOS = Path(__file__).parents[2] / "scenarios"
QUICKSTART = SCENARIOS / "quickstart.yaml"
NAMES = sorted(p.name for p in SCENARIOS.glob("*.yaml"))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], standalone_mode=True)


@pytest.fixture(scope="module")
def quickstart() -> Result:
    return run("simulate", QUICKSTART, "--json")


def test_there_are_at_least_ten_scenarios() -> None:
    assert len(NAMES) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_gives_a_plan_that_obeys_the_schema(name: str) -> None:
    result = run("simulate", SCENARIOS / name, "--json")
    assert result.exit_code in (0, 3), result.stderr
    plan = json.loads(result.stdout)
    jsonschema.validate(plan, plan_schema())
    assert (result.exit_code == 0) == plan["feasible"]
    assert (plan["serving"] is not None) == (plan["kind"] in ("serving", "lifecycle"))
    assert (plan["training"] is not None) == (plan["kind"] in ("training", "lifecycle"))


def test_published_schema_is_the_current_one() -> None:
    published = json.loads((SCENARIOS.parent / "docs/reference/plan.schema.json").read_text())
    assert published == plan_schema(), "run: moeplan schema --plan > docs/reference/plan.schema.json"


def test_json_has_the_contract_keys(quickstart: Result) -> None:
    plan = json.loads(quickstart.stdout)
    assert list(plan) == [
        "moeplan", "scenario", "kind", "seed", "feasible", "verdicts", "serving", "training", "memory", "routing",
        "cost", "budget", "energy", "alternatives", "lifecycle", "advice", "time_breakdown", "provenance",
    ]  # fmt: skip
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        for statistic in ("mean", "p50", "p90", "p99"):
            q = plan["serving"][metric][statistic]
            assert 0 < q["low"] <= q["value"] <= q["high"]
    assert {"check", "ok", "need", "have", "text"} <= set(plan["verdicts"][0])
    assert {"per_gpu_bytes", "capacity_bytes", "breakdown", "kv_capacity_tokens"} == set(plan["memory"])
    assert {"limit_usd", "used_usd", "fits", "per", "headroom_usd", "probability_frac", "law", "buys", "change"} == set(
        plan["budget"]
    )


def test_same_scenario_same_bytes(quickstart: Result) -> None:
    assert run("simulate", QUICKSTART, "--json").stdout_bytes == quickstart.stdout_bytes


def test_json_is_read_back_whole(quickstart: Result) -> None:
    assert plan_to_json(plan_from_json(quickstart.stdout)) == quickstart.stdout


def test_percentiles_are_ordered(quickstart: Result) -> None:
    serving = json.loads(quickstart.stdout)["serving"]
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        values = [serving[metric][p]["value"] for p in ("p50", "p90", "p95", "p99")]
        assert values == sorted(values)


def test_memory_breakdown_adds_up(quickstart: Result) -> None:
    memory = json.loads(quickstart.stdout)["memory"]
    assert sum(memory["breakdown"].values()) == pytest.approx(memory["per_gpu_bytes"])
    assert memory["per_gpu_bytes"] <= memory["capacity_bytes"]


def test_misfit_is_a_verdict_with_a_fix_and_exit_3() -> None:
    result = run("simulate", QUICKSTART, "--set", "model=DeepSeek-V3", "--json")
    assert result.exit_code == 3
    plan = json.loads(result.stdout)
    memory = next(v for v in plan["verdicts"] if v["check"] == "memory")
    assert not memory["ok"]
    assert memory["need"] > memory["have"]
    assert "Smallest change" in memory["text"]
    assert plan["serving"] is None
    assert plan["cost"]["usd_per_month"]["value"] > 0


def test_missed_budget_is_exit_3_and_both_forms_say_so() -> None:
    result = run("simulate", QUICKSTART, "--set", "budget=100 USD/month")
    assert result.exit_code == 3
    assert "over the limit of $100" in result.stdout


def test_impossible_slo_fails_its_own_verdict() -> None:
    plan = json.loads(run("simulate", QUICKSTART, "--set", "serving.slo.tpot=1 us", "--json").stdout)
    assert [v["check"] for v in plan["verdicts"] if not v["ok"]] == ["slo_tpot"]


def test_overload_is_seen() -> None:
    result = run("simulate", QUICKSTART, "--set", "serving.traffic.rate=500 req/s", "--json")
    plan = json.loads(result.stdout)
    assert result.exit_code == 3
    assert plan["serving"]["saturated"]


def test_terminal_output_is_plain_and_narrow() -> None:
    text = run("simulate", QUICKSTART).stdout
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_out_writes_what_json_prints(tmp_path: Path, quickstart: Result) -> None:
    target = tmp_path / "plan.json"
    assert run("simulate", QUICKSTART, "--out", target).exit_code == 0
    assert target.read_text() == quickstart.stdout
    assert list(tmp_path.iterdir()) == [target]


def test_out_into_a_missing_folder_is_bad_input(tmp_path: Path) -> None:
    result = run("simulate", QUICKSTART, "--out", tmp_path / "no" / "plan.json")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "unmeasured",
    [("draft_tokens=2", "draft_acceptance=0.6", "drafts=ngram"), ("weight_offload=0.2",), ("expert_offload=0.5",)],
)
def test_what_no_run_was_measured_with_widens_intervals(quickstart: Result, unmeasured: tuple[str, ...]) -> None:
    sets = [part for text in unmeasured for part in ("--set", f"serving.engine.{text}")]
    plain, plan = (json.loads(r.stdout) for r in (quickstart, run("simulate", QUICKSTART, "--json", *sets)))
    ttft, known = plan["serving"]["ttft_s"]["p50"], plain["serving"]["ttft_s"]["p50"]
    assert ttft["high"] / ttft["low"] > 1.5 * known["high"] / known["low"]
