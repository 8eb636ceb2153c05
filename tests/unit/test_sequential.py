"""Watching a series: false alarms at the stated rate, delays as the theory says, intervals that hold at all times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from moeplan.planner.watch.sequential import changes, mean_interval, scores, thinned, threshold


def test_scores_of_an_unchanged_series_are_standard_normal() -> None:
    """Hawkins 1987: exactly, whatever mean and spread."""
    rng = np.random.default_rng(3)
    found = np.concatenate([scores(rng.normal(40.0, 7.0, 60))[8:] for _ in range(300)])
    assert kstest(found, norm.cdf).pvalue > 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_scores_do_not_depend_on_unit_or_level(shift: float, scale: float) -> None:
    x = np.random.default_rng(0).normal(0.0, 1.0, 40)
    np.testing.assert_allclose(scores(shift + scale * x), scores(x), atol=1e-4)


def test_threshold_is_the_textbook_one() -> None:
    """Montgomery, Statistical Quality Control, table 9.3: k = 1/2 and h = 4, 5 run 168 and 465 values, both sides."""
    assert threshold(1 / 168) == pytest.approx(4.0, abs=0.05)
    assert threshold(1 / 465) == pytest.approx(5.0, abs=0.05)


def test_false_alarms_come_at_the_stated_rate() -> None:
    """600 unchanged histories of 200 values at one alarm in 1,000 values."""
    rng = np.random.default_rng(11)
    n_alarms = sum(len(changes(rng.normal(5.0, 2.0, 200), 1e-3)) for _ in range(600))
    assert 0.3 < n_alarms / (600 * 200 * 1e-3) < 1.6


@pytest.mark.parametrize(("shift", "most"), [(1.0, 40.0), (2.0, 12.0), (4.0, 6.0)])
def test_a_shift_is_seen_soon_and_dated(shift: float, most: float) -> None:
    """Shifts of 1, 2, 4 standard deviations after 100 calm values; mean delay in values, date to within a few."""
    rng = np.random.default_rng(7)
    delays, dates = [], []
    for _ in range(100):
        x = rng.normal(0.0, 1.0, 200)
        x[100:] += shift
        found = [one for one in changes(x, 1e-4) if one.seen >= 100]
        if found:
            delays.append(found[0].seen - 100)
            dates.append(found[0].at - 100)
    assert len(delays) > 97
    assert np.mean(delays) < most
    assert abs(np.median(dates)) <= 2


def test_two_shifts_are_two_changes() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0.0, 1.0, 300)
    x[100:200] += 4.0
    found = changes(x, 1e-4)
    assert [round(one.at, -1) for one in found] == [100, 200]
    assert found[0].after == pytest.approx(4.0, abs=0.4)
    assert found[1].after == pytest.approx(0.0, abs=0.4)


def test_the_interval_holds_at_all_times_at_once() -> None:
    """200 series looked at after each of 300 values: few ever leave the true mean outside."""
    rng = np.random.default_rng(5)
    broken = 0
    for _ in range(200):
        x = rng.exponential(2.0, 300)
        looks = (mean_interval(x[:n], 0.05) for n in range(20, 301, 10))
        broken += any(not low <= 2.0 <= high for low, high in looks)
    assert broken / 200 < 0.08


def test_the_interval_narrows() -> None:
    x = np.random.default_rng(1).normal(0.0, 1.0, 4_000)
    widths = [np.subtract(*mean_interval(x[:n], 0.05)[::-1]) for n in (50, 500, 4_000)]
    assert widths[0] > 2.0 * widths[1] > 3.0 * widths[2]


def test_dependent_values_are_averaged() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0.0, 1.0, 800)
    x = np.zeros(800)
    for i in range(1, 800):
        x[i] = 0.8 * x[i - 1] + noise[i]
    means, size = thinned(x)
    assert size >= 4
    assert len(means) == 800 // size
    assert thinned(noise)[1] == 1


@pytest.mark.parametrize("x", [np.zeros(0), np.ones(1), np.ones(50), np.full(50, 1e100)])
def test_nothing_to_see(x: np.ndarray) -> None:
    assert changes(x, 1e-4) == []
