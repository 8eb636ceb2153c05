"""``moeplan measure``: time kernels on this machine's GPU and write the tables that ``calibrate`` fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moeplan.files.runs.measured_tables import Journal
    from moeplan.measure.plan import Case

ENGINE = "torch"


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("measured"),
    show_default=True,
    help="Folder that gets <hardware>/<op>.torch.parquet; run again with the same folder to go on.",
)
@click.option(
    "--plan", type=click.Choice(["short", "full"]), default="short", show_default=True, help="How many shapes."
)
@click.option("--op", "ops", multiple=True, metavar="OP", help="Only this operation; repeatable.")
@click.option("--hardware", metavar="NAME", help="Profile this machine is (default: found by the GPU's name).")
@click.option("--list", "only_list", is_flag=True, help="Say what would be measured, and stop. Needs no GPU.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout and nothing else there."
)
def measure(out: Path, plan: str, ops: tuple[str, ...], hardware: str | None, only_list: bool, as_json: bool) -> int:
    """Time the kernels a plan is made of on this machine: matrix products, routed experts, attention, copies, launches,
    and collectives where there are several GPUs.

    Then: moeplan calibrate OUT, or moeplan accuracy OUT to see how well the shipped fits describe this machine.
    """
    import json

    from moeplan.measure.plan import OPS, cases

    _check_ops(ops, OPS)
    chosen = ops or OPS
    if only_list:
        _print_list(cases(plan, chosen, n_gpus=8), as_json)
        return 0
    from moeplan.files.runs.measured_tables import Journal, write_tables
    from moeplan.measure import machine
    from moeplan.measure.run import run

    machine.check_gpu()
    about = machine.describe()
    slug = _slug(hardware, str(about["gpu"]))
    journal = Journal(out / slug, about)
    todo = [case for case in cases(plan, chosen, n_gpus=machine.n_gpus()) if case.key not in journal.entries]
    with _bar(len(todo)) as done:
        run(todo, journal, done)
    written = write_tables(journal, ENGINE, _about(plan, journal))
    if as_json:
        click.echo(json.dumps({"hardware": slug, "written": [str(path) for path in written], "measured": len(todo)}))
    else:
        _print_written(journal, written, len(todo))
    return 0


def _check_ops(ops: tuple[str, ...], known: tuple[str, ...]) -> None:
    from moeplan.errors import did_you_mean, input_error

    for name in ops:
        if name not in known:
            raise input_error("--op", "not known", got=name, allowed=", ".join(known), hint=did_you_mean(name, known))


def _slug(stated: str | None, gpu: str) -> str:
    """Folder name of the measurements: the profile the user names, or the one of the GPU's product name."""
    from moeplan.errors import did_you_mean, input_error
    from moeplan.files.catalog.hardware_catalog import hardware_names, hardware_of_gpu

    known = hardware_names()
    if stated is not None and stated not in known:
        raise input_error("--hardware", "unknown hardware", got=stated, hint=did_you_mean(stated, known))
    found = stated or hardware_of_gpu(gpu)
    if found is None:
        hint = "name the nearest profile with --hardware; moeplan catalog hardware lists them"
        raise input_error("measure", "no profile states this GPU's name", got=gpu, hint=hint)
    return found


def _about(plan: str, journal: Journal) -> dict[str, Any]:
    from datetime import UTC, datetime

    from moeplan._version import __version__

    torch, nccl = str(journal.machine["torch"]), str(journal.machine["nccl"])
    versions = {entry.op: nccl if entry.op == "nccl" else torch for entry in journal.entries.values()}
    return {
        "moeplan": __version__,
        "plan": plan,
        "finished_on": datetime.now(UTC).date().isoformat(),
        "method": "median over repeats; a repeat is one CUDA graph of calls_per_repeat calls on the same buffers (mode "
        "graph), the same calls launched one by one (eager), or host time of launches (host)",
        "versions": versions,
    }


def _bar(n_cases: int) -> Any:
    """Context manager: a bar on stderr with the time left; yields the function to call after each case."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from moeplan.report.console import Console

    @contextmanager
    def bar() -> Any:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
            task = shown.add_task("starting", total=n_cases)

            def done(case: Case) -> None:
                shown.update(task, advance=1, description=case.op)

            yield done

    return bar()


def _print_list(found: list[Case], as_json: bool) -> None:
    import json
    from collections import Counter

    counts = Counter(case.op for case in found)
    if as_json:
        click.echo(json.dumps({"cases": [{"op": case.op, **case.values} for case in found]}))
        return
    for op, n in counts.items():
        click.echo(f"{op:18} {n:5} shapes")
    click.echo(f"{'together':18} {len(found):5} shapes, about {_minutes(len(found))} on a data-centre GPU")


def _minutes(n_cases: int) -> str:
    """Start-up and a time for each case; from own runs on an H100: 305 cases took 64 s, 4,035 took 490 s."""
    return f"{max((29.0 + n_cases * 0.114) / 60.0, 1.0):.0f} min"


def _print_written(journal: Journal, written: list[Path], n_new: int) -> None:
    skipped = [entry for entry in journal.entries.values() if entry.timing is None]
    click.echo(
        f"{n_new} shapes measured now, {len(journal.entries) - len(skipped)} in all, {len(skipped)} not possible here"
    )
    for why, n in _reasons(skipped):
        click.echo(f"  {n} shapes: {why}")
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(
        f"next: moeplan accuracy {journal.path.parent.parent}   or   moeplan calibrate {journal.path.parent.parent}"
    )


def _reasons(skipped: list[Any]) -> list[tuple[str, int]]:
    from collections import Counter

    return Counter(f"{entry.op}: {entry.skipped}" for entry in skipped).most_common()
