"""Tests that watch a series as it grows: when did it change, and where is its mean, at any time one looks.

Changes: self-starting CUSUM (Hawkins, The Statistician 36, 1987): every value is compared with the mean and spread of
those before it, so nothing has to be known beforehand. Means: asymptotic confidence sequences (Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas, Annals of Statistics 52, 2024, theorem 2.2), valid at all sample sizes at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm, t

Array: TypeAlias = npt.NDArray[np.float64]

REFERENCE = 0.5  # CUSUM reference value: built for shifts of one standard deviation
_LEARN = 8  # values before the first that is judged
_BEST_AT = 50.0  # the confidence sequence is tightest about this many values
_SCORE_LIMIT = 8.0


@dataclass(frozen=True, slots=True)
class Change:
    """A shift of the mean: ``at`` is the first value after it, ``seen`` the value at which the alarm rang."""

    at: int
    seen: int
    before: float  # mean of the values since the last change
    after: float  # mean of the values up to the next change


def threshold(false_alarm_frac: float) -> float:
    """CUSUM limit at which an unchanged series rings in a value with this probability, both sides together.

    Siegmund's approximation of the one-sided run length, with b = h + 1.166 and k the reference value:
    (exp(2 k b) - 2 k b - 1) / (2 k^2) (Siegmund, Sequential Analysis, 1985, section 2.6).
    """
    wanted = 2.0 / false_alarm_frac

    def run_length(h: float) -> float:
        a = 2.0 * REFERENCE * (h + 1.166)
        return (math.exp(a) - a - 1.0) / (2.0 * REFERENCE**2) - wanted

    return float(brentq(run_length, 0.0, 50.0))


def changes(values: Array, false_alarm_frac: float) -> list[Change]:
    """Shifts of the mean of ``values`` (n,), oldest first; after an alarm the watch starts anew from the shift."""
    limit, start = threshold(false_alarm_frac), 0
    found: list[tuple[int, int]] = []
    while (alarm := _first_alarm(values[start:], limit)) is not None:
        at, seen = start + alarm[0], start + alarm[1]
        found.append((at, seen))
        start = at
    borders = [0, *(at for at, _ in found), len(values)]
    means = [float(values[begin:end].mean()) for begin, end in pairwise(borders)] if found else []
    return [Change(at, seen, *sides) for (at, seen), sides in zip(found, pairwise(means), strict=True)]


def _first_alarm(values: Array, limit: float) -> tuple[int, int] | None:
    """(where the shift began, where it was seen) of the first shift."""
    high = low = 0.0
    high_from = low_from = 0
    for i, score in enumerate(_scores_piecewise(values)):
        high, low = max(0.0, high + score - REFERENCE), max(0.0, low - score - REFERENCE)
        high_from, low_from = i + 1 if high == 0.0 else high_from, i + 1 if low == 0.0 else low_from
        if max(high, low) > limit:
            at = high_from if high > low else low_from
            return max(at, 1), i
    return None


def _scores_piecewise(values: Array) -> Iterator[float]:
    """`scores` in growing pieces: whoever stops early has not paid for the rest."""
    done, size = 0, 512
    while done < len(values):
        yield from scores(values[:size])[done:]
        done, size = size, 4 * size


def scores(values: Array) -> Array:
    """Standard normal and independent for normal values that do not change, shape (n,); 0 while learning.

    Each value's distance from the mean of those before it, in their standard deviations, follows Student's law.
    """
    n = np.arange(len(values), dtype=np.float64)  # values before each
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.concatenate([[0.0], np.cumsum(values)[:-1]]) / n
        square = np.concatenate([[0.0], np.cumsum(np.square(values - values[:1]))[:-1]]) / n
        spread = np.sqrt(np.maximum(square - np.square(mean - values[:1]), 0.0) * n / (n - 1.0))
        student = np.sqrt(n / (n + 1.0)) * (values - mean) / spread
        found = norm.ppf(t.cdf(student, n - 1.0))
    found = np.where((n >= _LEARN) & np.isfinite(student), np.clip(found, -_SCORE_LIMIT, _SCORE_LIMIT), 0.0)
    return np.asarray(found, np.float64)


def mean_interval(values: Array, error_frac: float) -> tuple[float, float]:
    """Interval that holds the mean of the series at all times at once, but for ``error_frac`` of series."""
    n = len(values)
    if n < 2:
        return (-math.inf, math.inf)
    rho2 = (2.0 * math.log(1.0 / error_frac) + math.log(1.0 + 2.0 * math.log(1.0 / error_frac))) / _BEST_AT
    a = n * rho2 + 1.0
    half = float(values.std(ddof=1)) * math.sqrt(2.0 * a / (n**2 * rho2) * math.log(math.sqrt(a) / error_frac))
    return float(values.mean()) - half, float(values.mean()) + half


def _next_correlation(values: Array) -> float:
    """Correlation of each value with the next; 0 where the values do not vary beyond rounding."""
    away = values - values.mean()
    total = float(away @ away)
    negligible = len(values) * (1e-9 * abs(float(values.mean()))) ** 2
    return float(away[:-1] @ away[1:]) / total if total > negligible else 0.0


def thinned(values: Array, most: float = 0.3) -> tuple[Array, int]:
    """Means of so many successive values that neighbours hardly depend on each other, and how many.

    Judged by the lag-one correlation of the first third: a shift later on would look like dependence.
    """
    for size in (1, 2, 4, 8):
        n = len(values) // size
        means = values[: n * size].reshape(n, size).mean(axis=1)
        calm = means[: max(len(means) // 3, 3 * _LEARN)]
        if len(calm) < 2 * _LEARN or _next_correlation(calm) <= most:
            return means, size
    return means, size
