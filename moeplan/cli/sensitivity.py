"""``moeplan sensitivity``: which assumption moves the answer most, and where a verdict flips."""

from __future__ import annotations

from pathlib import Path

import click

from moeplan.cli.reporting import report_options, require_report, write_report


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--of", metavar="PATH", help="Figure of the plan; default: cost per million tokens, or of the run.")
@click.option(
    "--vary",
    multiple=True,
    metavar="PATH=LOW..HIGH",
    help="A range to study; repeatable. Default: the scenario's main values, 30 % each way.",
)
@click.option(
    "--method",
    type=click.Choice(["tornado", "morris", "sobol"]),
    default="tornado",
    show_default=True,
    help="One at a time; elementary effects; variance-based indices.",
)
@click.option("--points", type=int, help="Trajectories of Morris (8), or base of the Sobol design (64).")
@click.option("--ablation/--no-ablation", default=True, show_default=True, help="Switch off parts of the model.")
@click.option("--break-even", multiple=True, metavar="PATH=LOW..HIGH", help="Find where the decision flips.")
@click.option("--check", metavar="NAME", help="The check whose flip is sought; default: all together.")
@click.option("--against", multiple=True, metavar="PATH=VALUE", help="Seek where this alternative becomes better.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--jobs", type=int, help="Local processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else there.")
@report_options
def sensitivity(
    scenario: Path,
    of: str | None,
    vary: tuple[str, ...],
    method: str,
    points: int | None,
    ablation: bool,
    break_even: tuple[str, ...],
    check: str | None,
    against: tuple[str, ...],
    overrides: tuple[str, ...],
    jobs: int | None,
    as_json: bool,
    report: Path | None,
    figures: Path | None,
) -> int:
    """Ask what the answer for SCENARIO hangs on.

    Beside values of the scenario, what_if.network_bandwidth, what_if.memory_bandwidth and what_if.arithmetic vary the
    machine, in multiples of its own.
    """
    from typing import cast

    from moeplan.cli.progress import progress_bar
    from moeplan.planner.search.sensitivity import Method
    from moeplan.planner.search.sensitivity import sensitivity as run

    require_report(report, figures)
    with progress_bar("planning") as told:
        found = run(
            scenario,
            vary,
            of=of,
            method=cast(Method, method),
            n_points=points,
            ablation=ablation,
            break_even=break_even,
            check=check,
            against=against,
            overrides=overrides,
            jobs=jobs,
            progress=told,
        )
    if report is not None or figures is not None:
        from moeplan.report.study_page import sensitivity_page

        write_report(lambda: sensitivity_page(found), report, figures)
    if as_json:
        from moeplan.files.result_json import to_json

        click.echo(to_json(found), nl=False)
    else:
        from moeplan.report.console import Console
        from moeplan.report.whatif import print_sensitivity

        print_sensitivity(found, Console())
    return 0
