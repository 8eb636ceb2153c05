"""Results of `optimize` and `compare` on a terminal: the answer first, then why it is the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from shlex import quote

from rich.console import Console
from rich.text import Text

from moeplan.planner.search.compare import Compared, Entry, figure_name
from moeplan.planner.search.search_result import Candidate, Search
from moeplan.report.whatif import cell_text, number, seconds, table_of

NAMES = {
    "usd_per_month": "USD/month",
    "total_usd": "USD",
    "usd_per_million_output_tokens": "USD/M tokens",
    "requests_per_s": "req/s",
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "e2e_s": "end to end",
    "wall_time_s": "wall time",
    "step_time_s": "step",
    "mfu_frac": "MFU",
}
_COLUMNS = ("usd_per_month", "total_usd", "ttft_s", "tpot_s", "e2e_s", "wall_time_s", "mfu_frac")
_MEANS = {
    "cost": "cheapest",
    "latency": "fastest",
    "throughput_per_dollar": "best in tokens per dollar",
    "time": "shortest",
}


def print_search(search: Search, console: Console) -> None:
    """The answer with its settings, runners-up, the front, and what was looked at."""
    answer = search.best or search.closest
    counts = search.counts
    if search.best is not None:
        console.print(Text(f"{search.scenario}: the {_MEANS[search.by]} of {counts.layouts:,} layouts", "bold green"))
    elif answer is None:
        console.print(Text(f"{search.scenario}: none of {counts.layouts:,} layouts fits the memory", "bold red"))
    else:
        missed = ", ".join(answer.failed) or "its targets, by stage one's estimate"
        over = (
            f"{answer.worst_over - 1.0:.0%}" if answer.worst_over < 100 else f"a factor of {number(answer.worst_over)}"
        )
        console.print(
            Text(
                f"{search.scenario}: none of {counts.layouts:,} layouts meets every check. "
                f"The least far off misses {missed} by {over}:",
                "bold red",
            )
        )
    if answer is not None:
        _print_choice(answer, console)
    console.print(Text(f"What keeps it from being better: {search.binding}."))
    if search.runners_up:
        console.print(Text("\nRunners-up", "bold"))
        _print_candidates(search.runners_up, console, why=True)
    if len(search.front) > 1:
        names = [NAMES.get(name, name) for name in search.front_of]
        console.print(Text(f"\nPareto front of what was simulated: {names[0]} against {names[1]}", "bold"))
        _print_candidates(search.front, console, why=False)
    console.print(Text("\n" + searched(search)))
    for note in search.notes:
        console.print(Text(note))


def searched(search: Search) -> str:
    """How the space was worked off, and whether the answer is proven."""
    c = search.counts
    parts = [
        f"{c.layouts:,} layouts: {c.do_not_fit:,} do not fit",
        f"{c.ruled_out:,} cannot meet the targets by a bound",
        f"{c.cannot_be_better:,} cannot be better",
        f"{c.simulated:,} simulated",
    ]
    if c.as_another:
        parts.append(f"{c.as_another:,} behave as a simulated one")
    if c.open:
        parts.append(f"{c.open:,} open")
    proven = "Nothing better is in the space." if search.proven else ""
    return f"{', '.join(parts)}. {proven}".strip()


def _print_choice(candidate: Candidate, console: Console) -> None:
    shown = {name: value for name, value in candidate.choice.items() if value != ""}
    site = ("model", "hardware", "formats", "offer")
    where = ", ".join(str(shown[name]) for name in site if name in shown)
    layout = ", ".join(f"{name} {value}" for name, value in shown.items() if name not in site)
    console.print(Text(f"{candidate.n_gpus} x {where}\n{layout}\n{_figures(candidate.figures)}"))
    if candidate.overrides:
        sets = " ".join(f"--set {quote(text)}" for text in candidate.overrides)
        console.print(Text(f"moeplan simulate SCENARIO {sets}", "cyan"), soft_wrap=True)


def _figures(figures: Mapping[str, float | None]) -> str:
    known = ((name, value) for name, value in figures.items() if value is not None and name in NAMES)
    return ", ".join(f"{NAMES[name]} {_cell(name, value)}" for name, value in known)


def _print_candidates(candidates: Iterable[Candidate], console: Console, *, why: bool) -> None:
    rows = list(candidates)
    figures = [name for name in _COLUMNS if any(c.figures.get(name) is not None for c in rows)]
    table = table_of("GPUs", "hardware", "layout", *(NAMES[name] for name in figures), *(["why not"] if why else []))
    for c in rows:
        cells = [_cell(name, c.figures.get(name)) for name in figures]
        hardware = " ".join(str(c.choice[name]) for name in ("hardware", "formats") if c.choice.get(name))
        table.add_row(str(c.n_gpus), hardware, _layout(c), *cells, *([c.why] if why else []))
    console.print(table)


def _layout(candidate: Candidate) -> str:
    """Degrees above one."""
    degrees = ("tp", "pp", "cp", "dp", "ep", "replicas", "recompute", "micro_batch")
    choice = candidate.choice
    return " ".join(f"{name}{choice[name]}" for name in degrees if choice.get(name, 1) != 1) or "single"


def _cell(name: str, value: float | None) -> str:
    if name == "mfu_frac" and value is not None:
        return f"{value:.0%}"
    return cell_text(f"x.{name}.", value) if name.endswith("_s") and "per_s" not in name else cell_text(name, value)


def print_compared(compared: Compared, console: Console) -> None:
    """The ranking, then which differences are certain."""
    figure = figure_name(compared)
    first = compared.entries[0]
    head = f"{compared.scenario}: {first.name} is first by {compared.by.replace('_', ' ')}"
    if not first.feasible:
        head = f"{compared.scenario}: no way meets every check"
    console.print(Text(head, "bold green" if first.feasible else "bold red"))
    table = table_of("", "", f"{figure}", "90 % sure", "GPUs", "layout", "price", "checks")
    for entry in compared.entries:
        table.add_row(*_entry_cells(entry, figure))
    console.print(table)
    for pair in compared.pairs:
        console.print(Text(pair.text + "."))
    console.print(Text("\n" + compared.how))
    for entry in compared.entries:
        if entry.note:
            console.print(Text(f"{entry.name}: {entry.note}"))


def _entry_cells(entry: Entry, figure: str) -> list[str]:
    value, span = "-", "-"
    if entry.value is not None:
        write = _writer(figure)
        value, span = write(entry.value.value), f"{write(entry.value.low)} to {write(entry.value.high)}"
        if entry.value.low == entry.value.high:
            span = "exactly"
    layout = "" if entry.best is None else _layout(entry.best)
    gpus = "" if entry.best is None else str(entry.best.n_gpus)
    price = (
        "-" if entry.price is None else f"${entry.price.usd_per_gpu_hour:.2f} {entry.price.offer} {entry.price.date}"
    )
    checks = "pass" if entry.feasible else "NO: " + (", ".join(entry.failed) or "no plan")
    return [str(entry.rank), entry.name, value, span, gpus, layout, price, checks]


def _writer(figure: str) -> Callable[[float], str]:
    return (lambda value: cell_text("usd", value)) if figure.startswith("USD") else seconds
