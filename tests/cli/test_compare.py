"""``moeplan compare``: every way with its own best layout, ranked, and which differences are certain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scenario_files import SERVING, TRAINING, run

import moeplan
from moeplan.files.load import load
from moeplan.files.plan_json import plan_from_json, plan_to_json
from moeplan.planner.plan import simulate
from moeplan.planner.search.compare import _pair, compare
from moeplan.spec.plan import Q

SMALL = SERVING.replace("    output_tokens: 200\n", "    output_tokens: 200\n    requests: 300\n")
FEW = ["optimize.tp=[1]", "optimize.pp=[1]", "optimize.dp=[1]", "optimize.max_num_seqs=[64]",
       "optimize.max_num_batched_tokens=[8192]", "optimize.gpus=8"]  # fmt: skip


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(SMALL + "optimize: {gpus: 8, tp: [1], pp: [1], dp: [1], max_num_seqs: [64]}\n")
    return path


def test_hardware_is_ranked_with_its_own_layout_offer_and_interval(serving: Path) -> None:
    found = compare(serving, hardware=["h100-sxm", "h200-sxm", "h800", "l40s"], overrides=FEW)
    by_name = {entry.name: entry for entry in found.entries}
    assert [e.rank for e in found.entries] == [1, 2, 3, 4]
    h200 = by_name["h200-sxm"]
    assert h200.price is not None
    assert h200.price.date
    assert h200.price.offer.count("/") >= 1
    again = simulate(load(serving, h200.best.overrides))
    assert plan_to_json(again) == plan_to_json(h200.plan)
    assert h200.value.value == again.cost.usd_per_month.value
    assert h200.value.low <= h200.value.value <= h200.value.high
    assert by_name["h800"].value is None
    assert "without cost" in by_name["h800"].note
    assert by_name["h800"].feasible
    assert found.entries[-1].name == "l40s", "what does not fit is last"
    assert by_name["l40s"].failed == ("memory",)
    assert {(p.better, p.worse) for p in found.pairs} in (
        {("h100-sxm", "h200-sxm")},
        {("h200-sxm", "h100-sxm")},
    )
    shown = run("compare", serving, "--hardware", "h100-sxm,h200-sxm", *sets(FEW))
    assert shown.exit_code == 0, shown.output
    assert "independent" in shown.stdout


def sets(texts: list[str]) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def test_two_prices_of_one_deployment_are_apart_however_unsure_it_is(serving: Path) -> None:
    found = compare(serving, prices=["2 USD/h", "2.02 USD/h"], overrides=FEW)
    assert [e.name for e in found.entries] == ["2 USD/h", "2.02 USD/h"]
    (pair,) = found.pairs
    assert pair.apart
    assert pair.ratio == pytest.approx(1.01)
    same = compare(serving, prices=["2 USD/h", "3 USD/h"], by="latency", overrides=[*FEW, "budget=90000 USD/month"])
    assert "are equal" in same.pairs[0].text


def test_variants_of_the_scenario(serving: Path) -> None:
    text = serving.read_text() + "variants:\n"
    text += "  - {name: plain, set: {serving.precision: native}}\n  - {name: narrow, set: {serving.precision: fp8}}\n"
    serving.write_text(text)
    result = run("compare", serving, "--by", "throughput_per_dollar", "--json")
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert {entry["name"] for entry in tree["entries"]} == {"plain", "narrow"}
    assert plan_from_json(json.dumps(tree["entries"][0]["plan"])).feasible
    assert moeplan.compare(serving, by="throughput_per_dollar").entries[0].name == tree["entries"][0]["name"]


def test_training_on_two_machines(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(TRAINING + "optimize: {tp: [1], pp: [1], cp: [1], ep: [8], micro_batch: [1]}\n")
    found = compare(path, hardware=["a100-sxm-80gb", "h100-sxm"], by="time")
    assert found.entries[0].name == "h100-sxm"
    assert found.entries[0].value == found.entries[0].plan.training.wall_time_s


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to compare"),
        (["--hardware", "h1000"], "unknown hardware"),
        (["--model", "No-Such-Model"], "no such model"),
        (["--by", "beauty"], "beauty"),
        (["--set", "optimize.by=beauty", "--hardware", "h100-sxm"], None),
    ],
)
def test_bad_questions(serving: Path, arguments: list[str], said: str | None) -> None:
    result = run("compare", serving, *arguments)
    if said is None:  # the option wins over the file
        assert result.exit_code == 0, result.output
    else:
        assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_one_way_that_fails_does_not_hide_the_others(serving: Path) -> None:
    result = run("compare", serving, "--hardware", "h100-sxm,h1000", *sets(FEW), "--json")
    assert result.exit_code == 0, result.output
    entries = json.loads(result.stdout)["entries"]
    assert [e["name"] for e in entries] == ["h100-sxm", "h1000"]
    assert "unknown hardware" in entries[1]["note"]
    slow = run("compare", serving, "--hardware", "h100-sxm", *sets([*FEW, "serving.slo.tpot=1 ms"]))
    assert (slow.exit_code, "no way meets every check" in slow.stdout) == (3, True)


def test_apart_exactly_where_the_facing_half_widths_add_up_to_less_than_the_gap() -> None:
    def log(value: float, low: float, high: float) -> Q:
        return Q(math.exp(value), math.exp(value - low), math.exp(value + high))

    assert not _pair("a", log(0.0, 9.0, 0.3), "b", log(0.49, 0.4, 9.0)).apart
    assert _pair("a", log(0.0, 9.0, 0.3), "b", log(0.51, 0.4, 9.0)).apart, "3-4-5: only the ends that face each other"
    assert _pair("a", log(0.0, 0.0, 0.0), "b", log(1e-6, 0.0, 0.0)).apart
