"""Money against closed forms and sums worked by hand in docs/method/money.md, and its laws."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moeplan.costs.money import (
    Bill,
    Usage,
    annuity,
    bill,
    book_value,
    break_even,
    capital_usd_per_month,
    payback_months,
)
from moeplan.costs.reliability import goodput_frac
from moeplan.planner.money.budget import cheapest_fitting, largest_scale, most_units, probability_inside
from moeplan.planner.money.money import reported
from moeplan.provenance import Kind, Source
from moeplan.simulate.training_run import simulate_runs
from moeplan.spec.plan import Q
from moeplan.spec.plan_money import Change
from moeplan.spec.prices import Commitment, Money, Offer, Ownership
from moeplan.spec.workload import Reliability

SOURCE = Source("test", "2026-01-01", Kind.LIST_PRICE)
OWN = Ownership(30_000.0, 48.0, 0.1, 0.06, 200.0, 0.12 / 3.6e6, 1000.0, "2026-01-01")
rates = st.floats(0.01, 50.0)


def money(usd: float = 2.0, **changes: object) -> Money:
    offer = Offer("test", "h100-sxm", usd, 1, "on_demand", "2026-01-01", SOURCE)
    return replace(Money(offer, 0.0, 0.0, 0.0, 0.0, 730.0, None), **changes)  # type: ignore[arg-type]


def test_annuity_of_the_page() -> None:
    """30,000 USD at 6 % over 48 months, 3,000 left: 649.10 a month, 562.50 of it write-off, 86.60 interest."""
    payment = capital_usd_per_month(OWN)
    i = 0.005
    by_hand = (30_000 - 3_000 * 1.005**-48) * i / (1 - 1.005**-48)
    assert payment == pytest.approx(by_hand)
    assert round(payment, 2) == 649.10
    month = bill(money(ownership=OWN), Usage(1, 730.0))
    assert round(month.depreciation, 2) == 562.50
    assert round(month.financing, 2) == 86.60


@given(st.floats(1.0, 1e9), st.floats(0.0, 0.05), st.integers(1, 360), st.floats(0.0, 1.0))
def test_an_annuity_repays_the_loan_and_leaves_the_resale(principal: float, rate: float, n: int, left: float) -> None:
    """Interest on what is owed, less the payment, month by month, ends at the final value."""
    payment = annuity(principal, rate, n, principal * left)
    owed = principal
    for _ in range(n):
        owed = owed * (1.0 + rate) - payment
    assert owed == pytest.approx(principal * left, rel=1e-6, abs=principal * 1e-6)


@given(st.floats(1.0, 1e6), st.floats(1.0, 120.0), st.floats(0.0, 1.0))
def test_without_interest_an_annuity_is_the_straight_line(principal: float, n: float, left: float) -> None:
    line = (principal - principal * left) / n
    assert annuity(principal, 0.0, n, principal * left) == pytest.approx(line, abs=1e-9)
    assert annuity(principal, 1e-12, n, principal * left) == pytest.approx(line, rel=1e-6, abs=principal * 1e-6)


def test_book_value_falls_in_a_straight_line_to_the_resale_value() -> None:
    assert [book_value(1000.0, 0.2, age) for age in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1000, 600, 200, 200])


def test_break_even_and_payback_of_the_page() -> None:
    """1,453 USD a month against 0.000145 USD a request: 10.02 M requests. 45,000 USD saved at 2,200 a month: 20.5."""
    assert break_even(1453.0, 0.000145) == pytest.approx(10_020_690, rel=1e-6)
    assert payback_months(45_000.0, 2500.0, 300.0) == pytest.approx(20.4545, rel=1e-4)
    assert break_even(1.0, 0.0) == math.inf
    assert payback_months(1.0, 5.0, 5.0) == math.inf


@given(st.floats(1.0, 1e7), st.floats(1e-6, 1.0))
def test_at_the_break_even_both_ways_cost_the_same(fixed: float, per_unit: float) -> None:
    assert break_even(fixed, per_unit) * per_unit == pytest.approx(fixed)


SPOT = Reliability(0.0, 0.0, 0.0, 0.0, restart_s=600.0, checkpoint_interval_s=3600.0, checkpoint_write_s=60.0,
                   checkpoint_stall_s=60.0, preemptions_per_s=1 / 36_000)  # fmt: skip


def test_expected_spot_cost_of_the_page() -> None:
    """One node of 8 at 1.25 USD taken away every 10 hours: 36,600 (e^(3660/36000) - 1) = 3,917 s an hour."""
    by_hand = (36_000 + 600) * (math.exp(3660 / 36_000) - 1)
    assert round(by_hand) == 3917
    assert 3600.0 / goodput_frac(8, 8, SPOT) == pytest.approx(by_hand)
    hour = bill(money(1.25), Usage(8, by_hand / 3600.0)).total
    assert hour == pytest.approx(10.88, abs=0.005)


def test_expected_spot_cost_is_what_the_simulation_finds() -> None:
    """A run of 500 hours of work, simulated interruption by interruption, against the closed form."""
    sample = simulate_runs(500 * 3600.0, 8, 8, SPOT, seed=11)
    simulated = np.mean([bill(money(1.25), Usage(8, wall_s / 3600.0)).total for wall_s in sample.wall_s])
    assert simulated == pytest.approx(500 * 8 * 1.25 / goodput_frac(8, 8, SPOT), rel=0.01)


@given(rates, rates, st.floats(0.0, 1e4), st.floats(0.0, 1e4), st.integers(1, 64))
def test_a_bill_grows_with_price_and_hours(a: float, b: float, h: float, g: float, n: int) -> None:
    (cheap, dear), (short, long) = sorted((a, b)), sorted((h, g))
    assert bill(money(cheap), Usage(n, short)).total <= bill(money(dear), Usage(n, short)).total
    assert bill(money(dear), Usage(n, short)).total <= bill(money(dear), Usage(n, long)).total


AMOUNTS = ("storage_usd_per_month", "egress_usd_per_month", "people_usd_per_month", "operations_usd_per_month")


@given(rates, st.floats(0.1, 100.0), st.floats(1.0, 5000.0), st.booleans())
def test_a_bill_in_another_currency_is_the_same_bill(usd: float, factor: float, hours: float, owned: bool) -> None:
    """Every amount times a rate: every part of the bill times the rate."""
    own = replace(OWN, interest_frac_per_year=0.03) if owned else None
    here = money(usd, tax_frac=0.19, experiments_frac=0.5, ownership=own, storage_usd_per_month_per_byte=2e-11,
                 egress_usd_per_byte=9e-11, **dict.fromkeys(AMOUNTS, 75.0))  # fmt: skip
    there_own = own and replace(
        own,
        purchase_usd=own.purchase_usd * factor,
        hosting_usd_per_month=own.hosting_usd_per_month * factor,
        usd_per_j=own.usd_per_j * factor,
    )
    there = money(usd * factor, tax_frac=0.19, experiments_frac=0.5, ownership=there_own,
                  storage_usd_per_month_per_byte=2e-11 * factor, egress_usd_per_byte=9e-11 * factor,
                  **dict.fromkeys(AMOUNTS, 75.0 * factor))  # fmt: skip
    usage = Usage(8, hours, 1e9, 1e12, 1e11, training=True, ends=True)
    mine, theirs = asdict(bill(here, usage)), asdict(bill(there, usage))
    for name, amount in mine.items():
        assert theirs[name] == pytest.approx(amount * factor, rel=1e-9, abs=1e-9), name


@given(st.lists(st.floats(0.0, 1e8), min_size=12, max_size=12))
def test_a_reported_bill_adds_up_to_the_cent(parts: list[float]) -> None:
    breakdown, total = reported(Bill(*parts))
    assert sum(Decimal(repr(usd)) for usd in breakdown.values()) == Decimal(repr(total))
    assert total == pytest.approx(sum(parts), abs=0.07)
    for usd in breakdown.values():
        assert Decimal(repr(usd)) == round(Decimal(repr(usd)), 2)


def test_a_commitment_is_paid_to_its_end() -> None:
    """A run of 73 h on 8 GPUs under a month at 2 USD less 30 %: 817.60 used, 7,358.40 not."""
    committed = money(commitment=Commitment(1.0, 0.3))
    run = bill(committed, Usage(8, 73.0, training=True, ends=True))
    assert run.gpus == pytest.approx(8 * 73 * 1.4)
    assert run.unused_commitment == pytest.approx(8 * (730 - 73) * 1.4)
    assert bill(committed, Usage(8, 730.0)).unused_commitment == 0.0


def test_experiments_are_charged_around_training_only() -> None:
    around = money(experiments_frac=0.5)
    assert bill(around, Usage(4, 100.0, training=True)).experiments == pytest.approx(400.0)
    assert bill(around, Usage(4, 100.0)).experiments == 0.0


def test_probability_is_one_half_at_the_value_and_five_per_cent_at_the_ends() -> None:
    used = Q(100.0, 80.0, 160.0)
    for limit, chance in ((80.0, 0.05), (100.0, 0.5), (160.0, 0.95)):
        assert probability_inside(used, limit)[0] == pytest.approx(chance, abs=1e-9)
    assert probability_inside(Q(100.0, 100.0, 100.0), 100.0) == (1.0, "exact: prices as listed, hours as planned")
    assert probability_inside(Q(100.0, 100.0, 100.0), 99.99)[0] == 0.0
    assert probability_inside(Q(100.0, 100.0, 160.0), 99.0)[0] == 0.0


@given(st.floats(10.0, 1e6), st.floats(0.3, 0.99), st.floats(1.01, 5.0), st.floats(1.0, 1e7), st.floats(1.0, 1e7))
def test_probability_grows_with_the_limit(value: float, low: float, high: float, a: float, b: float) -> None:
    used = Q(value, value * low, value * high)
    less, more = sorted((a, b))
    assert 0.0 <= probability_inside(used, less)[0] <= probability_inside(used, more)[0] <= 1.0


@given(st.floats(0.0, 1e5), st.floats(0.1, 1e5), st.floats(1.0, 1e7))
def test_what_a_budget_buys_costs_the_budget(fixed: float, per_unit: float, limit: float) -> None:
    assume(limit / per_unit < 1e9)

    def cost(units: float) -> float:
        return fixed + per_unit * units

    scale = largest_scale(cost, limit)
    assert cost(scale) <= limit or scale == 0.0
    if fixed < limit:
        assert cost(scale) == pytest.approx(limit, rel=1e-9)
    n = most_units(cost, limit)
    assert n == 0 or cost(n) <= limit
    assert cost(n + 1) > limit


def test_the_cheapest_change_that_fits() -> None:
    changes = [Change("a", 90.0), Change("b", 70.004), Change("c", 120.0)]
    assert cheapest_fitting(changes, 100.0) == Change("b", 70.0)
    assert cheapest_fitting(changes, 50.0) is None
