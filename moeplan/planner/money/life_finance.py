"""Money of a whole life: a training run and the months in service it pays for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moeplan.planner.intervals import exact
from moeplan.planner.money.alternatives import Demand, api_usd, at_offer
from moeplan.planner.money.budget import judge_budget
from moeplan.planner.money.energy import J_PER_KWH, result_of
from moeplan.planner.money.lifecycle import (
    Life,
    Service,
    each_month,
    first_month_cheaper,
    lifecycle,
    requests_per_s_per_replica,
    serve,
    spent_by,
)
from moeplan.planner.money.money import cents, lifecycle_cost
from moeplan.planner.money.serving_finance import ServingPart, month_energy
from moeplan.planner.money.training_finance import TrainingPart, run_energy, size_advice
from moeplan.simulate.deployment import Deployment
from moeplan.spec.plan import AlternativesResult, EnergyResult, Q
from moeplan.spec.plan_money import Change, Finance
from moeplan.spec.scenario import Scenario

_LAST_MONTH = 1200  # of the search for how long a budget lasts


def whole_life(
    scenario: Scenario, run: TrainingPart, fleet: ServingPart, options: AlternativesResult | None, months: float
) -> Finance:
    """The money of training once and serving for ``months``."""
    result, layout, money = fleet.outcome.result, fleet.serving.layout, scenario.money
    per_request = per_replica = 0.0
    rate = 0.0
    if result is not None and result.requests_per_s.value > 0.0:
        asked = fleet.serving.traffic.arrivals.rate_per_s
        rate = result.requests_per_s.value if asked is None else asked
        per_request = result.output_tokens_per_s.value / result.requests_per_s.value
        per_replica = rate / layout.replicas
        if scenario.demand is not None:
            deployment = Deployment(scenario.model, scenario.hardware, fleet.serving, scenario.routing, scenario.seed)
            per_replica = requests_per_s_per_replica(deployment, result)
    service = Service(
        money, fleet.n_gpus_per_replica, layout.replicas, rate, per_request, per_replica, fleet.power,
        fleet.stored_bytes,
    )  # fmt: skip
    capacity = None if result is None else result.capacity_requests_per_s
    found = lifecycle(service, scenario.demand, months, run.spending, capacity)
    if found is None:
        return Finance(fleet.spending.cost, None, month_energy(fleet), options, None, None)
    life = found.result
    cost = lifecycle_cost(
        run.spending, fleet.spending, found.served, life.total_usd, life.usd_per_million_output_tokens
    )
    used = found.dearest_month if money.budget is not None and money.budget.per == "month" else cost.total_usd
    budget = judge_budget(
        money.budget, used, _life_buys(service, scenario, run), lambda: _life_changes(service, scenario, run, months)
    )
    if options is not None and any(option.kind == "api" for option in options.options):
        options = replace(options, break_even_month=_api_month(scenario, options, found))
    return Finance(cost, budget, _life_energy(run, fleet, service, found), options, life, size_advice(run, life))


def _life_buys(service: Service, scenario: Scenario, run: TrainingPart) -> dict[str, float]:
    """Whole months in service that the limit pays after the training run, and what is served in them."""
    budget = scenario.money.budget
    if budget is None or budget.per == "month" or run.spending.cost.total_usd is None:
        return {}
    left = budget.limit_usd - run.spending.cost.total_usd.value
    months, tokens = 0, 0.0
    for month, _ in each_month(service, scenario.demand, float(_LAST_MONTH)):
        left -= month.usd
        if left < 0.0:
            break
        months, tokens = month.month, tokens + month.output_tokens
    return {"months": float(months), "output_tokens": tokens}


def _life_changes(service: Service, scenario: Scenario, run: TrainingPart, months: float) -> Iterator[Change]:
    """Another offer for serving, or fewer months."""
    total, budget = run.spending.cost.total_usd, scenario.money.budget
    if total is None or budget is None:
        return

    def usd(of: Service, served_months: float) -> float:
        by_month = [month.usd for month, _ in serve(of, scenario.demand, served_months)]
        return max(by_month) if budget.per == "month" else total.value + sum(by_month)

    for offer in scenario.market.rentable(service.n_gpus_per_replica, scenario.hardware.n_gpus_per_node):
        if offer.name != scenario.money.offer.name:
            other = replace(service, money=at_offer(service.money, offer))
            text = f"serving at {offer.name} ({offer.usd_per_gpu_hour:.2f} USD/GPU/h, {offer.price_date})"
            yield Change(text, usd(other, months))
    affordable = _life_buys(service, scenario, run).get("months", 0.0)
    if 0.0 < affordable < months:
        yield Change(f"{affordable:.0f} months in service", usd(service, affordable))


def _api_month(scenario: Scenario, options: AlternativesResult, found: Life) -> int | None:
    """The first month by which an API has cost more than training and serving; people and egress are in both."""
    named = {offer.name: offer for offer in scenario.market.api_offers}
    cheapest = next(option for option in options.options if option.kind == "api")
    month = Demand(options.requests_per_month, options.input_tokens_per_month, options.output_tokens_per_month)
    tax = 1.0 + scenario.money.tax_frac
    per_token = api_usd(named[cheapest.name], month, scenario.market) * tax / month.output_tokens
    by_month = [
        per_token * served.output_tokens + (paid.people + paid.egress) * tax
        for served, paid in zip(found.result.schedule, found.invoices, strict=True)
    ]
    return first_month_cheaper(spent_by(found.result), lambda month: sum(by_month[:month]), len(by_month))


def _life_energy(run: TrainingPart, fleet: ServingPart, service: Service, found: Life) -> EnergyResult | None:
    life = found.result
    trained = run_energy(run)
    if trained is None or fleet.power is None:
        return None
    hours = service.money.hours_per_month
    gpu_s = 0.0
    for i, month in enumerate(life.schedule):
        gpu_s += month.replicas * service.n_gpus_per_replica * min(1.0, life.months - i) * hours * 3600.0
    watts = fleet.power.w_per_gpu
    j = Q(*(
        t * J_PER_KWH + w * gpu_s
        for t, w in ((trained.kwh.value, watts.value), (trained.kwh.low, watts.low), (trained.kwh.high, watts.high))
    ))  # fmt: skip
    usd = cents(run.spending.bill.electricity + found.served.electricity)
    return result_of(j, fleet.power, exact(life.output_tokens), fleet.scenario.facility, basis="total", usd=usd)
