"""Placement of experts: shapes, balance, copies, and a result worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.costs.placement import copies_of, packed, place, slot_share


def imbalance(placed, load):
    per_rank = slot_share(placed, load).sum(axis=1)
    return per_rank.max() / per_rank.mean()


def test_contiguous_and_round_robin():
    load = np.ones(8)
    np.testing.assert_array_equal(place("contiguous", load, 2), [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(place("round_robin", load, 2), [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_copies_go_to_the_largest_load_per_copy():
    np.testing.assert_array_equal(copies_of(np.array([8.0, 4.0, 1.0, 1.0]), 8), [4, 2, 1, 1])


def test_packing_is_largest_first():
    """7, 6, 5, 4 into two packs of two: {7, 4} and {6, 5}."""
    np.testing.assert_array_equal(packed(np.array([7.0, 6.0, 5.0, 4.0]), 2), [0, 1, 1, 0])


@given(
    st.sampled_from(["contiguous", "round_robin", "greedy", "hierarchical"]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 1000),
    st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_expert_has_a_slot(kind, n_ranks, n_nodes, seed, copies):
    load = np.random.default_rng(seed).lognormal(0.0, 1.0, 64)
    n_redundant = copies * n_ranks if kind in ("greedy", "hierarchical") else 0
    placed = place(kind, load, n_ranks, n_redundant=n_redundant, n_nodes=n_nodes, n_group=8)
    assert placed.shape == (n_ranks, (64 + n_redundant) // n_ranks)
    assert set(placed.ravel()) == set(range(64))
    assert slot_share(placed, load).sum() == pytest.approx(load.sum())


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_balancing_helps(seed):
    """Greedy is no worse than contiguous, copies no worse than none."""
    load = np.random.default_rng(seed).lognormal(0.0, 0.75, 256)
    plain = imbalance(place("contiguous", load, 32), load)
    greedy = imbalance(place("greedy", load, 32), load)
    copied = imbalance(place("greedy", load, 32, n_redundant=32), load)
    assert copied <= greedy + 1e-9 <= plain + 1e-9
    assert copied < 1.05


def test_hierarchical_keeps_groups_together():
    load = np.random.default_rng(1).lognormal(0.0, 0.75, 64)
    placed = place("hierarchical", load, 8, n_nodes=4, n_group=8)
    groups = [set(placed[2 * node : 2 * node + 2].ravel() // 8) for node in range(4)]
    assert all(len(g) == 2 for g in groups)


def test_uneven_slots_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        place("greedy", np.ones(10), 4)


def test_homeless_expert_is_refused():
    with pytest.raises(ValueError, match="expert 3 is placed nowhere"):
        slot_share(np.array([[0, 1], [2, 0]]), np.ones(4))
