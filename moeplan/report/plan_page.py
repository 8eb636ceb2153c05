"""The report of one plan: its verdicts, the sliders, every figure, and every number in tables with its interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from moeplan.files.plan_json import plan_to_json
from moeplan.planner.answers.exhibits import Exhibits
from moeplan.planner.answers.surface import Surface
from moeplan.report.charts import plan_figures, words
from moeplan.report.figures import Figure
from moeplan.report.page import Cell, Grid, Page, Section, Sentence, finite
from moeplan.report.terminal import REMARKS, byte_size, dollars, headline, number, seconds
from moeplan.spec.plan import Plan

_PLACES = {
    "Speed": ("latency-cdf", "latency-percentiles", "queue", "kv-cache", "step-time", "wall-time"),
    "Money": ("cost", "alternatives", "life"),
    "Memory": ("memory",),
    "The machine and the model": ("roofline", "expert-load"),
    "How sure it is": ("calibration", "coverage"),
}


def plan_page(plan: Plan, shown: Exhibits | None, surface: Surface | None) -> Page:
    """Everything of ``plan`` as a page."""
    document = json.loads(plan_to_json(plan))
    figures = {one.name: one for one in plan_figures(plan, shown)}
    return Page(
        title=plan.scenario,
        headline=headline(plan),
        ok=plan.feasible,
        sentences=[Sentence("note" if v.check in REMARKS else "ok" if v.ok else "NO", v.text) for v in plan.verdicts],
        sections=list(plan_sections(document, figures, shown)),
        surface=surface,
        surface_json=None if surface is None else finite(asdict(surface)),
        document=document,
        foot=(
            f"Model {plan.provenance['model']} on {plan.provenance['hardware']}; cost parameters: "
            f"{plan.provenance['cost_parameters']}; price: {plan.provenance['price']} "
            f"({plan.provenance['price_date'] or 'undated'}), {plan.provenance['price_source']}.",
        ),
    )


def plan_sections(
    document: Mapping[str, Any], figures: Mapping[str, Figure], shown: Exhibits | None = None
) -> Iterator[Section]:
    """Figures and tables by subject; subjects without either are left out."""
    grids = {
        "Speed": [*_serving_grids(document), *_training_grids(document)],
        "Money": list(_money_grids(document)),
        "Memory": [_memory_grid(document)],
        "The machine and the model": list(_machine_grids(document)),
        "How sure it is": [*(_accuracy_grid(shown) if shown is not None else ()), _origins_grid(document)],
    }
    for title, names in _PLACES.items():
        drawn = [figures[name] for name in names if name in figures]
        if drawn or grids[title]:
            yield Section(title, figures=drawn, grids=grids[title])


def at(document: Any, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    node = document
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list) else node.get(key) if isinstance(node, Mapping) else None
    return node


def cell(document: Any, path: str, form: Callable[[float], str]) -> Cell:
    """The number at ``path`` as people write it."""
    value = at(document, path)
    return Cell("-" if value is None else form(value), path, value)


def interval_grid(document: Any, title: str, rows: Mapping[str, tuple[str, Callable[[float], str]]]) -> Iterator[Grid]:
    """Rows of label -> (path of an interval, how it is written); rows the plan does not have are left out."""
    found = tuple(
        (Cell(label), *(cell(document, f"{path}.{end}", form) for end in ("value", "low", "high")))
        for label, (path, form) in rows.items()
        if at(document, path) is not None
    )
    if found:
        yield Grid(title, ("", "value", "at least (90 %)", "at most (90 %)"), found)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def unit(text: str) -> Callable[[float], str]:
    return lambda value: f"{number(value)} {text}"


def _serving_grids(document: Any) -> Iterator[Grid]:
    latencies = {
        f"{label}, {stat}": (f"serving.{name}.{stat}", seconds)
        for name, label in (("ttft_s", "first token"), ("tpot_s", "further token"), ("e2e_s", "end to end"))
        for stat in ("mean", "p50", "p90", "p95", "p99")
    }
    yield from interval_grid(document, "Latency", latencies)
    yield from interval_grid(
        document,
        "Throughput",
        {
            "requests served": ("serving.requests_per_s", unit("req/s")),
            "most it could serve": ("serving.capacity_requests_per_s", unit("req/s")),
            "input tokens": ("serving.input_tokens_per_s", unit("tokens/s")),
            "output tokens": ("serving.output_tokens_per_s", unit("tokens/s")),
            "output tokens per GPU": ("serving.output_tokens_per_s_per_gpu", unit("tokens/s")),
            "time an iteration is running": ("serving.utilization_frac", _percent),
            "requests inside every latency target": ("serving.slo_met_frac", _percent),
        },
    )


def _training_grids(document: Any) -> Iterator[Grid]:
    yield from interval_grid(
        document,
        "Training",
        {
            "step": ("training.step_time_s", seconds),
            "tokens": ("training.tokens_per_s", unit("tokens/s")),
            "tokens per GPU": ("training.tokens_per_s_per_gpu", unit("tokens/s")),
            "speed per GPU": ("training.tflop_per_s_per_gpu", unit("TFLOP/s")),
            "model FLOP utilisation": ("training.mfu_frac", _percent),
            "goodput": ("training.goodput_frac", _percent),
            "wall time": ("training.wall_time_s", seconds),
            "GPU hours": ("training.gpu_hours", unit("h")),
            "failures": ("training.run.n_failures", number),
        },
    )


def _money_grids(document: Any) -> Iterator[Grid]:
    yield from interval_grid(
        document,
        "Cost",
        {
            "per hour": ("cost.usd_per_hour", dollars),
            "per month": ("cost.usd_per_month", dollars),
            "per million output tokens": ("cost.usd_per_million_output_tokens", dollars),
            "total": ("cost.total_usd", dollars),
            "of it idle": ("cost.idle_usd", dollars),
            "spent of the budget": ("budget.used_usd", dollars),
            "left of the budget": ("budget.headroom_usd", dollars),
            "energy": ("energy.kwh", unit("kWh")),
            "emissions": ("energy.kgco2e", unit("kgCO2e")),
        },
    )
    parts = at(document, "cost.breakdown") or {}
    rows = tuple((Cell(words(name)), cell(document, f"cost.breakdown.{name}", dollars)) for name in parts)
    if rows:
        yield Grid("Where the money goes", ("", "USD"), rows)
    options = at(document, "alternatives.options")
    if options:
        yield Grid(
            "Ways to serve this traffic",
            ("", "a month", "per million output tokens", "price of"),
            tuple(
                (
                    Cell(f"{o['kind']}: {o['name']}" + (" (yours)" if o["chosen"] else "")),
                    cell(document, f"alternatives.options.{i}.usd_per_month.value", dollars),
                    cell(document, f"alternatives.options.{i}.usd_per_million_output_tokens.value", dollars),
                    Cell(o["price_date"] or "undated"),
                )
                for i, o in enumerate(options)
            ),
        )


def _memory_grid(document: Any) -> Grid:
    rows = [
        (Cell(words(name)), cell(document, f"memory.breakdown.{name}", byte_size))
        for name, size in at(document, "memory.breakdown").items()
        if size
    ]
    rows += [
        (Cell("taken"), cell(document, "memory.per_gpu_bytes", byte_size)),
        (Cell("there is"), cell(document, "memory.capacity_bytes", byte_size)),
    ]
    if at(document, "memory.kv_capacity_tokens") is not None:
        rows.append((Cell("KV cache of a replica"), cell(document, "memory.kv_capacity_tokens", unit("tokens"))))
    return Grid("Memory of one GPU", ("", "size"), tuple(rows))


def _machine_grids(document: Any) -> Iterator[Grid]:
    parts = at(document, "time_breakdown") or {}
    rows = tuple(
        (Cell(words(name)), cell(document, f"time_breakdown.{name}", seconds)) for name, t in parts.items() if t
    )
    if rows:
        yield Grid("Time of one step", ("", "time"), rows)
    yield from interval_grid(
        document,
        "Routing",
        {
            "fullest expert over the mean": ("routing.imbalance_max_over_mean", number),
            "busiest GPU over the mean": ("routing.straggler_over_mean.mean", number),
            "tokens dropped": ("routing.dropped_frac", _percent),
            "distinct experts in a decode step": ("routing.distinct_experts_per_decode_step", number),
        },
    )


def _accuracy_grid(shown: Exhibits) -> Iterator[Grid]:
    rows = tuple(
        (
            Cell(f"{o.op} ({o.engine}, {o.dtype})"),
            Cell(o.tier),
            Cell("-" if o.mdape_frac is None else f"{o.mdape_frac:.1%}"),
            Cell("-" if o.coverage_frac is None else f"{o.coverage_frac:.0%}"),
            Cell(o.source),
        )
        for o in shown.operations
        if o.used
    )
    if rows:
        yield Grid(
            "Operations behind the times: error on kernels kept out of the fit",
            ("", "parameters are", "median error", "inside the 90 % interval", "from"),
            rows,
        )


def _origins_grid(document: Any) -> Grid:
    origins = at(document, "provenance.origins") or {}
    return Grid(
        "Where the inputs come from",
        ("", "set by", "where", "note"),
        tuple((Cell(path), Cell(o["how"]), Cell(o["where"]), Cell(o["note"])) for path, o in origins.items()),
    )
