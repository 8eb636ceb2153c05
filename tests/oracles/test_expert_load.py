"""Closed forms of expert load against routing token by token, layer by layer, with the same weights and placement."""

from __future__ import annotations

import numpy as np
import pytest
from routing_cases import route
from step_cases import moe

from moeplan.costs import routing
from moeplan.costs.choices import capacity_tokens
from moeplan.costs.placement import place
from moeplan.kernels import routing as kernel
from moeplan.spec.routing import Correlation, Popularity, RoutingAssumption

LAWS = {
    "uniform": RoutingAssumption(0.0, ""),
    "zipf": RoutingAssumption(0.7, ""),
    "lognormal": RoutingAssumption(0.0, "", Popularity("lognormal", 0.5)),
    "dirichlet": RoutingAssumption(0.0, "", Popularity("dirichlet", 4.0)),
    "balanced": RoutingAssumption(0.7, "", placement="greedy", n_redundant_experts=16),
    "topics": RoutingAssumption(0.3, "", correlation=Correlation(6, 1.0, 16)),
    "capacity": RoutingAssumption(0.7, "", capacity_factor=1.1),
}


def simulated(block, assumption, n_tokens, n_ranks, n_steps):
    """Mean over layers and steps: pairs and distinct experts of the busiest rank, fullest expert, kept share."""
    found = []
    for layer in range(routing.n_layers_averaged(assumption)):
        choices = routing.layer_choices(block, assumption, layer)
        placed = place(
            assumption.placement,
            choices.selected.mean(axis=0),
            n_ranks,
            n_redundant=assumption.n_redundant_experts,
        )
        slots = np.sort(placed.ravel())
        rank_of = np.repeat(np.arange(n_ranks), placed.shape[1])[np.argsort(placed.ravel(), kind="stable")]
        capacity = 0
        if assumption.capacity_factor:
            capacity = capacity_tokens(n_tokens / n_ranks, block, assumption.capacity_factor)
        for step in range(n_steps):
            one = route(
                choices.weights, n_tokens // n_ranks, block.top_k, method=choices.method, n_sources=n_ranks,
                n_ranks=n_ranks, slot_expert=slots, step=step, layer=layer, capacity=capacity,
                burst=assumption.correlation.burst_tokens,
            )  # fmt: skip
            load = np.bincount(rank_of, one.slot_counts, n_ranks)
            distinct = np.bincount(rank_of, one.slot_counts > 0, n_ranks)
            kept = one.slot_counts.sum() / one.sums[kernel.N_PAIRS]
            found.append((load.max(), distinct.max(), one.slot_counts.max(), kept))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("n_tokens", "n_steps"), [(16, 60), (128, 30), (4096, 8)])
def test_busiest_rank(law, n_tokens, n_steps):
    """Straggler over 8 GPUs: pairs, distinct experts, fullest expert, drops."""
    block, assumption, n_ranks = moe(64, 6), LAWS[law], 8
    loads = routing.rank_loads(block, n_tokens, n_ranks, assumption)
    pairs, distinct, fullest, kept = simulated(block, assumption, n_tokens, n_ranks, n_steps)
    rel = 0.06 if n_tokens > 16 else 0.12
    assert float(loads.assignments) == pytest.approx(pairs, rel=rel)
    assert float(loads.distinct) == pytest.approx(distinct, rel=rel)
    assert float(loads.max_load) == pytest.approx(fullest, rel=2.0 * rel)
    if n_tokens > 16:
        assert float(loads.kept_frac) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("n_tokens", [1, 8, 64, 1000])
def test_distinct_experts_are_exact(exponent, n_tokens):
    """One GPU: the mean over steps lies within four standard errors of the closed form."""
    block, assumption = moe(64, 8), RoutingAssumption(exponent, "")
    found = []
    n_layers = routing.n_layers_averaged(assumption)
    for layer in range(n_layers):
        weights = routing.layer_choices(block, assumption, layer).weights
        found += [np.count_nonzero(route(weights, n_tokens, 8, step=s, layer=layer).counts) for s in range(100)]
    expected = float(routing.rank_loads(block, n_tokens, 1, assumption).distinct)
    assert abs(np.mean(found) - expected) <= 4.0 * np.std(found) / np.sqrt(len(found)) + 1e-4


def test_one_token_touches_its_top_k():
    loads = routing.rank_loads(moe(64, 8), 1, 1, LAWS["uniform"])
    assert float(loads.distinct) == pytest.approx(8.0)
    assert float(loads.max_load) == pytest.approx(1.0)
    assert float(loads.assignments) == pytest.approx(8.0)


def test_loads_are_conserved_on_one_rank():
    assert float(routing.rank_loads(moe(), 100, 1, LAWS["zipf"]).assignments) == pytest.approx(800.0)


def test_expert_choice_is_balanced():
    loads = routing.rank_loads(moe(64, 8), 512, 8, RoutingAssumption(1.0, "", router="expert_choice"))
    assert float(loads.assignments) == pytest.approx(512.0)
    assert float(loads.mean_assignments) == pytest.approx(512.0)


def test_skew_factor():
    """No skew is uniform; more skew never lowers the straggler."""
    block = moe(64, 8)
    for law in ("zipf", "lognormal", "dirichlet"):
        by_skew = [
            float(routing.rank_loads(block, 4096, 8, LAWS[law].with_skew(f)).assignments) for f in (0.0, 0.5, 1.0, 2.0)
        ]
        assert by_skew[0] == pytest.approx(float(routing.rank_loads(block, 4096, 8, LAWS["uniform"]).assignments))
        assert np.all(np.diff(by_skew) > 0.0)


def test_many_token_counts_are_interpolated():
    """Within 1 % of asking for each count alone."""
    block, tokens = moe(64, 8), np.geomspace(1, 8192, 40)
    together = routing.rank_loads(block, tokens, 8, LAWS["zipf"])
    for i in (3, 17, 31):
        alone = routing.rank_loads(block, tokens[i], 8, LAWS["zipf"])
        assert together.assignments[i] == pytest.approx(float(alone.assignments), rel=0.01)
        assert together.distinct[i] == pytest.approx(float(alone.distinct), rel=0.01)
