"""``moeplan simulate``: one scenario in, one plan out."""

from __future__ import annotations

from pathlib import Path

import click

from moeplan.cli.reporting import report_of_plan, report_options, require_report

EXIT_INFEASIBLE = 3


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--strict-prices", is_flag=True, help="A price older than 90 days, or undated, is an error.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on stdout and nothing else there.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the plan's JSON to this file.")
@click.option("-v", "--verbose", is_flag=True, help="Also show the time breakdown and where the numbers come from.")
@report_options
@click.option("--card", type=click.Path(path_type=Path, dir_okay=False), help="Also write a plan card (Markdown).")
def simulate(
    scenario: Path,
    overrides: tuple[str, ...],
    strict_prices: bool,
    as_json: bool,
    out: Path | None,
    verbose: bool,
    report: Path | None,
    figures: Path | None,
    card: Path | None,
) -> int:
    """Turn SCENARIO into a plan.

    Exit code 0: a plan that passes every check; 2: bad input; 3: no feasible plan (the plan is printed all the same).
    """
    from moeplan.cli.progress import progress
    from moeplan.files.load import load, with_strict_prices

    require_report(report, figures)
    with progress("reading the scenario") as say:
        resolved = load(scenario, with_strict_prices(overrides, strict_prices))
        from moeplan.files.plan_json import plan_to_json
        from moeplan.planner.plan import simulate as make_plan

        plan = make_plan(resolved, progress=say)
        if not plan.feasible:
            from moeplan.planner.answers.next_step import with_next_step

            say("looking for what helps")
            plan = with_next_step(resolved, plan)
    text = plan_to_json(plan)
    if out is not None:
        from moeplan.files.write import write_text

        write_text(out, text)
    if card is not None:
        from moeplan.files.write import write_text
        from moeplan.planner.answers.exhibits import exhibits
        from moeplan.report.card import plan_card

        write_text(card, plan_card(resolved, plan, exhibits(resolved, plan)))
    report_of_plan(resolved, plan, report, figures)
    if as_json:
        click.echo(text, nl=False)
    else:
        from moeplan.report.console import Console
        from moeplan.report.terminal import print_plan

        print_plan(plan, Console(), verbose=verbose)
    return 0 if plan.feasible else EXIT_INFEASIBLE
