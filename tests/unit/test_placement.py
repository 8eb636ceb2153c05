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


LOADS = st.lists(st.floats(0.0, 1e6, allow_subnormal=False), min_size=32, max_size=32).map(np.array)


@given(LOADS, st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_greedy_levels_to_one_slot(load, n_ranks, copies):
    """No two GPUs differ by more than the largest load of a slot, so the busiest is at most that above the mean.

    Greedy is not optimal: for some loads another placement, or one with fewer copies, is better.
    """
    share = slot_share(place("greedy", load, n_ranks, n_redundant=copies * n_ranks), load)
    per_rank = share.sum(axis=1)
    largest = share.max()
    assert np.ptp(per_rank) <= largest * (1.0 + 1e-9)
    assert per_rank.max() <= per_rank.mean() + (1.0 - 1.0 / n_ranks) * largest * (1.0 + 1e-9)


@given(LOADS, st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_copies_make_the_largest_slot_as_small_as_can_be(load, n_redundant):
    """With slots of any smaller load than the largest of ours, the experts would need more slots than there are."""
    copies = copies_of(load, load.size + n_redundant)
    assert copies.min() >= 1
    assert copies.sum() == load.size + n_redundant
    largest = (load / copies).max()
    if largest > 0.0:
        needed = np.maximum(np.ceil(load / (largest * (1.0 - 1e-9))), 1.0)
        assert needed.sum() > copies.sum()


def test_balancing_helps_on_average():
    """Over 50 draws of popularity: greedy is far better than experts in order, and copies better still."""
    found = []
    for seed in range(50):
        load = np.random.default_rng(seed).lognormal(0.0, 0.75, 256)
        placed = (place("contiguous", load, 32), place("greedy", load, 32), place("greedy", load, 32, n_redundant=32))
        found.append([imbalance(p, load) for p in placed])
    plain, greedy, copied = np.mean(found, axis=0)
    assert plain - 1.0 > 5.0 * (greedy - 1.0) > 5.0 * (copied - 1.0)
    assert np.max(found, axis=0)[2] < 1.05


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
