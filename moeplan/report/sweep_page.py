"""The report of a sweep of any size: small ones point by point, large ones as quantiles of bins and a front.

What is drawn is bounded whatever the number of points: a page of a hundred thousand opens like one of a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moeplan.files.sweep_results import SweepPoint
from moeplan.planner.search.sweep import Sweep
from moeplan.report.charts import tip, toggled, wide
from moeplan.report.figures import PALETTE, Figure, figure, plotting
from moeplan.report.page import Cell, Grid, Page, Section, Sentence
from moeplan.report.whatif import COLUMNS, cell_text

Array = npt.NDArray[np.float64]

_POINTS = 2000  # drawn one by one up to here
_BINS = 60
_ROWS = 100  # of the table
_FACTORS, _FIGURES = 6, 5
_UNITS = {
    "cost.usd_per_month.value": "cost (USD a month)",
    "cost.total_usd.value": "cost (USD)",
    "cost.usd_per_million_output_tokens.value": "cost (USD per million tokens)",
    "serving.ttft_s.p90.value": "TTFT p90 (s)",
    "serving.tpot_s.p90.value": "TPOT p90 (s)",
    "serving.requests_per_s.value": "served (requests/s)",
    "training.step_time_s.value": "step (s)",
    "training.wall_time_s.value": "wall time (s)",
}
_COSTS = ("cost.usd_per_million_output_tokens.value", "cost.usd_per_month.value", "cost.total_usd.value")
_SPEEDS = ("serving.ttft_s.p90.value", "training.wall_time_s.value")


def sweep_page(found: Sweep) -> Page:
    """Everything of a sweep that fits a page."""
    points = [p for p in found.points if p.error is None]
    feasible = sum(p.row.get("feasible") is True for p in points)
    keys = [key for key in _UNITS if any(isinstance(p.row.get(key), int | float) for p in points)]
    columns = {key: np.array([_float(p.row.get(key)) for p in points]) for key in keys}
    figures: list[Figure] = list(_pareto(points, columns))
    factors = [(path, *_settings(points, path)) for path in found.varied[:_FACTORS]]
    for i, (path, numbers, texts) in enumerate(factors):
        for j, key in enumerate(keys[:_FIGURES]):
            figures.extend(_against(f"sweep-{i}-{j}", path, numbers, texts, key, columns[key]))
    reasons: dict[str, int] = {}
    for point in found.failed:
        reasons[point.error or ""] = reasons.get(point.error or "", 0) + 1
    text = f"{len(found.points):,} points by the design {found.design}; {feasible:,} pass every check."
    return Page(
        title=found.scenario,
        headline=f"{len(found.points):,} variants",
        ok=None,
        sentences=[Sentence("note", text)]
        + [Sentence("NO", f"{n:,} points have no plan: {why}") for why, n in list(reasons.items())[:10]],
        sections=[Section("What varies and what follows", "", figures, [_table(found, points, keys)])],
        document=_document(found, points, keys),
    )


def _document(found: Sweep, points: Sequence[SweepPoint], keys: Sequence[str]) -> dict[str, Any]:
    """What the table shows, for machines; all points are in the results file of the sweep."""
    return {
        "scenario": found.scenario,
        "design": found.design,
        "varied": list(found.varied),
        "n_points": len(found.points),
        "n_failed": len(found.failed),
        "points": [{"index": p.index, "row": {k: p.row.get(k) for k in ("feasible", *keys)}} for p in _best(points)],
    }


def _best(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Feasible ones first, cheapest first."""

    def order(point: SweepPoint) -> tuple[bool, float, int]:
        cost = next((c for key in _COSTS if math.isfinite(c := _float(point.row.get(key)))), math.inf)
        return point.row.get("feasible") is not True, cost, point.index

    return sorted(points, key=order)[:_ROWS]


def _table(found: Sweep, points: Sequence[SweepPoint], keys: Sequence[str]) -> Grid:
    best = _best(points)
    title = "Every point" if len(best) == len(points) else f"The {len(best)} cheapest of {len(points):,} points"
    heads = [head for key, head in COLUMNS if key in keys]
    shown = [key for key, _ in COLUMNS if key in keys]
    rows = []
    for i, point in enumerate(best):
        settings = dict(text.partition("=")[::2] for text in point.overrides)
        rows.append(
            (
                Cell(", ".join(f"{path.rpartition('.')[2]} {settings.get(path, '')}" for path in found.varied)),
                Cell("yes" if point.row.get("feasible") else "NO"),
                *(
                    Cell(cell_text(key, point.row.get(key)), f"points.{i}.row.{key}", point.row.get(key))
                    for key in shown
                ),
            )
        )
    return Grid(title, ("what varies", "feasible", *heads), tuple(rows))


def _settings(points: Sequence[SweepPoint], path: str) -> tuple[Array | None, list[str]]:
    """What a path was set to: numbers where all of them are."""
    head = path + "="
    texts = [next((t[len(head) :] for t in reversed(p.overrides) if t.startswith(head)), "") for p in points]
    numbers = []
    for text in dict.fromkeys(texts):
        try:
            numbers.append((text, float(text.partition(" ")[0])))
        except ValueError:  # a name, a size in words
            return None, texts
    if len({text.partition(" ")[2] for text in dict.fromkeys(texts)}) > 1:
        return None, texts  # several units: kept as words
    known = dict(numbers)
    return np.array([known[text] for text in texts]), texts


