"""``explain``: the chain behind one number of a plan, and where the width of its interval comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from moeplan.errors import InputError, Problem, did_you_mean
from moeplan.files.catalog.hardware_catalog import hardware_record
from moeplan.files.plan_json import plan_to_json
from moeplan.files.scenario.scenario_values import Value, scenario_values
from moeplan.planner.answers.exhibits import parameters_used
from moeplan.planner.answers.explanations import rule_of
from moeplan.planner.plan import simulate
from moeplan.planner.serving import situation_of, tier_of
from moeplan.planner.training import training_tier
from moeplan.provenance import Tier
from moeplan.simulate.deployment import Deployment
from moeplan.spec.plan import Plan
from moeplan.spec.scenario import Scenario
from moeplan.spec.uncertainty import LogError, ModelError

Json = Any
_ENDS = ("value", "low", "high")
_DEEPEST = 4  # links from the number to the last input
_MOST_INPUTS = 12  # of one pattern; the rest is counted
NOISE = "chance: the draws of the simulation, failures, and the popularity of experts"


@dataclass(frozen=True, slots=True)
class Share:
    """Part of an interval's width, squared in logarithms: what it would be with this source of error alone."""

    cause: str
    share_frac: float
    low: float  # 5 % and 95 % quantile of ln(truth / prediction) of the cause; 0 for chance
    high: float
    n_runs: int
    source: str


@dataclass(frozen=True, slots=True)
class Link:
    """One input. ``depth`` 1 goes into the number itself, 2 into an input of it, and so on."""

    depth: int
    path: str
    value: str
    unit: str
    kind: str  # "plan", "file", "default", "catalog", "fitted", ...
    source: str
    date: str
    tier: str
    formula: str = ""  # of a number that the plan computes itself


@dataclass(frozen=True, slots=True)
class Explained:
    """Everything known about one number."""

    path: str
    value: Json
    low: float | None
    high: float | None
    unit: str
    formula: str
    method: str
    chain: tuple[Link, ...]
    shares: tuple[Share, ...]  # empty where the number has no interval
    text: str  # of the uncertainty


