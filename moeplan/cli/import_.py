"""``moeplan import``: results of other tools' serving benchmarks to a table of measured runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_TEXT = ("model", "hardware", "weight-precision", "engine", "engine-version", "licence", "measured-on")
_NUMBERS = (
    "n-gpus", "tp", "pp", "dp", "ep", "concurrency", "requests-per-s", "input-tokens", "output-tokens", "length-ratio",
)  # fmt: skip


def _stated(command: Any) -> Any:
    """Options for what a benchmark's file does not say."""
    for name in reversed(_NUMBERS):
        command = click.option(f"--{name}", type=click.FloatRange(min=0, min_open=True), metavar="N")(command)
    loads = click.Choice(["closed_loop", "poisson", "burst", "offline", "static"])
    command = click.option("--load", type=loads, help="How requests arrived.")(command)
    for name in reversed(_TEXT):
        command = click.option(f"--{name}", metavar="TEXT")(command)
    return command


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Table of runs to write (CSV)."
)
@click.option("--append", is_flag=True, help="Add to --out; runs it already has are left out.")
@click.option("--sidecar", type=click.Path(path_type=Path), help="YAML file with what the results do not say.")
@click.option("--json", "as_json", is_flag=True, help="Print what was read as JSON on stdout, nothing else.")
@_stated
def import_(
    files: tuple[Path, ...], out: Path, append: bool, sidecar: Path | None, as_json: bool, **stated: Any
) -> int:
    """Read results of vllm bench serve, sglang.bench_serving, AIPerf, GenAI-Perf, GuideLLM, llmperf or InferenceX.

    A file is recognised by its content; only numbers, a model's name, versions and a date are copied. What the files do
    not say (mostly the hardware and how many GPUs) comes from options or a sidecar file. Then: moeplan accuracy OUT.
    """
    import json

    from moeplan.errors import InputError, Problem
    from moeplan.files.runs.imports.row import setup_of
    from moeplan.files.runs.imports.sidecar import read_sidecar
    from moeplan.files.runs.imports.table import Imported, import_file
    from moeplan.files.runs.measured_runs import write_runs

    setup = setup_of(stated)
    if sidecar is not None:
        setup = setup.with_stated(read_sidecar(sidecar))
    found: list[Imported] = []
    problems: list[Problem] = []
    for path in files:
        try:
            found.append(import_file(path, setup))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    n_new, n_known = write_runs(out, [row for one in found for row in one.rows], append=append)
    if as_json:
        read = [{"file": str(one.path), "format": one.format, "runs": len(one.rows)} for one in found]
        click.echo(json.dumps({"written": str(out), "runs": n_new, "already_there": n_known, "read": read}, indent=1))
        return 0
    for one in found:
        click.echo(f"{one.path}: {one.format}, {len(one.rows)} run{'s' * (len(one.rows) != 1)}")
    click.echo(f"wrote {out}: {n_new} runs" + (f", {n_known} were there already" if n_known else ""))
    return 0
