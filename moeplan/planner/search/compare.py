"""``compare``: the same work done in several ways, each with its own best layout, and which differences are certain."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

from moeplan.errors import InputError, input_error
from moeplan.files.scenario.question import Question, ask
from moeplan.files.scenario.search_section import read_search
from moeplan.planner.intervals import exact
from moeplan.planner.plan import simulate
from moeplan.planner.search.optimize import search
from moeplan.planner.search.optimize_serving import simulated
from moeplan.planner.search.search_result import Candidate, Search
from moeplan.planner.search.search_space import NO_PRICE
from moeplan.planner.serving import tier_of
from moeplan.simulate.deployment import Deployment
from moeplan.spec.plan import Plan, Q
from moeplan.spec.scenario import Scenario

Told = Callable[[str], None]

HOW = (
    "Two ways are called apart where the logarithm of their ratio exceeds the root of the summed squares of the "
    "half-widths, of their 90 % intervals, that face each other: their errors are taken as independent. Errors of ways "
    "on one engine and tier are largely common and would cancel, so differences are mostly more certain than this "
    "says. Only where the deployment is the very same, as with two prices, does all of it cancel."
)
_MOST_TIMES = 4  # replicas tried at the slow end, as a multiple of the answer's


@dataclass(frozen=True, slots=True)
class Price:
    """What a GPU hour costs in an entry, and since when."""

    offer: str
    usd_per_gpu_hour: float
    date: str
    source: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One way. ``value`` is what the ranking is by, None where there is none; ``failed`` are the checks it misses."""

    name: str
    rank: int
    value: Q | None
    feasible: bool
    failed: tuple[str, ...]
    best: Candidate | None
    plan: Plan | None
    price: Price | None  # None: ranked without cost
    proven: bool  # nothing better for this way is in the space
    note: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two entries, the better first. ``ratio`` is the worse value over the better."""

    better: str
    worse: str
    ratio: float
    apart: bool
    text: str


@dataclass(frozen=True, slots=True)
class Compared:
    """All ways, ranked; those that miss a check after those that pass, those without a value last."""

    scenario: str
    by: str
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    how: str


def compare(
    path: str | Path,
    *,
    hardware: Sequence[str] = (),
    prices: Sequence[str] = (),
    models: Sequence[str] = (),
    by: str = "cost",
    overrides: Sequence[str] = (),
    progress: Told | None = None,
) -> Compared:
    """Ways to do the scenario's work: every combination of what is listed, or the scenario's own `variants`.

    Each has the best layout that `optimize` finds for it. Without a price of its own a machine has the cheapest dated
    offer of the catalog, named in its entry. Raises InputError where nothing is listed or no way can be planned.
    """
    say = progress or (lambda _text: None)
    question = ask(path, [*overrides, f"optimize.by={by}"])
    read_search(question)
    found, problems = [], []
    for name, changes in _ways(question, hardware, prices, models):
        say(f"planning {name}")
        try:
            found.append(_entry(path, question, name, changes, by))
        except InputError as error:
            problems.append(error)
            found.append(_failed(name, error))
    if len(problems) == len(found):
        raise InputError([p for error in problems for p in error.problems])
    ranked = sorted(
        found, key=lambda e: (e.plan is None, not e.feasible, e.value is None, e.value.value if e.value else 0)
    )
    ranked = [replace(entry, rank=i) for i, entry in enumerate(ranked, 1)]
    return Compared(str(question.value("name") or Path(path).stem), by, tuple(ranked), tuple(_pairs(ranked)), HOW)


def _ways(
    question: Question, hardware: Sequence[str], prices: Sequence[str], models: Sequence[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Name and overrides of each way."""
    axes: list[list[tuple[str, str]]] = [
        [(name, f"optimize.{key}={json.dumps([name], ensure_ascii=False)}") for name in names]
        for key, names in (("models", models), ("hardware", hardware))
        if names
    ]
    if prices:
        axes.append([(price, f"price={price}") for price in prices])
    if axes:
        return [(", ".join(n for n, _ in way), tuple(text for _, text in way)) for way in product(*axes)]
    found = []
    for item in question.value("variants") or []:
        values = item.get("set") if isinstance(item, dict) else None
        if not isinstance(values, dict):
            continue  # the schema says so when the scenario is resolved
        texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
        found.append((str(item.get("name")), tuple(texts)))
    if not found:
        hint = "--hardware, --price or --model with names between commas, or `variants` in the scenario"
        raise input_error(question.path, "nothing to compare", hint=hint)
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise input_error(question.path, "two variants have one name", got=max(names, key=names.count))
    return found


def _entry(path: str | Path, question: Question, name: str, changes: tuple[str, ...], by: str) -> Entry:
    way = ask(path, [*question.overrides, *changes])
    found = search(way, read_search(way), lambda _done, _most: None)
    candidate = found.best or found.closest
    plan = found.plan
    if plan is None and candidate is not None:
        plan = simulate(_scenario(path, candidate))
    unpriced = candidate is not None and NO_PRICE in candidate.overrides
    if plan is None or candidate is None:
        return Entry(name, 0, None, False, ("memory",), None, None, None, False, "no layout fits the memory")
    scenario = _scenario(path, candidate)
    value, note = _value(scenario, candidate, plan, by, priced=not unpriced)
    failed = tuple(v.check for v in plan.verdicts if not v.ok and not (unpriced and v.check == "budget"))
    offer = scenario.money.offer
    price = None if unpriced else Price(offer.name, offer.usd_per_gpu_hour, offer.price_date, offer.source.text)
    notes = [note, "no offer: ranked without cost" if unpriced else "", _open(found)]
    return Entry(
        name, 0, value, not failed, failed, candidate, plan, price, found.proven, "; ".join(n for n in notes if n)
    )


