"""``moeplan sensitivity``: against closed forms of money, and studies nobody can answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenario_files import SERVING, TRAINING, run

import moeplan
from moeplan.files.load import load
from moeplan.planner.plan import simulate
from moeplan.planner.search.sensitivity import sensitivity
from moeplan.planner.search.what_if import ablations

DENSE = (
    TRAINING.replace("OLMoE-1B-7B", "Qwen2.5-7B").replace(", ep: 8", ", zero: 3").replace("1B tokens", "100M tokens")
)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Dense training plans take milliseconds."""
    path = tmp_path / "train.yaml"
    path.write_text(DENSE)
    return path


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(SERVING.replace("    output_tokens: 200\n", "    output_tokens: 200\n    requests: 300\n"))
    return path


@pytest.fixture
def dense(serving: Path) -> Path:
    serving.write_text(serving.read_text().replace("Qwen3-30B-A3B", "Qwen2.5-7B").replace("routing: {zipf: 0.3}\n", ""))
    return serving


def test_tornado_of_a_product_of_price_and_tokens(training: Path) -> None:
    vary = ["price=1..3 USD/h", "training.tokens=50M..150M tokens", "training.overlap=0.8..0.81"]
    found = sensitivity(training, vary, of="cost.total_usd", ablation=False)
    bars = {bar.factor: bar for bar in found.bars}
    price = bars["price"]
    assert price.low == pytest.approx(found.base / 2.0, rel=1e-3)
    assert price.high == pytest.approx(found.base * 1.5, rel=1e-3)
    assert bars["training.tokens"].swing == pytest.approx(price.swing, rel=0.05), "USD ~ price x tokens"
    assert bars["training.overlap"].swing < price.swing / 20.0
    swings = [bar.swing for bar in found.bars]
    assert swings == sorted(swings, reverse=True)
    assert "the model itself" in bars
    assert found == sensitivity(training, vary, of="cost.total_usd", ablation=False)


def test_morris_effects_of_a_product(training: Path) -> None:
    vary = ["price=1..3 USD/h", "training.tokens=99M..101M tokens"]
    effects = sensitivity(training, vary, of="cost.total_usd", method="morris", n_points=3, ablation=False).effects
    assert [e.factor for e in effects] == ["price", "training.tokens"]
    base = simulate(load(training)).cost.total_usd.value
    assert effects[0].mu_star == pytest.approx(base, rel=0.02), "USD from 1 to 3 USD/h is base x (1.5 - 0.5)"


@pytest.mark.slow
def test_sobol_shares_of_a_product(training: Path) -> None:
    vary = ["price=1..3 USD/h", "training.tokens=99M..101M tokens"]
    indices = sensitivity(training, vary, of="cost.total_usd", method="sobol", n_points=8, ablation=False).indices
    assert indices[0].factor == "price"
    assert indices[0].total == pytest.approx(1.0, abs=0.3)
    assert indices[1].total == pytest.approx(0.0, abs=0.02)
    for index in indices:
        assert index.total_low <= index.total <= index.total_high


def test_budget_breaks_even_at_the_price_that_the_hours_say(dense: Path) -> None:
    """One GPU for 730 hours: 3,000 USD a month are spent at 4.1096 USD/h, whatever the speed."""
    found = sensitivity(dense, break_even=["price=2..8 USD/h"], check="budget", ablation=False)
    (flip,) = found.flips
    assert flip.at == pytest.approx(3000.0 / 730.0, rel=1e-3)
    assert (flip.low_holds, flip.high_holds) == (True, False)
    never = sensitivity(dense, break_even=["price=1..2 USD/h"], check="budget", ablation=False).flips[0]
    assert never.at is None
    assert "holds at both ends" in never.text


