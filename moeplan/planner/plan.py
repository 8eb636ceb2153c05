"""``simulate``: one resolved scenario in, one plan out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from moeplan._version import __version__
from moeplan.planner import verdicts as v
from moeplan.planner.money import (
    Spending,
    judge_budget,
    lifecycle_spending,
    serving_spending,
    training_spending,
)
from moeplan.planner.serving import Deployment, ServingOutcome, plan_serving
from moeplan.planner.training import TrainingOutcome, plan_training
from moeplan.spec.plan import BudgetResult, Plan, Verdict
from moeplan.spec.scenario import Scenario
from moeplan.steps.fix import smallest_serving_fix, smallest_training_fix

Say = Callable[[str], None]


def simulate(scenario: Scenario, *, progress: Say | None = None) -> Plan:
    """The plan of ``scenario``. Same scenario, seed and version give the same plan.

    Raises InputError where the hardware lacks a rate or link that the scenario needs.
    """
    say = progress or (lambda _text: None)
    training = _training(scenario, say) if scenario.training is not None else None
    serving = _serving(scenario, say) if scenario.serving is not None else None
    spending = _spending(scenario, training, serving)
    budget = judge_budget(scenario.money.budget, spending)
    checks = _checks(scenario, training, serving, budget)
    part = serving or training
    if part is None:
        raise ValueError(f"{scenario.name}: neither serving nor training")
    n_ranks = scenario.serving.layout.dp if scenario.serving is not None else 1
    plan = Plan(
        moeplan=__version__,
        scenario=scenario.name,
        kind=scenario.kind,
        seed=scenario.seed,
        feasible=all(c.ok for c in checks),
        verdicts=tuple(checks),
        serving=serving.result if serving is not None else None,
        training=training.result if training is not None else None,
        memory=part.fit.result(n_ranks),
        routing=part.routing,
        cost=spending.cost,
        budget=budget,
        time_breakdown=part.time_breakdown,
        provenance=_provenance(scenario, part),
    )
    remarks = _remarks(scenario, plan, training, serving)
    return replace(plan, verdicts=(*checks, *remarks))


def _serving(scenario: Scenario, say: Say) -> ServingOutcome:
    assert scenario.serving is not None
    deployment = Deployment(scenario.model, scenario.hardware, scenario.serving, scenario.routing, scenario.seed)
    return plan_serving(deployment, scenario.model_error, say)
