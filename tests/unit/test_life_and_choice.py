"""Lifecycle, alternatives and scaling laws: worked cases, limits and laws."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.costs.scaling import Choice, dense_equivalent_params, loss, optimum
from moeplan.files.catalog.scaling_laws import load_scaling_laws
from moeplan.planner.money import alternatives as alt
from moeplan.planner.money.lifecycle import Service, commitment_rest, demand_factor, first_month_cheaper, serve
from moeplan.provenance import Kind, Source
from moeplan.spec.plan import AlternativesResult, Q, ServingResult
from moeplan.spec.prices import ApiOffer, Commitment, Market, Money, Offer, Ownership
from moeplan.spec.scenario import Demand

SOURCE = Source("test", "2026-01-01", Kind.LIST_PRICE)
OFFER = Offer("cloud/h100", "h100-sxm", 2.0, 1, "on_demand", "2026-11-01", SOURCE)
MONEY = Money(OFFER, 0.0, 0.0, 0.0, 0.0, 730.0, None)
MONTH_S = 730 * 3600.0
LAWS = {law.name: law for law in load_scaling_laws()}


def demand(growth: float = 0.0, season: float = 0.0, peak: int = 12, start: float | None = None,
           midpoint: float | None = None, monthly: tuple[float, ...] | None = None) -> Demand:  # fmt: skip
    return Demand(growth, season, peak, start, midpoint, monthly)


def exact(x: float) -> Q:
    return Q(x, x, x)


# --- lifecycle


def test_demand_follows_its_curves() -> None:
    assert demand_factor(None, 7.0) == 1.0
    assert demand_factor(demand(growth=0.1), 2.0) == pytest.approx(1.21)
    s_curve = demand(start=0.1, midpoint=6.0)
    assert demand_factor(s_curve, 0.0) == pytest.approx(0.1)
    assert demand_factor(s_curve, 6.0) == pytest.approx(0.5)
    assert demand_factor(s_curve, 12.0) == pytest.approx(0.9)
    season = demand(season=0.2, peak=12)
    assert demand_factor(season, 11.5) == pytest.approx(1.2)
    assert demand_factor(season, 5.5) == pytest.approx(0.8)
    assert [demand_factor(demand(monthly=(1.0, 3.0)), m) for m in (0.5, 1.5, 9.5)] == [1.0, 3.0, 3.0]


@given(st.floats(-0.99, 5.0), st.floats(0.0, 1.0), st.integers(1, 12), st.floats(0.01, 0.49), st.floats(0.1, 100.0),
       st.floats(0.0, 120.0))  # fmt: skip
def test_demand_never_falls_below_zero(
    growth: float, season: float, peak: int, start: float, midpoint: float, month: float
) -> None:
    assert demand_factor(demand(growth, season, peak, start, midpoint), month) >= 0.0


def service(**changes: object) -> Service:
    base = Service(MONEY, 1, 1, requests_per_s=10.0, output_tokens_per_request=100.0, per_replica=4.0, power=None,
                   stored_bytes=0.0)  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_replicas_follow_the_busiest_moment_of_a_month() -> None:
    """10 requests/s at 4 a replica: 3 replicas; doubled in the second month: 5; 2 USD an hour each."""
    rows = serve(service(), demand(monthly=(1.0, 2.0)), 2.0)
    assert [month.replicas for month, _ in rows] == [3, 5]
    assert [month.usd for month, _ in rows] == pytest.approx([3 * 1460.0, 5 * 1460.0])
    assert rows[1][0].output_tokens == pytest.approx(20.0 * 100 * MONTH_S)


def test_part_of_a_month_is_paid_in_part_and_a_constant_demand_keeps_its_layout() -> None:
    rows = serve(service(least_replicas=7), None, 1.5)
    assert [month.replicas for month, _ in rows] == [7, 7]
    assert sum(month.usd for month, _ in rows) == pytest.approx(1.5 * 7 * 1460.0)


@given(st.floats(0.5, 50.0), st.floats(0.5, 50.0))
def test_more_demand_never_costs_less(a: float, b: float) -> None:
    less, more = sorted((a, b))
    costs = [sum(m.usd for m, _ in serve(service(requests_per_s=r), demand(growth=0.05), 12.0)) for r in (less, more)]
    assert costs[0] <= costs[1]


def test_a_commitment_is_paid_used_or_not() -> None:
    """Four replicas committed for 12 months at half price, one needed for 6: 3 idle months each, then the rest."""
    committed = replace(MONEY, commitment=Commitment(12.0, 0.5))
    found = service(money=committed, least_replicas=4, requests_per_s=1.0)
    rows = serve(found, demand(), 6.0)
    assert [month.replicas for month, _ in rows] == [1] * 6
    assert rows[0][1].gpus == pytest.approx(730.0)
    assert rows[0][1].unused_commitment == pytest.approx(3 * 730.0)
    assert commitment_rest(found, 6.0).unused_commitment == pytest.approx(6 * 4 * 730.0)
    above = serve(service(money=committed, least_replicas=1), demand(), 1.0)
    assert above[0][1].gpus == pytest.approx(730.0 + 2 * 1460.0)  # two of three replicas at the full price


def test_first_month_cheaper() -> None:
    """1,000 first and 10 a month against 100 a month: cheaper from month 12 on."""
    assert first_month_cheaper(lambda m: 1000 + 10 * m, lambda m: 100 * m, 24) == 12
    assert first_month_cheaper(lambda m: 1000 + 10 * m, lambda m: 100 * m, 11) is None
    assert first_month_cheaper(lambda m: m, lambda m: 2 * m, 3) == 1


# --- rent, buy, API

# what the choice reads of a result: 2 requests/s of 500 tokens in and 250 out
RESULT = cast(
    ServingResult,
    SimpleNamespace(requests_per_s=exact(2.0), input_tokens_per_s=exact(1000.0), output_tokens_per_s=exact(500.0)),
)
API = ApiOffer("api/x", "x", 0.1e-6, 0.4e-6, "2026-11-12", SOURCE, 0.02e-6, 0.05e-6, 0.2e-6)
MARKET = Market((OFFER, replace(OFFER, name="dear/h100", usd_per_gpu_hour=3.0)), (API,), None, 0.0, 0.0, "")


def fleet(result: ServingResult = RESULT, **changes: object) -> alt.Fleet:
    base = alt.Fleet(1, 8, 1, 1, 1, exact(8.0), result, lambda _own: None, 0.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def age(_date: str) -> tuple[int | None, bool]:
    return 3, False


def choose(money: Money = MONEY, market: Market = MARKET, **changes: object) -> AlternativesResult:
    load = alt.monthly_demand(RESULT, None, 730.0)
    found = alt.alternatives(money, market, fleet(**changes), load, age)
    assert found is not None
    return found


def test_an_api_bill_by_hand() -> None:
    """A million input and a million output tokens; a quarter cached; half may wait for the batch."""
    load = alt.Demand(1000.0, 1e6, 1e6)
    assert alt.api_usd(API, load, MARKET) == pytest.approx(0.1 + 0.4)
    assert alt.api_usd(API, load, replace(MARKET, cached_frac=0.25)) == pytest.approx(0.075 + 0.005 + 0.4)
    assert alt.api_usd(API, load, replace(MARKET, batch_frac=0.5)) == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    plain = replace(
        API, usd_per_cached_input_token=None, usd_per_batch_input_token=None, usd_per_batch_output_token=None
    )
    assert alt.api_usd(plain, load, replace(MARKET, cached_frac=1.0, batch_frac=1.0)) == pytest.approx(0.5)


def test_break_even_of_the_page() -> None:
    """1,460 USD a month; a request of 500 in and 250 out costs 0.00015 USD: 9.73 M requests, 46 % of the most."""
    found = choose()
    api = next(option for option in found.options if option.kind == "api")
    per_request = 500 * 0.1e-6 + 250 * 0.4e-6
    assert api.break_even_requests_per_month == pytest.approx(1460 / per_request)
    assert found.flips_at_utilization_frac == pytest.approx(1460 / per_request / (8 * MONTH_S))
    assert found.utilization_frac.value == pytest.approx(0.25)
    assert found.cheapest == "api/x"
    assert [row.cheapest for row in found.sensitivity] == ["api/x"] * 4 + ["cloud/h100"] * 3


def test_at_the_break_even_load_both_ways_cost_the_same() -> None:
    flips = choose().flips_at_utilization_frac
    assert flips is not None
    load = alt.monthly_demand(RESULT, 8.0 * flips, 730.0)
    found = alt.alternatives(MONEY, MARKET, fleet(), load, age)
    assert found is not None
    rent, api = (next(o for o in found.options if o.kind == kind) for kind in ("rent", "api"))
    assert rent.usd_per_month.value == pytest.approx(api.usd_per_month.value, abs=0.01)


def test_a_dear_deployment_never_breaks_even() -> None:
    found = choose(replace(MONEY, offer=replace(OFFER, usd_per_gpu_hour=20.0)), replace(MARKET, offers=()))
    assert found.flips_at_utilization_frac is None
    assert "the API is cheaper even when all of it is used" in found.text


def test_people_tax_and_egress_are_in_every_way() -> None:
    money = replace(MONEY, people_usd_per_month=1000.0, tax_frac=0.1)
    plain, loaded = choose(), choose(money)
    for a, b in zip(plain.options, loaded.options, strict=True):
        assert b.usd_per_month.value == pytest.approx(1.1 * (a.usd_per_month.value + 1000.0), abs=0.02)


def test_no_offer_is_said_and_small_instances_cannot_be_joined() -> None:
    found = choose(market=replace(MARKET, api_offers=(), why_no_api="no hosted offer for x"))
    assert "no hosted offer for x" in found.text
    joined = choose(n_gpus_per_replica=4, capacity_requests_per_s=exact(8.0))
    assert [option.name for option in joined.options if option.kind == "rent"] == ["cloud/h100"]  # the scenario's own


def test_payback_of_bought_hardware() -> None:
    """24,000 USD against 1,460 USD of rent and 200 of hosting a month: 19.05 months."""
    own = Ownership(24_000.0, 48.0, 0.0, 0.0, 200.0, 0.0, 1000.0, "2026-11")
    assert choose(market=replace(MARKET, ownership=own)).payback_months == pytest.approx(24_000 / 1260)
    dear = replace(own, purchase_usd=80_000.0)
    assert choose(market=replace(MARKET, ownership=dear)).payback_months is None


def test_the_verdict_is_uncertain_where_the_low_capacity_changes_it() -> None:
    cheap = replace(MARKET, api_offers=(replace(API, usd_per_output_token=1.5e-6),))
    assert choose(market=cheap).cheapest == "cloud/h100"
    assert choose(market=cheap).certain
    assert not choose(market=cheap, capacity_requests_per_s=Q(8.0, 0.5, 9.0)).certain


# --- scaling laws


def test_chinchilla_optimum_in_closed_form() -> None:
    """Hoffmann et al., equation 4: N = G (C/6)^(b/(a+b)), G = (aA/bB)^(1/(a+b))."""
    k = LAWS["hoffmann-2022"].coefficients
    a, b = k["alpha"], k["beta"]
    for flop in (1e19, 1e22, 1e25):
        best = optimum(LAWS["hoffmann-2022"], flop)
        assert best is not None
        g = (a * k["a"] / (b * k["b"])) ** (1 / (a + b))
        assert best.active_params == pytest.approx(g * (flop / 6) ** (b / (a + b)), rel=1e-3)
        assert 6 * best.active_params * best.tokens == pytest.approx(flop)


@pytest.mark.parametrize("name", ["hoffmann-2022", "besiroglu-2024", "krajewski-2024", "abnar-2025"])
@pytest.mark.parametrize("served", [0.0, 1e12])
def test_no_neighbour_of_the_optimum_is_better(name: str, served: float) -> None:
    law, flop = LAWS[name], 1e22
    best = optimum(law, flop, served)
    assert best is not None
    least = loss(law, best)
    assert least is not None
    for factor in (0.5, 0.9, 1.1, 2.0):
        active = best.active_params * factor
        tokens = (flop / active - served) / 6
        other = loss(law, Choice(active, best.total_params * factor, tokens))
        assert other is not None
        assert other >= least - 1e-9


def test_serving_makes_models_smaller_and_trained_longer() -> None:
    alone, served = (optimum(LAWS["hoffmann-2022"], 1e23, per_param) for per_param in (0.0, 4e12))
    assert alone is not None
    assert served is not None
    assert served.active_params < alone.active_params
    assert served.tokens / served.active_params > alone.tokens / alone.active_params


def test_published_points_of_the_laws() -> None:
    """Clark et al., section 5: 5 M parameters with 128 experts equal 55 M dense; Chinchilla's 70 B on 1.4 T tokens."""
    assert dense_equivalent_params(LAWS["clark-2022"], 5e6, 128) == pytest.approx(55e6, rel=0.1)
    assert dense_equivalent_params(LAWS["clark-2022"], 1e8, 1) == pytest.approx(1e8)
    chinchilla = loss(LAWS["hoffmann-2022"], Choice(70e9, 70e9, 1.4e12))
    assert chinchilla == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28)
    assert math.isclose(chinchilla or 0.0, 1.936, abs_tol=1e-3)
    assert loss(LAWS["clark-2022"], Choice(1e9, 1e9, 1e9)) is None


def test_every_law_is_cited() -> None:
    for law in LAWS.values():
        assert "arXiv:" in law.source
        assert law.spread
