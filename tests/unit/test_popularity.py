"""Popularity over a long run: drift, controllers, re-placements, in simulated steps and in the closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from step_cases import moe

from moeplan.costs.popularity import Course, long_run
from moeplan.costs.routing import rank_loads
from moeplan.kernels.inclusion import inclusion_probabilities
from moeplan.simulate.routing import RoutingStep, simulate_routing
from moeplan.spec.routing import Popularity, RoutingAssumption

SKEWED = RoutingAssumption(0.0, "", Popularity("lognormal", 0.6))
GREEDY = replace(SKEWED, placement="greedy", n_redundant_experts=8)


def straggler(routing, n_tokens=16_384, n_ranks=8):
    loads = rank_loads(moe(64, 8), n_tokens, n_ranks, routing)
    return float(loads.assignments / loads.mean_assignments)


def correlation_of_logs(a, b):
    return np.corrcoef(np.log(a), np.log(b))[0, 1]


def test_half_life():
    """After one half-life the logs correlate by one half; their spread stays what the law says."""
    drifting = replace(SKEWED, drift_half_life_steps=1000.0)
    found, spread = [], []
    for layer in range(40):
        course = Course(moe(256, 8), drifting, layer)
        before = course.weights
        course.advance(1000)
        found.append(correlation_of_logs(before, course.weights))
        spread.append(np.log(course.weights).std())
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    assert np.mean(spread) == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("pieces", [1, 7, 300])
@pytest.mark.parametrize("every", [1, 10, 137])
def test_placements_come_when_due(every, pieces):
    """However the steps are cut up, experts are placed at whole multiples of the interval."""
    course = Course(moe(64, 8), replace(GREEDY, drift_half_life_steps=50.0, rebalance_steps=every), 0)
    steps = np.diff(np.linspace(0, 300, pieces + 1).round().astype(int))
    when = np.cumsum(steps)[[course.advance(int(n)) for n in steps]]
    due = np.unique(np.searchsorted(np.cumsum(steps), np.arange(every, 301, every)))
    np.testing.assert_array_equal(when, np.cumsum(steps)[due])


def test_expected_load_is_near_the_exact_one():
    for law in (Popularity("lognormal", 0.6), Popularity("zipf", 1.0), Popularity("uniform")):
        course = Course(moe(64, 8), replace(SKEWED, popularity=law, drift_half_life_steps=10.0), 0)
        exact = inclusion_probabilities(course.weights, 8)
        assert course.expected_load().sum() == pytest.approx(8.0)
        np.testing.assert_allclose(course.expected_load(), exact, rtol=0.08)


def test_drift_wears_a_placement_out_and_rebalancing_renews_it():
    """Step times see it: fresh < often renewed < seldom renewed < placed once, which is no better than in order."""
    assert straggler(replace(SKEWED, drift_half_life_steps=1000.0)) == straggler(SKEWED)  # in order: nothing to wear
    still = straggler(GREEDY)
    drifting = replace(GREEDY, drift_half_life_steps=1000.0)
    by_interval = [straggler(replace(drifting, rebalance_steps=n)) for n in (10, 300, 3000)]
    once, in_order = straggler(drifting), straggler(drifting.in_order())
    assert still < by_interval[0] < by_interval[1] < by_interval[2] < once
    assert by_interval[0] < 1.15
    assert once > 0.85 * in_order


@pytest.mark.parametrize("every", [100, 2000])
def test_closed_form_and_simulation_see_the_same_run(every):
    routing = replace(GREEDY, drift_half_life_steps=1000.0, rebalance_steps=every)
    step = RoutingStep("test", (moe(64, 8),) * 8, 512, 8, 1, 1.0, 2.0)
    found = simulate_routing(step, routing, n_steps=40).straggler_over_mean.mean
    assert straggler(routing, 4096) - 1.0 == pytest.approx(found - 1.0, rel=0.25)


@pytest.mark.parametrize(("method", "rate"), [("aux_loss", 1e-3), ("loss_free", 1e-3), ("aux_loss", 0.2)])
def test_a_controller_levels_a_long_run(method, rate):
    held = replace(SKEWED, balance=method, balance_rate=rate)
    assert straggler(held) < 1.0 + 0.2 * (straggler(SKEWED) - 1.0)
    drifting = replace(held, drift_half_life_steps=100.0)  # too fast for a rate of 0.001
    assert straggler(held) < straggler(drifting)


def test_nothing_wanders_without_being_told():
    assert len(long_run(moe(), SKEWED, 0)) == 1
    uniform = RoutingAssumption(0.0, "", drift_half_life_steps=10.0)
    assert straggler(uniform) == straggler(RoutingAssumption(0.0, ""))
