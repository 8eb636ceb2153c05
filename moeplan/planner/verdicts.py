"""Each check as a full sentence a non-specialist can read."""

from __future__ import annotations

from collections.abc import Mapping

from moeplan.spec.plan import BudgetResult, LifecycleResult, Plan, Q, ServingResult, TrainingResult, Verdict
from moeplan.spec.scenario import Comparison, Reference, Scenario
from moeplan.spec.workload import Slo
from moeplan.steps.fix import Fix
from moeplan.steps.memory import MemoryFit

LEAST_GAIN_FRAC = 0.005  # of the wall time: less is not worth a sentence
_METRIC = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}


def memory_verdict(fit: MemoryFit, what: str, fix: Fix | None) -> Verdict:
    """``what`` names the job ("one replica"); ``fix`` is the smallest change that helps, if one is known."""
    need, have = fit.need_bytes, fit.available_bytes
    if fit.fits:
        text = (
            f"Memory: {what} fits; it needs at least {need / 1e9:.1f} GB of the {have / 1e9:.1f} GB it may use per GPU."
        )
    else:
        text = (
            f"Memory: {what} does not fit; it needs {need / 1e9:.1f} GB per GPU and may use {have / 1e9:.1f} GB. "
            + (f"Smallest change that makes it fit: {fix.text}." if fix else "No single change found makes it fit.")
        )
    return Verdict("memory", fit.fits, need, have, "bytes", text)


def slo_verdicts(slo: Slo, latency_s: Mapping[str, Q], *, answered: bool, of_class: str = "") -> list[Verdict]:
    """One verdict per latency target; ``answered``: some request got its answer."""
    suffix, whose = (f"_{of_class}", f" of {of_class}") if of_class else ("", "")
    targets = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    found = []
    for name, target in targets.items():
        if target is None:
            continue
        label = f"{_METRIC[name].capitalize()}{whose}"
        if name not in latency_s:
            # one-token answers have no time between tokens; without a first token nothing was answered
            ok = name == "tpot" and answered
            text = (
                f"{label}: every answer is a single token, so there is none to hold to the target of {_s(target)}."
                if ok
                else f"{label}: too few requests were answered to have a p{slo.percentile:g}, so the target of "
                f"{_s(target)} is not met."
            )
            found.append(Verdict(f"slo_{name}{suffix}", ok, target, None, "s", text))
            continue
        q = latency_s[name]
        ok = q.value <= target
        text = (
            f"{label}: p{slo.percentile:g} is {_s(q.value)} (90 % sure: {_s(q.low)} to {_s(q.high)}) "
            f"against a target of {_s(target)}{_confidence(q, target)}."
        )
        found.append(Verdict(f"slo_{name}{suffix}", ok, target, q.value, "s", text))
    return found


def load_verdict(result: ServingResult, asked_per_s: float | None) -> Verdict:
    """Whether the queue stays bounded and nothing is refused."""
    capacity = result.capacity_requests_per_s
    asked = "" if asked_per_s is None else f" of the {_n(asked_per_s)} asked for"
    most = "" if capacity is None else f"; it could serve up to {_n(capacity.value)} requests/s"
    served = f"{_n(result.requests_per_s.value)} requests/s"
    unanswered = sum(result.reasons.values())
    if result.saturated:
        text = f"Load: the deployment is overloaded and its queue keeps growing; it serves {served}{asked}{most}."
    elif unanswered:
        named = ", ".join(f"{count} {reason}" for reason, count in result.reasons.items())
        text = f"Load: {unanswered} of {result.n_requests_simulated} requests were not answered: {named}."
    else:
        text = f"Load: the deployment keeps up, serving {served}{asked}{most}."
    ok = not result.saturated and not unanswered
    return Verdict("load", ok, asked_per_s, result.requests_per_s.value, "requests/s", text)


