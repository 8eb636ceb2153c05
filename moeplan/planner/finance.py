"""Everything of a plan that is money: spending, budget, energy, alternatives, the whole life, advice on size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from moeplan.costs.memory import layers_params, vocabulary_params
from moeplan.costs.model_state import Params, checkpoint_bytes
from moeplan.files.price_age import price_used
from moeplan.planner.advice import advice
from moeplan.planner.alternatives import Demand, Fleet, alternatives, api_usd, at_offer, monthly_demand
from moeplan.planner.budget import judge_budget, largest_scale, most_units
from moeplan.planner.energy import J_PER_KWH, Power, energy_result, mean_power, result_of
from moeplan.planner.intervals import exact
from moeplan.planner.lifecycle import (
    Service,
    each_month,
    first_month_cheaper,
    lifecycle,
    requests_per_s_per_replica,
    serve,
    spent_by,
)
from moeplan.planner.money import (
    Spending,
    cents,
    lifecycle_cost,
    run_bill,
    serving_spending,
    training_spending,
)
from moeplan.planner.serving import ServingOutcome
from moeplan.planner.training import TrainingOutcome
from moeplan.simulate.deployment import Deployment
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.plan import (
    AdviceResult,
    AlternativesResult,
    BudgetResult,
    CostResult,
    EnergyResult,
    LifecycleResult,
    Q,
)
from moeplan.spec.plan_money import Change
from moeplan.spec.prices import Money, Ownership
from moeplan.spec.scenario import Scenario, Serving, Training
from moeplan.units import format_tokens

_LAST_MONTH = 1200  # of the search for how long a budget lasts


@dataclass(frozen=True, slots=True)
class Finance:
    cost: CostResult
    budget: BudgetResult | None
    energy: EnergyResult | None
    alternatives: AlternativesResult | None
    lifecycle: LifecycleResult | None
    advice: AdviceResult | None


@dataclass(frozen=True, slots=True)
class _Run:
    """The training part."""

    scenario: Scenario
    training: Training
    outcome: TrainingOutcome
    money: Money
    power: Power | None
    stored_bytes: float
    spending: Spending

    @property
    def n_gpus(self) -> int:
        """GPUs paid for, spares among them."""
        result = self.outcome.result
        return self.training.layout.n_gpus if result is None else result.run.n_gpus_held

    def probability_inside(self, limit_usd: float) -> tuple[float, str] | None:
        """Share of the simulated runs that cost no more: the cost grows with the wall time."""
        result, walls = self.outcome.result, self.outcome.wall_samples_s
        if result is None or len(walls) == 0:
            return None
        longest_s = result.wall_time_s.value * largest_scale(self.usd, limit_usd)
        law = f"{len(walls):,} equally likely runs: simulated failures, joined with the errors of past step times"
        return float((walls <= longest_s * (1.0 + 1e-9)).mean()), law

    def usd(self, factor: float, money: Money | None = None) -> float:
        """The run with ``factor`` times the tokens, at another price [USD]."""
        result = self.outcome.result
        wall_s = 0.0 if result is None else result.wall_time_s.value
        watts = 0.0 if self.power is None else self.power.w_per_gpu.value
        return run_bill(money or self.money, self.n_gpus, wall_s * factor, watts, self.stored_bytes).total


@dataclass(frozen=True, slots=True)
class _Fleet:
    """The serving part."""

    scenario: Scenario
    serving: Serving
    outcome: ServingOutcome
    power: Power | None
    stored_bytes: float
    spending: Spending

    @property
    def money(self) -> Money:
        return self.scenario.money

    @property
    def n_gpus_per_replica(self) -> int:
        """With its share of a prefill pool."""
        return math.ceil(self.serving.n_gpus / self.serving.layout.replicas)

    @property
    def held_frac(self) -> float:
        """GPUs held over those planned with, on average: replicas are scaled, fail and are taken away."""
        result = self.outcome.result
        return 1.0 if result is None or not self.serving.fleet.changes else result.usage.held_over_start

    def spending_at(self, money: Money, replicas: int) -> Spending:
        """A month with other prices or another number of replicas."""
        n_gpus = self.n_gpus_per_replica * replicas
        return serving_spending(money, n_gpus, self.outcome.result, self.power, self.stored_bytes, self.held_frac)

    def usd(self, money: Money, replicas: int) -> float:
        month = self.spending_at(money, replicas).cost.usd_per_month
        return math.inf if month is None else month.value


def finance(scenario: Scenario, training: TrainingOutcome | None, serving: ServingOutcome | None) -> Finance:
    """All money of a plan whose parts have been simulated."""
    run = None if scenario.training is None or training is None else _run(scenario, scenario.training, training)
    fleet = None if scenario.serving is None or serving is None else _fleet(scenario, scenario.serving, serving)
    options = None if fleet is None else _alternatives(fleet)
    if run is not None and fleet is not None and scenario.lifecycle_months is not None:
        return _whole_life(scenario, run, fleet, options, scenario.lifecycle_months)
    if fleet is not None:
        budget = judge_budget(
            scenario.money.budget, fleet.spending.compared, _fleet_buys(fleet), lambda: _fleet_changes(fleet, options)
        )
        return Finance(fleet.spending.cost, budget, _month_energy(fleet), options, None, None)
    if run is None:
        raise ValueError(f"{scenario.name}: neither serving nor training")
    limit = scenario.money.budget
    chance = None if limit is None else run.probability_inside(limit.limit_usd)
    budget = judge_budget(limit, run.spending.compared, _run_buys(run), lambda: _run_changes(run), chance)
    return Finance(run.spending.cost, budget, _run_energy(run), None, None, _advice(run, None))


def _run(scenario: Scenario, training: Training, outcome: TrainingOutcome) -> _Run:
    money = scenario.training_money or scenario.money
    hardware = scenario.training_hardware or scenario.hardware
    good = exact(1.0) if outcome.result is None else outcome.result.goodput_frac
    power = mean_power(outcome.use, good, hardware, scenario.facility, money)
    stored = money.n_checkpoints_kept * checkpoint_bytes(scenario.model, training.work)
    n_gpus = training.layout.n_gpus if outcome.result is None else outcome.result.run.n_gpus_held
    spending = training_spending(money, n_gpus, outcome.result, power, stored)
    return _Run(scenario, training, outcome, money, power, stored, spending)


def _fleet(scenario: Scenario, serving: Serving, outcome: ServingOutcome) -> _Fleet:
    busy = exact(0.0) if outcome.result is None else outcome.result.utilization_frac
    power = mean_power(outcome.use, busy, scenario.hardware, scenario.facility, scenario.money)
    stored = sum(whole_model(scenario.model).stored_bytes(serving.precision).values())
    spending = serving_spending(scenario.money, serving.n_gpus, outcome.result, power, stored)
    fleet = _Fleet(scenario, serving, outcome, power, stored, spending)
    if fleet.held_frac == 1.0:
        return fleet
    held = serving_spending(scenario.money, serving.n_gpus, outcome.result, power, stored, fleet.held_frac)
    return replace(fleet, spending=held)


def whole_model(model: ModelArchitecture) -> Params:
    """Parameters of the whole model, as one copy of it is stored."""
    return layers_params(model.layers, model.hidden_size, 1, 1, 1) + vocabulary_params(model, 1, first=True, last=True)


def _month_energy(fleet: _Fleet) -> EnergyResult | None:
    result = fleet.outcome.result
    month_s = fleet.money.hours_per_month * 3600.0
    tokens = None if result is None else result.output_tokens_per_s.scaled(month_s)
    return energy_result(
        fleet.power, fleet.serving.n_gpus, exact(month_s * fleet.held_frac), tokens, fleet.scenario.facility,
        basis="month", usd=cents(fleet.spending.bill.electricity),
    )  # fmt: skip


def _run_energy(run: _Run) -> EnergyResult | None:
    result = run.outcome.result
    if result is None:
        return None
    return energy_result(
        run.power, run.n_gpus, result.wall_time_s, exact(run.training.work.n_tokens),
        run.scenario.facility, basis="run", usd=cents(run.spending.bill.electricity),
    )  # fmt: skip


def _alternatives(fleet: _Fleet) -> AlternativesResult | None:
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
        layout.replicas,
        most,
        result,
        power_of,
        fleet.stored_bytes,
        fleet.held_frac,
    )
    return alternatives(fleet.money, scenario.market, paid, demand, age)


def _fleet_buys(fleet: _Fleet) -> dict[str, float]:
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


def _fleet_changes(fleet: _Fleet, options: AlternativesResult | None) -> Iterator[Change]:
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


def _run_buys(run: _Run) -> dict[str, float]:
    """What the limit pays at most: tokens trained on, and months the run may take."""
    budget, result = run.money.budget, run.outcome.result
    if budget is None or result is None or budget.per == "month":
        return {}
    factor = largest_scale(run.usd, budget.limit_usd)
    months = result.wall_time_s.value * factor / 3600.0 / run.money.hours_per_month
    return {"training_tokens": run.training.work.n_tokens * factor, "months": months}


def _run_changes(run: _Run) -> Iterator[Change]:
    """Single changes of a run: another offer for the same GPUs, or as many tokens as the limit pays."""
    hardware = run.scenario.training_hardware or run.scenario.hardware
    for offer in run.scenario.market.rentable(run.training.layout.n_gpus, hardware.n_gpus_per_node):
        if offer.hardware in (hardware.slug, hardware.device.slug) and offer.name != run.money.offer.name:
            text = f"price: {offer.name} ({offer.usd_per_gpu_hour:.2f} USD/GPU/h, {offer.price_date})"
            yield Change(text, run.usd(1.0, at_offer(run.money, offer)))
    tokens = _run_buys(run).get("training_tokens", 0.0)
    budget = run.money.budget
    if tokens > 0.0 and budget is not None:
        yield Change(f"training on {format_tokens(tokens)} tokens", budget.limit_usd)


def _advice(run: _Run, life: LifecycleResult | None) -> AdviceResult | None:
    """Only where a model is pretrained: a fine-tune's size is given."""
    total, budget = run.spending.cost.total_usd, run.money.budget
    if run.training.work.method != "pretrain" or total is None or total.value <= 0.0:
        return None
    return advice(
        run.scenario.model,
        run.training.work.n_tokens,
        run.scenario.scaling_laws,
        run_flop=run.outcome.model_flop,
        run_usd=total.value,
        limit_usd=None if budget is None or budget.per == "month" else budget.limit_usd,
        served_tokens=0.0 if life is None else life.output_tokens,
        served_usd=0.0 if life is None else life.serving_usd.value,
    )


