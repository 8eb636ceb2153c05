"""Expert loads behind `balanced` and `power_law_a`."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.calibrate.loads import rank_loads
from moeplan.kernels.expert_loads import level_counts, levelled_counts, tail_counts, tailed_counts

RANKS = st.sampled_from([1, 2, 4, 8, 16])


@settings(deadline=None)
@given(tokens=st.integers(1, 5000), top_k=st.integers(1, 8), ranks=RANKS, a=st.sampled_from([None, 1.01, 1.2]))
def test_loads_are_possible(tokens, top_k, ranks, a):
    load = rank_loads(tokens, top_k, 64, ranks, a)
    assert 1.0 <= load.distinct <= 64 / ranks
    assert load.assignments <= tokens * top_k
    assert load.max_load <= tokens
    assert load.max_load * load.distinct >= load.assignments * (1.0 - 1e-9)
    if a is not None:
        assert load.assignments >= tokens * top_k / ranks * (1.0 - 1e-9)  # the busiest rank


def test_one_rank_gets_every_pair():
    assert rank_loads(100, 8, 128, 1, 1.2).assignments == 800.0
    assert rank_loads(100, 8, 128, 1, None).assignments == 800.0


def test_skew_concentrates():
    level, skewed = rank_loads(1024, 8, 128, 8, None), rank_loads(1024, 8, 128, 8, 1.2)
    assert skewed.max_load > 3.0 * level.max_load
    assert skewed.assignments > level.assignments


def level_twin(row: list[int], missing: int, cap: int) -> list[int]:
    """One token at a time to the emptiest, or from the fullest."""
    row = list(row)
    for _ in range(abs(missing)):
        if missing > 0:
            i = row.index(min(row))
            if row[i] >= cap:
                break
            row[i] += 1
        else:
            i = row.index(max(row))
            if row[i] <= 0:
                break
            row[i] -= 1
    return row


@settings(deadline=None)
@given(row=st.lists(st.integers(0, 20), min_size=1, max_size=12), missing=st.integers(-60, 60))
def test_levelling_equals_one_token_at_a_time(row, missing):
    found = level_counts(np.array([row], dtype=np.int64), missing, 20)[0]
    assert sorted(found.tolist()) == sorted(level_twin(row, missing, 20))


def test_levelled_counts_sum_to_the_pairs():
    draws = np.random.default_rng(0).pareto(1.0, (5, 64)) + 0.01
    counts = levelled_counts(draws, 2048, 8, 512)
    assert counts.shape == (5, 8, 8)
    assert (counts.sum(axis=(1, 2)) == 2048).all()
    assert counts.max() <= 512


def tail_twin(row: list[int], missing: int, cap: int) -> list[int]:
    """One token at a time: beyond the cap to the emptiest with room; then round from the emptiest, the last first."""
    over = sum(max(n - cap, 0) for n in row)
    row = [min(n, cap) for n in row]
    order = sorted(range(len(row)), key=lambda e: (row[e], -e))
    for _ in range(over):
        room = [e for e in order if row[e] < cap]
        if room:
            row[room[0]] += 1
        else:
            missing += 1
    order = sorted(range(len(row)), key=lambda e: (row[e], -e))
    at = 0
    while missing and at < len(row) * (cap + 1):
        e = order[at % len(row)]
        at += 1
        if missing > 0 and row[e] < cap:
            row[e], missing = row[e] + 1, missing - 1
        elif missing < 0:
            e = e if row[e] else row.index(max(row))
            row[e], missing = row[e] - 1, missing + 1
    return row


@settings(deadline=None)
@given(row=st.lists(st.integers(0, 20), min_size=1, max_size=12), missing=st.integers(-60, 60), cap=st.integers(5, 20))
def test_tail_equals_one_token_at_a_time(row, missing, cap):
    missing = max(missing, -sum(min(n, cap) for n in row))
    assert tail_counts(np.array(row, dtype=np.int64), missing, cap).tolist() == tail_twin(row, missing, cap)


def test_one_token_of_a_tail_falls_on_the_last_rank():
    """All shares round to none: the eight pairs are the last eight experts', all of one rank."""
    load = rank_loads(1, 8, 256, 8, 1.2, tail=True)
    assert (load.assignments, load.distinct, load.max_load) == (8.0, 8.0, 1.0)
    assert rank_loads(1, 8, 256, 8, 1.2).distinct < 3.0
    draws = np.random.default_rng(0).pareto(1.0, (5, 64)) + 0.01
    counts = tailed_counts(draws, 2048, 8, 512)
    assert (counts.sum(axis=(1, 2)) == 2048).all()
    assert counts.max() <= 512
