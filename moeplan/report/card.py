"""A plan card: one page to hand over with a plan, filled with what the run knows and nothing else.

In the spirit of model cards (Mitchell et al. 2019, arXiv:1810.03993), ordered by the functions of the NIST AI Risk
Management Framework 1.0 (NIST AI 100-1, 2023): govern, map, measure, manage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from moeplan.errors import printable
from moeplan.files.plan_row import plan_digest
from moeplan.files.scenario.scenario_values import Value, scenario_values
from moeplan.planner.answers.exhibits import Exhibits
from moeplan.planner.answers.explain import learnt_errors
from moeplan.provenance import Tier
from moeplan.report.terminal import REMARKS, dollars, headline, number, seconds
from moeplan.spec.plan import Plan, Q
from moeplan.spec.scenario import Scenario

_NOT_SAID = ("derived",)


def plan_card(scenario: Scenario, plan: Plan, shown: Exhibits) -> str:
    """The card as Markdown."""
    other = {"serving": "training_routing.", "training": "routing.", "lifecycle": "references"}[plan.kind]
    values = [
        v
        for v in scenario_values(scenario)
        if v.value is not None and v.origin.how not in _NOT_SAID and not v.path.startswith(other)
    ]
    parts = [
        f"# Plan card: {_md(plan.scenario)}",
        f"Verdict: **{_md(headline(plan))}**.",
        *_govern(scenario, plan),
        *_map(scenario, plan, values),
        *_measure(scenario, plan, shown),
        *_manage(scenario, plan, shown, values),
    ]
    return "\n\n".join(parts) + "\n"


def _govern(scenario: Scenario, plan: Plan) -> Iterator[str]:
    yield "## Govern: what this is, and who answers for it"
    yield _table(
        ("", ""),
        [
            (
                "made by",
                f"moeplan {plan.moeplan}, seed {plan.seed}; same scenario, seed and version give the same plan",
            ),
            ("plan", f"SHA-256 {plan_digest(plan)}"),
            ("as of", scenario.as_of),
            ("kind", plan.kind),
            ("owner of the decision", "not stated in the scenario: to be named"),
            ("owner of the budget", "not stated in the scenario: to be named"),
            ("reviewed by", "nobody yet"),
        ],
    )


def _map(scenario: Scenario, plan: Plan, values: list[Value]) -> Iterator[str]:
    yield "## Map: intended use, inputs, assumptions"
    yield (
        f"Intended use: to decide, before money is spent, whether {_md(scenario.model.name)} can be "
        f"{'trained' if plan.kind == 'training' else 'served' if plan.kind == 'serving' else 'trained and served'} on "
        f"{_md(scenario.hardware.slug)} as described, at what speed and cost. It is an estimate with intervals: no "
        "measurement, no quote, no promise about the quality of a model."
    )
    own = [v for v in values if v.origin.how in ("file", "set")]
    yield "### Inputs given"
    yield _table(("input", "value", "where"), [(v.path, _value(v), v.origin.where) for v in own])
    yield "### Assumed, because the scenario does not say"
    assumed = [v for v in values if v.origin.how == "default"]
    yield _table(("assumption", "value", "from"), [(v.path, _value(v), _source(v)) for v in assumed])
    yield "### Where the data comes from"
    rows = [("price", plan.provenance["price"], plan.provenance["price_source"], plan.provenance["price_date"])]
    rows += [(p.what, p.name, "", p.price_date) for p in scenario.prices]
    rows += [("expert popularity", "", plan.provenance["routing"], "")] if scenario.model.is_moe else []
    if plan.energy is not None:
        rows.append(("carbon intensity", plan.energy.region, plan.energy.source, scenario.facility.source.date))
    yield _table(("what", "name", "source", "date"), rows)
    notes = plan.provenance["model_notes"]
    if notes:
        yield "Notes on the model: " + " ".join(_md(note) for note in notes)


def _measure(scenario: Scenario, plan: Plan, shown: Exhibits) -> Iterator[str]:
    yield "## Measure: what is predicted, and how far such predictions were off"
    yield _table(("figure", "value", "90 % sure"), list(_figures(plan)))
    learnt = learnt_errors(scenario)
    rows = [
        (
            metric.replace("_", " "),
            f"{math.exp(e.low):.2f} to {math.exp(e.high):.2f}",
            str(e.n_runs) if e.n_runs else "none: an estimate",
            tier.value,
            e.source,
        )
        for metric, (tier, e) in learnt.items()
    ]
    yield "### On comparable measured runs"
    yield (
        "Nine of ten measured runs like this one (the same tier of parameters, the same engine and load where enough "
        "were measured) lay within these factors of the prediction; the intervals above come from them."
    )
    yield _table(("what", "truth over prediction", "runs", "parameters are", "source"), rows)
    yield "### On kernels kept out of the fit"
    used = [o for o in shown.operations if o.used]
    yield _table(
        ("operation", "parameters are", "held-out rows", "median error", "inside the 90 % interval"),
        [
            (
                f"{o.op} ({o.engine}, {o.dtype})",
                o.tier,
                "none on this device" if o.n_held_out is None else f"{o.n_held_out:,}",
                "" if o.mdape_frac is None else f"{o.mdape_frac:.1%}",
                "" if o.coverage_frac is None else f"{o.coverage_frac:.0%}",
            )
            for o in used
        ],
    )
    yield "Accuracy: docs/reference/accuracy.md, accuracy-serving.md, accuracy-training.md. Limits: docs/limits.md."


def _manage(scenario: Scenario, plan: Plan, shown: Exhibits, values: list[Value]) -> Iterator[str]:
    yield "## Manage: risks, and what to review before spending"
    rows = list(_risks(scenario, plan, shown, values))
    yield _table(("risk", "what to do", "owner"), [(risk, todo, "to be named") for risk, todo in rows])
    yield "### What the plan itself says"
    for verdict in plan.verdicts:
        mark = "note" if verdict.check in REMARKS else "ok" if verdict.ok else "**fails**"
        yield f"- {mark}: {_md(verdict.text)}"
    yield (
        "Once it runs, `moeplan monitor PLAN.json OBSERVED` holds production against this plan and says when it has "
        "left it; `moeplan sensitivity SCENARIO` says which assumption moves the answer most."
    )


def _risks(scenario: Scenario, plan: Plan, shown: Exhibits, values: list[Value]) -> Iterator[tuple[str, str]]:
    checks = [v for v in plan.verdicts if v.check not in REMARKS]
    for v in checks:
        if not v.ok:
            yield f"the check {v.check.replace('_', ' ')} fails", "do not spend on this plan; see what it says below"
        elif "not certain" in v.text:
            yield (
                f"the check {v.check.replace('_', ' ')} passes inside the uncertainty only",
                "measure, or leave more room",
            )
    for price in scenario.prices:
        if price.stale or price.age_days is None:
            age = "undated" if price.age_days is None else f"{price.age_days} days old"
            yield f"price of the {price.what} ({price.name}) is {age}", "ask for a new quote"
    if scenario.money.offer.term == "spot":
        yield "the price is a spot price", "state how often instances are taken back, or plan on demand"
    if plan.cost.not_counted:
        yield f"not counted: {', '.join(plan.cost.not_counted)}", "state them under costs"
    weak = [o.op for o in shown.operations if o.used and o.tier != Tier.FITTED.value]
    if weak:
        yield f"not measured on this device: {', '.join(dict.fromkeys(weak))}", "moeplan measure there, then calibrate"
    guessed = [v.path for v in values if v.origin.note.startswith("estimate")]
    if guessed:
        yield f"estimates among the defaults: {', '.join(guessed)}", "state your own values"
    if scenario.model.is_moe and not _said(values, "routing."):
        yield "popularity of experts is assumed, not yours", "record it (moeplan routing; routing in the scenario)"
    if plan.serving is not None and not _said(values, "serving.traffic."):
        yield "traffic is assumed", "replay a trace of your own"
    if plan.advice is not None:
        outside = sum(not law.inside_range for law in plan.advice.laws)
        if outside:
            yield f"{outside} scaling laws are used beyond their experiments", "take the advice on size as advice"


def _figures(plan: Plan) -> Iterator[tuple[str, str, str]]:
    serving, training, cost = plan.serving, plan.training, plan.cost
    rows: list[tuple[str, Q | None, str]] = []
    if serving is not None:
        rows += [("requests served", serving.requests_per_s, "req/s"),
                 ("most it could serve", serving.capacity_requests_per_s, "req/s")]  # fmt: skip
        for name, latency in (("first token", serving.ttft_s), ("further token", serving.tpot_s)):
            if latency is not None:
                rows.append((f"{name}, p90", latency.p90, "s"))
    if training is not None:
        rows += [("step", training.step_time_s, "s"), ("tokens", training.tokens_per_s, "tokens/s"),
                 ("wall time", training.wall_time_s, "s"), ("GPU hours", training.gpu_hours, "h")]  # fmt: skip
    rows += [("cost a month", cost.usd_per_month, "USD"), ("cost in total", cost.total_usd, "USD"),
             ("cost of a million output tokens", cost.usd_per_million_output_tokens, "USD")]  # fmt: skip
    if plan.energy is not None:
        rows.append((f"emissions ({plan.energy.basis})", plan.energy.kgco2e, "kgCO2e"))
    for label, q, unit in rows:
        if q is not None:
            span = "exactly" if q.low == q.high else f"{_amount(q.low, unit)} to {_amount(q.high, unit)}"
            yield label, _amount(q.value, unit), span


def _amount(value: float, unit: str) -> str:
    return dollars(value) if unit == "USD" else seconds(value) if unit == "s" else f"{number(value)} {unit}"


def _said(values: Iterable[Value], prefix: str) -> bool:
    return any(v.path.startswith(prefix) and v.origin.how in ("file", "set") for v in values)


def _value(value: Value) -> str:
    return f"{value.value:.6g}" if isinstance(value.value, float) else str(value.value)


def _source(value: Value) -> str:
    return value.origin.where + (f": {value.origin.note}" if value.origin.note else "")


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(_md(cell) for cell in row) + " |" for row in rows)])


def _md(value: object) -> str:
    """Text that Markdown shows as it is: no tag, link, table cell or emphasis begins in it."""
    text = printable(str(value).replace("\n", " "), 400)
    for character in "\\`*[]<>|":
        text = text.replace(
            character, f"\\{character}" if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character]
        )
    return text