def _whole_life(
    scenario: Scenario, run: _Run, fleet: _Fleet, options: AlternativesResult | None, months: float
) -> Finance:
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
        return Finance(fleet.spending.cost, None, _month_energy(fleet), options, None, None)
    life = found.result
    cost = lifecycle_cost(
        run.spending, fleet.spending, found.served, life.total_usd, life.usd_per_million_output_tokens
    )
    used = found.dearest_month if money.budget is not None and money.budget.per == "month" else cost.total_usd
    budget = judge_budget(
        money.budget, used, _life_buys(service, scenario, run), lambda: _life_changes(service, scenario, run, months)
    )
    if options is not None and any(option.kind == "api" for option in options.options):
        options = replace(options, break_even_month=_api_month(service, scenario, options, life))
    return Finance(cost, budget, _life_energy(run, fleet, service, life), options, life, _advice(run, life))


def _life_buys(service: Service, scenario: Scenario, run: _Run) -> dict[str, float]:
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


def _life_changes(service: Service, scenario: Scenario, run: _Run, months: float) -> Iterator[Change]:
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


def _api_month(service: Service, scenario: Scenario, options: AlternativesResult, life: LifecycleResult) -> int | None:
    """The first month by which an API has cost more than training and serving; people and egress are in both."""
    named = {offer.name: offer for offer in scenario.market.api_offers}
    cheapest = next(option for option in options.options if option.kind == "api")
    month = Demand(options.requests_per_month, options.input_tokens_per_month, options.output_tokens_per_month)
    tax = 1.0 + scenario.money.tax_frac
    per_token = api_usd(named[cheapest.name], month, scenario.market) * tax / month.output_tokens
    by_month = [
        per_token * served.output_tokens + (paid.people + paid.egress) * tax
        for served, paid in serve(service, scenario.demand, life.months)
    ]
    return first_month_cheaper(spent_by(life), lambda month: sum(by_month[:month]), len(by_month))


def _life_energy(run: _Run, fleet: _Fleet, service: Service, life: LifecycleResult) -> EnergyResult | None:
    trained = _run_energy(run)
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
    usd = cents(
        run.spending.bill.electricity
        + sum(b.electricity for _, b in serve(service, fleet.scenario.demand, life.months))
    )
    return result_of(j, fleet.power, exact(life.output_tokens), fleet.scenario.facility, basis="total", usd=usd)
