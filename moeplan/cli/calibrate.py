"""``moeplan calibrate``: fit efficiency parameters to measured tables; new fitted files, no profile is edited."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import click

EXIT_NOT_CONVERGED = 2


@click.command()
@click.argument("tables", type=click.Path(path_type=Path), metavar="TABLES_DIR")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--op", "ops", multiple=True, metavar="OP", help="Only tables of this operation; repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder that gets <device>/fitted/<date>.yaml (default: the installation's hardware_profiles).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of row samples and starting points.")
@click.option("--source", default="own tables", show_default=True, help="Who measured the tables; kept with every fit.")
@click.option("--json", "as_json", is_flag=True, help="Print what was fitted as JSON on stdout and nothing else there.")
def calibrate(
    tables: Path,
    devices: tuple[str, ...],
    ops: tuple[str, ...],
    out: Path | None,
    seed: int,
    source: str,
    as_json: bool,
) -> int:
    """Fit the operation costs to TABLES_DIR, a folder of <hardware>/<op>.<engine>.parquet.

    Nothing is written when a table is bad. A device with a fit that does not converge keeps its old file (exit code 2).
    With a CSV table of serving or training runs instead of a folder: learn how wrong whole predictions are, the widths
    of a plan's intervals; nothing else is fitted, and --out is the file that gets them. With a CSV table of published
    collectives: fit the networks between nodes.
    """
    if tables.suffix == ".csv":
        from moeplan.calibrate.fabric_fit import is_published

        learn = _fit_fabrics if is_published(tables) else _learn_model_error
        return learn(tables, out, source, as_json)
    import json
    from datetime import UTC, datetime

    from moeplan.calibrate import run
    from moeplan.calibrate.tables import table_ops
    from moeplan.cli.progress import progress
    from moeplan.errors import input_error
    from moeplan.files.fitted import TRANSFER_FILE, read_transfer
    from moeplan.files.hardware_catalog import hardware_names, load_hardware
    from moeplan.files.locate import data_folder
    from moeplan.files.op_tables import find_tables

    known = hardware_names()
    _check_names("--device", devices, known)
    _check_names("--op", ops, table_ops())
    files = find_tables(tables, ops=table_ops(), hardware=known, only_hardware=devices)
    files = [file for file in files if not ops or file.op in ops]
    if not files:
        raise input_error(tables, "no table of the operations asked for", got=", ".join(ops))
    hardware = {name: load_hardware(name) for name in sorted({file.hardware for file in files})}
    target = out if out is not None else data_folder("hardware_profiles")
    with progress("reading tables") as say:
        found = run.calibrate(files, hardware, seed=seed, origin=source, say=say)
        say("leaving one device out")
        loans = run.transfer(found, hardware)
    written = run.write(found, target, datetime.now(UTC).date().isoformat())
    if not devices and len(hardware) > 1:
        run.write_transfer(target / TRANSFER_FILE, loans, hardware, read_transfer())
        written.append(target / TRANSFER_FILE)
    failed = [text for texts in found.failed.values() for text in texts]
    if as_json:
        fits = [
            {"hardware": device, **{k: fit[k] for k in ("op", "engine", "dtype", "n_rows", "heldout")}}
            for device, entries in found.entries.items()
            for fit in entries.values()
        ]
        document = {
            "written": [str(path) for path in written],
            "fits": fits,
            "skipped": found.skipped,
            "not_converged": failed,
        }
        click.echo(json.dumps(document, indent=1))
    else:
        from rich.console import Console

        from moeplan.report.calibration import print_calibration

        print_calibration(found, loans, written, Console())
    for text in failed:
        click.echo(f"not converged, old file kept: {text}", err=True)
    return EXIT_NOT_CONVERGED if failed else 0


def _check_names(option: str, names: Iterable[str], allowed: Collection[str]) -> None:
    """Raises InputError for a name that is not allowed."""
    from moeplan.errors import did_you_mean, input_error

    for name in names:
        if name not in allowed:
            raise input_error(option, "not known", got=name, hint=did_you_mean(name, allowed))


def _fit_fabrics(published: Path, out: Path | None, source: str, as_json: bool) -> int:
    """What network classes deliver between nodes, from published figures."""
    import json
    from datetime import UTC, datetime

    from moeplan.calibrate.fabric_fit import document, fit_fabrics
    from moeplan.files.fitted import FABRICS_FILE, write_document
    from moeplan.files.locate import data_folder

    found = document(fit_fabrics(published), source, datetime.now(UTC).date().isoformat())
    target = out if out is not None else data_folder("hardware_profiles") / FABRICS_FILE
    write_document(target, found)
    if as_json:
        click.echo(json.dumps({"written": [str(target)], "fits": found["fits"]}, indent=1))
        return 0
    for fit in found["fits"]:
        values = ", ".join(f"{name} {value:.3g}" for name, value in fit["values"].items())
        click.echo(f"{fit['engine']}: {values}; {fit['heldout']['mdape']:.0%} on libraries and GPUs left out")
    click.echo(f"wrote {target}")
    return 0


def _learn_model_error(runs: Path, out: Path | None, source: str, as_json: bool) -> int:
    """Intervals from measured runs; metrics and tiers without enough of them keep what they had, never narrower."""
    import json
    from datetime import UTC, datetime

    from moeplan.calibrate import model_error
    from moeplan.calibrate.runs import group_of, predict, without
    from moeplan.cli.progress import progress
    from moeplan.files.measured_runs import read_runs
    from moeplan.files.model_data import load_model_error, model_error_path, model_error_text
    from moeplan.files.run_ledger import ledger_rows, shipped_ledger, write_ledger
    from moeplan.files.write import write_text

    table, left_out = without(read_runs(runs), model_error.ANOMALOUS_SOURCES)
    known = load_model_error()
    with progress("reading") as say:
        results = predict(table, known, say)
    groups = [group_of(table.kind, row) for row in table.frame.to_dict("records")]
    stated = f"{source}: {runs.name}, learnt {datetime.now(UTC).date().isoformat()}"
    learnt, summary = model_error.learn_all(results, groups, known, stated, serving=table.kind == "serving")
    target = out if out is not None else model_error_path()
    write_text(target, model_error_text(learnt))
    ledger = shipped_ledger() if out is None else out.with_suffix(".runs.csv")
    write_ledger(ledger, ledger_rows(table.kind, table.frame.to_dict("records"), f"intervals of {table.kind} runs"))
    if as_json:
        click.echo(json.dumps({"written": str(target), "learnt": summary}, indent=1))
    else:
        for line in summary:
            evidence = f"{line['n_runs']} runs of {line['n_groups']} groups"
            click.echo(
                f"{line['metric']} ({line['tier']}, {line['situation']}): {line['low']:+.3f} to {line['high']:+.3f} "
                f"from {evidence}; plain quantiles cover {line['cross_coverage']:.0%} of groups left out, so stretched "
                f"by {line['stretch']:g}"
            )
        for source_part, n in left_out.items():
            if n:
                why = model_error.ANOMALOUS_SOURCES[source_part]
                click.echo(f"nothing learnt from {n} runs of {source_part}: {why}")
        click.echo(f"wrote {target}")
    return 0
