"""The routing kernel draws the stated law: against closed forms, and against plain numpy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from routing_cases import route, zipf
from routing_twin import chosen_by_experts, copies, grouped_top_k, gumbel_top_k, kept_under_capacity
from scipy import stats

from moeplan.kernels import routing
from moeplan.kernels.inclusion import inclusion_probabilities

WEIGHTS = {"uniform": zipf(64, 0.0), "zipf": zipf(64, 1.0), "steep": zipf(64, 3.0), "eight": zipf(8, 0.7)}


def chi_square_p(counts, expected):
    """p-value that ``counts`` have the expectation ``expected``; rare classes pooled."""
    order = np.argsort(expected)
    pooled_c, pooled_e, c, e = [], [], 0.0, 0.0
    for i in order:
        c, e = c + counts[i], e + expected[i]
        if e >= 20.0:
            pooled_c.append(c)
            pooled_e.append(e)
            c = e = 0.0
    pooled_c[-1] += c
    pooled_e[-1] += e
    return stats.chisquare(pooled_c, pooled_e, sum_check=False).pvalue


def two_sample_p(a, b):
    keep = a + b > 20
    table = np.array([np.append(a[keep], a[~keep].sum()), np.append(b[keep], b[~keep].sum())])
    return stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue


def same_law_p(ours, plain):
    """p-value that two samples of a count come from one law; KS needs a continuous one, hence the jitter."""
    jitter = np.random.default_rng(9)
    return stats.ks_2samp(*(np.asarray(x) + jitter.random(len(x)) for x in (ours, plain))).pvalue


@pytest.mark.parametrize("name", WEIGHTS)
def test_first_choice_is_the_weight(name):
    weights, n = WEIGHTS[name], 200_000
    assert chi_square_p(route(weights, n, 1).counts, n * weights) > 1e-3


def test_ordered_pairs_follow_plackett_luce():
    """k = 3 of 5: every subset's frequency against the sum over its orders of the product formula."""
    weights, n = np.array([0.4, 0.3, 0.2, 0.08, 0.02]), 20_000
    expected = {}
    for order in permutations(range(5), 3):
        p, rest = 1.0, 1.0
        for e in order:
            p, rest = p * weights[e] / rest, rest - weights[e]
        expected[frozenset(order)] = expected.get(frozenset(order), 0.0) + p
    seen = dict.fromkeys(expected, 0)
    for layer in range(n):
        seen[frozenset(np.flatnonzero(route(weights, 1, 3, layer=layer).counts))] += 1
    assert chi_square_p(np.array(list(seen.values())), n * np.array(list(expected.values()))) > 1e-3


@pytest.mark.parametrize(("method", "n_ranks"), [(routing.PLAIN, 1), (routing.PLAIN, 2), (routing.TIMED, 1)])
@pytest.mark.parametrize(("name", "top_k"), [("uniform", 8), ("zipf", 8), ("steep", 8), ("eight", 2), ("eight", 8)])
def test_marginal_loads(name, top_k, method, n_ranks):
    """Loads over tokens against the exact inclusion probabilities: variance of each count is n p (1 - p).

    On one rank the kernel draws a block of choices ahead, on several token by token.
    """
    weights, n = WEIGHTS[name], 100_000
    p = inclusion_probabilities(weights, top_k)
    counts = route(weights, n, top_k, method=method, n_ranks=n_ranks, seed=5).counts
    assert counts.sum() == n * top_k
    sure = n * p * (1.0 - p) < 10.0
    assert np.all(np.abs(counts - n * p)[sure] < 30.0)
    z = ((counts - n * p) / np.sqrt(np.maximum(n * p * (1.0 - p), 1.0)))[~sure]
    if z.size:
        assert stats.chi2.sf((z**2).sum(), z.size) > 1e-3


def test_inclusion_probability_of_two():
    """k = 2 has a short closed form: w_i + sum_j w_j w_i / (1 - w_j)."""
    w = WEIGHTS["eight"]
    exact = np.array([w[i] + sum(w[j] * w[i] / (1.0 - w[j]) for j in range(8) if j != i) for i in range(8)])
    np.testing.assert_allclose(inclusion_probabilities(w, 2), exact, rtol=1e-9)


