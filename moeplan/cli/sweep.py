"""``moeplan sweep``: many variants of one scenario."""

from __future__ import annotations

from pathlib import Path

import click

from moeplan.cli.reporting import report_options, require_report, write_report


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--vary",
    multiple=True,
    metavar="PATH=VALUES",
    help="What varies: PATH=A,B,C or PATH=LOW..HIGH[:N][:log]; repeatable.",
)
@click.option(
    "--design",
    type=click.Choice(["grid", "random", "lhs", "sobol"]),
    default="grid",
    show_default=True,
    help="Every combination, or --points samples: independent, Latin hypercube, Sobol sequence.",
)
@click.option("--points", type=int, help="Number of samples.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results as .csv or .parquet; the same command continues an interrupted sweep.",
)
@click.option("--jobs", type=int, help="Local processes; default: the processors, fewer for few points.")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Run on this Dask cluster (moeplan[cluster]).")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout and nothing else there.")
@report_options
def sweep(
    scenario: Path,
    vary: tuple[str, ...],
    design: str,
    points: int | None,
    overrides: tuple[str, ...],
    out: Path | None,
    jobs: int | None,
    scheduler: str | None,
    as_json: bool,
    report: Path | None,
    figures: Path | None,
) -> int:
    """Plan SCENARIO at many values.

    Exit code 0: done, failed points are rows with their error; 2: bad input, or no point could be planned.
    """
    from typing import cast

    from moeplan.cli.progress import progress_bar
    from moeplan.errors import input_error
    from moeplan.planner.search.design import Design
    from moeplan.planner.search.sweep import sweep as run

    if jobs is not None and scheduler is not None:
        raise input_error("--jobs", "the cluster of --scheduler has its own workers")
    require_report(report, figures)
    with progress_bar("planning") as told:
        found = run(
            scenario,
            vary,
            overrides=overrides,
            design=cast(Design, design),
            n_points=points,
            out=out,
            jobs=jobs,
            scheduler=scheduler,
            progress=told,
        )
    if report is not None or figures is not None:
        from moeplan.report.sweep_page import sweep_page

        write_report(lambda: sweep_page(found), report, figures)
    if as_json:
        from moeplan.files.result_json import to_json

        click.echo(to_json(found), nl=False)
    else:
        from moeplan.report.console import Console
        from moeplan.report.whatif import print_sweep

        print_sweep(found, Console(), out)
    return 2 if len(found.failed) == len(found.points) else 0
