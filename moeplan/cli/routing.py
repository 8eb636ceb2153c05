"""``moeplan routing``: expert load, stragglers, drops and traffic of a scenario, before and after placement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moeplan.simulate.routing import RoutingSimulation
    from moeplan.spec.scenario import Scenario

_ROWS = (
    ("straggler_over_mean", "busiest GPU over mean", 1.0),
    ("expert_max_over_mean", "fullest expert over mean", 1.0),
    ("straggler_pairs", "pairs of the busiest GPU, a layer", 1.0),
    ("distinct_experts", "experts touched, a layer", 1.0),
    ("distinct_on_straggler", "most experts touched on one GPU", 1.0),
    ("padding_frac", "padding [%]", 100.0),
    ("dropped_frac", "dropped pairs [%]", 100.0),
    ("lost_token_frac", "tokens without any expert [%]", 100.0),
    ("gpus_per_token", "GPUs a token goes to", 1.0),
    ("nodes_per_token", "nodes a token goes to", 1.0),
    ("intra_node_bytes_per_gpu", "most sent inside the node [MB]", 1e-6),
    ("inter_node_bytes_per_gpu", "most sent to other nodes [MB]", 1e-6),
)


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a scenario value; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else there.")
@click.option("--steps", type=click.IntRange(1, 100_000), help="Steps to simulate; default: as many as seconds allow.")
@click.option("--batch", type=click.IntRange(1, 1_000_000), help="Sequences a rank decodes; default: the most it may.")
def routing(scenario: Path, overrides: tuple[str, ...], as_json: bool, steps: int | None, batch: int | None) -> int:
    """Route the steps of SCENARIO through its experts, with experts in their own order and as placed."""
    from moeplan.cli.progress import progress
    from moeplan.errors import input_error
    from moeplan.files.load import load

    with progress("reading the scenario") as say:
        resolved = load(scenario, overrides)
        if not resolved.model.is_moe:
            raise input_error(scenario, f"{resolved.model.name} is dense: it routes nothing")
        from moeplan.simulate.routing import before_and_after
        from moeplan.simulate.routing_steps import scenario_steps

        pairs = []
        for step in scenario_steps(resolved, batch):
            say(f"routing {step.name} steps")
            law = resolved.training_routing if step.name.startswith("training") else resolved.routing
            pairs.append(before_and_after(step, law, n_steps=steps))
    if as_json:
        import json

        click.echo(json.dumps(_document(resolved, pairs), indent=2, allow_nan=False))
    else:
        _print(resolved, pairs)
    return 0


def _document(scenario: Scenario, pairs: list[tuple[RoutingSimulation, RoutingSimulation]]) -> dict[str, Any]:
    from moeplan import __version__

    return {
        "moeplan": __version__,
        "scenario": scenario.name,
        "seed": scenario.seed,
        "model": scenario.model.name,
        "assumption": scenario.routing.note,
        "steps": [{"name": b.name, "in_order": _plain(b), "placed": _plain(a)} for b, a in pairs],
    }


def _plain(found: RoutingSimulation) -> dict[str, Any]:
    from dataclasses import fields, is_dataclass

    out: dict[str, Any] = {}
    for f in fields(found):
        value = getattr(found, f.name)
        if is_dataclass(value):
            value = {g.name: getattr(value, g.name) for g in fields(value)}
        elif hasattr(value, "tolist"):
            value = value.tolist()
        out[f.name] = value
    return out


def _print(scenario: Scenario, pairs: list[tuple[RoutingSimulation, RoutingSimulation]]) -> None:
    from rich.table import Table

    from moeplan.errors import printable
    from moeplan.report.console import Console

    console = Console()
    console.print(f"{printable(scenario.name)}: routing of {scenario.model.name}", markup=False)
    console.print(f"popularity: {printable(scenario.routing.note, 400)}", markup=False)
    for before, after in pairs:
        console.print(
            f"\n{before.name}: {before.n_tokens} tokens on {before.n_ranks} GPUs of {before.n_nodes} nodes; "
            f"{before.n_steps} steps, {before.n_layers} layers, by {before.path}"
        )
        table = Table()
        table.add_column("over steps", no_wrap=True)
        for name in ("mean", "p99", *(("placed", "p99") if after is not before else ())):
            table.add_column(name, justify="right")
        for key, words, scale in _ROWS:
            b, a = getattr(before, key), getattr(after, key)
            shown = [b.mean, b.p99, *((a.mean, a.p99) if after is not before else ())]
            table.add_row(words, *(_shown(x * scale) for x in shown))
        console.print(table)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