def budget_verdict(budget: BudgetResult) -> Verdict:
    """Whether the money suffices, how sure that is, and what would make it fit."""
    used, limit = budget.used_usd, budget.limit_usd
    basis = {"month": "a month", "run": "for the run", "total": "in total"}[budget.per]
    span = "" if used.low == used.high else f" (90 % sure: ${used.low:,.0f} to ${used.high:,.0f})"
    gap = f"${abs(budget.headroom_usd.value):,.0f}"
    judged = (
        f"inside the limit of ${limit:,.0f} with {gap} to spare"
        if budget.fits
        else f"over the limit of ${limit:,.0f} by {gap}"
    )
    chance = "" if used.low == used.high else f"; {budget.probability_frac:.0%} likely to stay inside"
    text = f"Budget: ${used.value:,.0f} {basis}{span}, {judged}{chance}."
    if not budget.fits:
        change = budget.change
        text += (
            " No single change found makes it fit."
            if change is None
            else f" Cheapest change that makes it fit: {change.text}, ${change.usd:,.0f}."
        )
    return Verdict("budget", budget.fits, used.value, limit, "USD", text)


def remark(check: str, text: str) -> Verdict:
    """Something to know that cannot fail."""
    return Verdict(check, True, None, None, "", text)


def money_remarks(scenario: Scenario, plan: Plan) -> list[Verdict]:
    """How old the prices are, and what the cost leaves out."""
    found, run = [], scenario.training
    for price in scenario.prices:
        name = f"{price.what} ({price.name})"
        if price.age_days is None:
            text = f"Price of the {name}: undated, taken as of {scenario.as_of}."
        else:
            old = f"{price.age_days} days old on {scenario.as_of}"
            warn = ": past 90 days, ask for a new quote" if price.stale else ""
            text = f"Price of the {name}: {price.price_date}, {old}{warn}."
        found.append(remark("price_age", text))
    missing = []
    if scenario.money.offer.term == "spot" and scenario.serving is not None and scenario.serving.fleet.spot is None:
        missing.append("serving.fleet.spot")
    run_money = scenario.training_money or scenario.money
    if run is not None and run_money.offer.term == "spot" and run.reliability.preemptions_per_s == 0.0:
        missing.append("training.reliability.preemptions_per_node_day")
    if missing:
        text = "A spot price, and no interruptions are stated: lost work and waiting are not counted"
        found.append(remark("spot", f"{text} ({', '.join(missing)})."))
    if plan.cost.not_counted:
        found.append(remark("not_counted", f"Not counted, none is stated: {', '.join(plan.cost.not_counted)}."))
    return found


def deadline_verdict(result: TrainingResult, deadline_s: float) -> Verdict:
    """Whether a training run ends in time."""
    wall = result.wall_time_s
    ok = wall.value <= deadline_s
    days, low, high, allowed = (t / 86400.0 for t in (wall.value, wall.low, wall.high, deadline_s))
    text = (
        f"Deadline: the run takes {_n(days)} days (90 % sure: {_n(low)} to {_n(high)}) "
        f"of the {_n(allowed)} there are{_confidence(wall, deadline_s)}."
    )
    if result.run.deadline_probability is not None:
        text += f" Probability to finish in time: {result.run.deadline_probability:.0%}."
    return Verdict("deadline", ok, wall.value, deadline_s, "s", text)


def checkpoint_remark(result: TrainingResult) -> Verdict | None:
    """Another interval where it would save a noticeable share of the run; None where there is nothing to say."""
    run = result.run
    if run.checkpoint_interval_s >= run.time_s["work"] and run.n_failures.value > 0.0:
        text = (
            f"Checkpoints: the interval of {_span(run.checkpoint_interval_s)} is longer than the run; "
            "nothing is saved before its end."
        )
    elif (
        run.optimal_interval_s is None
        or run.optimal_goodput_frac is None
        or run.optimal_goodput_frac < run.goodput_frac.value + LEAST_GAIN_FRAC
    ):
        return None
    else:
        text = (
            f"Checkpoints: one every {_span(run.optimal_interval_s)} instead of every "
            f"{_span(run.checkpoint_interval_s)} would raise goodput from {run.goodput_frac.value:.1%} to "
            f"{run.optimal_goodput_frac:.1%}."
        )
    return Verdict("checkpoint", True, run.optimal_interval_s, run.checkpoint_interval_s, "s", text)