def _against(
    name: str, path: str, numbers: Array | None, texts: Sequence[str], key: str, values: Array
) -> Iterator[Figure]:
    """One figure of the plans over one path that varies."""
    alt = plotting()
    title, y = path.rpartition(".")[2], _UNITS[key]
    unit = texts[0].partition(" ")[2] if texts else ""
    x = f"{title} ({unit})" if unit else f"{title} (as set)"
    known = np.isfinite(values)
    if not known.any():
        return
    heading = f"{y} over {path}"
    if numbers is None:
        rows = [_quantiles(values[known & (np.array(texts) == text)]) | {"x": text} for text in dict.fromkeys(texts)]
        rows = [row for row in rows if row["n"]][:_BINS]
        note = "The line holds nine of ten points of that setting, the dot is their median."
        base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("x:N", title=None, sort=None), tooltip=_tips(y, "x:N"))
        chart = base.mark_rule(strokeWidth=3, color=PALETTE[0]).encode(x=alt.X("low:Q", title=y), x2="high:Q")
        dots = base.mark_point(filled=True, size=70, color=PALETTE[0]).encode(x=alt.X("mid:Q", title=y))
        yield figure(name, heading, note, wide(chart + dots, len(rows)))
        return
    scale = alt.Scale(zero=False)
    if values.size <= _POINTS // 4:
        rows = [{"x": float(a), "mid": float(b)} for a, b in zip(numbers[known], values[known], strict=True)]
        chart = (
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, opacity=0.7, size=45, color=PALETTE[0])
            .encode(
                x=alt.X("x:Q", title=x, scale=scale),
                y=alt.Y("mid:Q", title=y, scale=scale),
                tooltip=[tip("x:Q", title, ".4g"), tip("mid:Q", y, ",.4g")],
            )
            .interactive()
        )
        yield figure(name, heading, "Every point of the sweep.", wide(chart))
        return
    edges = np.unique(np.quantile(numbers[known], np.linspace(0.0, 1.0, _BINS + 1)))
    bins = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(edges.size - 2, 0))
    rows = []
    for i in range(max(edges.size - 1, 1)):
        mine = known & (bins == i)
        if mine.any():
            rows.append(_quantiles(values[mine]) | {"x": float(np.median(numbers[mine]))})
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("x:Q", title=x, scale=scale), tooltip=_tips(y, "x:Q"))
    band = base.mark_area(opacity=0.25, color=PALETTE[0]).encode(y=alt.Y("low:Q", title=y, scale=scale), y2="high:Q")
    line = base.mark_line(color=PALETTE[0], point=True).encode(y=alt.Y("mid:Q", title=y, scale=scale)).interactive()
    yield figure(name, heading, "The line is the median of all points there, the band holds nine of ten.",
                 wide(band + line))  # fmt: skip


def _pareto(points: Sequence[SweepPoint], columns: dict[str, Array]) -> Iterator[Figure]:
    """Cost against speed: which points nothing beats in both."""
    alt = plotting()
    cost = next((key for key in _COSTS if key in columns), None)
    speed = next((key for key in _SPEEDS if key in columns), None)
    if cost is None or speed is None:
        return
    x, y = columns[cost], columns[speed]
    known = np.isfinite(x) & np.isfinite(y)
    order = np.flatnonzero(known)[np.lexsort((y[known], x[known]))]
    best = np.minimum.accumulate(y[order]) if order.size else y[:0]
    front = [int(i) for k, i in enumerate(order) if k == 0 or y[i] < best[k - 1]]
    others = [int(i) for i in order]
    if len(others) > _POINTS:  # evenly thinned by cost; the front is kept whole up to as many
        others = [others[i] for i in np.linspace(0, len(others) - 1, _POINTS).astype(int)]
    rows = [
        {"x": float(x[i]), "y": float(y[i]), "what": what, "settings": ", ".join(points[i].overrides)[:300]}
        for what, group in (("point", others), ("front", front[:_POINTS]))
        for i in group
    ]
    if not rows:
        return
    scale = alt.Scale(zero=False)
    colours = alt.Scale(domain=["point", "front"], range=[PALETTE[4], PALETTE[5]])
    tips = [tip("settings:N", "settings"), tip("x:Q", _UNITS[cost], ",.4g"), tip("y:Q", _UNITS[speed], ",.4g")]
    chart = toggled(
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=40)
        .encode(
            x=alt.X("x:Q", title=_UNITS[cost], scale=scale),
            y=alt.Y("y:Q", title=_UNITS[speed], scale=scale),
            color=alt.Color("what:N", title=None, scale=colours),
            tooltip=tips,
        ),
        "what",
    )
    thinned = f" {len(others):,} of {int(known.sum()):,} other points are drawn." if int(known.sum()) > _POINTS else ""
    yield figure("pareto", "Pareto front", f"Left and down is better; nothing beats the front in both.{thinned}", chart)


def _quantiles(values: Array) -> dict[str, float]:
    if not values.size:
        return {"n": 0}
    low, mid, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"low": float(low), "mid": float(mid), "high": float(high), "n": int(values.size)}


def _tips(y: str, x: str) -> list[Any]:
    return [tip(x, "at"), tip("mid:Q", f"median {y}", ",.4g"), tip("low:Q", "5 %", ",.4g"),
            tip("high:Q", "95 %", ",.4g"), tip("n:Q", "points", ",")]  # fmt: skip


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
