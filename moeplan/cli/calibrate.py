"""``moeplan calibrate``: fit efficiency parameters to measured tables; new fitted files, no profile is edited."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moeplan.calibrate.run import Calibration
    from moeplan.calibrate.transfer import Loan

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
@click.option("--relearn", is_flag=True, help="With a table of runs: learn the shipped intervals anew from them.")
@click.option("--json", "as_json", is_flag=True, help="Print what was fitted as JSON on stdout and nothing else there.")
def calibrate(
    tables: Path,
    devices: tuple[str, ...],
    ops: tuple[str, ...],
    out: Path | None,
    seed: int,
    source: str,
    relearn: bool,
    as_json: bool,
) -> int:
    """Fit the operation costs to TABLES_DIR, a folder of <hardware>/<op>.<engine>.parquet.

    Nothing is written when a table is bad. A device with a fit that does not converge keeps its old file (exit code 2).
    With a CSV table of your own serving or training runs (three or more of a hardware and engine): how far they move
    the shipped predictions, into a file that a scenario names under `calibration`. With a CSV table of published
    collectives: the networks between nodes.
    """
    if tables.suffix == ".csv":
        from moeplan.cli.calibrate_csv import calibrate_csv

        return calibrate_csv(tables, out, source, as_json, relearn=relearn)
    from datetime import UTC, datetime

    from moeplan.calibrate import run
    from moeplan.calibrate.tables import table_ops
    from moeplan.cli.progress import progress
    from moeplan.errors import input_error
    from moeplan.files.catalog.fitted import TRANSFER_FILE, read_transfer
    from moeplan.files.catalog.hardware_catalog import hardware_names, load_hardware
    from moeplan.files.locate import data_folder
    from moeplan.files.runs.op_tables import find_tables

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
    _show(found, loans, written, failed, as_json)
    return EXIT_NOT_CONVERGED if failed else 0


def _show(found: Calibration, loans: list[Loan], written: list[Path], failed: list[str], as_json: bool) -> None:
    """What was fitted, as a table or as JSON; what was not, on stderr."""
    import json

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
        from moeplan.report.calibration import print_calibration
        from moeplan.report.console import Console

        print_calibration(found, loans, written, Console())
    for text in failed:
        click.echo(f"not converged, old file kept: {text}", err=True)


def _check_names(option: str, names: Iterable[str], allowed: Collection[str]) -> None:
    """Raises InputError for a name that is not allowed."""
    from moeplan.errors import did_you_mean, input_error

    for name in names:
        if name not in allowed:
            raise input_error(option, "not known", got=name, hint=did_you_mean(name, allowed))
