"""Figures of one plan. Every axis carries its unit; a figure without data is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moeplan.planner.answers.exhibits import Exhibits
from moeplan.report.figures import HEIGHT, PALETTE, Figure, figure, plotting
from moeplan.spec.plan import Plan

Record = dict[str, Any]

_LATENCY = {"ttft_s": "to the first token", "tpot_s": "per further token", "e2e_s": "end to end"}


def plan_figures(plan: Plan, shown: Exhibits | None) -> list[Figure]:
    """All figures of ``plan`` in reading order, with the exhibits where there are some."""
    found = [
        *_latencies(plan),
        *_timeline(plan),
        *_steps(plan),
        *_memory(plan),
        *_money(plan),
        *_wall_time(plan),
        *_life(plan),
    ]
    if shown is not None:
        found += [*_roofline(shown), *_experts(shown), *_calibration(shown)]
    return found


def words(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def _latencies(plan: Plan) -> Iterator[Figure]:
    alt, serving = plotting(), plan.serving
    if serving is None:
        return
    cdf = getattr(serving, "latency_cdf", None)
    rows = [
        {"latency": float(value), "share": i / (len(values) - 1), "of": label}
        for name, label in _LATENCY.items()
        if len(values := getattr(cdf, name, ())) > 1
        for i, value in enumerate(values)
    ]
    if rows:
        yield figure(
            "latency-cdf",
            "How long requests take",
            "Share of requests answered within the time on the axis, at the predicted speed. Drag to move, scroll to "
            "zoom, double-click to return; click a name to hide or show it.",
            toggled(
                alt.Chart(alt.Data(values=rows))
                .mark_line(strokeWidth=2)
                .encode(
                    x=alt.X("latency:Q", title="time (s)", scale=alt.Scale(type=_scale(rows, "latency"))),
                    y=alt.Y("share:Q", title="share of requests (%)", axis=alt.Axis(format="%")),
                    color=alt.Color("of:N", title=None),
                    tooltip=[_tip("of:N", "time"), _tip("latency:Q", "s", ".4g"), _tip("share:Q", "share", ".0%")],
                ),
                "of",
            ),
        )
    bars = [
        {"of": label, "percentile": stat, "time": q.value, "low": q.low, "high": q.high}
        for name, label in _LATENCY.items()
        if (row := getattr(serving, name)) is not None
        for stat in ("mean", "p50", "p90", "p99")
        for q in (getattr(row, stat),)
    ]
    if bars:
        base = alt.Chart(alt.Data(values=bars)).encode(
            y=alt.Y("percentile:N", title=None, sort=["mean", "p50", "p90", "p99"]), color=alt.Color("of:N", title=None)
        )
        scale = alt.Scale(type="log")
        tips = [_tip("of:N", "time"), _tip("percentile:N", "percentile"), _tip("time:Q", "s", ".4g"),
                _tip("low:Q", "at least (90 %)", ".4g"), _tip("high:Q", "at most (90 %)", ".4g")]  # fmt: skip
        yield figure(
            "latency-percentiles",
            "Latency and how sure it is",
            "Dots are the predictions, lines the 90 % intervals. p90 means that nine of ten requests are faster.",
            toggled(
                base.mark_rule(strokeWidth=2).encode(
                    x=alt.X("low:Q", title="time (s)", scale=scale), x2="high:Q", tooltip=tips
                ),
                "of",
                base.mark_point(filled=True, size=80, opacity=1).encode(
                    x=alt.X("time:Q", title="time (s)", scale=scale), tooltip=tips
                ),
                zoom_y=False,
            ),
        )


def _timeline(plan: Plan) -> Iterator[Figure]:
    alt = plotting()
    line = getattr(plan.serving, "timeline", None)
    if line is None or len(line.time_s) < 2:
        return
    counts = [
        {"time": t, "count": float(value), "of": label}
        for name, label in (("waiting", "waiting"), ("running", "running"), ("replicas", "replicas"))
        for t, value in zip(line.time_s, getattr(line, name), strict=False)
    ]
    chart = toggled(
        alt.Chart(alt.Data(values=counts))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("time:Q", title="simulated time (s)"),
            y=alt.Y("count:Q", title="requests, replicas (number)"),
            color=alt.Color("of:N", title=None),
            tooltip=[_tip("of:N", "what"), _tip("time:Q", "s", ".4g"), _tip("count:Q", "number", ".4g")],
        ),
        "of",
    )
    yield figure(
        "queue", "Queue over time", "A queue that keeps growing means more is asked than can be served.", chart
    )
    used = [{"time": t, "used": float(v)} for t, v in zip(line.time_s, line.kv_used_frac, strict=False)]
    yield figure(
        "kv-cache",
        "KV cache over time",
        "Share of the memory for running requests in use; at 100 % new requests wait.",
        wide(
            alt.Chart(alt.Data(values=used))
            .mark_area(opacity=0.5, line=True, interpolate="step-after", color=PALETTE[0])
            .encode(
                x=alt.X("time:Q", title="simulated time (s)"),
                y=alt.Y("used:Q", title="KV cache in use (%)", axis=alt.Axis(format="%")),
                tooltip=[_tip("time:Q", "s", ".4g"), _tip("used:Q", "in use", ".0%")],
            )
            .interactive()
        ),
    )


def _steps(plan: Plan) -> Iterator[Figure]:
    total = sum(plan.time_breakdown.values())
    rows = [
        {"part": words(name), "value": time_s * 1e3, "share": time_s / total}
        for name, time_s in plan.time_breakdown.items()
        if time_s > 0.0
    ]
    if rows:
        what = "a serving iteration" if plan.serving is not None else "a training step"
        yield figure(
            "step-time",
            f"Where {what} spends its time",
            f"The mean of the simulation: {total * 1e3:.4g} ms.",
            bars(rows, "time (ms)"),
        )


def _memory(plan: Plan) -> Iterator[Figure]:
    alt, memory = plotting(), plan.memory
    rows = [
        {"part": words(name), "value": size / 1e9, "share": size / memory.capacity_bytes}
        for name, size in memory.breakdown.items()
        if size > 0.0
    ]
    rule = [{"value": memory.capacity_bytes / 1e9, "what": "there is"}]
    line = (
        alt.Chart(alt.Data(values=rule))
        .mark_rule(strokeDash=[5, 4], strokeWidth=2)
        .encode(x="value:Q", tooltip=[_tip("what:N", ""), _tip("value:Q", "GB", ".4g")])
    )
    yield figure(
        "memory",
        "Memory of one GPU",
        f"Parts of {memory.per_gpu_bytes / 1e9:.1f} GB taken; the dashed line is what the GPU has.",
        wide(bars(rows, "memory per GPU (GB)", sized=False) + line, len(rows)),
    )


def _money(plan: Plan) -> Iterator[Figure]:
    per = {"serving": "a month", "training": "the run", "lifecycle": "the whole life"}[plan.kind]
    steps = waterfall(plan.cost.breakdown)
    if steps:
        yield figure(
            "cost", f"What {per} costs", "From nothing to the total, purpose by purpose.", _falls(steps, "cost (USD)")
        )
    options = plan.alternatives
    if options is None:
        return
    rows = [
        {"part": f"{o.kind}: {o.name}", "value": o.usd_per_month.value, "kind": "yours" if o.chosen else o.kind}
        for o in options.options
    ]
    yield figure(
        "alternatives",
        "Rent, buy or API",
        "The same traffic, a month, each way; prices are of the dates in the table.",
        bars(rows, "cost (USD per month)", color="kind"),
    )


def waterfall(parts: Mapping[str, float]) -> list[Record]:
    """Steps from zero to the sum, which is the last one."""
    rows, at = [], 0.0
    for name, usd in parts.items():
        rows.append({"part": words(name), "from": at, "to": at + usd, "value": usd, "kind": "part"})
        at += usd
    return [*rows, {"part": "total", "from": 0.0, "to": at, "value": at, "kind": "total"}] if rows else []


def _falls(rows: Sequence[Record], title: str) -> Any:
    alt = plotting()
    chart = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("part:N", title=None, sort=None),
        x=alt.X("from:Q", title=title),
        x2="to:Q",
        color=alt.Color("kind:N", legend=None),
        tooltip=[_tip("part:N", "purpose"), _tip("value:Q", title, ",.2f")],
    )
    return wide(chart.mark_bar(), len(rows))


def _wall_time(plan: Plan) -> Iterator[Figure]:
    if plan.training is None:
        return
    hours = {name: time_s / 3600.0 for name, time_s in plan.training.run.time_s.items() if time_s > 0.0}
    yield figure(
        "wall-time",
        "Where the wall time of the run goes",
        "Mean over simulated runs with failures; only work is progress.",
        _falls(waterfall(hours), "wall time (h)"),
    )


def _life(plan: Plan) -> Iterator[Figure]:
    alt, life = plotting(), plan.lifecycle
    if life is None:
        return
    spent, rows = life.training_usd.value, []
    for month in life.schedule:
        spent += month.usd
        rows.append({"month": month.month, "usd": spent, "replicas": month.replicas})
    yield figure(
        "life",
        "Money spent over the life",
        "Training first, then every month in service.",
        wide(
            alt.Chart(alt.Data(values=rows))
            .mark_line(point=True)
            .encode(
                x=alt.X("month:Q", title="month in service (months)"),
                y=alt.Y("usd:Q", title="spent so far (USD)"),
                tooltip=[_tip("month:Q", "month"), _tip("usd:Q", "USD", ",.0f"), _tip("replicas:Q", "replicas")],
            )
            .interactive()
        ),
    )


def _roofline(shown: Exhibits) -> Iterator[Figure]:
    alt = plotting()
    if not shown.roofline:
        return
    points = [
        {"part": words(p.part), "phase": p.phase, "fmt": p.fmt, "x": p.flop_per_byte, "y": p.flop_per_s / 1e12,
         "share": p.share_frac}
        for p in shown.roofline
    ]  # fmt: skip
    low = min(p.flop_per_byte for p in shown.roofline) / 2.0
    high = max(p.flop_per_byte for p in shown.roofline) * 2.0
    roofs = []
    for roof in shown.roofs:
        ridge = roof.peak_flop_per_s / roof.bytes_per_s
        for x in sorted({low, ridge, max(high, 2.0 * ridge)}):
            y = min(x * roof.bytes_per_s, roof.peak_flop_per_s) / 1e12
            roofs.append({"x": x, "y": y, "roof": f"roof of {roof.fmt}"})
    x = alt.X("x:Q", title="arithmetic intensity (FLOP per byte)", scale=alt.Scale(type="log"))
    y = alt.Y("y:Q", title="speed (TFLOP/s per GPU)", scale=alt.Scale(type="log"))
    line = (
        alt.Chart(alt.Data(values=roofs))
        .mark_line(strokeWidth=2)
        .encode(x=x, y=y, strokeDash=alt.StrokeDash("roof:N", title=None), tooltip=[_tip("roof:N", "")])
    )
    dots = (
        alt.Chart(alt.Data(values=points))
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=x,
            y=y,
            color=alt.Color("part:N", title=None),
            shape=alt.Shape("phase:N", title=None),
            size=alt.Size("share:Q", title="share of the step", scale=alt.Scale(range=[60, 500]), legend=None),
            tooltip=[_tip("part:N", "operation"), _tip("phase:N", "phase"), _tip("fmt:N", "format"),
                     _tip("x:Q", "FLOP per byte", ".3g"), _tip("y:Q", "TFLOP/s", ".3g"),
                     _tip("share:Q", "share of the step", ".0%")],
        )
    )  # fmt: skip
    yield figure(
        "roofline",
        "Operations on the roofline",
        "Left of the ridge memory sets the speed, right of it arithmetic. The lines are the datasheet's limits; what "
        "lies far below its line pays launches, small batches or imbalance. Bigger marks take more of the step.",
        toggled(line, "part", dots, on_last=True),
    )


def _experts(shown: Exhibits) -> Iterator[Figure]:
    alt, found = plotting(), shown.expert_loads
    if found is None:
        return
    rows = [
        {"layer": layer, "expert": i * found.experts_per_column, "load": load}
        for layer, row in zip(found.layers, found.loads, strict=True)
        for i, load in enumerate(row)
    ]
    each = "" if found.experts_per_column == 1 else f" A column is {found.experts_per_column} experts."
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("expert:O", title="expert (index)", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("layer:O", title="MoE layer (index)", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color("load:Q", title="load over mean (ratio)", scale=alt.Scale(scheme="viridis")),
            tooltip=[_tip("layer:O", "layer"), _tip("expert:O", "expert"), _tip("load:Q", "load over mean", ".2f")],
        )
    )
    yield figure(
        "expert-load",
        "Load of every expert",
        f"Tokens per expert over the mean expert in one {found.step} step of {found.n_tokens:,} tokens; bright experts "
        f"are the ones others wait for.{each} Assumed popularity: {found.assumption}",
        wide(chart, height=min(420, 40 + 8 * len(found.layers))),
    )


def _calibration(shown: Exhibits) -> Iterator[Figure]:
    alt = plotting()
    rows = [
        {
            "op": f"{o.op} ({o.engine}, {o.dtype})",
            "low": math.exp(o.residual_low),
            "mid": math.exp(o.residual_mid),
            "high": math.exp(o.residual_high),
            "tier": o.tier,
            "held_out": o.n_held_out or 0,
            "mdape": o.mdape_frac,
            "coverage": o.coverage_frac,
        }
        for o in shown.operations
        if o.used
    ]
    if not rows:
        return
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("op:N", title=None, sort=None),
        color=alt.Color("tier:N", title=None),
        tooltip=[_tip("op:N", "operation"), _tip("tier:N", "parameters are"), _tip("mid:Q", "median ratio", ".3f"),
                 _tip("low:Q", "5 %", ".2f"), _tip("high:Q", "95 %", ".2f"), _tip("held_out:Q", "held-out rows", ","),
                 _tip("mdape:Q", "median error", ".1%"), _tip("coverage:Q", "covered by the 90 % interval", ".0%")],
    )  # fmt: skip
    scale = alt.Scale(type="log", nice=False, padding=12)
    one = alt.Chart(alt.Data(values=[{"x": 1.0}])).mark_rule(strokeDash=[4, 4]).encode(x="x:Q")
    title = "measured over predicted time (ratio)"
    chart = (
        one
        + base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
        + base.mark_point(filled=True, size=90, opacity=1).encode(x=alt.X("mid:Q", title=title, scale=scale))
    )
    yield figure(
        "calibration",
        "How well the operations are known",
        "Kernels measured on the device and kept out of the fit, over their prediction: the dot is the median, the "
        "line holds nine of ten. 1 is a perfect prediction.",
        wide(chart, len(rows)),
    )
    covered = [row for row in rows if row["coverage"] is not None]
    if covered:
        rule = alt.Chart(alt.Data(values=[{"x": 0.9}])).mark_rule(strokeDash=[4, 4]).encode(x="x:Q")
        dots = (
            alt.Chart(alt.Data(values=covered))
            .mark_point(filled=True, size=90, opacity=1)
            .encode(
                y=alt.Y("op:N", title=None, sort=None),
                x=alt.X("coverage:Q", title="truths inside the 90 % interval (%)", axis=alt.Axis(format="%"),
                        scale=alt.Scale(domain=[0.5, 1.0])),
                tooltip=[_tip("op:N", "operation"), _tip("coverage:Q", "covered", ".1%"),
                         _tip("held_out:Q", "held-out rows", ",")],
            )
        )  # fmt: skip
        yield figure(
            "coverage",
            "Do the intervals keep their promise?",
            "Share of held-out kernels inside the interval that claims to hold 90 % of them (dashed).",
            wide(rule + dots, len(covered)),
        )


def bars(rows: list[Record], title: str, *, color: str | None = None, sized: bool = True) -> Any:
    """Horizontal bars of ``value`` by ``part``, longest first."""
    alt = plotting()
    tips = [_tip("part:N", "what"), _tip("value:Q", title, ",.4g")]
    if rows and "share" in rows[0]:
        tips.append(_tip("share:Q", "share", ".1%"))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            y=alt.Y("part:N", title=None, sort=alt.EncodingSortField("value", order="descending")),
            x=alt.X("value:Q", title=title),
            color=alt.value(PALETTE[0]) if color is None else alt.Color(f"{color}:N", title=None),
            tooltip=tips,
        )
    )
    return wide(chart, len(rows)) if sized else chart


def wide(chart: Any, n_rows: int | None = None, *, height: int | None = None) -> Any:
    """As wide as its place; as high as its rows."""
    if height is None:
        height = HEIGHT if n_rows is None else 30 + 26 * max(2, n_rows)
    return chart.properties(width="container", height=height)


def toggled(first: Any, field: str, *others: Any, on_last: bool = False, zoom_y: bool = True) -> Any:
    """Layers whose legend hides and shows ``field``, and which can be moved and zoomed."""
    alt = plotting()
    shown = alt.selection_point(fields=[field], bind="legend", toggle="true", name="shown")
    zoom = alt.selection_interval(bind="scales", name="zoom", encodings=["x", "y"] if zoom_y else ["x"])
    opacity = alt.condition(shown, alt.value(1.0), alt.value(0.06))
    layers = [first, *others]
    faded = layers[-1:] if on_last else layers
    kept = [] if not on_last else layers[:-1]
    faded = [layer.encode(opacity=opacity) for layer in faded]
    faded[0] = faded[0].add_params(shown, zoom)
    layers = [*kept, *faded]
    return wide(layers[0] if len(layers) == 1 else alt.layer(*layers))


def _tip(field: str, title: str, form: str | None = None) -> Any:
    alt = plotting()
    return alt.Tooltip(field, title=title) if form is None else alt.Tooltip(field, title=title, format=form)


tip = _tip


def _scale(rows: Iterable[Record], key: str) -> str:
    """Logarithmic where the values span decades."""
    values = [row[key] for row in rows if row[key] > 0.0]
    return "log" if values and len(values) == len(list(rows)) and max(values) / min(values) > 30.0 else "linear"
