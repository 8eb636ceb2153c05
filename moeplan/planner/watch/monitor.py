"""Is production where the plan said? What changed: the world, or the system, or was the model wrong from the start?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moeplan.planner.watch.cycles import CYCLES_S, LEAST_CYCLES, without_cycles
from moeplan.planner.watch.sequential import Array, Change, changes, mean_interval, thinned
from moeplan.spec.observed import INPUTS, OUTCOMES, Observed
from moeplan.spec.plan import Plan, Q

# A traffic this far from the plan's is another traffic; outcomes bring their own interval. An estimate.
INPUT_TOLERANCE = 0.10
# A smaller shift of a result is listed, but neither a regression nor an improvement. An estimate.
MATERIAL_FRAC = 0.05
FALSE_ALARM_FRAC = 1e-4  # of windows, over all metrics together
ERROR_FRAC = 0.01  # of series whose mean ever leaves its interval
_HIGHER_IS_BETTER = ("output_tokens_per_s",)

State = Literal["in plan", "out of plan", "unplanned"]
Cause = Literal["the world changed", "the system regressed", "the system improved", "the model was wrong"]


@dataclass(frozen=True, slots=True)
class Watched:
    """One metric: what was planned, where it is now (mean since the last change, with its interval), how it moved."""

    name: str
    planned: Q | None
    n_windows: int
    windows_together: int  # so many are averaged to one value, see `sequential.thinned`
    now: float
    now_low: float
    now_high: float
    state: State
    changes: tuple[Change, ...]  # in windows of the whole series


@dataclass(frozen=True, slots=True)
class Finding:
    """What happened to a metric, since when (None: from the start), and what to do."""

    cause: Cause
    metric: str
    since_s: float | None
    text: str
    advice: str


@dataclass(frozen=True, slots=True)
class Report:
    """``ok``: production is where the plan said, or where it is better."""

    ok: bool
    false_alarm_frac: float
    watched: tuple[Watched, ...]
    findings: tuple[Finding, ...]


def monitor(plan: Plan, observed: Observed, *, false_alarm_frac: float = FALSE_ALARM_FRAC) -> Report:
    """Compare ``observed`` with ``plan``.

    Args:
        plan: of a serving deployment.
        observed: windows of production.
        false_alarm_frac: share of windows in which an unchanged system raises an alarm, over all metrics together.

    Raises:
        ValueError: the plan serves nothing.
    """
    planned = planned_values(plan)
    names = [name for name in (*INPUTS, *OUTCOMES) if name in observed.series]
    observed = replace(observed, series={name: _like_hours(observed, name) for name in names})
    watched = [_watch(name, planned.get(name), observed, false_alarm_frac / len(names)) for name in names]
    findings = _findings({one.name: one for one in watched}, observed)
    bad = {"the world changed", "the system regressed", "the model was wrong"}
    return Report(not any(f.cause in bad for f in findings), false_alarm_frac, tuple(watched), tuple(findings))


def planned_values(plan: Plan) -> Mapping[str, Q]:
    """What the plan says of every metric that it knows: means over requests, 90 % intervals."""
    serving = plan.serving
    if serving is None:
        raise ValueError("the plan serves nothing: there is no production to compare it with")
    found: dict[str, Q | None] = {
        "requests_per_s": serving.requests_per_s,
        "output_tokens_per_s": serving.output_tokens_per_s,
        "ttft_s": serving.ttft_s and serving.ttft_s.mean,
        "tpot_s": serving.tpot_s and serving.tpot_s.mean,
        "e2e_s": serving.e2e_s and serving.e2e_s.mean,
        "usd_per_million_output_tokens": plan.cost.usd_per_million_output_tokens,
        "expert_imbalance": plan.routing and plan.routing.imbalance_max_over_mean,
    }
    traffic = plan.provenance.get("traffic")
    for name in ("input_tokens", "output_tokens"):
        mean = traffic.get(name) if isinstance(traffic, Mapping) else None
        found[name] = Q(float(mean), float(mean), float(mean)) if mean else None
    return {name: q for name, q in found.items() if q is not None and q.value > 0.0}


def _like_hours(observed: Observed, name: str) -> Array:
    """A series without its daily and weekly pattern; NaN where it is not above zero."""
    series = observed.series[name]
    told = np.isfinite(series) & (series > 0.0)
    calm = np.full(len(series), math.nan)
    calm[told] = np.exp(without_cycles(observed.start_s[told], np.log(series[told])))
    return calm


def _watch(name: str, planned: Q | None, observed: Observed, false_alarm_frac: float) -> Watched:
    series = observed.series[name]
    where = np.flatnonzero(np.isfinite(series))
    logs, together = thinned(np.log(series[where])) if len(where) else (np.zeros(0), 1)
    moved = tuple(_in_windows(one, where, together) for one in changes(logs, false_alarm_frac * together))
    if not len(logs):
        return Watched(name, planned, 0, together, math.nan, math.nan, math.nan, "unplanned", ())
    since = next((i for i, w in enumerate(where[::together]) if moved and w >= moved[-1].at), 0)
    current = logs[since:]
    low, high = mean_interval(current, ERROR_FRAC)
    # geometric means: a few very long windows do not stand for the system
    now, now_low, now_high = (math.exp(min(x, 700.0)) for x in (current.mean(), low, high))
    state = _state(name, planned, now, now_low, now_high, len(current))
    return Watched(name, planned, len(where), together, now, now_low, now_high, state, moved)


def _in_windows(change: Change, where: Array, together: int) -> Change:
    return Change(
        int(where[change.at * together]),
        int(where[min((change.seen + 1) * together, len(where)) - 1]),
        math.exp(change.before),
        math.exp(change.after),
    )


def _state(name: str, planned: Q | None, now: float, low: float, high: float, n: int) -> State:
    """Out of plan when the whole interval of the mean is; a single window has only its value."""
    if planned is None:
        return "unplanned"
    bottom, top = _room(name, planned)
    below, above = (now, now) if n < 2 else (high, low)
    return "out of plan" if below < bottom or above > top else "in plan"


def _room(name: str, planned: Q) -> tuple[float, float]:
    """What counts as planned: the interval; for what comes from outside at least the tolerance."""
    if name in INPUTS:
        return min(planned.low, planned.value * (1.0 - INPUT_TOLERANCE)), max(
            planned.high, planned.value * (1.0 + INPUT_TOLERANCE)
        )
    return planned.low, planned.high


def _findings(watched: Mapping[str, Watched], observed: Observed) -> list[Finding]:
    inputs = [one for name, one in watched.items() if name in INPUTS]
    outcomes = [one for name, one in watched.items() if name in OUTCOMES]
    world = [found for one in inputs for found in _world(one, observed.start_s)]
    return [*world, *(f for one in outcomes for f in _outcome(one, inputs, observed))]


def _world(one: Watched, start_s: Array) -> list[Finding]:
    """What comes from outside left the plan."""
    if one.state != "out of plan" or one.planned is None:
        return []
    since = float(start_s[one.changes[-1].at]) if one.changes else None
    text = f"{one.name} is {one.now:.4g}, planned {one.planned.value:.4g}"
    seen_cycles = (start_s[-1] - start_s[0]) / np.array(CYCLES_S)
    if one.changes and (seen_cycles < LEAST_CYCLES).any():
        day, week = "time of day: less than three days", "day of the week: less than three weeks"
        what = day if seen_cycles[0] < LEAST_CYCLES else week
        text += f" (perhaps the {what} are seen)"
    return [Finding("the world changed", one.name, since, text, _replan(one))]


def _replan(one: Watched) -> str:
    if one.name == "requests_per_s":
        return f"plan again: moeplan simulate SCENARIO --set serving.traffic.rate='{one.now:.3g} req/s'"
    if one.name == "expert_imbalance":
        return "plan again with the measured expert loads (routing.histogram), and re-balance the experts"
    return f"plan again with a trace of today's requests, or a mean of {one.now:.0f} tokens"


def _outcome(one: Watched, inputs: list[Watched], observed: Observed) -> list[Finding]:
    """Why a result moved or is not where the plan said."""
    found = []
    borders = [0, *(change.at for change in one.changes), len(observed.start_s)]
    for change, begin, end in zip(one.changes, borders[:-2], borders[2:], strict=True):
        small = abs(change.after / change.before - 1.0) < MATERIAL_FRAC
        if small or _explained(change, inputs, observed, begin, end):
            continue
        worse = (change.after < change.before) == (one.name in _HIGHER_IS_BETTER)
        since = float(observed.start_s[change.at])
        text = f"{one.name} went from {change.before:.4g} to {change.after:.4g} with the same traffic"
        if worse:
            advice = "roll back what was released about then, or find what else changed (driver, clocks, neighbours)"
            found.append(Finding("the system regressed", one.name, since, text, advice))
        else:
            advice = "calibrate again: the plan is too careful now"
            found.append(Finding("the system improved", one.name, since, text, advice))
    named = any(f.cause == "the system regressed" for f in found) or any(x.state == "out of plan" for x in inputs)
    if one.state == "out of plan" and one.planned is not None and not named:
        better = (one.now > one.planned.high) == (one.name in _HIGHER_IS_BETTER)
        text = (
            f"{one.name} is {one.now:.4g}, planned {one.planned.value:.4g} "
            f"({one.planned.low:.4g} to {one.planned.high:.4g}), with the traffic as planned"
        )
        advice = "import these runs and calibrate: moeplan calibrate RUNS.csv"
        found.append(Finding("the system improved" if better else "the model was wrong", one.name, None, text, advice))
    return found


def _explained(change: Change, inputs: list[Watched], observed: Observed, begin: int, end: int) -> bool:
    """Whether something outside moved then: a change of it is dated about there, or its means on both sides differ.

    The sides are those of the result's means: windows from ``begin`` to the change and from there to ``end``.
    """
    slack = max(change.seen - change.at, 1)
    dated = any(change.at - slack <= moved.at <= change.seen for one in inputs for moved in one.changes)
    sides = [slice(begin, change.at), slice(change.at, end)]
    return dated or any(_differ(*(observed.series[one.name][side] for side in sides)) for one in inputs)


def _differ(before: Array, after: Array) -> bool:
    """Whether two stretches of something from outside are another traffic."""
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if not len(before) or not len(after):
        return False
    return bool(abs(after.mean() / before.mean() - 1.0) > INPUT_TOLERANCE)
