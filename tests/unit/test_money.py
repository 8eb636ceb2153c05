"""Dollars against hand-worked sums, and laws of money."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.costs.money import Bill, Usage, bill, billed_gpus, usd_per_million_tokens
from moeplan.provenance import Kind, Source
from moeplan.spec.prices import Money, Offer


def money(usd: float = 2.0, *, per_instance: int = 1, tax: float = 0.0, people: float = 0.0) -> Money:
    source = Source("test", "2026-01-01", Kind.LIST_PRICE)
    offer = Offer("test", "h100-sxm", usd, per_instance, "on_demand", "2026-01-01", source)
    return Money(offer, 0.0, 0.0, people, tax, 730.0, None)


def monthly_cost(money: Money, n_gpus: int) -> Bill:
    return bill(money, Usage(n_gpus, 730.0))


def run_cost(money: Money, n_gpus: int, wall_time_s: float) -> Bill:
    return bill(money, Usage(n_gpus, wall_time_s / 3600.0, training=True, ends=True))


def test_a_month_of_eight_gpus_at_two_dollars() -> None:
    assert monthly_cost(money(), 8).total == 8 * 2 * 730  # 11,680


def test_instances_are_billed_whole() -> None:
    assert billed_gpus(9, 8) == 16
    assert monthly_cost(money(per_instance=8), 9).gpus == 16 * 2 * 730


def test_tax_falls_on_everything() -> None:
    bill = monthly_cost(money(tax=0.2, people=1000.0), 1)
    assert bill.total == pytest.approx(1.2 * (2 * 730 + 1000))


def test_a_run_pays_monthly_costs_for_its_time_only() -> None:
    bill = run_cost(money(people=7300.0), 4, 73 * 3600.0)  # a tenth of a month
    assert bill.gpus == pytest.approx(4 * 2 * 73)
    assert bill.people == pytest.approx(730.0)


def test_price_of_a_million_tokens() -> None:
    assert usd_per_million_tokens(3.6, 1000.0) == pytest.approx(1.0)  # 3.6 M tokens an hour


@given(st.floats(0.01, 1e4), st.integers(1, 10_000), st.floats(1.0, 100.0))
def test_cost_scales_with_price_and_not_with_the_currency(usd: float, n: int, factor: float) -> None:
    assert monthly_cost(money(usd * factor), n).total == pytest.approx(factor * monthly_cost(money(usd), n).total)


@given(st.floats(0.0, 1e7), st.floats(0.0, 1e7))
def test_cost_grows_with_hours(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert run_cost(money(), 8, low).total <= run_cost(money(), 8, high).total
