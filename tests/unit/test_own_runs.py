"""Own runs help from three on, on average and for nearly every group, and never by more than they show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.calibrate.own_runs import Spread, spread_of, update

SPREAD = Spread(between=0.25, within=0.18, n_runs=1000, n_groups=50)
errors = st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=30)


def test_posterior_is_the_textbook_one() -> None:
    """Equal runs: within-variance 10 / 12 of the prior's, precision 1 / between^2 + n / within^2."""
    found = update([0.3, 0.3, 0.3], SPREAD)
    within2 = 0.18**2 * 10 / 12
    precision = 1 / 0.25**2 + 3 / within2
    assert found.sd == pytest.approx(precision**-0.5)
    assert found.mean == pytest.approx(0.3 * (3 / within2) / precision)
    assert found.shift == pytest.approx(found.mean - found.sd)


@given(errors)
def test_a_correction_never_goes_beyond_what_was_seen(own: list[float]) -> None:
    found = update(own, SPREAD)
    assert abs(found.shift) <= abs(found.mean) <= abs(np.mean(own)) + 1e-12
    assert found.shift * found.mean >= 0.0
    assert found.low < found.mean < found.high


@given(errors)
def test_mirror(own: list[float]) -> None:
    one, other = update(own, SPREAD), update([-e for e in own], SPREAD)
    assert other.shift == pytest.approx(-one.shift)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_runs_on_both_sides_change_nothing() -> None:
    assert update([-0.2, 0.1, 0.3], SPREAD).shift == 0.0


def test_many_runs_leave_only_the_runs_own_spread() -> None:
    rng = np.random.default_rng(0)
    found = update(list(rng.normal(0.4, 0.1, 2000)), SPREAD)
    assert found.shift == pytest.approx(0.4, abs=0.02)
    assert (found.high - found.low) / 2 == pytest.approx(1.645 * 0.1, rel=0.05)


@pytest.mark.parametrize("between", [0.0, 0.1, 0.25, 0.6])
def test_three_runs_never_hurt_on_average(between: float) -> None:
    """2,000 groups, three runs to learn from and twenty to be judged on; also where groups share no error at all."""
    rng = np.random.default_rng(1)
    before, after, inside = [], [], []
    for _ in range(2_000):
        runs = rng.normal(0.0, between) + rng.normal(0.0, 0.18, 23)
        found = update(list(runs[:3]), SPREAD)
        before.append(np.abs(runs[3:]).mean())
        after.append(np.abs(runs[3:] - found.shift).mean())
        inside.append(np.mean((runs[3:] >= found.low) & (runs[3:] <= found.high)))
    assert np.mean(after) <= np.mean(before) * (1.02 if between == 0.0 else 1.0)
    if between >= 0.25:
        assert np.mean(after) < 0.85 * np.mean(before)
    if between <= 0.25:
        assert 0.87 < np.mean(inside) < 0.96


def test_spread_is_found_again() -> None:
    """Averaged over ten tables: unequal groups leave one table's estimate several per cent wide."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(10):
        sizes = rng.integers(2, 40, 200)
        values = np.repeat(rng.normal(0.0, 0.3, 200), sizes) + rng.normal(0.0, 0.15, sizes.sum())
        found.append(spread_of(list(values), [str(g) for g in np.repeat(np.arange(200), sizes)]))
    assert np.mean([one.between for one in found]) == pytest.approx(0.3, rel=0.05)
    assert np.mean([one.within for one in found]) == pytest.approx(0.15, rel=0.05)
    assert found[-1].n_groups == 200


@pytest.mark.parametrize("own", [[], [0.1, 0.2], [0.1, 0.2, math.nan], [0.1, math.inf, 0.2]])
def test_too_little_is_refused(own: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 3 runs"):
        update(own, SPREAD)


def test_one_group_tells_no_spread() -> None:
    with pytest.raises(ValueError, match="several groups"):
        spread_of([0.1, 0.2, 0.3], ["a", "a", "a"])
