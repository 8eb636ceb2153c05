"""Routing of a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from step_cases import BF16, engine, hardware, model, moe

from moeplan.planner.routing import routing_result
from moeplan.simulate.routing import RoutingStep
from moeplan.spec.layout import ServingLayout
from moeplan.spec.routing import Popularity, RoutingAssumption
from moeplan.steps.memory import serving_memory

SKEWED = RoutingAssumption(0.0, "", Popularity("lognormal", 0.5))


def step(tokens=64, n_ranks=8):
    return RoutingStep("decode", (moe(),) * 4, tokens, n_ranks, 1, 1.0, 2.0)


def test_percentiles_rise_and_intervals_hold_them():
    found = routing_result(step(2), SKEWED, exchanges=True, decoding=True)
    p = found.straggler_over_mean
    assert 1.0 <= p.p50.value <= p.p90.value <= p.p95.value <= p.p99.value
    for q in (p.mean, p.p99, found.imbalance_max_over_mean, found.distinct_experts_per_decode_step):
        assert q.low <= q.value <= q.high
        assert q.low < q.high
    assert found.dropped_frac.high == pytest.approx(0.0, abs=1e-9)
    assert found.path == "tokens"


def test_bytes_are_of_distinct_gpus():
    """Uniform top-8 on 8 GPUs: fewer copies than choices, more than one."""
    found = routing_result(step(512), RoutingAssumption(0.0, ""), exchanges=True, decoding=False)
    per_copy = 4 * moe().expert_hidden_size * 3.0
    assert found.all_to_all_bytes_per_token == pytest.approx(8 * (1 - (7 / 8) ** 8) * 7 / 8 * per_copy, rel=0.05)
    assert routing_result(step(), SKEWED, exchanges=False, decoding=False).all_to_all_bytes_per_token == 0.0
    assert found.distinct_experts_per_decode_step is None


def test_one_gpu_has_no_straggler():
    found = routing_result(step(n_ranks=1), SKEWED, exchanges=False, decoding=True)
    assert found.straggler_over_mean.p99.value == pytest.approx(1.0)


def test_copies_take_memory():
    """Eight copies over eight GPUs: one expert more on each, in every layer."""
    shape = model()
    fits = [
        serving_memory(
            shape,
            hardware(),
            ServingLayout(tp=8, ep=8),
            BF16,
            engine(),
            max_context_tokens=4096,
            routing=replace(SKEWED, placement="greedy", n_redundant_experts=n),
        )
        for n in (0, 8)
    ]
    more = fits[1].breakdown["weights_experts"] - fits[0].breakdown["weights_experts"]
    assert more == pytest.approx(2.0 * moe().n_params_per_expert * shape.n_layers)
