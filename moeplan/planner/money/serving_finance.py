"""Money of a fleet in service: its month, what a limit buys, changes that make it fit, and other ways to serve."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from moeplan.costs.memory import layers_params, vocabulary_params
from moeplan.costs.model_state import Params
from moeplan.files.catalog.price_age import price_used
from moeplan.planner.intervals import exact
from moeplan.planner.money.alternatives import Fleet, alternatives, at_offer, monthly_demand
from moeplan.planner.money.budget import most_units
from moeplan.planner.money.energy import Power, energy_result, mean_power
from moeplan.planner.money.money import Spending, cents, serving_spending
from moeplan.planner.serving import ServingOutcome
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.plan import AlternativesResult, EnergyResult
from moeplan.spec.plan_money import Change
from moeplan.spec.prices import Money, Ownership
from moeplan.spec.scenario import Scenario, Serving


@dataclass(frozen=True, slots=True)
class ServingPart:
    """The serving part of a scenario with what a month of it costs.

    ``held_frac``: GPUs held over those planned with, on average: replicas are scaled, fail and are taken away.
    """

    scenario: Scenario
    serving: Serving
    outcome: ServingOutcome
    power: Power | None
    stored_bytes: float
    held_frac: float
    spending: Spending

    @property
    def money(self) -> Money:
        return self.scenario.money

    @property
    def n_gpus_per_replica(self) -> int:
        """With its share of a prefill pool."""
        return math.ceil(self.serving.n_gpus / self.serving.layout.replicas)

    def n_gpus_with(self, replicas: int) -> int:
        """With so many replicas and a prefill pool in proportion; as planned with as many as planned."""
        return -(-self.serving.n_gpus * replicas // self.serving.layout.replicas)

    def spending_at(self, money: Money, replicas: int) -> Spending:
        """A month with other prices or another number of replicas."""
        n_gpus = self.n_gpus_with(replicas)
        return serving_spending(money, n_gpus, self.outcome.result, self.power, self.stored_bytes, self.held_frac)

    def usd(self, money: Money, replicas: int) -> float:
        month = self.spending_at(money, replicas).cost.usd_per_month
        return math.inf if month is None else month.value


def serving_part(scenario: Scenario, serving: Serving, outcome: ServingOutcome) -> ServingPart:
    """The money of a simulated fleet."""
    result = outcome.result
    busy = exact(0.0) if result is None else result.utilization_frac
    power = mean_power(outcome.use, busy, scenario.hardware, scenario.facility, scenario.money)
    stored = sum(whole_model(scenario.model).stored_bytes(serving.precision).values())
    held = 1.0 if result is None or not serving.fleet.changes else result.usage.held_over_start
    spending = serving_spending(scenario.money, serving.n_gpus, result, power, stored, held)
    return ServingPart(scenario, serving, outcome, power, stored, held, spending)


def whole_model(model: ModelArchitecture) -> Params:
    """Parameters of the whole model, as one copy of it is stored."""
    return layers_params(model.layers, model.hidden_size, 1, 1, 1) + vocabulary_params(model, 1, first=True, last=True)


def month_energy(fleet: ServingPart) -> EnergyResult | None:
    """Energy of a month of the fleet."""
    result = fleet.outcome.result
    month_s = fleet.money.hours_per_month * 3600.0
    tokens = None if result is None else result.output_tokens_per_s.scaled(month_s)
    return energy_result(
        fleet.power, fleet.serving.n_gpus, exact(month_s * fleet.held_frac), tokens, fleet.scenario.facility,
        basis="month", usd=cents(fleet.spending.bill.electricity),
    )  # fmt: skip


def ways_to_serve(fleet: ServingPart) -> AlternativesResult | None:
    """Rent, buy or API for the same demand; None where nothing is served or its capacity is not known."""
    result, scenario = fleet.outcome.result, fleet.scenario
    if result is None or result.capacity_requests_per_s is None:
        return None
    asked = fleet.serving.traffic.arrivals.rate_per_s
    demand = monthly_demand(result, asked, fleet.money.hours_per_month)
    layout = fleet.serving.layout
    capacity = result.capacity_requests_per_s.scaled(1.0 / layout.replicas)
    per_s = demand.requests / (fleet.money.hours_per_month * 3600.0)
    replicas = max(layout.replicas, math.ceil(per_s / capacity.value)) if capacity.value > 0.0 else layout.replicas

    def power_of(own: Ownership | None) -> Power | None:
        money = replace(fleet.money, ownership=own)
        return mean_power(fleet.outcome.use, result.utilization_frac, scenario.hardware, scenario.facility, money)

    def age(price_date: str) -> tuple[int | None, bool]:
        used = price_used("", "", price_date, date.fromisoformat(scenario.as_of))
        return used.age_days, used.stale

    most = capacity.scaled(replicas)
    paid = Fleet(
        fleet.n_gpus_per_replica,
        scenario.hardware.n_gpus_per_node,
        replicas,
        fleet.n_gpus_with(replicas),
        layout.replicas,
        most,
        result,
        power_of,
        fleet.stored_bytes,
        fleet.held_frac,
    )
    return alternatives(fleet.money, scenario.market, paid, demand, age)


def month_buys(fleet: ServingPart) -> dict[str, float]:
    """What the monthly limit pays at most: replicas of this layout, and what they could serve."""
    budget, result = fleet.money.budget, fleet.outcome.result
    if budget is None or budget.per != "month":
        return {}
    replicas = most_units(lambda n: fleet.usd(fleet.money, n), budget.limit_usd)
    buys = {"replicas": float(replicas)}
    if result is not None and result.capacity_requests_per_s is not None and result.requests_per_s.value > 0.0:
        per_s = result.capacity_requests_per_s.value / fleet.serving.layout.replicas * replicas
        requests = per_s * fleet.money.hours_per_month * 3600.0
        each = result.output_tokens_per_s.value / result.requests_per_s.value
        buys |= {"requests_per_month": requests, "output_tokens_per_month": requests * each}
    return buys


def month_changes(fleet: ServingPart, options: AlternativesResult | None) -> Iterator[Change]:
    """Single changes of a fleet, with what a month would cost; the load is still served."""
    result, layout = fleet.outcome.result, fleet.serving.layout
    if result is not None and result.capacity_requests_per_s is not None and not result.saturated:
        capacity = result.capacity_requests_per_s.value / layout.replicas
        needed = max(1, math.ceil(result.requests_per_s.value / capacity)) if capacity > 0.0 else layout.replicas
        if needed < layout.replicas:
            yield Change(f"{needed} replicas instead of {layout.replicas}", fleet.usd(fleet.money, needed))
    scenario = fleet.scenario
    for offer in scenario.market.rentable(fleet.n_gpus_per_replica, scenario.hardware.n_gpus_per_node):
        if offer.name != fleet.money.offer.name:
            text = f"price: {offer.name} ({offer.usd_per_gpu_hour:.2f} USD/GPU/h, {offer.price_date})"
            yield Change(text, fleet.usd(at_offer(fleet.money, offer), layout.replicas))
    for option in () if options is None else options.options:
        if option.kind == "api":
            yield Change(f"the hosted offer {option.name}", option.usd_per_month.value)
