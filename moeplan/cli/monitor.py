"""``moeplan monitor``: production's telemetry against a plan."""

from __future__ import annotations

from pathlib import Path

import click

EXIT_OUT_OF_PLAN = 3


@click.command()
@click.argument("plan", type=click.Path(path_type=Path), metavar="PLAN.json")
@click.argument("observed", type=click.Path(path_type=Path), metavar="OBSERVED")
@click.option(
    "--false-alarms",
    type=click.FloatRange(1e-9, 0.1),
    default=1e-4,
    show_default=True,
    help="Share of windows in which an unchanged system may raise an alarm.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout and nothing else there.")
def monitor(plan: Path, observed: Path, false_alarms: float, as_json: bool) -> int:
    """Is production where PLAN.json (moeplan simulate --out) said, and if not, why?

    OBSERVED is a CSV of windows (time, requests_per_s, ttft_ms, tpot_ms, ...), or metrics of vLLM or SGLang as
    Prometheus text or as JSON of a range query. Exit code 0: as planned, or better; 3: out of plan; 2: bad input.
    """
    import json
    from dataclasses import asdict

    from moeplan.errors import input_error
    from moeplan.files.plan_json import read_plan
    from moeplan.files.runs.imports.table import model_of
    from moeplan.files.runs.observed import read_observed
    from moeplan.planner.watch.monitor import monitor as compare
    from moeplan.planner.watch.monitor import planned_values

    promised = read_plan(plan)
    if promised.serving is None:
        raise input_error(plan, "the plan serves nothing: there is no production to compare it with")
    seen = read_observed(observed)
    model, planned = model_of(seen.model), promised.provenance.get("model")
    if model is not None and model != planned:
        raise input_error(observed, "telemetry of another model than the plan's", got=model, allowed=str(planned))
    report = compare(promised, seen, false_alarm_frac=false_alarms)
    if all(one.state == "unplanned" for one in report.watched):
        raise input_error(observed, "nothing in it that the plan states", allowed=", ".join(planned_values(promised)))
    if as_json:
        click.echo(json.dumps(asdict(report), indent=1))
    else:
        from moeplan.report.console import Console
        from moeplan.report.monitoring import print_report

        print_report(report, Console())
    return 0 if report.ok else EXIT_OUT_OF_PLAN
