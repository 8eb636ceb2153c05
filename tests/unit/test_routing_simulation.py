"""Routing over steps: both paths agree, placement helps, drift and balance do what they say, same seed same result."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from step_cases import moe

from moeplan.costs import routing as costs
from moeplan.kernels import routing as kernel
from moeplan.simulate.routing import RoutingStep, before_and_after, sample_counts, simulate_routing
from moeplan.spec.routing import Correlation, Popularity, RoutingAssumption

SKEWED = RoutingAssumption(0.0, "", Popularity("lognormal", 0.6))


def step(tokens_per_gpu=64, n_ranks=8, n_nodes=2, n_layers=4, **block):
    return RoutingStep("test", (moe(**block),) * n_layers, tokens_per_gpu, n_ranks, n_nodes, 1.0, 2.0)


@pytest.mark.parametrize("burst", [1, 8])
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_counts_agree_with_tokens(top_k, burst):
    """Mean, variance and maximum of loads, and of sums over a GPU's experts, drawn at once or token by token."""
    block, n, reps = moe(32, top_k), 4096, 400
    assumption = replace(SKEWED, correlation=Correlation(4 if burst > 1 else 1, 0.5, burst))
    choices = costs.layer_choices(block, assumption, 0)
    rng = np.random.default_rng(1)
    at_once = np.stack([sample_counts(n, choices.selected, burst, rng) for _ in range(reps)])
    one_by_one = np.zeros((reps, 32), np.int64)
    for i, row in enumerate(one_by_one):
        kernel.route(
            5, i, 0, n, top_k, kernel.PLAIN, choices.tables, choices.weights, burst, 0, 1, 1, 1.0, choices.hashed, 32,
            0, False, np.arange(33), np.zeros(32, np.int64), np.zeros(1, np.int64), row, np.zeros(32, np.int64),
            np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), np.zeros(kernel.N_SUMS, np.int64),
        )  # fmt: skip
    assert np.all(at_once.sum(axis=1) == n * top_k)
    error = one_by_one.std(axis=0) * np.sqrt(2.0 / reps)
    assert np.all(np.abs(at_once.mean(axis=0) - one_by_one.mean(axis=0)) < 4.5 * error + 0.5)
    ratio = at_once.reshape(reps, 4, 8).sum(axis=2).std(axis=0) / one_by_one.reshape(reps, 4, 8).sum(axis=2).std(axis=0)
    assert np.all(np.abs(np.log(ratio)) < 0.2)
    for statistic in (lambda c: c.max(axis=1), lambda c: c.reshape(reps, 4, 8).sum(axis=2).max(axis=1)):
        assert stats.ks_2samp(statistic(at_once), statistic(one_by_one)).pvalue > 1e-3


def test_one_choice_is_multinomial():
    p = np.array([[0.5, 0.3, 0.2]])
    rng = np.random.default_rng(0)
    counts = np.stack([sample_counts(1000, p, 1, rng) for _ in range(2000)])
    np.testing.assert_allclose(np.cov(counts.T)[0, 1], -1000 * 0.5 * 0.3, rtol=0.1)


@pytest.mark.parametrize("law", [Popularity("lognormal", 4.0), Popularity("zipf", 4.0), Popularity("dirichlet", 0.01)])
def test_counts_of_the_steepest_laws(law):
    """Experts that almost every token selects: rounding never leaves a negative variance, nor a pair over or short."""
    rng = np.random.default_rng(3)
    for layer in range(8):
        selected = costs.layer_choices(moe(64, 8), replace(SKEWED, popularity=law), layer).selected
        with np.errstate(invalid="raise"):
            counts = sample_counts(100_000, selected, 1, rng)
        assert counts.sum() == 800_000
        assert np.all((counts >= 0) & (counts <= 100_000))


def test_paths_are_stated_and_agree():
    """A step too large for tokens is drawn by counts; a smaller number of steps by tokens gives the same loads."""
    large = step(tokens_per_gpu=200_000, n_layers=12)
    found = simulate_routing(large, SKEWED, n_steps=2)
    assert found.path == "counts"
    assert found.n_layers == 12
    loads = costs.rank_loads(large.blocks[0], large.n_tokens, 8, SKEWED)
    assert found.straggler_over_mean.mean == pytest.approx(float(loads.assignments / loads.mean_assignments), rel=0.1)
    assert simulate_routing(step(), SKEWED, n_steps=2).path == "tokens"


