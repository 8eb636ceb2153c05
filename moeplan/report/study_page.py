"""Reports of compare, optimize, sweep and sensitivity: the answer, the figure that shows it, the numbers in tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moeplan.files.result_json import to_json
from moeplan.planner.search.compare import Compared, figure_name
from moeplan.planner.search.search_result import Candidate, Search
from moeplan.planner.search.sensitivity import Sensitivity
from moeplan.report.charts import bars, plan_figures, tip, wide, words
from moeplan.report.figures import PALETTE, Figure, figure, plotting
from moeplan.report.page import Cell, Grid, Page, Section, Sentence, finite
from moeplan.report.plan_page import cell, plan_sections
from moeplan.report.search import NAMES, searched
from moeplan.report.whatif import cell_text
from moeplan.spec.plan import Plan

_SITE = ("model", "hardware", "formats", "offer")


def compared_page(found: Compared) -> Page:
    """Ways side by side, then the best one's plan."""
    document = json.loads(to_json(found))
    what = figure_name(found)
    best = next((entry for entry in found.entries if entry.feasible), None)
    rows = [
        {"way": e.name, "value": e.value.value, "low": e.value.low, "high": e.value.high,
         "passes": "passes every check" if e.feasible else "misses a check"}
        for e in found.entries
        if e.value is not None
    ]  # fmt: skip
    figures = []
    if rows:
        alt = plotting()
        base = alt.Chart(alt.Data(values=rows)).encode(
            y=alt.Y("way:N", title=None, sort=None),
            color=alt.Color("passes:N", title=None, scale=alt.Scale(range=[PALETTE[2], PALETTE[5]],
                            domain=["passes every check", "misses a check"])),
            tooltip=[tip("way:N", "way"), tip("value:Q", what, ",.4g"), tip("low:Q", "at least (90 %)", ",.4g"),
                     tip("high:Q", "at most (90 %)", ",.4g"), tip("passes:N", "")],
        )  # fmt: skip
        chart = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title=_axis(what)), x2="high:Q")
        dots = base.mark_point(filled=True, size=110, opacity=1).encode(x=alt.X("value:Q", title=_axis(what)))
        note = "Dots are the predictions, lines the 90 % intervals."
        figures.append(figure("compared", f"Ways by {what}", note, wide(chart + dots, len(rows))))
    grid = Grid(
        "Ways, ranked",
        ("", "rank", what, "at least (90 %)", "at most (90 %)", "misses", "note"),
        tuple(
            (
                Cell(e.name),
                cell(document, f"entries.{i}.rank", str),
                *(cell(document, f"entries.{i}.value.{end}", _number) for end in ("value", "low", "high")),
                Cell(", ".join(e.failed)),
                Cell(e.note),
            )
            for i, e in enumerate(found.entries)
        ),
    )
    headline = "no way passes every check" if best is None else f"{best.name} is the best way by {what}"
    return Page(
        title=found.scenario,
        headline=headline,
        ok=best is not None,
        sentences=[Sentence("note", pair.text + ".") for pair in found.pairs],
        sections=[
            Section("The ways", found.how, figures, [grid]),
            *(_plan_of(best.plan) if best is not None and best.plan is not None else ()),
        ],
        document=document,
    )