def bottleneck_remark(time_breakdown: Mapping[str, float], what: str) -> Verdict:
    """What the step spends its time on."""
    total = sum(time_breakdown.values())
    largest = sorted(time_breakdown.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name.replace('_', ' ')} {part / total:.0%}" for name, part in largest)
    return Verdict("bottleneck", True, None, None, "", f"What limits it: {what} spends its time on {shares}.")


def reference_remark(reference: Reference, value: float | None) -> Verdict:
    """How far a published figure is from the plan's."""
    published = f"Published {reference.quantity}: {reference.value:,.6g} ({reference.source})"
    if value is None:
        text = f"{published}; this plan has no such figure."
    else:
        text = f"{published}; this plan says {value:,.6g}, {value / reference.value - 1.0:+.1%}."
    return Verdict("reference", True, reference.value, value, "", text)


def comparison_remark(comparison: Comparison, mine: Plan, other: Plan) -> Verdict:
    """The user's own model beside the one they call equal in quality."""
    text = f"{_beside(comparison)}: "
    if mine.kind == "training":
        a, b = mine.cost.total_usd, other.cost.total_usd
        if a is None or b is None:
            failed = mine.scenario if a is None else other.scenario
            return remark("comparison", f"{text}{failed} does not run on this hardware and layout.")
        b = Q(*(end + comparison.once_usd for end in (b.value, b.low, b.high)))
        text += f"${a.value:,.0f} against ${b.value:,.0f} for the run{_apart(a, b)}."
        return Verdict("comparison", True, a.value, b.value, "USD", text)
    a, b = mine.cost.usd_per_million_output_tokens, other.cost.usd_per_million_output_tokens
    if a is None or b is None or mine.serving is None or other.serving is None:
        failed = mine.scenario if mine.serving is None else other.scenario
        return Verdict("comparison", True, None, None, "", f"{text}{failed} does not run on this hardware and layout.")
    load = "" if not other.serving.saturated else f"; {other.scenario} is overloaded by this traffic"
    text += (
        f"${a.value:,.2f} against ${b.value:,.2f} per million output tokens of this traffic{_apart(a, b)}; "
        f"at most {_rate(mine)} against {_rate(other)}"
        f"{_apart(mine.serving.capacity_requests_per_s, other.serving.capacity_requests_per_s)}{load}."
    )
    return Verdict("comparison", True, a.value, b.value, "USD per million output tokens", text)


def life_comparison_remark(comparison: Comparison, life: LifecycleResult) -> Verdict:
    """Two ways to the same quality over their whole life."""
    mine, other = life.total_usd.value, life.other_total_usd
    when = (
        "this way never becomes the cheaper one"
        if life.cheaper_from_month is None
        else f"this way is the cheaper one from month {life.cheaper_from_month}"
    )
    text = f"{_beside(comparison)}: ${mine:,.0f} against ${other:,.0f} over {life.months:.3g} months; {when}."
    return Verdict("comparison", True, mine, other, "USD", text)


def _beside(comparison: Comparison) -> str:
    return f"Beside {comparison.model.name} (equal by the scenario's own statement: {comparison.quality_note})"


def _apart(a: Q | None, b: Q | None) -> str:
    """Whether two values differ by more than their intervals; nothing to say where they are equal or unknown."""
    if a is None or b is None or a == b:
        return ""
    return (
        " (clear of the uncertainty)" if a.high < b.low or b.high < a.low else " (not certain: the intervals overlap)"
    )


def _rate(plan: Plan) -> str:
    capacity = None if plan.serving is None else plan.serving.capacity_requests_per_s
    return "an unknown rate" if capacity is None else f"{_n(capacity.value)} requests/s"


def _confidence(q: Q, limit: float) -> str:
    if q.low == q.high:
        return ""
    if q.high <= limit or q.low > limit:
        return ", clear of the uncertainty"
    return "; the limit lies inside the interval, so this is not certain"


def _span(value_s: float) -> str:
    return f"{_n(value_s / 3600.0)} h" if value_s >= 7200.0 else f"{_n(value_s / 60.0)} min"


def _s(value: float) -> str:
    if value == float("inf"):
        return "never"
    return f"{value * 1e3:.3g} ms" if value < 1.0 else f"{_n(value)} s"


def _n(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"
