"""``moeplan accuracy``: predict measured runs and report errors and interval coverage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from moeplan.calibrate.judge import Judged, Unanswered
    from moeplan.calibrate.serving_runs import RowResult
    from moeplan.files.runs.measured_runs import RunTable

_CSV: dict[str, Any] = {"index": False, "float_format": "%.6g"}


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), metavar="DIR|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print the errors as JSON on stdout and nothing else there.")
@click.option("--markdown", is_flag=True, help="Print the errors as a Markdown page.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write every row with its prediction (CSV)."
)
@click.option("--held-out", is_flag=True, help="Only shapes that calibrate uses neither for a fit nor for an interval.")
@click.option(
    "--peer", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Another tool's predictions of the same serving runs (CSV), for --markdown.",
)  # fmt: skip
@click.option("--hardware", default="h200-sxm", show_default=True, help="Device of an engine's log.")
def accuracy(
    runs: Path, as_json: bool, markdown: bool, out: Path | None, held_out: bool, peer: Path | None, hardware: str
) -> int:
    """Predict every row of measured runs and report MdAPE, MAPE, bias and the coverage of the 90 % intervals.

    DIR holds tables of operations, <hardware>/<op>.<engine>.parquet, or an engine's log of every iteration and request
    (engines.json, steps.csv.gz, traffic_requests.csv.gz), which is replayed. FILE is one such table, or a CSV table of
    serving or training runs.
    """
    import json

    from moeplan.calibrate import judge
    from moeplan.calibrate.engine_log import is_engine_log
    from moeplan.cli.progress import progress
    from moeplan.files.inert import inert_frame

    if is_engine_log(runs):
        return _replay_log(runs, hardware, as_json, out)
    with progress("reading") as say:
        if runs.suffix == ".csv":
            report, rows_csv, sections = _judge_runs(runs, held_out, markdown, peer, say)
        else:
            sections = ""
            judged, missing = _judge_op_tables(runs, held_out, say)
            rows_csv = inert_frame(judge.rows_of(judged)).to_csv(**_CSV)
            report = judge.report(judged, missing)
    if out is not None:
        from moeplan.files.write import write_text

        write_text(out, rows_csv)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return 0
    from moeplan.report.calibration import accuracy_markdown, print_accuracy

    if markdown:
        click.echo(accuracy_markdown(report) + sections, nl=False)
    else:
        from moeplan.report.console import Console

        print_accuracy(report, Console())
    return 0


def _replay_log(folder: Path, hardware: str, as_json: bool, out: Path | None) -> int:
    """Iterations, requests and KV capacity of a real engine's log against the planner's."""
    import json

    from moeplan.calibrate.engine_log import as_frame, compare
    from moeplan.cli.progress import progress
    from moeplan.report.calibration import replay_markdown

    with progress("reading") as say:
        found = compare(folder, hardware, say)
    if out is not None:
        from moeplan.files.write import write_text

        write_text(out, as_frame(found).to_csv(**_CSV))
    click.echo(json.dumps({"comparisons": [one.as_json() for one in found]}, indent=1) if as_json else
               replay_markdown(found), nl=as_json)  # fmt: skip
    return 0


def _judge_runs(
    path: Path, held_out: bool, markdown: bool, peer: Path | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], str, str]:
    """Report on the runs of one CSV file, with what of them was fitted to, and their rows with predictions as CSV.

    Third, Markdown that only serving has.
    """
    from moeplan.calibrate import judge, runs
    from moeplan.calibrate.leakage import leakage
    from moeplan.files.catalog.model_data import load_model_error
    from moeplan.files.inert import inert_frame
    from moeplan.files.runs.measured_runs import read_predictions, read_runs
    from moeplan.files.runs.run_ledger import read_ledger, shipped_ledger

    if held_out:
        raise click.UsageError("--held-out is about shapes of operation tables, not about runs")
    table = read_runs(path)
    if table.unknown_columns:
        click.echo(f"{path}: carried through unread: {', '.join(table.unknown_columns)}", err=True)
    results = runs.predict(table, load_model_error(), say)
    report = judge.report(*runs.judge(table, results))
    seen = leakage(table.kind, table.frame.to_dict("records"), read_ledger(shipped_ledger()))
    report |= {"leakage": seen.summary(), "validation": _validation(table, results, seen.validation)}
    rows = runs.rows_of(table, results).assign(used_to_fit=seen.fitted, near_duplicate=seen.near)
    sections = ""
    if markdown and table.kind == "serving":
        from moeplan.report.serving_accuracy import sections_of

        sections = sections_of(table, results, rows, None if peer is None else read_predictions(peer))
    return report, inert_frame(rows).to_csv(**_CSV), sections


def _validation(table: RunTable, results: list[RowResult], keep: tuple[bool, ...]) -> dict[str, Any]:
    """Errors over the rows that nothing was fitted to."""
    from dataclasses import replace

    from moeplan.calibrate import judge, runs

    fresh = [result for result, kept in zip(results, keep, strict=True) if kept]
    metrics: dict[str, Any] = judge.report(*runs.judge(replace(table, frame=table.frame[list(keep)]), fresh))["metrics"]
    return metrics


def _judge_op_tables(runs: Path, held_out: bool, say: Callable[[str], None]) -> tuple[list[Judged], list[Unanswered]]:
    """Operation tables of a folder, or one of them."""
    from moeplan.calibrate import judge
    from moeplan.calibrate.tables import cut, read, table_ops
    from moeplan.errors import InputError, Problem, input_error
    from moeplan.files.catalog.hardware_catalog import hardware_names, load_hardware
    from moeplan.files.runs.op_tables import find_tables

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
