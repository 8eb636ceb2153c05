"""Conservation laws of routing, for any shape."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_cases import route, zipf

from moeplan.kernels import routing
from moeplan.kernels.inclusion import inclusion_probabilities


@st.composite
def shapes(draw):
    n_ranks = draw(st.sampled_from([1, 2, 4]))
    n_experts = n_ranks * draw(st.sampled_from([2, 4, 8]))
    method = draw(st.sampled_from([routing.PLAIN, routing.TIMED]))
    return {
        "weights": zipf(n_experts, draw(st.floats(0.0, 5.0))),
        "n_tokens": draw(st.integers(0, 70)),
        "top_k": draw(st.integers(1, min(n_experts, 8))),
        "method": method,
        "capacity": draw(st.sampled_from([0, 1, 3, 20])),
        "by_priority": method == routing.TIMED and draw(st.booleans()),
        "n_sources": draw(st.sampled_from([1, 2, 4])),
        "n_ranks": n_ranks,
        "n_nodes": draw(st.sampled_from([1, n_ranks])),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


@given(shapes())
@settings(max_examples=150, deadline=None)
def test_conservation(shape):
    """Selected = tokens x k; kept = selected - dropped = computed; capacities hold; copies are what was sent."""
    found = route(**shape)
    n = shape["n_tokens"] * shape["n_sources"]
    sums, capacity = found.sums, shape["capacity"]
    assert sums[routing.N_PAIRS] == found.counts.sum() == n * shape["top_k"]
    assert found.slot_counts.sum() == sums[routing.N_PAIRS] - sums[routing.N_DROPPED]
    assert np.all(found.counts <= n)
    if capacity:
        assert np.all(found.slot_counts <= capacity * shape["n_sources"])
    else:
        assert sums[routing.N_DROPPED] == sums[routing.N_LOST_TOKENS] == 0
    assert found.traffic.sum() == sums[routing.N_COPIES] <= found.slot_counts.sum()
    assert found.node_traffic.sum() == sums[routing.N_NODE_COPIES] <= sums[routing.N_COPIES]
    assert np.all(found.traffic <= shape["n_tokens"])
    assert sums[routing.N_LOST_TOKENS] + found.node_traffic.sum(axis=1).clip(0, shape["n_tokens"]).sum() >= n - 1e-9


@given(shapes())
@settings(max_examples=25, deadline=None)
def test_same_seed_same_counts(shape):
    first, second = route(**shape), route(**shape)
    np.testing.assert_array_equal(first.traffic, second.traffic)
    np.testing.assert_array_equal(first.slot_counts, second.slot_counts)


@given(st.integers(1, 8), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_zero_weight_is_never_chosen(top_k, seed):
    weights = np.zeros(32)
    weights[::4] = 1 / 8
    assert not np.any(route(weights, 200, top_k, seed=seed).counts[weights == 0.0])


@given(st.sampled_from([1, 4]), st.integers(0, 50), st.integers(1, 3), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_copies_are_used_in_turn(n_ranks, n_tokens, n_sources, seed):
    slots = np.sort(np.append(np.arange(8), [0, 0, 0, 3]))
    found = route(zipf(8, 1.0), n_tokens, 2, slot_expert=slots, n_ranks=n_ranks, n_sources=n_sources, seed=seed)
    for expert in range(8):
        share = found.slot_counts[slots == expert]
        assert share.sum() == found.counts[expert]
        assert np.ptp(share) <= 1


def test_threads_do_not_matter():
    weights = zipf(64, 1.0)
    alone = [route(weights, 500, 8, layer=layer).counts for layer in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda layer: route(weights, 500, 8, layer=layer).counts, range(16)))
    np.testing.assert_array_equal(alone, together)


STREAMING = """
import resource
import sys

import numpy as np
from routing_cases import route, zipf

from moeplan.kernels import routing


def peak_kib_after(n):
    weights, hashed = zipf(64, 1.0), np.tile([0, 1], (64, 1))
    route(weights, n, 4)
    route(weights, n, 4, n_sources=2, n_ranks=4, n_nodes=2)
    route(weights, n, 4, method=routing.TIMED, n_group=8, topk_group=3)
    route(weights, n, 4, method=routing.TIMED, capacity=n // 20, by_priority=True)
    route(weights, n, 4, method=routing.EXPERT_CHOICE, capacity=n // 16)
    route(weights, n, 2, method=routing.HASH, hashed=hashed, n_real=64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


few, many = peak_kib_after(1_000), peak_kib_after(1_000_000)
sys.exit(f"{many - few} KiB more") if many - few > 512 else None
"""


def test_memory_does_not_grow_with_the_tokens():
    """Every router and path in a process of its own: one byte a token of any of them would be a thousand KiB."""
    tests = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {tests!r})\n{STREAMING}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(st.integers(2, 40), st.floats(0.0, 4.0), st.data())
@settings(max_examples=60, deadline=None)
def test_inclusion_probabilities(n_experts, exponent, data):
    """They add up to k, lie in [0, 1], and grow with the weight."""
    top_k = data.draw(st.integers(1, n_experts))
    p = inclusion_probabilities(np.arange(1.0, n_experts + 1) ** -exponent, top_k)
    assert abs(p.sum() - top_k) < 1e-9
    assert np.all((p > 0.0) & (p <= 1.0 + 1e-9))
    assert np.all(np.diff(p) <= 1e-9)


@given(st.integers(1, 300), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_alias_table_holds_the_weights(n, seed):
    """What the table's columns give each entry adds up to its weight, to 32 bits."""
    weights = np.random.default_rng(seed).lognormal(0.0, 2.0, n)
    weights[0] = 0.0 if n > 1 else 1.0
    weights /= weights.sum()
    table = routing.alias_table(weights)
    own = (table >> np.uint64(32)).astype(float) / 2**32
    got = own / n
    np.add.at(got, (table & np.uint64(0xFFFFFFFF)).astype(int), (1.0 - own) / n)
    np.testing.assert_allclose(got, weights, atol=2e-9)
