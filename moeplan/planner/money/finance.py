"""Everything of a plan that is money: spending, budget, energy, alternatives, the whole life, advice on size."""

from __future__ import annotations

from moeplan.planner.money.budget import judge_budget
from moeplan.planner.money.life_finance import whole_life
from moeplan.planner.money.serving_finance import month_buys, month_changes, month_energy, serving_part, ways_to_serve
from moeplan.planner.money.training_finance import run_buys, run_changes, run_energy, size_advice, training_part
from moeplan.planner.serving import ServingOutcome
from moeplan.planner.training import TrainingOutcome
from moeplan.spec.plan_money import Finance
from moeplan.spec.scenario import Scenario


def finance(scenario: Scenario, training: TrainingOutcome | None, serving: ServingOutcome | None) -> Finance:
    """All money of a plan whose parts have been simulated."""
    run = (
        None if scenario.training is None or training is None else training_part(scenario, scenario.training, training)
    )
    fleet = None if scenario.serving is None or serving is None else serving_part(scenario, scenario.serving, serving)
    options = None if fleet is None else ways_to_serve(fleet)
    if run is not None and fleet is not None and scenario.lifecycle_months is not None:
        return whole_life(scenario, run, fleet, options, scenario.lifecycle_months)
    if fleet is not None:
        budget = judge_budget(
            scenario.money.budget, fleet.spending.compared, month_buys(fleet), lambda: month_changes(fleet, options)
        )
        return Finance(fleet.spending.cost, budget, month_energy(fleet), options, None, None)
    if run is None:
        raise ValueError(f"{scenario.name}: neither serving nor training")
    limit = scenario.money.budget
    chance = None if limit is None else run.probability_inside(limit.limit_usd)
    budget = judge_budget(limit, run.spending.compared, run_buys(run), lambda: run_changes(run), chance)
    return Finance(run.spending.cost, budget, run_energy(run), None, None, size_advice(run, None))
