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
from moeplan.planner.serving import ServingOutcome, plan_serving
from moeplan.planner.training import TrainingOutcome, plan_training
from moeplan.simulate.deployment import Deployment
from moeplan.spec.plan import BudgetResult, Plan, Verdict
from moeplan.spec.scenario import Comparison, Scenario, Serving, Training
from moeplan.steps.fix import smallest_serving_fix, smallest_training_fix

Say = Callable[[str], None]


def simulate(scenario: Scenario, *, progress: Say | None = None) -> Plan:
    """The plan of ``scenario``. Same scenario, seed and version give the same plan.

    Raises InputError where the hardware lacks a rate or link that the scenario needs.
    """
    say = progress or (lambda _text: None)
    training = None if scenario.training is None else _plan_training(scenario, scenario.training, say)
    serving = None if scenario.serving is None else _plan_serving(scenario, scenario.serving, say)
    part = serving or training
    if part is None:
        raise ValueError(f"{scenario.name}: neither serving nor training")
    spending = _spending(scenario, training, serving)
    budget = judge_budget(scenario.money.budget, spending)
    checks = _checks(scenario, training, serving, budget)
    plan = Plan(
        moeplan=__version__,
        scenario=scenario.name,
        kind=scenario.kind,
        seed=scenario.seed,
        feasible=all(check.ok for check in checks),
        verdicts=tuple(checks),
        serving=None if serving is None else serving.result,
        training=None if training is None else training.result,
        memory=part.fit.result(1 if scenario.serving is None else scenario.serving.layout.dp),
        routing=part.routing,
        cost=spending.cost,
        budget=budget,
        time_breakdown=part.time_breakdown,
        provenance=_provenance(scenario, part),
    )
    return replace(plan, verdicts=(*checks, *_remarks(scenario, plan, say)))


def _plan_serving(scenario: Scenario, serving: Serving, say: Say) -> ServingOutcome:
    deployment = Deployment(scenario.model, scenario.hardware, serving, scenario.routing, scenario.seed)
    return plan_serving(deployment, scenario.model_error, say)


def _plan_training(scenario: Scenario, training: Training, say: Say) -> TrainingOutcome:
    say("timing a training step")
    hardware = scenario.training_hardware or scenario.hardware
    return plan_training(
        scenario.model,
        hardware,
        training,
        scenario.training_routing,
        scenario.model_error,
        deadline_s=None if scenario.money.budget is None else scenario.money.budget.deadline_s,
        seed=scenario.seed,
    )


def _spending(scenario: Scenario, training: TrainingOutcome | None, serving: ServingOutcome | None) -> Spending:
    found = None
    if scenario.training is not None and training is not None:
        money = scenario.training_money or scenario.money
        n_gpus = scenario.training.layout.n_gpus if training.result is None else training.result.run.n_gpus_held
        found = run = training_spending(money, n_gpus, training.result)
    if scenario.serving is not None and serving is not None:
        found = fleet = serving_spending(scenario.money, scenario.serving.layout.n_gpus, serving.result)
        if scenario.training is not None and scenario.lifecycle_months is not None:
            found = lifecycle_spending(run, fleet, scenario.lifecycle_months)
    if found is None:
        raise ValueError(f"{scenario.name}: neither serving nor training")
    return found


def _checks(
    scenario: Scenario, training: TrainingOutcome | None, serving: ServingOutcome | None, budget: BudgetResult | None
) -> list[Verdict]:
    checks: list[Verdict] = []
    if scenario.training is not None and training is not None:
        fix = None
        if not training.fit.fits:
            hardware = scenario.training_hardware or scenario.hardware
            fix = smallest_training_fix(scenario.model, hardware, scenario.training, scenario.training_routing)
        checks.append(v.memory_verdict(training.fit, "the training job", fix))
        deadline = None if scenario.money.budget is None else scenario.money.budget.deadline_s
        if training.result is not None and deadline is not None:
            checks.append(v.deadline_verdict(training.result, deadline))
    if scenario.serving is not None and serving is not None:
        fix = None
        if not serving.fit.fits:
            fix = smallest_serving_fix(scenario.model, scenario.hardware, scenario.serving, scenario.routing)
        checks.append(v.memory_verdict(serving.fit, "one replica", fix))
        if serving.result is not None:
            checks.append(v.load_verdict(serving.result, scenario.serving.traffic.arrivals.rate_per_s))
            answered = serving.result.ttft_s is not None
            checks += v.slo_verdicts(scenario.serving.slo, serving.slo_latency_s, answered=answered)
    if budget is not None:
        checks.append(v.budget_verdict(budget))
    return checks


def _remarks(scenario: Scenario, plan: Plan, say: Say) -> list[Verdict]:
    found: list[Verdict] = []
    if plan.time_breakdown:
        found.append(
            v.bottleneck_remark(plan.time_breakdown, "a serving iteration" if plan.serving else "a training step")
        )
    advice = None if plan.training is None else v.checkpoint_remark(plan.training)
    if advice is not None:
        found.append(advice)
    if scenario.comparison is not None:
        say(f"planning {scenario.comparison.model.name} for comparison")
        found.append(v.comparison_remark(scenario.comparison, plan, _other_plan(scenario, scenario.comparison)))
    return found + [v.reference_remark(r, _figure(plan, r.quantity)) for r in scenario.references]


def _other_plan(scenario: Scenario, comparison: Comparison) -> Plan:
    return simulate(
        replace(
            scenario,
            name=comparison.model.name,
            kind="serving",
            model=comparison.model,
            serving=comparison.serving,
            training=None,
            lifecycle_months=None,
            comparison=None,
            references=(),
        )
    )


def _figure(plan: Plan, path: str) -> float | None:
    """The number at a dotted path of the plan, the value of an interval; None where there is none."""
    node: Any = asdict(plan)
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping):
        node = node.get("value")
    return float(node) if isinstance(node, int | float) and not isinstance(node, bool) else None


def _provenance(scenario: Scenario, part: ServingOutcome | TrainingOutcome) -> dict[str, Any]:
    offer = scenario.money.offer
    return {
        "model": scenario.model.name,
        "model_notes": list(scenario.model.notes),
        "hardware": scenario.hardware.slug,
        "cost_parameters": part.tier.value,
        "price": offer.name,
        "price_date": offer.price_date,
        "price_source": offer.source.text,
        "routing": (scenario.training_routing if scenario.kind == "training" else scenario.routing).note,
        "origins": {
            path: {"how": o.how, "where": o.where, "note": o.note} for path, o in sorted(scenario.origins.items())
        },
    }
