"""Wrong prices, terms, demands and budgets: each is named with its line, its path and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_files import SERVING, TRAINING, run, with_line

from moeplan.files.load import load

LIFE = (
    SERVING.replace("budget: 3000 USD/month", "budget: 90000 USD").replace("layout: {tp: 1, replicas: 1}", "layout: {}")
    + """\
training:
  method: full_finetune
  tokens: 100M
  sequence_length: 4096
  global_batch: 8
  layout: {dp: 8, ep: 8}
"""
)


def life(demand: str) -> str:
    return LIFE + f"lifecycle: {{duration: 12 months, demand: {demand}}}\n"


CASES = [
    ("negative", with_line(SERVING, 14, "price: -2 USD/h"), "14:8: price: must not be negative"),
    ("zero", with_line(SERVING, 14, "price: 0 USD/h"), "14:8: price: must not be zero"),
    ("undated", with_line(SERVING, 14, "price: {per_gpu_hour: 2 USD/h}"), "14:23: price.per_gpu_hour: a quoted"),
    ("date", with_line(SERVING, 14, "price: {per_gpu_hour: 2 USD/h, date: soon}"), "price.date: expected a date"),
    ("future", with_line(SERVING, 14, "price: {per_gpu_hour: 2 USD/h, date: 2027-01-01}"), "is dated after 2026-11-27"),
    ("no-term", with_line(SERVING, 14, "price: {per_gpu_hour: 2 USD/h, date: 2026-11, term: reserved}"), "its term"),
    ("term", with_line(SERVING, 14, "price: {offer: crusoe/h100-sxm, commitment: {discount: 20 %}}"),
     "price.commitment.term: missing key"),
    ("term-0", with_line(SERVING, 14, "price: {offer: crusoe/h100-sxm, commitment: {term: 0 months}}"),
     "price.commitment.term: must not be zero"),
    ("discount", with_line(SERVING, 14, "price: {offer: crusoe/h100-sxm, commitment: {term: 1 d, discount: 120 %}}"),
     "price.commitment.discount: too large"),
    ("api", SERVING + "alternatives: {api: [nobody/x]}\n", "17:22: alternatives.api[0]: unknown API offer"),
    ("region", SERVING + "energy: {region: Atlantis}\n", "17:18: energy.region: no grid intensity for this region"),
    ("pue", SERVING + "energy: {pue: 0.5}\n", "energy.pue: too small"),
    ("double-pue", SERVING.replace("h100-sxm", "h200-sxm") + "energy: {pue: 1.2}\n", "would count it twice"),
    ("electricity", with_line(SERVING, 14, "price: {own: {purchase: 1 USD, lifetime: 1 year, electricity: nowhere, "
     "date: 2026-11}}"),
     "price.own.electricity: no electricity price of this name"),
    ("free-power", with_line(SERVING, 14, "price: {own: {purchase: 1 USD, lifetime: 1 year, electricity: -1 USD/kWh, "
     "date: 2026-11}}"),
     "price.own.electricity: must not be negative"),
    ("own-undated", with_line(SERVING, 14, "price: {own: {purchase: 1 USD, lifetime: 1 year, electricity: 1 USD/kWh}}"),
     "price.own.date: missing key"),
    ("lifetime", with_line(SERVING, 14, "price: {own: {purchase: 1 USD, lifetime: 0 years, electricity: 0.1 USD/kWh, "
     "date: 2026-11}}"),
     "price.own.lifetime: must not be zero"),
    ("shrinks", life("{growth: -100 %}"), "demand would shrink below zero"),
    ("trough", life("{seasonality: 120 %}"), "demand would shrink below zero in the trough"),
    ("monthly", life("{monthly: [1, -0.5]}"), "demand would shrink below zero"),
    ("both", life("{monthly: [1], growth: 5 %}"), "monthly takes the place of growth"),
    ("adoption", life("{adoption: {start: 0, midpoint: 6 months}}"), "adoption.start: must not be zero"),
    ("midpoint", life("{adoption: {start: 10 %}}"), "demand.adoption.midpoint: missing key"),
    ("life-0", LIFE + "lifecycle: {duration: 0 months}\n", "lifecycle.duration: must not be zero"),
    ("no-load", with_line(SERVING, 10, "    rate: 0 req/s"), "10:11: serving.traffic.rate: must not be zero"),
    ("budget", with_line(SERVING, 15, "budget: 0 USD/month"), "15:9: budget: must not be zero"),
    ("run-month", with_line(TRAINING, 13, "budget: 9000 USD/month"), "a training run ends: its budget is one amount"),
    ("currency", with_line(SERVING, 14, "price: 2 EUR/h"), "14:8: price: unknown currency EUR"),
    ("future-purchase", SERVING + "alternatives: {own: {purchase: 1 USD, lifetime: 1 year, electricity: 0.1 USD/kWh, "
     "date: 2027-01}}\n", "17:16: alternatives.own: the price of alternatives.own is dated after 2026-11-27"),
    ("experiments", SERVING + "costs: {experiments: 10 %}\n", "17:22: costs.experiments: belongs to a training run"),
    ("too-much", with_line(SERVING, 15, "budget: 1e300 USD/month"), "15:9: budget: too large"),
    ("long-life", LIFE + "lifecycle: {duration: 100000 months}\n", "lifecycle: duration: too long"),
    ("explodes", life("{growth: 1000 %}"), "grow beyond a million times"),
    ("explodes-monthly", life("{monthly: [1e9]}"), "grow beyond a million times"),
    ("as-of", SERVING + "as_of: yesterday\n", "17:8: as_of: expected a date"),
    ("route", SERVING + "compare_with: {model: Qwen3-32B, quality_note: x, training: {method: pretrain, tokens: 1T, "
     "sequence_length: 4096, global_batch: 8}}\n", "this scenario trains nothing to compare with"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_money_is_located(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    result = run("check", path)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_other_problems_are_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(with_line(SERVING, 14, "price: -2 USD/h") + "energy: {region: Atlantis}\nas_of: never\n")
    result = run("check", path)
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == ["14", "17", "18"]


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ("price: 2 USD/h", "strict prices: the price of the GPU hour has no date"),
        ("price: {per_gpu_hour: 2 USD/h, date: 2026-01}", "330 days old on 2026-11-27 (got 2026-01); allowed: at mo"),
        ("price: {per_gpu_hour: 2 USD/h, date: 2026-11-01}", ""),
    ],
)  # fmt: skip
def test_strict_prices(price: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(with_line(SERVING, 14, price))
    assert run("check", path).exit_code == 0
    result = run("check", path, "--strict-prices")
    assert result.exit_code == (2 if message else 0)
    assert message in result.stderr
    assert run("check", path, "--set", "strict_prices=true").exit_code == result.exit_code


def test_strict_prices_compare_with_fresh_prices_only(tmp_path: Path) -> None:
    """On the shipped catalogue: hosted offers of 2026-11-12 stay, the same named a year later are refused."""
    path = tmp_path / "s.yaml"
    quote = "price: {per_gpu_hour: 2 USD/h, date: 2027-10-01}"
    path.write_text(with_line(SERVING, 14, quote) + "as_of: 2027-11-01\n")
    market = load(path).market
    assert market.offers
    assert market.api_offers
    strict = load(path, ["strict_prices=true"]).market
    assert strict.offers == strict.api_offers == ()
    assert "past 90 days" in strict.why_no_api
    named = f"alternatives={{api: [{market.api_offers[0].name}]}}"
    assert run("check", path, "--set", named).exit_code == 0
    result = run("check", path, "--strict-prices", "--set", named)
    assert result.exit_code == 2
    assert "alternatives.api[0]: strict prices: the price of" in result.stderr


def test_age_is_counted_from_the_day_the_scenario_states(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(with_line(SERVING, 14, "price: {per_gpu_hour: 2 USD/h, date: 2026-01-01}"))
    result = run("check", path, "--show", "--set", "as_of=2026-02-01")
    assert "prices[0].age_days" in result.stdout
    line = next(line for line in result.stdout.splitlines() if line.startswith("prices[0].age_days"))
    assert line.split()[1] == "31"
