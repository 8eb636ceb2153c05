"""``moeplan optimize``: the best layout within targets, budget and limits."""

from __future__ import annotations

from pathlib import Path

import click

from moeplan.cli.reporting import report_options, require_report, write_report

EXIT_INFEASIBLE = 3


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--by",
    type=click.Choice(["cost", "latency", "throughput_per_dollar", "time"]),
    help="What is best; default: the scenario's `optimize.by`, else cost.",
)
@click.option("--gpus", type=int, help="Most GPUs.")
@click.option("--hardware", metavar="A,B,...", help="Hardware to choose from.")
@click.option("--models", metavar="A,B,...", help="Models to choose from, equal in quality by your word.")
@click.option("--precision", metavar="A,B,...", help="Weight formats to choose from.")
@click.option("--offers", metavar="A,B,...", help="Offers to choose from; default: the price stated, or the catalog's.")
@click.option("--simulations", type=int, help="Most candidates simulated.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else there.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the best plan's JSON here.")
@report_options
def optimize(
    scenario: Path,
    by: str | None,
    gpus: int | None,
    hardware: str | None,
    models: str | None,
    precision: str | None,
    offers: str | None,
    simulations: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
    report: Path | None,
    figures: Path | None,
    out: Path | None,
) -> int:
    """Search the layouts of SCENARIO: parallel degrees, replicas, batch limits, formats, hardware and offers.

    The options are short for values of the scenario's `optimize` section, where all choices and limits are.
    Exit code 0: found; 2: bad input; 3: nothing meets every check (the least far off is shown).
    """
    from moeplan.cli.progress import progress_bar
    from moeplan.planner.search.optimize import optimize as run

    lists = {"hardware": hardware, "models": models, "precision": precision, "offers": offers}
    options = {"by": by, "gpus": gpus, "simulations": simulations}
    options |= {name: listed(text) for name, text in lists.items() if text is not None}
    asked = [f"optimize.{name}={value}" for name, value in options.items() if value is not None]
    require_report(report, figures)
    with progress_bar("simulating candidates") as told:
        found = run(scenario, [*overrides, *asked], progress=told)
    if out is not None and found.plan is not None:
        from moeplan.files.plan_json import plan_to_json
        from moeplan.files.write import write_text

        write_text(out, plan_to_json(found.plan))
    if report is not None or figures is not None:
        from moeplan.report.study_page import search_page

        write_report(lambda: search_page(found), report, figures)
    if as_json:
        from moeplan.files.result_json import to_json

        click.echo(to_json(found), nl=False)
    else:
        from moeplan.report.console import Console
        from moeplan.report.search import print_search

        print_search(found, Console())
    return 0 if found.best is not None else EXIT_INFEASIBLE


def listed(text: str) -> str:
    """``a,b`` as a list of the scenario language."""
    import json

    return json.dumps([part.strip() for part in text.split(",")], ensure_ascii=False)
