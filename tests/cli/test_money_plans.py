"""Money of whole plans: breakdowns add up to the cent, keys agree with each other, only ages depend on the day."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moeplan.cli import main

SCENARIOS = Path(__file__).parents[2] / "scenarios"
OWN = (
    "{own: {purchase: 31999.99 USD, lifetime: 4 years, residual: 9 %, interest: 7.3 %, electricity: US Ohio commercial"
    ", hosting: 133.33 USD/month, date: 2026-10}}"
)
COSTS = (
    "costs={people: 1000.01 USD/month, operations: 33.33 USD/month, storage_price: 0.023 USD/GB/month,"
    " egress_price: 0.09 USD/GB, tax: 19 %}"
)
TRIED = "costs.experiments=33 %"
CASES = [
    ("quickstart.yaml", ()),
    ("quickstart.yaml", (f"price={OWN}", COSTS)),
    ("quickstart.yaml", ("price={offer: aws/p5en.48xlarge/us-east-1, commitment: {term: 1 year}}", COSTS)),
    ("own-moe-60k.yaml", (COSTS, TRIED)),
    ("own-moe-60k.yaml", (f"price={OWN}", COSTS, TRIED)),
    ("lifecycle-finetune-serve.yaml", (COSTS, TRIED, "lifecycle.demand={growth: 10 %, seasonality: 30 %}")),
    ("lifecycle-finetune-serve.yaml", (
        "price={offer: nebius/gpu-h200-sxm_1gpu-16vcpu-200gb/eu-north1, commitment: {term: 3 years, discount: 40 %}}",
        "lifecycle.demand={monthly: [0.1, 1, 5]}", COSTS, TRIED,
    )),
]  # fmt: skip


def plan(name: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    args = [arg for override in overrides for arg in ("--set", override)]
    result = CliRunner().invoke(main, ["simulate", str(SCENARIOS / name), *args, "--json"])
    assert result.exit_code in (0, 3), result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(("name", "overrides"), CASES, ids=[f"{name[:8]}-{i}" for i, (name, _) in enumerate(CASES)])
def test_every_breakdown_adds_up_to_the_cent(name: str, overrides: tuple[str, ...]) -> None:
    found = plan(name, overrides)
    cost, budget = found["cost"], found["budget"]
    whole = (cost["total_usd"] or cost["usd_per_month"])["value"]
    parts = [Decimal(repr(usd)) for usd in cost["breakdown"].values()]
    assert sum(parts) == Decimal(repr(whole))
    assert all(part == round(part, 2) for part in parts)
    for q in (cost["total_usd"], cost["usd_per_month"], cost["idle_usd"]):
        assert q is None or 0 <= q["low"] <= q["value"] <= q["high"]
    headroom = Decimal(repr(budget["limit_usd"])) - Decimal(repr(budget["used_usd"]["value"]))
    assert headroom == Decimal(repr(budget["headroom_usd"]["value"]))
    assert budget["fits"] == (headroom >= 0)
    assert 0.0 <= budget["probability_frac"] <= 1.0
    if budget["change"] is not None:
        assert budget["change"]["usd"] <= budget["limit_usd"]
    chosen = [option for option in (found["alternatives"] or {"options": []})["options"] if option["chosen"]]
    assert [option["usd_per_month"] for option in chosen] == [cost["usd_per_month"]][: len(chosen)]


def test_a_lifecycle_is_the_sum_of_its_months_and_its_run() -> None:
    found = plan("lifecycle-finetune-serve.yaml", ("lifecycle.demand={growth: 15 %}",))
    life = found["lifecycle"]
    months = sum(Decimal(repr(month["usd"])) for month in life["schedule"])
    assert Decimal(repr(life["serving_usd"]["value"])) == months
    assert Decimal(repr(life["total_usd"]["value"])) == months + Decimal(repr(life["training_usd"]["value"]))
    assert found["cost"]["total_usd"] == life["total_usd"]
    assert sum(life["shares"].values()) == pytest.approx(1.0)
    replicas = [month["replicas"] for month in life["schedule"]]
    assert replicas == sorted(replicas)
    assert replicas[-1] > replicas[0]
    assert list(life["scale_at"].values()) == sorted(set(replicas))
    for month in life["schedule"]:
        assert month["requests_per_s"] <= month["replicas"] * life["requests_per_s_per_replica"] * (1 + 1e-9)


def test_a_demand_that_doubles_every_month_and_a_monthly_limit() -> None:
    """The dearest month is held against the limit, with the interval of the capacity; the cheapest change too."""
    demand = "lifecycle={duration: 6 months, demand: {growth: 100 %}}"
    assert plan("lifecycle-finetune-serve.yaml", (demand,))["budget"]["buys"]["months"] >= 1
    found = plan("lifecycle-finetune-serve.yaml", (demand, "budget=45000 USD/month"))
    dearest = max(month["usd"] for month in found["lifecycle"]["schedule"])
    used = found["budget"]["used_usd"]
    assert used["value"] == dearest
    assert used["low"] < used["high"]
    assert found["budget"]["change"]["usd"] < dearest


def test_people_are_paid_beside_an_api_too() -> None:
    """They move no break-even between one's own way and an API."""
    cheap = ("price=0.2 USD/h", "budget=9000000 USD")
    month = plan("lifecycle-finetune-serve.yaml", cheap)["alternatives"]["break_even_month"]
    assert month is not None
    peopled = plan("lifecycle-finetune-serve.yaml", (*cheap, "costs.people=50000 USD/month"))
    # the training run alone has people of its own: a few hours of them
    assert peopled["alternatives"]["break_even_month"] - month in (0, 1)