class Explainer:
    """Explains numbers of one plan. Shares of uncertainty are simulated when first asked for, then kept."""

    def __init__(self, scenario: Scenario, plan: Plan | None = None) -> None:
        self.scenario = scenario
        self.plan = plan or simulate(scenario)
        self.document: Json = json.loads(plan_to_json(self.plan))
        self._values = scenario_values(scenario)
        self._alone: dict[str, Json] | None = None

    def leaves(self) -> Iterator[str]:
        """Paths of every number, text and flag of the plan."""
        yield from _leaves(self.document, "")

    def explain(self, path: str, *, shares: bool = True) -> Explained:
        """The chain of one number; an interval may be named by itself or by one of its ends.

        Raises InputError for a path the plan does not have, or one that holds many numbers.
        """
        head, _, end = path.rpartition(".")
        node = self._node(path)
        if end in _ENDS and _is_interval(self._node(head) if head else None):
            path, node = head, self._node(head)
        if isinstance(node, Mapping | list) and not _is_interval(node) and node:
            below = ", ".join(list(dict.fromkeys(_below(node)))[:12])
            raise InputError([Problem("PATH", None, None, path, "holds many numbers", allowed=f"{path}.{{{below}}}")])
        rule = rule_of(path)
        if rule is None:
            raise ValueError(f"{path}: no rule says how it comes about")
        interval = _is_interval(node)
        found = tuple(self._shares(path)) if shares and interval and node["low"] != node["high"] else ()
        return Explained(
            path=path,
            value=node["value"] if interval else node,
            low=node["low"] if interval else None,
            high=node["high"] if interval else None,
            unit=unit_of(path),
            formula=rule.formula,
            method=_method(rule.method),
            chain=tuple(self._chain(path, 1, {path})),
            shares=found,
            text=_uncertainty(node, interval),
        )

    def _node(self, path: str) -> Json:
        node = self.document
        for i, key in enumerate(path.split(".")):
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            else:
                # keys of maps may hold dots themselves (provenance.origins)
                rest = ".".join(path.split(".")[i:])
                if isinstance(node, Mapping):
                    for name in sorted(node, key=len, reverse=True):
                        if rest == name:
                            return node[name]
                        if rest.startswith(name + "."):
                            return _at(node[name], rest[len(name) + 1 :])
                hint = did_you_mean(path, [*self.leaves(), *(p.rpartition(".")[0] for p in self.leaves())])
                raise InputError([Problem("PATH", None, None, path, "the plan has no such number", hint=hint)])
        return node

    def _chain(self, path: str, depth: int, seen: set[str]) -> Iterator[Link]:
        rule = rule_of(path)
        if rule is None or depth > _DEEPEST:
            return
        for name in rule.inputs:
            if name in seen:
                continue
            seen.add(name)
            if name.startswith("@"):
                yield from self._of_scenario(name[1:], depth)
            elif name.startswith("!"):
                yield from self._of_errors(name[1:], depth)
            elif name.startswith("%"):
                yield from self._of_hardware(name[1:], depth)
            elif name == "#":
                yield from self._of_operations(depth)
            else:
                yield from self._of_plan(name, depth, seen)

    def _of_plan(self, path: str, depth: int, seen: set[str]) -> Iterator[Link]:
        node = _at(self.document, path)
        if node is None:
            return
        inner = rule_of(path)
        formula = "" if inner is None else inner.formula
        parts = node.items() if isinstance(node, Mapping) and not _is_interval(node) else [("", node)]
        for name, part in parts:
            if (isinstance(part, int | float | str) or _is_interval(part)) and not (name and part == 0.0):
                own = f"{path}.{name}" if name else path
                yield Link(depth, own, _text(part), unit_of(own), "plan", "this plan", "", "", formula)
        yield from self._chain(path if not isinstance(node, Mapping) or _is_interval(node) else f"{path}.x", depth + 1,
                               seen)  # fmt: skip

    def _of_scenario(self, pattern: str, depth: int) -> Iterator[Link]:
        found = [v for v in self._values if fnmatchcase(v.path, pattern) and v.value is not None]
        told = [v for v in found if v.origin.how != "derived"] or found
        for value in told[:_MOST_INPUTS]:
            yield self._link(value, depth)
        if len(told) > _MOST_INPUTS:
            more = f"{len(told) - _MOST_INPUTS} more"
            yield Link(depth, pattern, more, "", "scenario", "moeplan check SCENARIO --show", "", "")

    def _link(self, value: Value, depth: int) -> Link:
        origin, source, date = value.origin, value.origin.where, ""
        offer = self.scenario.money.offer
        if value.path.startswith("money.offer."):
            source, date = offer.source.text or source, offer.price_date
        elif value.path == "facility.kgco2e_per_j":
            source, date = self.scenario.facility.source.text, self.scenario.facility.source.date
        elif origin.note:
            source = f"{source}: {origin.note}"
        text = f"{value.value:.6g}" if isinstance(value.value, float) else str(value.value)
        return Link(depth, value.path, text, unit_of(value.path), origin.how, source, date, "")

    def _of_errors(self, metric: str, depth: int) -> Iterator[Link]:
        found = learnt_errors(self.scenario).get(metric)
        if found is None:
            return
        tier, error = found
        kind = "measured" if error.n_runs else "estimate"
        text = f"{math.exp(error.low):.3g} to {math.exp(error.high):.3g} ({error.n_runs} runs)"
        name = f"error of {metric.replace('_', ' ')}"
        yield Link(depth, name, text, "truth over prediction, 90 %", kind, error.source, "", tier.value)

    def _of_operations(self, depth: int) -> Iterator[Link]:
        for p in parameters_used(self.scenario):
            values = ", ".join(f"{name} {x:.4g}" for name, x in p.values.items())
            kind = "estimate" if p.tier is Tier.ESTIMATE else "fitted"
            yield Link(depth, f"{p.op} ({p.engine}, {p.dtype})", values, "SI by name", kind, p.source, "", p.tier.value)

    def _of_hardware(self, pattern: str, depth: int) -> Iterator[Link]:
        scenario = self.scenario
        hardware = scenario.hardware if scenario.training is None else scenario.training_hardware or scenario.hardware
        try:
            record = hardware_record(hardware.slug)
        except InputError:  # a profile of the user's own: its values are in the scenario's
            yield from self._of_scenario(f"hardware*{pattern.rpartition('.')[2]}", depth)
            return
        for place, stated in record.values.items():
            if fnmatchcase(place, pattern):
                s = stated.sourced
                yield Link(depth, f"hardware {record.name}: {place}", stated.text, s.basis, s.source.kind.value,
                           s.source.text, s.source.date, "")  # fmt: skip

    def _shares(self, path: str) -> Iterator[Share]:
        widths = {name: _width(_at(document, path)) for name, document in self._documents().items()}
        chance = widths.pop(NOISE)
        parts = {name: max(width**2 - chance**2, 0.0) for name, width in widths.items()} | {NOISE: chance**2}
        total = sum(parts.values())
        errors = learnt_errors(self.scenario)
        for name, part in sorted(parts.items(), key=lambda item: -item[1]):
            if total <= 0.0 or part / total < 5e-4:
                continue
            error = LogError(0.0, 0.0, 0, "simulated") if name == NOISE else errors[name][1]
            yield Share(name, part / total, error.low, error.high, error.n_runs, error.source)

    def _documents(self) -> dict[str, Json]:
        """Plans with one error alone, and with none."""
        if self._alone is None:
            scenario = self.scenario
            learnt = learnt_errors(scenario)
            errors = {name: _only(scenario.model_error, learnt, name) for name in (*learnt, NOISE)}
            self._alone = {
                name: json.loads(plan_to_json(simulate(replace(scenario, model_error=error, comparison=None))))
                for name, error in errors.items()
            }
        return self._alone


