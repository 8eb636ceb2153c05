"""Daily and weekly patterns of traffic are no alarm, and do not hide a regression."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.planner.watch.cycles import DAY_S, without_cycles
from moeplan.planner.watch.sequential import changes, thinned

HOUR_S = 3600.0


def days(n_days: float, seed: int, *, amplitude: float = 0.6, weekend: float = 1.0):
    """(times, traffic, latency that follows traffic) in five-minute windows; both average one over a day."""
    rng = np.random.default_rng(seed)
    time_s = 1.7e9 + np.arange(int(n_days * DAY_S / 300)) * 300.0
    angle = 2 * np.pi * time_s / DAY_S
    shape = 1 + amplitude * np.sin(angle) + 0.3 * amplitude * np.sin(2 * angle + 1)
    shape *= np.where(time_s // DAY_S % 7 >= 5, weekend, 1.0)
    noise = np.exp(rng.normal(0.0, 0.06, (2, len(time_s))))
    return time_s, shape * noise[0], shape**0.3 * noise[1]


def alarms(time_s: np.ndarray, values: np.ndarray) -> list[float]:
    """Days after the start at which a change is dated."""
    logs, together = thinned(without_cycles(time_s, np.log(values)))
    return [one.at * together * 300 / DAY_S for one in changes(logs, 2e-5 * together)]


@pytest.mark.parametrize("n_days", [3, 7, 14])
def test_a_daily_pattern_is_no_change(n_days: int) -> None:
    """20 histories; without the pattern taken out every one rings, several times a day."""
    rung = [seed for seed in range(20) if any(alarms(*days(n_days, seed)[:2]))]
    assert len(rung) <= 1
    traffic = days(n_days, 0)[1]
    assert len(changes(np.log(traffic), 2e-5)) >= n_days


def test_weekends_are_no_change_once_three_weeks_are_seen() -> None:
    time_s, traffic, _ = days(28, 1, weekend=0.8)
    assert len(alarms(time_s, traffic)) <= len(changes(np.log(traffic), 2e-5)) / 10


def test_a_regression_under_a_daily_pattern_is_dated() -> None:
    for seed in range(5):
        time_s, _, latency = days(7, seed)
        latency[time_s >= time_s[0] + 4.6 * DAY_S] *= 1.2
        found = alarms(time_s, latency)
        assert [at for at in found if abs(at - 4.6) < 0.1], found
        assert len(found) <= 2


def test_the_mean_stays() -> None:
    """A plan states means: what is left has the arithmetic mean of the values."""
    time_s, traffic, _ = days(6, 2)
    assert np.exp(without_cycles(time_s, np.log(traffic))).mean() == pytest.approx(traffic.mean(), rel=0.01)


@pytest.mark.parametrize("n_days", [0.02, 1.0, 2.9])
def test_short_histories_are_left_alone(n_days: int) -> None:
    time_s, traffic, _ = days(n_days, 0)
    assert np.array_equal(without_cycles(time_s, np.log(traffic)), np.log(traffic))


def test_gaps_and_windows_of_an_hour() -> None:
    time_s, traffic, _ = days(10, 3)
    keep = (time_s - time_s[0] < 3.3 * DAY_S) | (time_s - time_s[0] > 4.9 * DAY_S)
    assert not alarms(time_s[keep], traffic[keep])
    time_s, traffic, _ = days(10, 3, amplitude=0.4)
    hourly = traffic.reshape(-1, 12).mean(axis=1)
    assert not changes(without_cycles(time_s[::12], np.log(hourly)), 2e-5)


def test_a_million_windows_of_swinging_traffic_end() -> None:
    """Every alarm starts the watch anew: that must not cost the whole rest of the series each time."""
    swing = np.where(np.arange(400_000) // 100 % 2, 1.0, 2.0) + np.random.default_rng(0).normal(0, 0.1, 400_000)
    assert len(changes(swing, 1e-4)) > 3_000
