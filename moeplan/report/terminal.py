"""The plan on one terminal screen: the verdict first, then the numbers with their intervals, then what limits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeplan.spec.plan import (
    AdviceResult,
    AlternativesResult,
    LifecycleResult,
    Percentiles,
    Plan,
    Q,
    ServingResult,
    TrainingResult,
    Verdict,
)
from moeplan.units import format_tokens

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TIMES = ((86400.0 * 2, "d", 86400.0), (3600.0 * 2, "h", 3600.0), (120.0, "min", 60.0), (1.0, "s", 1.0))


def plan_renderable(plan: Plan, *, verbose: bool = False) -> RenderableType:
    """Everything ``moeplan simulate`` shows of a plan."""
    parts: list[RenderableType] = [_headline(plan), _verdicts(plan.verdicts)]
    if plan.serving is not None:
        parts.append(_serving(plan.serving))
    if plan.training is not None:
        parts.append(_training(plan.training))
    parts += [_memory(plan), _cost(plan)]
    if plan.lifecycle is not None:
        parts.append(_life(plan.lifecycle, plan.alternatives))
    if verbose:
        if plan.alternatives is not None:
            parts += [_options(plan.alternatives), _loads(plan.alternatives)]
        if plan.advice is not None:
            parts.append(_laws(plan.advice))
        parts.append(_time_breakdown(plan))
        parts.append(_provenance(plan))
    return Group(*parts)


def print_plan(plan: Plan, console: Console, *, verbose: bool = False) -> None:
    """Print to ``console``; rich drops colour when it is not a terminal or NO_COLOR is set."""
    console.print(plan_renderable(plan, verbose=verbose))


def headline(plan: Plan) -> str:
    """The verdict in a few words."""
    checks = [v for v in plan.verdicts if v.check not in REMARKS]
    failed = [v.text.partition(":")[0].lower() for v in checks if not v.ok]
    if not failed:
        return f"yes, all {len(checks)} checks pass"
    return f"no, {', '.join(failed)} {'fails' if len(failed) == 1 else 'fail'}"


def _headline(plan: Plan) -> Text:
    head = Text(plan.scenario, style="bold")
    return head.append(f": {headline(plan)}", style="bold green" if plan.feasible else "bold red")


# verdicts that inform and never fail
REMARKS = (
    "next", "bottleneck", "checkpoint", "comparison", "reference", "alternatives", "advice", "price_age", "not_counted",
    "spot",
)  # fmt: skip


def _verdicts(verdicts: Iterable[Verdict]) -> Table:
    table = _table()
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for verdict in verdicts:
        if verdict.check in REMARKS:
            mark = Text("note", style="cyan")
        else:
            mark = Text("ok", style="green") if verdict.ok else Text("NO", style="bold red")
        table.add_row(mark, Text(verdict.text))
    return table


def _serving(result: ServingResult) -> Table:
    table = _table("Time", "mean", "p50", "p90", "p99", "p90, 90 % sure")
    rows: tuple[tuple[str, Percentiles | None], ...] = (
        ("to the first token", result.ttft_s),
        ("per further token", result.tpot_s),
        ("between two tokens", result.itl_s),
        ("end to end", result.e2e_s),
    )
    for label, row in rows:
        if row is None:
            continue
        cells = [seconds(q.value) for q in (row.mean, row.p50, row.p90, row.p99)]
        table.add_row(label, *cells, _span(row.p90, seconds))
    throughput = _table("Throughput", "value", "90 % sure")
    for label, q, unit in (
        ("requests served", result.requests_per_s, "req/s"),
        ("of them inside the targets", result.goodput_requests_per_s, "req/s"),
        ("most it could serve", result.capacity_requests_per_s, "req/s"),
        ("output tokens", result.output_tokens_per_s, "tok/s"),
        ("output tokens per GPU", result.output_tokens_per_s_per_gpu, "tok/s"),
    ):
        if q is not None:
            throughput.add_row(label, f"{number(q.value)} {unit}", _span(q, number))
    q = result.utilization_frac
    throughput.add_row("time an iteration is running", f"{q.value:.0%}", f"{q.low:.0%} to {q.high:.0%}")
    outcomes = result.outcomes
    for label, count in (("rejected", outcomes.rejected), ("timed out", outcomes.timed_out), ("lost", outcomes.lost),
                         ("sent again after a failure", outcomes.retried)):  # fmt: skip
        if count:
            throughput.add_row(f"requests {label}", f"{count:,}", f"of {result.n_requests_simulated:,}")
    replicas = result.timeline.replicas
    if replicas and min(replicas) < max(replicas):
        throughput.add_row("replicas", f"{min(replicas):g} to {max(replicas):g}", "")
        throughput.add_row("GPU hours per month", number(result.usage.gpu_hours_per_month), "at this pace")
    stack = Table.grid()
    stack.add_row(table)
    stack.add_row(throughput)
    if result.classes:
        stack.add_row(_classes(result))
    return stack


def _classes(result: ServingResult) -> Table:
    """Each class by the latencies at p90 and the share inside its own targets."""
    table = _table("Class, p90", "first token", "per token", "end to end", "inside its targets")
    for name, one in result.classes.items():
        cells = ["" if row is None else seconds(row.p90.value) for row in (one.ttft_s, one.tpot_s, one.e2e_s)]
        table.add_row(name, *cells, "" if one.slo_met_frac is None else f"{one.slo_met_frac.value:.1%}")
    return table


def _training(result: TrainingResult) -> Table:
    table = _table("Training", "value", "90 % sure")
    table.add_row("step", seconds(result.step_time_s.value), _span(result.step_time_s, seconds))
    table.add_row("tokens/s", number(result.tokens_per_s.value), _span(result.tokens_per_s, number))
    table.add_row(
        "tokens/s per GPU", number(result.tokens_per_s_per_gpu.value), _span(result.tokens_per_s_per_gpu, number)
    )
    peak = result.peak_memory_bytes
    table.add_row("peak memory per GPU", byte_size(peak.value), _span(peak, byte_size))
    mfu = result.mfu_frac
    table.add_row("model FLOP utilisation", f"{mfu.value:.1%}", f"{mfu.low:.1%} to {mfu.high:.1%}")
    hfu = result.hfu_frac
    if hfu.value > mfu.value:
        table.add_row("with what is recomputed", f"{hfu.value:.1%}", f"{hfu.low:.1%} to {hfu.high:.1%}")
    for i, phase in enumerate(result.phases[1:], start=2):
        label = f"step of phase {i}, {phase.sequence_tokens:,} tokens"
        table.add_row(label, seconds(phase.step_time_s.value), _span(phase.step_time_s, seconds))
    table.add_row("goodput", f"{result.goodput_frac.value:.1%}", "share of wall time that is progress")
    table.add_row("wall time", seconds(result.wall_time_s.value), _span(result.wall_time_s, seconds))
    run = result.run
    table.add_row("failures", number(run.n_failures.value), _span(run.n_failures, number))
    optimal = "" if run.optimal_interval_s is None else f"best: {seconds(run.optimal_interval_s)}"
    table.add_row("checkpoint every", seconds(run.checkpoint_interval_s), optimal)
    table.add_row("GPU hours", number(result.gpu_hours.value), _span(result.gpu_hours, number))
    return table


def _memory(plan: Plan) -> Table:
    memory = plan.memory
    table = _table("Memory per GPU", "size", "share")
    for name, size in sorted(memory.breakdown.items(), key=lambda item: -item[1]):
        if size > 0:
            table.add_row(name.replace("_", " "), byte_size(size), f"{size / memory.capacity_bytes:.0%}")
    table.add_row("taken", byte_size(memory.per_gpu_bytes), f"{memory.per_gpu_bytes / memory.capacity_bytes:.0%}")
    table.add_row("there is", byte_size(memory.capacity_bytes), "")
    if memory.kv_capacity_tokens is not None:
        table.add_row("KV cache holds", f"{memory.kv_capacity_tokens:,.0f} tokens", "per replica")
    return table


def _cost(plan: Plan) -> Table:
    cost = plan.cost
    table = _table("Cost", "value", "90 % sure")
    for label, q in (
        ("per hour", cost.usd_per_hour),
        ("per month", cost.usd_per_month),
        ("per million output tokens", cost.usd_per_million_output_tokens),
        ("total", cost.total_usd),
    ):
        if q is not None:
            table.add_row(label, dollars(q.value), _span(q, dollars))
    budget = plan.budget
    if budget is not None:
        q = budget.headroom_usd
        table.add_row(f"left of {dollars(budget.limit_usd)} ({budget.per})", dollars(q.value), _span(q, dollars))
        for what, amount in budget.buys.items():
            table.add_row(f"it buys {what.replace('_', ' ')}", format_tokens(round(amount, 1)), "at most")
    energy = plan.energy
    if energy is not None:
        per = {"month": " a month", "run": "", "total": ""}[energy.basis]
        table.add_row(f"energy{per}", f"{number(energy.kwh.value)} kWh", _span(energy.kwh, number))
        if energy.kwh_per_million_tokens is not None:
            q = energy.kwh_per_million_tokens
            table.add_row("energy per million tokens", f"{number(q.value)} kWh", _span(q, number))
        label = f"emissions{per}, grid {energy.region}"
        table.add_row(label, f"{number(energy.kgco2e.value)} kgCO2e", _span(energy.kgco2e, number))
    return table


def _life(life: LifecycleResult, options: AlternativesResult | None) -> Table:
    table = _table("Over its life", "value", "90 % sure")
    for label, q in (("training", life.training_usd), ("serving", life.serving_usd), ("total", life.total_usd)):
        table.add_row(label, dollars(q.value), _span(q, dollars))
    q = life.usd_per_million_output_tokens
    if q is not None:
        table.add_row("per million output tokens", dollars(q.value), _span(q, dollars))
    if options is not None and options.n_api_offers:
        month = options.break_even_month
        table.add_row("an API has cost more", "never" if month is None else f"from month {month}", "the cheapest offer")
    steps = ", ".join(f"{replicas} from month {month}" for month, replicas in life.scale_at.items())
    table.add_row(
        "replicas", str(life.schedule[-1].replicas), steps if len(steps) <= 44 else f"{len(life.scale_at)} steps"
    )
    return table


def _options(found: AlternativesResult) -> Table:
    table = _table("Way to serve this demand", "a month", "per M out", "break-even")
    table.columns[0].no_wrap = False
    table.columns[0].overflow = "fold"
    for o in found.options:
        at = o.break_even_requests_per_month
        edge = "" if o.kind != "api" else "never" if at is None else f"{format_tokens(at)} req"
        name = f"{o.kind}: {o.name}" + (" (yours)" if o.chosen else "") + (" (old price)" if o.stale else "")
        table.add_row(name, dollars(o.usd_per_month.value), dollars(o.usd_per_million_output_tokens.value), edge)
    return table


def _loads(found: AlternativesResult) -> Table:
    table = _table("At a load of", "per M out", "cheapest")
    for row in found.sensitivity:
        table.add_row(f"{row.utilization_frac:.0%}", dollars(row.usd_per_million_output_tokens), row.cheapest)
    return table


def _laws(found: AdviceResult) -> Table:
    table = _table("Scaling law (advice)", "active", "total", "tokens", "in its range")
    for law in found.laws:
        sizes = [format_tokens(x) if x is not None else "" for x in (law.active_params, law.total_params, law.tokens)]
        if law.dense_equivalent_params is not None:
            sizes[0] = f"yours = dense {format_tokens(law.dense_equivalent_params)}"
        table.add_row(law.law, *sizes, "yes" if law.inside_range else "no")
    return table


def _time_breakdown(plan: Plan) -> Table:
    table = _table("Time of one step", "time", "share")
    total = sum(plan.time_breakdown.values())
    for name, part in sorted(plan.time_breakdown.items(), key=lambda item: -item[1]):
        if part > 0.0:
            table.add_row(name.replace("_", " "), seconds(part), f"{part / total:.0%}")
    return table


def _provenance(plan: Plan) -> Table:
    table = _table("From", "")
    for name, value in plan.provenance.items():
        if isinstance(value, str | int | float):
            table.add_row(name.replace("_", " "), str(value))
    return table


def _table(*columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if columns else None, show_header=bool(columns), pad_edge=False, header_style="bold"
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _span(q: Q, form: Callable[[float], str]) -> str:
    if q.low == q.high:
        return "exactly"
    low, high = form(q.low), form(q.high)
    number_low, _, unit_low = low.partition(" ")
    _, _, unit_high = high.partition(" ")
    return f"{number_low if unit_low == unit_high else low} to {high}"


def seconds(value: float) -> str:
    """A duration in the unit a person would use."""
    for limit, unit, size in _TIMES:
        if value >= limit:
            return f"{number(value / size)} {unit}"
    return f"{value * 1e3:.3g} ms"


def byte_size(value: float) -> str:
    """Bytes in decimal units."""
    for size, unit in _BYTES:
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def dollars(value: float) -> str:
    """US dollars, cents only where they matter."""
    amount = f"${abs(value):,.0f}" if abs(value) >= 1000 else f"${abs(value):,.2f}"
    return f"-{amount}" if value < 0.0 else amount


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
