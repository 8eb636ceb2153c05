"""Results of compare, optimize, sweep and sensitivity on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeplan.errors import printable
from moeplan.files.plan_row import Cell
from moeplan.planner.search.sensitivity import Sensitivity
from moeplan.planner.search.sweep import Sweep

_SHOWN = 40  # rows of a sweep on a terminal; the rest is in the results file
COLUMNS = (
    ("feasible", "feasible"),
    ("serving.requests_per_s.value", "req/s"),
    ("serving.ttft_s.p90.value", "TTFT p90"),
    ("serving.tpot_s.p90.value", "TPOT p90"),
    ("training.step_time_s.value", "step"),
    ("training.wall_time_s.value", "wall time"),
    ("cost.usd_per_month.value", "USD/month"),
    ("cost.total_usd.value", "USD"),
    ("cost.usd_per_million_output_tokens.value", "USD/M tokens"),
)


def print_sweep(sweep: Sweep, console: Console, out: Path | None) -> None:
    """What varied and the main figures of every point; failures by their reason."""
    rows = [point for point in sweep.points if point.error is None]
    shown = [(key, head) for key, head in COLUMNS if any(p.row.get(key) is not None for p in rows)]
    table = table_of(*(path.rpartition(".")[2] for path in sweep.varied), *(head for _, head in shown))
    for point in rows[:_SHOWN]:
        values = dict(text.partition("=")[::2] for text in point.overrides)
        cells = [printable(values.get(path, ""), 40) for path in sweep.varied]
        table.add_row(*cells, *(cell_text(key, point.row.get(key)) for key, _ in shown))
    if rows:
        console.print(table)
    if len(rows) > _SHOWN:
        console.print(Text(f"... and {len(rows) - _SHOWN} more points"))
    reasons: dict[str, int] = {}
    for point in sweep.failed:
        reasons[point.error or ""] = reasons.get(point.error or "", 0) + 1
    for reason, n in list(reasons.items())[:10]:
        console.print(Text(f"{n} of {len(sweep.points)} points failed: {printable(reason, 400)}", style="red"))
    if out is not None:
        console.print(Text(f"{len(sweep.points)} points in {out}"))


_BAR = 24  # characters of the longest bar


def print_sensitivity(study: Sensitivity, console: Console) -> None:
    """What moves the figure most, first."""

    def write(value: float | None) -> str:
        return cell_text(f"{study.of}.", value)

    if study.base is not None:
        span = ""
        if study.base_low is not None and study.base_high is not None and study.base_low < study.base_high:
            span = f" (90 % sure: {write(study.base_low)} to {write(study.base_high)})"
        console.print(Text(f"{study.scenario}: {study.of} is {write(study.base)}{span}", "bold"))
    if study.bars:
        most = max(bar.swing for bar in study.bars) or 1.0
        table = table_of("one at a time", "from", "to", "gives", "and", "swing")
        for bar in study.bars:
            length = round(_BAR * bar.swing / most)
            ends = (write(bar.low), write(bar.high))
            table.add_row(bar.factor, bar.low_setting, bar.high_setting, *ends, "#" * length or ".")
        console.print(table)
    if study.effects:
        table = table_of("Morris", "mean |effect|", "mean effect", "spread: interactions, curves")
        for e in study.effects:
            table.add_row(e.factor, write(e.mu_star), write(e.mu), write(e.sigma))
        console.print(table)
    if study.indices:
        table = table_of("share of variance", "alone", "90 % sure", "with interactions", "90 % sure")
        for i in study.indices:
            alone, whole = (f"{low:.2f} to {high:.2f}" for low, high in
                            ((i.first_low, i.first_high), (i.total_low, i.total_high)))  # fmt: skip
            table.add_row(i.factor, f"{i.first:.2f}", alone, f"{i.total:.2f}", whole)
        console.print(table)
    if study.parts:
        table = table_of("without a part of the model", "", study.of.rpartition(".")[2], "change")
        for part in study.parts:
            change = "-" if part.change_frac is None else f"{part.change_frac:+.1%}"
            table.add_row(part.name, part.what, write(part.value), change)
        console.print(table)
    for flip in study.flips:
        console.print(Text(f"{flip.path}: {flip.text}."))
    for bar in study.bars:
        if bar.note and bar.factor != "the model itself":
            console.print(Text(f"{bar.factor}: {printable(bar.note, 300)}"))
    console.print(Text(f"{study.n_runs} plans, all with the same random numbers."))


def cell_text(path: str, value: Cell) -> str:
    """A figure of a plan as people write it; the unit follows from its name."""
    if value is None or isinstance(value, str | bool):
        return {None: "-", True: "yes", False: "NO"}[value] if not isinstance(value, str) else value
    if "_s." in path and "per_s" not in path:
        return seconds(float(value))
    if "usd" in path:
        return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"
    return number(float(value))


def number(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def seconds(value: float) -> str:
    for size, unit, per in ((2 * 86400.0, "d", 86400.0), (2 * 3600.0, "h", 3600.0), (1.0, "s", 1.0)):
        if value >= size:
            return f"{number(value / per)} {unit}"
    return f"{value * 1e3:.3g} ms"


def table_of(*heads: str) -> Table:
    """An empty table in the house's style."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head)
    return table
