"""What to try next where a plan fails: a change that was simulated and helps, or the command that searches for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moeplan.planner.search.optimize_serving import simulated
from moeplan.planner.verdicts import remark
from moeplan.spec.plan import Plan
from moeplan.spec.scenario import Scenario, Serving

CHECK = "next"
_CHECKS = ("memory", "load", "slo", "budget", "deadline")
_TIMES = (1.25, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)  # replicas tried, as multiples of the scenario's own


def with_next_step(scenario: Scenario, plan: Plan) -> Plan:
    """``plan`` with a remark on what to try next behind its checks; the same plan where nothing fails."""
    tips = list(_tips(scenario, plan))
    if plan.feasible or not tips:
        return plan
    n_checks = 1 + max(i for i, v in enumerate(plan.verdicts) if v.check.partition("_")[0] in _CHECKS)
    said = remark(CHECK, f"What to try next: {'; '.join(tips)}.")
    return replace(plan, verdicts=(*plan.verdicts[:n_checks], said, *plan.verdicts[n_checks:]))


def _tips(scenario: Scenario, plan: Plan) -> Iterator[str]:
    failed = {v.check.partition("_")[0] for v in plan.verdicts if not v.ok}
    search = "moeplan optimize SCENARIO searches layouts, limits and number formats"
    if scenario.serving is not None and failed & {"load", "slo"} and plan.serving is not None:
        yield _more_replicas(scenario, scenario.serving)
        yield search
        yield "moeplan compare SCENARIO --hardware A,B tries other machines"
    elif "memory" in failed:
        yield "the change named above"
        yield f"{search} that fit"
    elif "deadline" in failed:
        yield "more data-parallel ranks (training.layout.dp), or fewer tokens"
        yield search
    if "budget" in failed:
        yield "moeplan compare SCENARIO --prices A,B for other offers (moeplan catalog prices)"


def _more_replicas(scenario: Scenario, serving: Serving) -> str:
    if serving.fleet.changes:
        return "let the fleet grow further or sooner (serving.fleet)"
    own = serving.layout.replicas
    sizes = sorted({max(own + 1, round(own * x)) for x in _TIMES})
    for replicas in sizes:
        layout = replace(serving.layout, replicas=replicas)
        tried = simulated(replace(scenario, serving=replace(serving, layout=layout)), priced=True)
        if all(over <= 1.0 for check, over in tried.over.items() if check != "budget"):
            usd = tried.figures.get("usd_per_month")
            cost = "" if usd is None else f" for ${usd:,.0f} a month"
            over = " (over the budget)" if tried.over.get("budget", 0.0) > 1.0 else ""
            return f"{replicas} replicas instead of {own} carry the load within every target{cost}{over}"
    return (
        f"more replicas do not help (up to {sizes[-1]} were simulated): a single request is too slow, so it takes a "
        "faster GPU, more tensor parallelism, a narrower number format, or a smaller model"
    )
