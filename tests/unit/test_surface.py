"""Surfaces of what-ifs: the simulator's answers at the nodes, a measured bound between them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from moeplan.files.load import load
from moeplan.planner.answers.surface import Surface, interpolated, surface
from moeplan.planner.plan import simulate

ROOT = Path(__file__).parents[2]
SHORT = ["serving.traffic.requests=400"]


@cache
def found(*more: str) -> Surface:
    scenario = load(ROOT / "scenarios/quickstart.yaml", [*SHORT, *more])
    made = surface(scenario, simulate(scenario))
    assert made is not None
    return made


def value(made: Surface, name: str, **place: float) -> float:
    response = next(r for r in made.responses if r.name == name)
    got = interpolated(response, made.axes, {axis.name: axis.start for axis in made.axes} | place)
    assert got is not None
    return got


def test_nodes_are_what_a_plan_of_their_own_says() -> None:
    made = found()
    axis = next(a for a in made.axes if a.name == "work")
    rate = axis.nodes[2]
    plan = simulate(
        load(ROOT / "scenarios/quickstart.yaml",
             [*SHORT, f"serving.traffic.rate={rate!r} req/s", "serving.layout.replicas=2", "price=14 USD/h"])
    )  # fmt: skip
    place = {"work": rate, "size": 2.0, "price": 14.0}
    assert plan.serving is not None
    assert plan.serving.ttft_s is not None
    assert value(made, "ttft_s", **place) == pytest.approx(plan.serving.ttft_s.p90.value, rel=1e-9)
    assert plan.cost.usd_per_month is not None
    assert value(made, "usd_per_month", **place) == pytest.approx(plan.cost.usd_per_month.value, rel=1e-9)
    assert plan.cost.usd_per_million_output_tokens is not None
    assert value(made, "usd_per_million_output_tokens", **place) == pytest.approx(
        plan.cost.usd_per_million_output_tokens.value, rel=1e-9
    )


def test_rent_is_linear_in_price_and_months_also_between_nodes() -> None:
    made = found()
    assert value(made, "usd_per_month", price=5.0) == pytest.approx(5.0 * 730.0)
    assert value(made, "total_usd", price=5.0, months=30.0) == pytest.approx(30.0 * 5.0 * 730.0)
    assert value(made, "break_even_per_s", price=7.0) == pytest.approx(2.0 * value(made, "break_even_per_s"), rel=2e-3)


def test_bounds_are_measured_in_every_cell_and_small_far_from_saturation() -> None:
    made = found()
    cells = len(made.axes[0].nodes) - 1
    sizes = len(made.axes[1].nodes)
    for response in made.responses:
        assert len(response.error_frac) == cells * sizes
    latency = next(r for r in made.responses if r.name == "tpot_s")
    assert 0.0 < max(latency.error_frac[: 3 * sizes]) < 0.1
    assert made.n_held_out == cells * sizes


@pytest.mark.slow
def test_a_fleet_that_scales_itself_keeps_its_size() -> None:
    fleet = "serving.fleet={autoscaling: {min_replicas: 1, max_replicas: 3, in_flight: 6}}"
    assert found(fleet).axes[1].nodes == (1.0,)


@pytest.mark.slow
def test_training_moves_tokens_ranks_and_price() -> None:
    scenario = load(ROOT / "scenarios/own-moe-60k.yaml")
    plan = simulate(scenario)
    made = surface(scenario, plan)
    assert made is not None
    assert plan.cost.total_usd is not None
    assert value(made, "total_usd") == pytest.approx(plan.cost.total_usd.value, rel=1e-9)
    assert value(made, "wall_time_days", work=3e12) > 1.9 * value(made, "wall_time_days", work=1.5e12)
