"""``moeplan check``: read and resolve a scenario, report every problem at once. Loads no numeric library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moeplan.errors import InputError
    from moeplan.spec.scenario import Scenario


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--strict-prices", is_flag=True, help="A price older than 90 days, or undated, is an error.")
@click.option("--show", is_flag=True, help="Print every resolved value with where it came from.")
@click.option("--json", "as_json", is_flag=True, help="Print values or problems as JSON on stdout.")
def check(scenario: Path, overrides: tuple[str, ...], strict_prices: bool, show: bool, as_json: bool) -> int:
    """Read SCENARIO, resolve every name and default, and report every problem with its file, line and column.

    Exit code 0: the scenario can be simulated; 2: it cannot.
    """
    from moeplan.errors import InputError
    from moeplan.files.load import load, with_strict_prices

    try:
        resolved = load(scenario, with_strict_prices(overrides, strict_prices), arrays=False)
    except InputError as error:
        if not as_json:
            raise
        _print_json(_problems(error))
        return error.exit_code
    if as_json:
        _print_json(_values(resolved))
        return 0
    if show:
        _show(resolved)
    click.echo(_summary(resolved))
    return 0


def _print_json(document: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def _problems(error: InputError) -> dict[str, Any]:
    from dataclasses import asdict

    return {"ok": False, "problems": [{**asdict(p), "text": str(p)} for p in error.problems]}


def _values(scenario: Scenario) -> dict[str, Any]:
    from dataclasses import asdict

    from moeplan.files.scenario.scenario_values import scenario_values

    values = {v.path: {"value": v.value, "origin": asdict(v.origin)} for v in scenario_values(scenario)}
    return {"ok": True, "scenario": scenario.name, "kind": scenario.kind, "problems": [], "values": values}


def _show(scenario: Scenario) -> None:
    from moeplan.errors import printable
    from moeplan.files.scenario.scenario_values import scenario_values

    found = scenario_values(scenario)
    width = max(len(v.path) for v in found)
    for v in found:
        text = f"{v.value:g}" if isinstance(v.value, float) else str(v.value)
        origin = f"{v.origin.how}: {v.origin.where}" + (f" ({v.origin.note})" if v.origin.note else "")
        click.echo(f"{v.path:<{width}}  {printable(text, 60):<24}  {printable(origin, 400)}")


def _summary(scenario: Scenario) -> str:
    """One line: what would be simulated."""
    from moeplan.errors import printable

    parts = [f"{scenario.kind} of {scenario.model.name}"]
    if scenario.serving is not None:
        engine = scenario.serving.engine.name
        parts.append(f"{scenario.serving.n_gpus} x {scenario.hardware.slug} under {engine}")
    if scenario.training is not None:
        hardware = scenario.training_hardware or scenario.hardware
        parts.append(f"{scenario.training.work.method} on {scenario.training.layout.n_gpus} x {hardware.slug}")
    offer = scenario.money.offer
    parts.append("bought hardware" if offer.term == "own" else f"{offer.usd_per_gpu_hour:.2f} USD per GPU hour")
    return f"ok: {printable(scenario.name)}: " + ", ".join(parts)
