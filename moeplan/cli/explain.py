"""``moeplan explain``: the whole chain behind one number of a plan."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.argument("path")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the chain as JSON on stdout and nothing else there.")
def explain(scenario: Path, path: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Show how the number at PATH of SCENARIO's plan comes about: formula, inputs, sources, uncertainty.

    PATH is a place in the plan's JSON, for example cost.usd_per_million_output_tokens or serving.ttft_s.p90.
    """
    from moeplan.cli.progress import progress
    from moeplan.files.load import load

    with progress("reading the scenario") as say:
        resolved = load(scenario, overrides)
        from moeplan.planner.answers.explain import Explainer

        say("planning")
        explainer = Explainer(resolved)
        say("simulating every source of error alone")
        found = explainer.explain(path)
    if as_json:
        from moeplan.files.result_json import to_json

        click.echo(to_json(found), nl=False)
    else:
        from moeplan.report.console import Console
        from moeplan.report.explain import print_explained

        print_explained(found, Console())
    return 0
