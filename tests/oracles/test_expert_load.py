"""Closed forms of expert load against sampling without replacement."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.costs.routing import (
    busiest_rank_assignments,
    expected_distinct,
    expected_max_load,
    selection_probabilities,
)

CASES = [(64, 8, 0.0), (64, 8, 0.5), (64, 8, 1.0), (128, 8, 1.5), (16, 2, 1.0), (256, 8, 0.3)]


def sampled_loads(n_experts, top_k, zipf, n_tokens, n_batches, seed=0):
    """Loads of Gumbel top-k draws, shape (n_batches, n_experts)."""
    rng = np.random.default_rng(seed)
    score = -zipf * np.log(np.arange(1, n_experts + 1))
    draws = score + rng.gumbel(size=(n_batches, n_tokens, n_experts))
    chosen = np.argpartition(-draws, top_k - 1, axis=2)[..., :top_k]
    return np.stack([np.bincount(batch.ravel(), minlength=n_experts) for batch in chosen])


@pytest.mark.parametrize(("n_experts", "top_k", "zipf"), CASES)
def test_selection_probabilities(n_experts, top_k, zipf):
    found = selection_probabilities(n_experts, float(top_k), zipf)
    assert found.sum() == pytest.approx(top_k)
    assert np.all(np.diff(found) <= 1e-12)
    assert found.max() <= 1.0
    loads = sampled_loads(n_experts, top_k, zipf, 400, 50).mean(axis=0) / 400
    assert np.abs(found - loads).max() < 0.03


@pytest.mark.parametrize(("n_experts", "top_k", "zipf"), CASES)
@pytest.mark.parametrize("n_tokens", [1, 4, 16, 64, 256])
def test_distinct_and_max_load(n_experts, top_k, zipf, n_tokens):
    p = selection_probabilities(n_experts, float(top_k), zipf)
    loads = sampled_loads(n_experts, top_k, zipf, n_tokens, 150)
    assert float(expected_distinct(n_tokens, p)) == pytest.approx((loads > 0).sum(axis=1).mean(), rel=0.05)
    most = loads.max(axis=1).mean()
    assert float(expected_max_load(n_tokens, p)) == pytest.approx(most, rel=0.2 if n_tokens >= 16 else 0.5)


def test_one_token_touches_its_top_k():
    p = selection_probabilities(64, 8.0, 0.0)
    assert float(expected_distinct(1, p)) == pytest.approx(8.0)
    assert float(expected_max_load(1, p)) == 1.0


@pytest.mark.parametrize(("n_experts", "top_k", "zipf"), [(64, 8, 0.0), (64, 8, 0.5), (256, 8, 0.3)])
@pytest.mark.parametrize("n_ranks", [2, 8])
def test_busiest_rank_under_random_placement(n_experts, top_k, zipf, n_ranks):
    rng = np.random.default_rng(1)
    loads = sampled_loads(n_experts, top_k, zipf, 256, 60)
    placed = [
        loads[:, rng.permutation(n_experts)].reshape(len(loads), n_ranks, -1).sum(axis=2).max(axis=1).mean()
        for _ in range(40)
    ]
    found = float(busiest_rank_assignments(256, selection_probabilities(n_experts, float(top_k), zipf), n_ranks))
    assert found == pytest.approx(np.mean(placed), rel=0.08)


def test_loads_are_conserved_on_one_rank():
    p = selection_probabilities(64, 8.0, 0.7)
    assert float(busiest_rank_assignments(100, p, 1)) == pytest.approx(800.0)


@pytest.mark.parametrize("top_k", [0.0, 65.0, -1.0])
def test_impossible_top_k_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k"):
        selection_probabilities(64, top_k, 0.0)