def test_where_an_alternative_becomes_better(training: Path) -> None:
    """At equal speed the cheaper hour wins: the two prices meet where they are equal."""
    flip = sensitivity(
        training, break_even=["price=1..4 USD/h"], against=["price=2.5 USD/h"], of="cost.total_usd", ablation=False
    ).flips[0]
    assert flip.at == pytest.approx(2.5, rel=2e-3)
    assert flip.low_holds


def test_rate_and_bandwidth_at_which_a_target_is_missed(dense: Path) -> None:
    found = sensitivity(
        dense,
        break_even=["serving.traffic.rate=1..400 req/s", "what_if.memory_bandwidth=0.01..1"],
        check="slo_ttft",
        ablation=False,
    )
    rate, bandwidth = found.flips
    assert (rate.low_holds, rate.high_holds) == (True, False)
    assert (bandwidth.low_holds, bandwidth.high_holds) == (False, True)
    low, high = (text.partition(" ")[0] for text in rate.between)
    for setting, ok in ((low, True), (high, False)):
        plan = simulate(load(dense, [f"serving.traffic.rate={setting} req/s"]))
        assert next(v.ok for v in plan.verdicts if v.check == "slo_ttft") == ok


@pytest.mark.slow
def test_each_part_of_the_model_costs_time(serving: Path) -> None:
    found = sensitivity(serving, of="serving.e2e_s.mean", overrides=["serving.layout.tp=2"])
    parts = {part.name: part for part in found.parts}
    assert set(parts) == {"no routing skew", "perfect network", "no bursts", "no queueing", "no overhead"}
    for name in ("perfect network", "no bursts", "no queueing", "no overhead"):
        assert parts[name].change_frac <= 0.0, name
    assert (
        abs(parts["no routing skew"].change_frac) > 1e-4
    )  # either way: even choices touch more experts of a small batch
    assert parts["perfect network"].change_frac < -0.02
    assert parts["no queueing"].change_frac < -0.05


def test_what_failures_cost_a_run(training: Path, tmp_path: Path) -> None:
    moe = tmp_path / "moe.yaml"
    moe.write_text(TRAINING)
    names = {a.name for a in ablations(load(moe))}
    assert names == {"no routing skew", "perfect network", "no launches", "no failures"}
    long = ["training.tokens=100B", "budget={limit: 1000000 USD, deadline: 3000 d}"]
    parts = {p.name: p for p in sensitivity(training, of="training.wall_time_s", overrides=long).parts}
    assert set(parts) == names - {"no routing skew"}
    assert parts["no failures"].change_frac < 0.0
    assert parts["perfect network"].change_frac < 0.0


def test_the_usual_factors_and_the_command_line(training: Path) -> None:
    result = run("sensitivity", training, "--json")
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    factors = {bar["factor"] for bar in tree["bars"]}
    assert {"price", "training.tokens", "what_if.arithmetic", "the model itself"} <= factors
    assert tree["of"] == "cost.total_usd"
    assert [b["factor"] for b in tree["bars"]] == [b.factor for b in moeplan.sensitivity(training).bars]
    assert "plans, all with the same random numbers" in run("sensitivity", training).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--of", "cost.beauty"], "the plan has no such figure"),
        (["--vary", "training.tokns=1..2"], "unknown key"),
        (["--vary", "hardware=1..2"], "no range"),
        (["--vary", "what_if.network_bandwidth=2..1"], "expected LOW..HIGH"),
        (["--break-even", "price=1..4 USD/h", "--check", "beauty"], "no such check here"),
        (["--break-even", "price=1 USD/h, 2 USD/h"], "expected a range"),
        (["--method", "sobol", "--points", "6"], "powers of two"),
        (["--method", "sobol", "--points", "4", "--vary", "seed=1..1000"], "no variance to share"),
        (["--set", "training.micro_batch=3"], "not a multiple"),
    ],
)
def test_studies_nobody_can_answer(training: Path, arguments: list[str], said: str) -> None:
    result = run("sensitivity", training, *arguments, "--no-ablation")
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
