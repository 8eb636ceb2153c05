"""A monitoring report on the terminal: the answer, what happened and what to do, then the metrics."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moeplan.planner.watch.monitor import Report, Watched

# metric -> (as shown, how many of that unit are one of ours)
_SHOWN = {
    "requests_per_s": ("requests/s", 1.0),
    "input_tokens": ("prompt tokens", 1.0),
    "output_tokens": ("answer tokens", 1.0),
    "expert_imbalance": ("expert imbalance", 1.0),
    "ttft_s": ("TTFT ms", 1e3),
    "tpot_s": ("TPOT ms", 1e3),
    "e2e_s": ("end to end s", 1.0),
    "output_tokens_per_s": ("tokens/s", 1.0),
    "usd_per_million_output_tokens": ("$/M tokens", 1.0),
}
_CLOCK_FROM_S = 1e8  # seconds from 1970 rather than from the start of the file


def print_report(report: Report, console: Console) -> None:
    """One screen."""
    console.print("Production is where the plan said." if report.ok else "Production is out of plan.", style="bold")
    for finding in report.findings:
        since = "from the start" if finding.since_s is None else f"since {_clock(finding.since_s)}"
        console.print(f"{finding.cause}, {since}: {escape(finding.text)}.", highlight=False)
        console.print(f"  -> {escape(finding.advice)}", highlight=False)
    table = Table("metric", "planned", "now", "mean, 99 % sure", "windows", "state", box=None)
    for one in report.watched:
        label, unit = _SHOWN.get(one.name, (one.name, 1.0))
        cells = (_planned(one, unit), f"{one.now * unit:.4g}", _interval(one, unit), str(one.n_windows), one.state)
        table.add_row(label, *cells)
    console.print(table)
    rate = f"{report.false_alarm_frac:.0e}"
    console.print(f"An unchanged system raises an alarm in {rate} of windows, all metrics together.", highlight=False)


def _planned(one: Watched, unit: float) -> str:
    if one.planned is None:
        return "-"
    q = one.planned.scaled(unit)
    return f"{q.value:.3g}" + (f" ({q.low:.3g} to {q.high:.3g})" if q.high > q.low else "")


def _interval(one: Watched, unit: float) -> str:
    return "one window" if one.n_windows < 2 else f"{one.now_low * unit:.3g} to {one.now_high * unit:.3g}"


def _clock(seconds: float) -> str:
    if seconds < _CLOCK_FROM_S:
        return f"{seconds:.0f} s"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
