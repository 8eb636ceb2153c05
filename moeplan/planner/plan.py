"""``simulate``: one resolved scenario in, one plan out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from moeplan._version import __version__
from moeplan.planner import verdicts as v
from moeplan.planner.money.finance import finance
from moeplan.planner.money.lifecycle import first_month_cheaper, spent_by
from moeplan.planner.serving import ServingOutcome, plan_serving
from moeplan.planner.training import TrainingOutcome, plan_training
from moeplan.simulate.arrivals import draw_requests
from moeplan.simulate.deployment import Deployment
from moeplan.spec.plan import BudgetResult, Plan, Verdict
from moeplan.spec.scenario import Comparison, Scenario, Serving, Training
from moeplan.spec.workload import Traffic
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
    money = finance(scenario, training, serving)
    checks = judge(scenario, training, serving, money.budget)
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
        cost=money.cost,
        budget=money.budget,
        energy=money.energy,
        alternatives=money.alternatives,
        lifecycle=money.lifecycle,
        advice=money.advice,
        time_breakdown=part.time_breakdown,
        provenance=_provenance(scenario, part),
    )
    remarks = _remarks(scenario, plan)
    if scenario.comparison is not None:
        plan, compared = _compared(scenario, scenario.comparison, plan, say)
        remarks.insert(1, compared)
    return replace(plan, verdicts=(*checks, *remarks))


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


def judge(
    scenario: Scenario, training: TrainingOutcome | None, serving: ServingOutcome | None, budget: BudgetResult | None
) -> list[Verdict]:
    """Every check of a plan whose parts have been simulated."""
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
        if serving.prefill_fit is not None:
            checks.append(v.memory_verdict(serving.prefill_fit, "one prefill replica", None))
        if serving.result is not None:
            checks.append(v.load_verdict(serving.result, scenario.serving.traffic.arrivals.rate_per_s))
            answered = serving.result.ttft_s is not None
            for name, (slo, latency_s) in serving.slo_latency_s.items():
                checks += v.slo_verdicts(slo, latency_s, answered=answered, of_class=name)
    if budget is not None:
        checks.append(v.budget_verdict(budget))
    return checks


def _remarks(scenario: Scenario, plan: Plan) -> list[Verdict]:
    found: list[Verdict] = []
    if plan.time_breakdown:
        found.append(
            v.bottleneck_remark(plan.time_breakdown, "a serving iteration" if plan.serving else "a training step")
        )
    if plan.training is not None and (checkpoint := v.checkpoint_remark(plan.training)) is not None:
        found.append(checkpoint)
    if plan.alternatives is not None:
        found.append(v.remark("alternatives", plan.alternatives.text))
    if plan.advice is not None:
        found.append(v.remark("advice", plan.advice.text))
    found += v.money_remarks(scenario, plan)
    return found + [v.reference_remark(r, _figure(plan, r.quantity)) for r in scenario.references]


def _compared(scenario: Scenario, comparison: Comparison, plan: Plan, say: Say) -> tuple[Plan, Verdict]:
    """``plan`` with the other way to the same quality beside it: over the whole life where there is one."""
    say(f"planning {comparison.model.name} for comparison")
    other = _other_plan(scenario, comparison)
    remark = v.comparison_remark(comparison, plan, other)
    if plan.lifecycle is None or other.lifecycle is None:
        return plan, remark
    total = other.lifecycle.total_usd.value + comparison.once_usd
    month = first_month_cheaper(
        spent_by(plan.lifecycle), spent_by(other.lifecycle, comparison.once_usd), len(plan.lifecycle.schedule)
    )
    life = replace(plan.lifecycle, other_name=comparison.model.name, other_total_usd=total, cheaper_from_month=month)
    return replace(plan, lifecycle=life), v.life_comparison_remark(comparison, life)


def _other_plan(scenario: Scenario, comparison: Comparison) -> Plan:
    return simulate(
        replace(
            scenario,
            name=comparison.model.name,
            model=comparison.model,
            serving=comparison.serving,
            training=comparison.training,
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


def _traffic(traffic: Traffic, seed: int) -> dict[str, float]:
    """Mean tokens of the simulated requests: what `monitor` holds production against."""
    drawn = draw_requests(traffic, seed)
    return {"input_tokens": float(drawn.input_tokens.mean()), "output_tokens": float(drawn.output_tokens.mean())}


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
        "prices_as_of": scenario.as_of,
        "prices": [asdict(price) for price in scenario.prices],
        "traffic": None if scenario.serving is None else _traffic(scenario.serving.traffic, scenario.seed),
        "routing": (scenario.training_routing if scenario.kind == "training" else scenario.routing).note,
        "origins": {
            path: {"how": o.how, "where": o.where, "note": o.note} for path, o in sorted(scenario.origins.items())
        },
    }