def _open(found: Search) -> str:
    return f"{found.counts.open} layouts that might be better were not simulated" if found.counts.open else ""


def _scenario(path: str | Path, candidate: Candidate) -> Scenario:
    return ask(path).scenario(candidate.overrides)


def _failed(name: str, error: InputError) -> Entry:
    return Entry(name, 0, None, False, (), None, None, None, False, str(error))


def _value(scenario: Scenario, candidate: Candidate, plan: Plan, by: str, *, priced: bool) -> tuple[Q | None, str]:
    """What the ranking is by, less is better, with its interval."""
    if plan.training is not None:
        if by in ("time", "latency"):
            return plan.training.wall_time_s, ""
        return plan.cost.total_usd if priced else None, ""
    if plan.serving is None:
        return None, ""
    if by == "latency" or by == "time":
        e2e, percentile = plan.serving.e2e_s, f"p{scenario.serving.slo.percentile:g}" if scenario.serving else "mean"
        if by == "time" and scenario.serving is not None and scenario.serving.traffic.arrivals.kind == "all_at_once":
            return plan.serving.requests_per_s.inverse().scaled(scenario.serving.traffic.arrivals.n_requests), ""
        return None if e2e is None else getattr(e2e, percentile, e2e.mean), ""
    if not priced:
        return None, ""
    if by == "throughput_per_dollar":
        return plan.cost.usd_per_million_output_tokens, ""
    return _fleet_cost(scenario, plan)


def _fleet_cost(scenario: Scenario, plan: Plan) -> tuple[Q | None, str]:
    """The bill of the fleet, and of the fleets it would take if iterations were as fast or as slow as they may be.

    A rent is exact; how many replicas it takes is not.
    """
    serving, cost = scenario.serving, plan.cost.usd_per_month
    if serving is None or cost is None or not plan.feasible:
        return cost, ""
    deployment = Deployment(scenario.model, scenario.hardware, serving, scenario.routing, scenario.seed)
    error = scenario.model_error.of("step", tier_of(deployment))
    fewest = _enough(scenario, math.exp(error.low - error.shift), serving.layout.replicas, -1)
    most = _enough(scenario, math.exp(error.high - error.shift), serving.layout.replicas, 1)
    per_replica = cost.value / serving.layout.replicas
    note = ""
    if most is None:
        most = _MOST_TIMES * serving.layout.replicas
        note = f"as slow as it may be, {most} replicas would not do: the upper end is at least that"
    low = min(cost.low, per_replica * (fewest or serving.layout.replicas))
    return Q(cost.value, low, max(cost.high, per_replica * most)), note


def _enough(scenario: Scenario, factor: float, start: int, step: int) -> int | None:
    """Replicas that meet load and latencies at ``factor`` times the step time: fewest downwards, first upwards."""
    enough: int | None = None
    n = start
    while 1 <= n <= max(_MOST_TIMES * start, start + 1):
        if _meets(scenario, factor, n):
            enough = n
            if step > 0:
                return n
        elif step < 0:
            return enough
        n += step
    return enough


def _meets(scenario: Scenario, factor: float, replicas: int) -> bool:
    serving = scenario.serving
    if serving is None:
        return False
    tried = replace(scenario, serving=replace(serving, layout=replace(serving.layout, replicas=replicas)))
    outcome = simulated(replace(tried, comparison=None, references=()), priced=False, step_factor=factor)
    return all(ratio <= 1.0 for ratio in outcome.over.values())


def _pairs(ranked: Sequence[Entry]) -> list[Pair]:
    found = []
    known = [entry for entry in ranked if entry.value is not None and entry.feasible]
    for a, b in combinations(known, 2):
        p, q = a.value or exact(0.0), b.value or exact(0.0)
        if _deployment(a) == _deployment(b):
            p, q = exact(p.value), exact(q.value)
        found.append(_pair(a.name, p, b.name, q))
    return found


def _deployment(entry: Entry) -> tuple[str, ...]:
    """What is simulated: everything but its price."""
    overrides = () if entry.best is None else entry.best.overrides
    return tuple(text for text in overrides if not text.startswith("price"))


def _pair(a: str, p: Q, b: str, q: Q) -> Pair:
    """``p`` is the better; see `HOW`."""
    if p.value == q.value:
        return Pair(a, b, 1.0, False, f"{a} and {b} are equal")
    ratio = q.value / p.value
    width = math.hypot(math.log(p.high / p.value), math.log(q.value / q.low))
    if math.log(ratio) > width:
        return Pair(a, b, ratio, True, f"{a} is better than {b} by {ratio - 1.0:.0%}, more than the uncertainty")
    return Pair(
        a,
        b,
        ratio,
        False,
        f"{a} and {b} cannot be told apart: {ratio - 1.0:.0%} between them is within the uncertainty",
    )


def figure_name(compared: Compared) -> str:
    """The ranked figure in words."""
    trains = any(entry.plan is not None and entry.plan.training is not None for entry in compared.entries)
    names: Mapping[str, str] = {
        "cost": "USD for the run" if trains else "USD a month",
        "latency": "wall time" if trains else "end-to-end time",
        "throughput_per_dollar": "USD for the run" if trains else "USD per million output tokens",
        "time": "wall time" if trains else "time",
    }
    return names[compared.by]