def learnt_errors(scenario: Scenario) -> dict[str, tuple[Tier, LogError]]:
    """By metric: the tier of what the plan rests on, and how far such predictions were off."""
    found: dict[str, tuple[Tier, LogError]] = {}
    s, error = scenario, scenario.model_error
    if s.serving is not None:
        deployment = Deployment(s.model, s.hardware, s.serving, s.routing, s.seed)
        tier, here = tier_of(deployment), error.where(situation_of(deployment))
        found |= {name: (tier, here.of(name, tier)) for name in error.by_metric if not name.startswith("training")}
    if s.training is not None:
        tier = training_tier(s.model, s.training_hardware or s.hardware, s.training)
        found |= {name: (tier, error.of(name, tier)) for name in error.by_metric if name.startswith("training")}
    return found


def _only(error: ModelError, learnt: Mapping[str, tuple[Tier, LogError]], metric: str) -> ModelError:
    """``error`` with every other metric known exactly."""
    exact = {name: replace(e, low=e.shift, high=e.shift) for name, (_, e) in learnt.items() if name != metric}
    return replace(error, own=dict(error.own) | exact)


def _width(node: Json) -> float:
    """Width of an interval in logarithms; of one that touches zero relative to its value."""
    if not _is_interval(node):
        return 0.0
    low, value, high = node["low"], node["value"], node["high"]
    if low > 0.0:
        return math.log(high / low)
    return float((high - low) / abs(value)) if value else float(high - low)


def _uncertainty(node: Json, interval: bool) -> str:
    if not interval:
        return "A single value: the plan gives no interval for it; what it is made of may have one."
    if node["low"] == node["high"]:
        return "Exact as far as its inputs are: nothing the plan counts as uncertain goes into it."
    return (
        "Shares are of the squared width of the interval in logarithms, each source of error simulated alone; inputs "
        "of the scenario and prices count as exact (moeplan sensitivity varies them)."
    )


def _is_interval(node: Json) -> bool:
    return isinstance(node, Mapping) and set(node) == set(_ENDS)


def _at(document: Json, path: str) -> Json:
    node = document
    for key in path.split("."):
        if isinstance(node, Mapping):
            node = node.get(key)
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node


def _leaves(node: Json, path: str) -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, below in node.items():
            yield from _leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(node, list) and node:
        for i, below in enumerate(node):
            yield from _leaves(below, f"{path}.{i}")
    else:
        yield path


def _below(node: Json) -> Sequence[str]:
    return list(node) if isinstance(node, Mapping) else [str(i) for i in range(len(node))]


def _text(node: Json) -> str:
    if _is_interval(node):
        span = "" if node["low"] == node["high"] else f" ({node['low']:.4g} to {node['high']:.4g})"
        return f"{node['value']:.6g}{span}"
    return f"{node:.6g}" if isinstance(node, float) else str(node)


def _method(page: str) -> str:
    return f"docs/{page.removeprefix('../')}" if page.startswith("../") else f"docs/method/{page}"


_UNITS = (
    ("requests_per_s", "requests/s"), ("tokens_per_s", "tokens/s"), ("bytes_per_s", "bytes/s"),
    ("flop_per_s", "FLOP/s"),
    ("rate_per_s", "1/s"), ("failures_per_s", "1/s"), ("kgco2e_per_million", "kgCO2e per million tokens"),
    ("kwh_per_million", "kWh per million tokens"), ("gco2e_per_kwh", "g/kWh"), ("j_per_token", "J"),
    ("kgco2e_per_j", "kg/J"), ("bytes_per_token", "bytes"), ("usd_per_million", "USD per million tokens"),
    ("usd_per_gpu_hour", "USD/h"), ("usd_per_hour", "USD/h"), ("usd_per_month", "USD/month"), ("usd", "USD"),
    ("power_w", "W"), ("kwh", "kWh"), ("kgco2e", "kg"), ("hours", "h"), ("_frac", "fraction"),
    ("probability", "fraction"),
    ("_bytes", "bytes"), ("tokens", "tokens"), ("months", "months"), ("days", "days"), ("_per_s", "1/s"), ("_s", "s"),
)  # fmt: skip
_INSIDE = {"time_breakdown": "s", "memory.breakdown": "bytes", "cost.breakdown": "USD", "budget.buys": "",
           "training.run.time_s": "s", "training.run.wall_time_s": "s", "training.hidden_s": "s",
           "serving.ttft_s": "s", "serving.tpot_s": "s", "serving.itl_s": "s", "serving.e2e_s": "s",
           "serving.latency_cdf": "s"}  # fmt: skip


def unit_of(path: str) -> str:
    """The unit a path carries in its name; "" for counts, ratios and texts."""
    for head, unit in _INSIDE.items():
        if path.startswith(head + "."):
            return unit or unit_of(path.rpartition(".")[2])
    parts = [part for part in path.split(".") if part not in _ENDS and not part.isdigit()]
    last = parts[-1] if parts else ""
    return next((unit for mark, unit in _UNITS if last == mark.lstrip("_") or mark in last), "")
