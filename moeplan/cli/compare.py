"""``moeplan compare``: the same work on several hardware, prices or models, ranked."""

from __future__ import annotations

from pathlib import Path

import click

from moeplan.cli.reporting import report_options, require_report, write_report

EXIT_INFEASIBLE = 3


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--hardware", metavar="A,B,...", help="Hardware to compare.")
@click.option("--price", "prices", metavar="A,B,...", help="Offers or prices to compare.")
@click.option("--model", "models", metavar="A,B,...", help="Models to compare, equal in quality by your word.")
@click.option(
    "--by",
    type=click.Choice(["cost", "latency", "throughput_per_dollar", "time"]),
    default="cost",
    show_default=True,
    help="What the ranking is by.",
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else there.")
@report_options
def compare(
    scenario: Path,
    hardware: str | None,
    prices: str | None,
    models: str | None,
    by: str,
    overrides: tuple[str, ...],
    as_json: bool,
    report: Path | None,
    figures: Path | None,
) -> int:
    """Do the work of SCENARIO in several ways, each with its own best layout, and rank them.

    Without options the scenario's `variants` are compared. Exit code 0: at least one way meets every check; 2: bad
    input; 3: none does.
    """
    from moeplan.cli.progress import progress
    from moeplan.planner.search.compare import compare as run

    def names(text: str | None) -> list[str]:
        return [] if text is None else [part.strip() for part in text.split(",")]

    require_report(report, figures)
    with progress("reading the scenario") as say:
        found = run(
            scenario,
            hardware=names(hardware),
            prices=names(prices),
            models=names(models),
            by=by,
            overrides=overrides,
            progress=say,
        )
    if report is not None or figures is not None:
        from moeplan.report.study_page import compared_page

        write_report(lambda: compared_page(found), report, figures)
    if as_json:
        from moeplan.files.result_json import to_json

        click.echo(to_json(found), nl=False)
    else:
        from moeplan.report.console import Console
        from moeplan.report.search import print_compared

        print_compared(found, Console())
    return 0 if any(entry.feasible for entry in found.entries) else EXIT_INFEASIBLE
