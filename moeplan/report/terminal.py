"""The plan on one terminal screen: the verdict first, then the numbers with their intervals, then what limits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeplan.spec.plan import Percentiles, Plan, Q, ServingResult, TrainingResult, Verdict

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
    if verbose:
        parts.append(_time_breakdown(plan))
        parts.append(_provenance(plan))
    return Group(*parts)


def print_plan(plan: Plan, console: Console, *, verbose: bool = False) -> None:
    """Print to ``console``; rich drops colour when it is not a terminal or NO_COLOR is set."""
    console.print(plan_renderable(plan, verbose=verbose))


def _headline(plan: Plan) -> Text:
    checks = [v for v in plan.verdicts if v.check not in _REMARKS]
    failed = [v.text.partition(":")[0].lower() for v in checks if not v.ok]
    head = Text(plan.scenario, style="bold")
    if not failed:
        head.append(f": yes, all {len(checks)} checks pass", style="bold green")
    else:
        head.append(f": no, {', '.join(failed)} {'fails' if len(failed) == 1 else 'fail'}", style="bold red")
    return head


_REMARKS = ("bottleneck", "checkpoint", "comparison", "reference")  # verdicts that inform and never fail


def _verdicts(verdicts: Iterable[Verdict]) -> Table:
    table = _table()
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for verdict in verdicts:
        if verdict.check in _REMARKS:
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
        ("most it could serve", result.capacity_requests_per_s, "req/s"),
        ("output tokens", result.output_tokens_per_s, "tok/s"),
        ("output tokens per GPU", result.output_tokens_per_s_per_gpu, "tok/s"),
    ):
        if q is not None:
            throughput.add_row(label, f"{number(q.value)} {unit}", _span(q, number))
    q = result.utilization_frac
    throughput.add_row("time an iteration is running", f"{q.value:.0%}", f"{q.low:.0%} to {q.high:.0%}")
    stack = Table.grid()
    stack.add_row(table)
    stack.add_row(throughput)
    return stack


def _training(result: TrainingResult) -> Table:
    table = _table("Training", "value", "90 % sure")
    table.add_row("step", seconds(result.step_time_s.value), _span(result.step_time_s, seconds))
    table.add_row("tokens/s", number(result.tokens_per_s.value), _span(result.tokens_per_s, number))
    table.add_row(
        "tokens/s per GPU", number(result.tokens_per_s_per_gpu.value), _span(result.tokens_per_s_per_gpu, number)
    )
    mfu = result.mfu_frac
    table.add_row("model FLOP utilisation", f"{mfu.value:.1%}", f"{mfu.low:.1%} to {mfu.high:.1%}")
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
    if plan.budget is not None:
        table.add_row(f"budget per {plan.budget.per}", dollars(plan.budget.limit_usd), "")
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
    return f"${value:,.0f}" if abs(value) >= 1000 else f"${value:,.2f}"


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