def test_placement_before_and_after():
    routing = replace(SKEWED, placement="greedy", n_redundant_experts=16)
    before, after = before_and_after(step(tokens_per_gpu=512), routing, n_steps=10)
    assert after.straggler_over_mean.mean < 1.06 < before.straggler_over_mean.mean
    assert before.expert_max_over_mean == after.expert_max_over_mean  # the same tokens
    assert before.distinct_experts == after.distinct_experts


def test_memory_does_not_grow_with_the_steps():
    """128 GPUs, 4 layers: 36 more steps would keep 18 MB of traffic matrices."""

    def peak_bytes(n_steps):
        tracemalloc.start()
        simulate_routing(step(tokens_per_gpu=2, n_ranks=128, n_nodes=16, n_experts=128), SKEWED, n_steps=n_steps)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(4)  # what the first call keeps: popularities, tables
    assert peak_bytes(40) - peak_bytes(4) < 2_000_000


def test_same_seed_same_result():
    first, second = (simulate_routing(step(), SKEWED, n_steps=4) for _ in range(2))
    np.testing.assert_array_equal(first.traffic_tokens, second.traffic_tokens)
    assert first.straggler_pairs == second.straggler_pairs
    other = simulate_routing(step(), replace(SKEWED, seed=1), n_steps=4)
    assert other.straggler_pairs != first.straggler_pairs


def test_drift_wears_out_a_placement():
    drifting = replace(SKEWED, placement="greedy", drift_half_life_steps=6.0)
    work = step(tokens_per_gpu=512, n_ranks=16, n_nodes=1, n_layers=8)
    once = simulate_routing(work, drifting, n_steps=30)
    often = simulate_routing(work, replace(drifting, rebalance_steps=2), n_steps=30)
    still = simulate_routing(work, replace(drifting, drift_half_life_steps=None), n_steps=30)
    assert still.straggler_over_mean.mean < often.straggler_over_mean.mean < once.straggler_over_mean.mean


@pytest.mark.parametrize(("method", "rate"), [("aux_loss", 0.2), ("loss_free", 0.05)])
def test_balance_brings_experts_together(method, rate):
    work = step(tokens_per_gpu=2048)
    free = simulate_routing(work, SKEWED, n_steps=40)
    held = simulate_routing(work, replace(SKEWED, balance=method, balance_rate=rate), n_steps=40)
    assert held.expert_max_over_mean.p50 < 1.0 + 0.35 * (free.expert_max_over_mean.p50 - 1.0)


def test_drops_and_padding():
    dropping = simulate_routing(step(), replace(SKEWED, capacity_factor=1.0), n_steps=4)
    assert 0.05 < dropping.dropped_frac.mean < 0.6
    free = simulate_routing(step(), SKEWED, n_steps=4)
    assert free.dropped_frac.most == 0.0
    assert 0.0 < free.padding_frac.mean < 1.0


def test_bytes_of_uniform_routing():
    """One expert per token: 1/R of the tokens stay, the other GPUs of the node and the other node get theirs."""
    work = step(tokens_per_gpu=40_000, n_ranks=4, n_nodes=2, n_layers=1, n_experts=16, top_k=1)
    found = simulate_routing(work, RoutingAssumption(0.0, ""), n_steps=2)
    per_token = work.blocks[0].expert_hidden_size * 3.0
    assert found.inter_node_bytes_per_gpu.mean == pytest.approx(40_000 * 0.5 * per_token, rel=0.02)
    # a quarter to the neighbour, and a quarter that crossed over and is forwarded there
    assert found.intra_node_bytes_per_gpu.mean == pytest.approx(40_000 * 0.5 * per_token, rel=0.02)
    assert found.traffic_tokens.sum() == pytest.approx(work.n_tokens)


@pytest.mark.parametrize("router", ["expert_choice", "hash"])
def test_other_routers(router):
    routing = replace(SKEWED, router=router, n_token_ids=1000)
    found = simulate_routing(step(), routing, n_steps=3)
    assert found.straggler_over_mean.mean >= 1.0 - 1e-9
    if router == "expert_choice":
        assert found.expert_max_over_mean.most == pytest.approx(1.0)