def search_page(found: Search) -> Page:
    """The answer of a search, its Pareto front and what was looked at."""
    document = json.loads(to_json(found))
    x, y = found.front_of
    rows = [
        {"x": c.figures.get(x), "y": c.figures.get(y), "layout": _layout(c), "gpus": c.n_gpus, "what": what}
        for what, group in (
            ("the answer", [] if found.best is None else [found.best]),
            ("front", found.front),
            ("runner-up", found.runners_up),
        )
        for c in group
        if c.figures.get(x) is not None and c.figures.get(y) is not None
    ]
    figures: list[Figure] = []
    if rows:
        alt = plotting()
        names = [_axis(NAMES.get(name, words(name))) for name in (x, y)]
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("x:Q", title=names[0], scale=alt.Scale(zero=False)),
            y=alt.Y("y:Q", title=names[1], scale=alt.Scale(zero=False)),
            tooltip=[tip("what:N", ""), tip("layout:N", "layout"), tip("gpus:Q", "GPUs"), tip("x:Q", names[0], ",.4g"),
                     tip("y:Q", names[1], ",.4g")],
        )  # fmt: skip
        line = base.transform_filter("datum.what == 'front'").mark_line(interpolate="step-after", opacity=0.5)
        marks = (
            base.mark_point(filled=True, size=90, opacity=0.9)
            .encode(
                color=alt.Color("what:N", title=None, sort=["front", "runner-up", "the answer"]),
                shape=alt.Shape("what:N", title=None, sort=["front", "runner-up", "the answer"]),
            )
            .interactive()
        )
        note = "Left and down is better: nothing simulated is better in both than a point of the front."
        figures.append(figure("pareto", "Pareto front", note, wide(alt.layer(line, marks))))
    answer = found.best or found.closest
    grids = [_candidates(document, "front", found.front, "Pareto front"),
             _candidates(document, "runners_up", found.runners_up, "Runners-up")]  # fmt: skip
    headline = (
        f"{answer.n_gpus} GPUs, {_layout(answer)}" if found.best is not None and answer else "nothing meets every check"
    )
    left_out = [Sentence("note", f"left out: {name}: {why}") for name, why in found.excluded.items()]
    return Page(
        title=found.scenario,
        headline=headline,
        ok=found.best is not None,
        sentences=[
            Sentence("note", f"What keeps it from being better: {found.binding}."),
            Sentence("note", searched(found)),
            *(Sentence("note", text) for text in found.notes),
            *left_out,
        ],
        sections=[
            Section("The search", "", figures, [grid for grid in grids if grid.rows]),
            *(_plan_of(found.plan) if found.plan is not None else ()),
        ],
        document=document,
    )


def sensitivity_page(found: Sensitivity) -> Page:
    """What the answer hangs on."""
    document = json.loads(to_json(found))
    figures, grids = [], []
    unit = f"{_title(found.of)}{_unit_of(found.of)}"
    known = [bar for bar in found.bars if bar.low is not None and bar.high is not None]
    if known and found.base is not None:
        figures.append(_tornado(found, unit))
        grids.append(
            Grid(
                "One at a time",
                ("", "from", "to", "gives", "and", "swing"),
                tuple(
                    (
                        Cell(bar.factor),
                        Cell(bar.low_setting),
                        Cell(bar.high_setting),
                        *(cell(document, f"bars.{i}.{end}", _number) for end in ("low", "high", "swing")),
                    )
                    for i, bar in enumerate(found.bars)
                ),
            )
        )
    shares = [{"part": i.factor, "value": i.total, "low": i.total_low, "high": i.total_high} for i in found.indices]
    if shares:
        note = "Sobol indices with all interactions; they may add up to more than one."
        figures.append(figure("sobol", "Share of the variance", note, bars(shares, "share of variance (ratio)")))
    effects = [{"part": e.factor, "value": e.mu_star} for e in found.effects]
    if effects:
        note = "Mean absolute elementary effect over the whole range (Morris)."
        figures.append(figure("morris", "Effects", note, bars(effects, unit)))
    parts = [{"part": p.name, "value": 100.0 * p.change_frac} for p in found.parts if p.change_frac is not None]
    if parts:
        note = "The answer without one part of the model: what that part adds."
        figures.append(figure("ablation", "Without a part of the model", note, bars(parts, "change of the answer (%)")))
        rows = tuple(
            (Cell(p.name), Cell(p.what), cell(document, f"parts.{i}.value", _number),
             cell(document, f"parts.{i}.change_frac", lambda x: f"{x:+.1%}"))
            for i, p in enumerate(found.parts)
        )  # fmt: skip
        grids.append(Grid("Without a part of the model", ("", "what", "answer", "change"), rows))
    return Page(
        title=found.scenario,
        headline=f"what {_title(found.of)} hangs on",
        ok=None,
        sentences=[Sentence("note", f"{flip.path}: {flip.text}.") for flip in found.flips]
        + [Sentence("note", f"{bar.factor}: {bar.note}") for bar in found.bars if bar.note],
        sections=[Section("What moves it", "", figures, grids)],
        document=document,
    )