@pytest.mark.parametrize(("rule", "n_best"), [(routing.GROUP_MAX, 1), (routing.GROUP_TOP_TWO, 2)])
@pytest.mark.parametrize("name", ["uniform", "zipf"])
def test_group_limited(rule, n_best, name):
    """Node-limited routing against sorting all scores."""
    weights, n = WEIGHTS[name], 30_000
    rng = np.random.default_rng(3)
    chosen = grouped_top_k(weights, n, 6, 8, 3, 4.0, n_best, rng)
    plain = np.bincount(chosen.ravel(), minlength=64)
    found = route(
        weights, n, 6, method=routing.TIMED, rule=rule, n_group=8, topk_group=3, scale=4.0, n_ranks=8, n_nodes=4, seed=2
    )
    assert two_sample_p(found.counts, plain) > 1e-3
    ranks, nodes = copies(chosen, np.arange(64) // 8, np.arange(8) // 2)
    assert found.sums[routing.N_COPIES] / n == pytest.approx(ranks, rel=0.01)
    assert found.sums[routing.N_NODE_COPIES] / n == pytest.approx(nodes, rel=0.01)


def test_distinct_experts_of_a_step():
    """Distribution of distinct experts over steps: mean against the closed form, shape against plain numpy (KS)."""
    weights, n, steps = WEIGHTS["zipf"], 24, 600
    p = inclusion_probabilities(weights, 4)
    ours = [np.count_nonzero(route(weights, n, 4, step=s).counts) for s in range(steps)]
    rng = np.random.default_rng(8)
    plain = [len(np.unique(gumbel_top_k(weights, n, 4, rng))) for _ in range(steps)]
    assert np.mean(ours) == pytest.approx((1.0 - (1.0 - p) ** n).sum(), abs=4.0 * np.std(ours) / np.sqrt(steps))
    assert same_law_p(ours, plain) > 1e-3


@pytest.mark.parametrize("by_priority", [False, True])
def test_drops(by_priority):
    """Dropped pairs are those above the capacity; how many, which tokens lose all and how many GPUs a token still
    goes to have the law of the plain routing (KS over steps).
    """
    weights, n, capacity, steps = WEIGHTS["zipf"], 200, 20, 300
    found = [
        route(
            weights,
            n,
            3,
            method=routing.TIMED,
            capacity=capacity,
            by_priority=by_priority,
            n_ranks=8,
            n_nodes=2,
            step=s,
        )
        for s in range(steps)
    ]
    for one in found:
        np.testing.assert_array_equal(one.slot_counts, np.minimum(one.counts, capacity))
        assert one.sums[routing.N_DROPPED] == np.maximum(one.counts - capacity, 0).sum()
    rng = np.random.default_rng(1)
    plain = [kept_under_capacity(weights, n, 3, capacity, by_priority, rng) for _ in range(steps)]
    expected = {
        routing.N_DROPPED: [3 * n - kept.sum() for kept in plain],
        routing.N_LOST_TOKENS: [(~kept.any(axis=1)).sum() for kept in plain],
        routing.N_COPIES: [kept.reshape(n, 8, 8).any(axis=2).sum() for kept in plain],
        routing.N_NODE_COPIES: [kept.reshape(n, 2, 32).any(axis=2).sum() for kept in plain],
    }
    for what, theirs in expected.items():
        assert same_law_p([one.sums[what] for one in found], theirs) > 1e-3


def test_priority_keeps_more_first_choices():
    """Dropping the lowest scores leaves fewer tokens without any expert than dropping the last to come."""
    lost = [
        route(WEIGHTS["zipf"], 4_000, 2, method=routing.TIMED, capacity=90, by_priority=by).sums[routing.N_LOST_TOKENS]
        for by in (False, True)
    ]
    assert 0 < lost[1] < lost[0]


def test_random_logits_drop_rates():
    """Top-1 of 64 experts, 32768 tokens: overflow over capacity against the exact binomial expectation."""
    n, experts = 32_768, 64
    for factor in (0.9, 1.0, 1.05):
        capacity = int(np.ceil(factor * n / experts))
        loads = np.arange(n + 1)
        pmf = stats.binom.pmf(loads, n, 1.0 / experts)
        expected = experts * (np.maximum(loads - capacity, 0) * pmf).sum() / n
        dropped = [route(zipf(64, 0.0), n, 1, capacity=capacity, step=s).sums[routing.N_DROPPED] / n for s in range(20)]
        assert np.mean(dropped) == pytest.approx(expected, abs=5.0 * np.std(dropped) / np.sqrt(20) + 1e-4)


def test_expert_choice():
    """Every expert takes exactly its share; tokens that none takes and copies per token have the plain law (KS)."""
    n, experts, capacity, steps = 100, 16, 12, 400
    found = [
        route(zipf(experts, 1.0), n, 2, method=routing.EXPERT_CHOICE, capacity=capacity, n_ranks=4, step=s)
        for s in range(steps)
    ]
    assert all(np.all(one.counts == capacity) for one in found)
    rng = np.random.default_rng(2)
    plain = [chosen_by_experts(n, experts, capacity, rng) for _ in range(steps)]
    lost = [(~taken.any(axis=1)).sum() for taken in plain]
    copied = [taken.reshape(n, 4, 4).any(axis=2).sum() for taken in plain]
    assert same_law_p([one.sums[routing.N_LOST_TOKENS] for one in found], lost) > 1e-3
    assert same_law_p([one.sums[routing.N_COPIES] for one in found], copied) > 1e-3
    none = np.mean([one.sums[routing.N_LOST_TOKENS] for one in found]) / n
    assert none == pytest.approx((1.0 - capacity / n) ** experts, abs=0.005)


def test_hash_router():
    """Loads under hashing are the token frequencies gathered by expert."""
    rng = np.random.default_rng(4)
    frequency = zipf(500, 1.0)
    hashed = np.stack([rng.permutation(16)[:2] for _ in range(500)])
    expected = np.zeros(16)
    for j in range(2):
        np.add.at(expected, hashed[:, j], frequency)
    n = 50_000
    found = route(frequency, n, 2, method=routing.HASH, hashed=hashed, n_real=16)
    z = (found.counts - n * expected) / np.sqrt(n * expected * (1.0 - expected))
    assert stats.chi2.sf((z**2).sum(), 16) > 1e-3


def test_topics_keep_bursts_together():
    """Two topics with disjoint experts: a burst touches only its topic's."""
    weights = np.zeros((2, 16))
    weights[0, :8], weights[1, 8:] = 1 / 8, 1 / 8
    per_step = [route(weights, 4, 2, burst=4, step=s).counts for s in range(200)]
    assert all(c[:8].sum() in (0, 8) for c in per_step)
    share = np.mean([c[:8].sum() for c in per_step]) / 8
    assert share == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_token_keeps_its_topic_through_the_layers(n_ranks):
    """What joins the layers: the topic of a run is the same in all of them, whichever path counts."""
    weights = np.zeros((2, 16))
    weights[0, :8], weights[1, 8:] = 1 / 8, 1 / 8
    for step in range(50):
        first = [route(weights, 4, 2, burst=4, step=step, layer=i, n_ranks=n_ranks).counts[:8].sum() for i in range(4)]
        assert first in ([8] * 4, [0] * 4)
