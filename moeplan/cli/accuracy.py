"""``moeplan accuracy``: predict measured runs and report errors and interval coverage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from moeplan.calibrate.judge import Judged, Unanswered

_CSV: dict[str, Any] = {"index": False, "float_format": "%.6g"}


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), metavar="DIR|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print the errors as JSON on stdout and nothing else there.")
@click.option("--markdown", is_flag=True, help="Print the errors as a Markdown page.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write every row with its prediction (CSV)."
)
@click.option("--held-out", is_flag=True, help="Only shapes that calibrate uses neither for a fit nor for an interval.")
def accuracy(runs: Path, as_json: bool, markdown: bool, out: Path | None, held_out: bool) -> int:
    """Predict every row of measured runs and report MdAPE, MAPE, bias and the coverage of the 90 % intervals.

    DIR holds tables of operations, <hardware>/<op>.<engine>.parquet. FILE is one such table, or a CSV table of serving
    or training runs.
    """
    import json

    from moeplan.calibrate import judge
    from moeplan.cli.progress import progress

    with progress("reading") as say:
        if runs.suffix == ".csv":
            judged, missing, rows_csv = _judge_runs(runs, held_out, say)
        else:
            judged, missing = _judge_op_tables(runs, held_out, say)
            rows_csv = judge.rows_of(judged).to_csv(**_CSV)
    report = judge.report(judged, missing)
    if out is not None:
        from moeplan.files.write import write_text

        write_text(out, rows_csv)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return 0
    from moeplan.report.calibration import accuracy_markdown, print_accuracy

    if markdown:
        click.echo(accuracy_markdown(report), nl=False)
    else:
        from rich.console import Console

        print_accuracy(report, Console())
    return 0


def _judge_runs(path: Path, held_out: bool, say: Callable[[str], None]) -> tuple[list[Judged], list[Unanswered], str]:
    """Serving or training runs of one CSV file, and their rows with predictions as CSV."""
    from moeplan.calibrate import runs
    from moeplan.files.measured_runs import read_runs
    from moeplan.files.model_data import load_model_error

    if held_out:
        raise click.UsageError("--held-out is about shapes of operation tables, not about runs")
    table = read_runs(path)
    if table.unknown_columns:
        click.echo(f"{path}: carried through unread: {', '.join(table.unknown_columns)}", err=True)
    results = runs.predict(table, load_model_error(), say)
    judged, missing = runs.judge(table, results)
    return judged, missing, runs.rows_of(table, results).to_csv(**_CSV)


def _judge_op_tables(runs: Path, held_out: bool, say: Callable[[str], None]) -> tuple[list[Judged], list[Unanswered]]:
    """Operation tables of a folder, or one of them."""
    from moeplan.calibrate import judge
    from moeplan.calibrate.tables import cut, read, table_ops
    from moeplan.errors import InputError, Problem, input_error
    from moeplan.files.hardware_catalog import hardware_names, load_hardware
    from moeplan.files.op_tables import find_tables

    if runs.is_file() and runs.suffix != ".parquet":
        raise input_error(
            runs, "not a table of operations", got=runs.suffix, allowed="a folder of <hardware>/<op>.<engine>.parquet"
        )
    files = find_tables(runs, ops=table_ops(), hardware=hardware_names())
    hardware = {name: load_hardware(name) for name in sorted({file.hardware for file in files})}
    judged: list[Judged] = []
    missing: list[Unanswered] = []
    problems: list[Problem] = []
    for file in files:
        say(f"{file.hardware}: {file.op} ({file.engine})")
        try:
            pieces = cut(read(file), hardware[file.hardware], held_out_only=held_out)
        except InputError as error:
            problems += error.problems
            continue
        name = f"{file.hardware}/{file.path.name}"
        found, gaps = judge.judge_cut(name, pieces, hardware[file.hardware], file.op)
        judged += found
        missing += gaps
    if problems:
        raise InputError(problems)
    return judged, missing