def _tornado(found: Sensitivity, unit: str) -> Figure:
    alt = plotting()
    rows = [
        {"factor": bar.factor, "from": bar.low, "to": bar.high,
         "low": f"{bar.low_setting} gives {cell_text(found.of + '.', bar.low)}",
         "high": f"{bar.high_setting} gives {cell_text(found.of + '.', bar.high)}"}
        for bar in found.bars
        if bar.low is not None and bar.high is not None
    ]  # fmt: skip
    base = alt.Chart(alt.Data(values=[{"base": found.base}])).mark_rule(strokeDash=[4, 4]).encode(x="base:Q")
    swings = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=PALETTE[0], opacity=0.85)
        .encode(
            y=alt.Y("factor:N", title=None, sort=None),
            x=alt.X("from:Q", title=unit, scale=alt.Scale(zero=False)),
            x2="to:Q",
            tooltip=[tip("factor:N", "what"), tip("low:N", "one end"), tip("high:N", "other end")],
        )
    )
    note = "One assumption at a time over its range, all others as stated; the dashed line is the plan."
    return figure("tornado", "What moves the answer most", note, wide(swings + base, len(rows)))


def _plan_of(plan: Plan) -> Iterator[Section]:
    document = json.loads(json.dumps(finite(_tree(plan))))
    figures = {one.name: one for one in plan_figures(plan, None)}
    for section in plan_sections(document, figures):
        # the tables of a part of the document are not at its top level
        grids = [
            Grid(g.title, g.heads, tuple(tuple(Cell(c.text) for c in row) for row in g.rows)) for g in section.grids
        ]
        yield Section(f"{section.title} of {plan.scenario}", section.text, section.figures, grids)


def _tree(plan: Plan) -> Any:
    from moeplan.files.plan_json import plan_to_json

    return json.loads(plan_to_json(plan))


def _candidates(document: Any, key: str, candidates: Sequence[Candidate], title: str) -> Grid:
    names = [name for name in NAMES if any(c.figures.get(name) is not None for c in candidates)]
    return Grid(
        title,
        ("layout", "GPUs", *(NAMES[name] for name in names), "why not"),
        tuple(
            (
                Cell(_layout(c)),
                cell(document, f"{key}.{i}.n_gpus", str),
                *(cell(document, f"{key}.{i}.figures.{name}", _number) for name in names),
                Cell(c.why),
            )
            for i, c in enumerate(candidates)
        ),
    )


def _layout(c: Candidate) -> str:
    where = " ".join(str(c.choice[name]) for name in _SITE if c.choice.get(name))
    degrees = " ".join(f"{name}{n}" for name, n in c.choice.items() if name not in _SITE and n not in (1, ""))
    return f"{where}: {degrees or 'single'}".lstrip(": ")


def _title(path: str) -> str:
    """A figure of the plan in words."""
    return words(path.removesuffix(".value")).replace(".", ", ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"


def _unit_of(path: str) -> str:
    """The unit a figure's name carries, in brackets."""
    for suffix, unit in (("per_s", "1/s"), ("_s", "s"), ("usd", "USD"), ("_bytes", "bytes"), ("_frac", "ratio")):
        if any(part.endswith(suffix) or (suffix == "usd" and "usd" in part) for part in path.split(".")):
            return f" ({unit})"
    return " (as named)"


_UNITS: Mapping[str, str] = {"wall time": "s", "time": "s", "end-to-end time": "s", "TTFT": "s", "TPOT": "s",
                             "end to end": "s", "step": "s", "MFU": "ratio"}  # fmt: skip


def _axis(name: str) -> str:
    """A figure's name with its unit where the name does not say it."""
    return f"{name} ({_UNITS[name]})" if name in _UNITS else f"cost ({name})" if name.startswith("USD") else name