def test_energy_is_billed_once_and_where_it_is_used() -> None:
    """Owned: joules x price are the bill's electricity; rented: in the rent. Idle hardware draws less than busy."""
    owned = plan("quickstart.yaml", (f"price={OWN}",))
    assert owned["energy"]["usd"] == owned["cost"]["breakdown"]["electricity"]
    assert owned["energy"]["usd"] == pytest.approx(owned["energy"]["kwh"]["value"] * 0.1071, abs=0.01)
    rented = plan("quickstart.yaml")
    assert rented["energy"]["usd"] == 0.0
    assert "electricity" not in rented["cost"]["breakdown"]
    assert rented["energy"]["kgco2e"]["value"] == pytest.approx(rented["energy"]["kwh"]["value"] * 0.48599)
    quiet = plan("quickstart.yaml", (f"price={OWN}", "serving.traffic.rate=0.02 req/s"))
    assert quiet["energy"]["kwh"]["value"] < owned["energy"]["kwh"]["value"]
    assert quiet["cost"]["idle_usd"]["value"] > owned["cost"]["idle_usd"]["value"]
    assert quiet["energy"]["j_per_token"]["value"] > owned["energy"]["j_per_token"]["value"]


def test_spot_interruptions_are_paid_for() -> None:
    spot = "price=verda/8H100.80S.176V/fin-03/spot"
    calm = plan("own-moe-60k.yaml", (spot,))
    stormy = plan("own-moe-60k.yaml", (spot, "training.reliability.preemptions_per_node_day=2"))
    assert any(v["check"] == "spot" for v in calm["verdicts"])
    assert not any(v["check"] == "spot" for v in stormy["verdicts"])
    assert stormy["cost"]["total_usd"]["value"] > 1.02 * calm["cost"]["total_usd"]["value"]


def test_only_ages_depend_on_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan("own-moe-60k.yaml")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(1795737600 + 40 * 86400))
    later = plan("own-moe-60k.yaml")
    assert later != first
    stated = plan("own-moe-60k.yaml", ("as_of=2026-11-27",))
    for found in (first, later, stated):
        for key in ("prices_as_of", "prices", "origins"):
            del found["provenance"][key]
        found["verdicts"] = [v for v in found["verdicts"] if v["check"] != "price_age"]
    assert first == later == stated


def test_a_route_is_compared_over_its_whole_life() -> None:
    """The same model on a third of the tokens and 100 dollars once: cheaper to make, the same to serve."""
    route = (
        "{model: Qwen3-30B-A3B, quality_note: ours, once: 10 USD, training: {method: full_finetune, tokens: 100M,"
        " sequence_length: 4096, global_batch: 64, recompute: full, layout: {dp: 8, ep: 8}}}"
    )
    life = plan("lifecycle-finetune-serve.yaml", (f"compare_with={route}",))["lifecycle"]
    assert life["other_name"] == "Qwen3-30B-A3B"
    assert life["other_total_usd"] == pytest.approx(
        life["total_usd"]["value"] - life["training_usd"]["value"] * 2 / 3 + 10.0, abs=1.0
    )
    assert life["cheaper_from_month"] is None


def test_a_fleet_is_billed_for_the_hours_its_replicas_are_held() -> None:
    """Spot machines taken away many times an hour: fewer hours paid, in the bill and in the energy."""
    still = plan("quickstart.yaml", ("serving.layout.replicas=2",))
    taken = plan("quickstart.yaml", (
        "serving.layout.replicas=2", "serving.fleet.spot={preemptions: 20/h, notice: 5 s, replacement: 3 min}",
    ))  # fmt: skip
    held = taken["serving"]["usage"]["gpu_hours_per_month"]
    assert held < 2 * 730
    assert still["cost"]["breakdown"]["gpus"] == 2 * 730 * 3.5
    assert taken["cost"]["breakdown"]["gpus"] == pytest.approx(held * 3.5, abs=0.01)
    assert taken["energy"]["kwh"]["value"] < still["energy"]["kwh"]["value"]


def test_a_prefill_pool_is_billed_once_everywhere() -> None:
    """Three replicas beside a pool of one: the pool's GPUs do not divide by the replicas."""
    overrides = (
        "hardware=h100-sxm", "gpus=8", "price=3 USD/h", "serving.prefill={tp: 2, replicas: 1}",
        "serving.layout={tp: 2, replicas: 3}",
    )  # fmt: skip
    found = plan("quickstart.yaml", overrides)
    (chosen,) = (option for option in found["alternatives"]["options"] if option["chosen"])
    assert chosen["usd_per_month"]["value"] == found["cost"]["usd_per_month"]["value"] == 8 * 3.0 * 730
