"""The pattern of a day and of a week in a series, taken out so that like hours are compared with like."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

DAY_S = 86_400.0
CYCLES_S = (DAY_S, 7 * DAY_S)
LEAST_CYCLES = 3  # the median of fewer is no pattern
_MOST_HARMONICS = 12  # of a day: down to two hours
_WINDOWS_PER_HARMONIC = 6  # three for each coefficient
_LEVEL_POINTS = 288
_LEAST_WINDOWS = 24  # of a cycle that is looked at


def without_cycles(time_s: Array, logs: Array) -> Array:
    """``logs`` (n,) of values at ``time_s`` (n,) less their daily and weekly pattern; the mean of the values stays.

    A pattern is taken from a history of at least `LEAST_CYCLES` whole cycles, otherwise none.
    """
    for cycle_s in CYCLES_S:
        logs = logs - _pattern(time_s, logs, cycle_s)
    return logs


def _pattern(time_s: Array, logs: Array, cycle_s: float) -> Array:
    """A few harmonics, each the median of what single cycles show: one odd day, or a shift within one, is no pattern.

    Levels of cycles may differ. The pattern's exponentials average to one, so that taking it out of logarithms
    leaves the arithmetic mean, which is what plans state.
    """
    borders = np.unique(np.floor((time_s - time_s[:1]) / cycle_s), return_index=True)[1]
    whole = [
        slice(begin, end)
        for begin, end in pairwise([*borders, len(time_s)])
        if end - begin >= _LEAST_WINDOWS and time_s[end - 1] - time_s[begin] > 0.9 * cycle_s
    ]
    if len(whole) < LEAST_CYCLES:
        return np.zeros(len(logs))
    least = min(one.stop - one.start for one in whole)
    n_harmonics = min(_MOST_HARMONICS, least // _WINDOWS_PER_HARMONIC)
    waves = np.column_stack([np.ones(len(logs)), _waves(time_s, cycle_s, n_harmonics)])
    found = [np.linalg.lstsq(waves[one], logs[one], rcond=None)[0][1:] for one in whole]
    sizes = np.median(found, axis=0)
    evenly = np.linspace(0.0, cycle_s, _LEVEL_POINTS, endpoint=False)
    level = np.log(np.exp(_waves(evenly, cycle_s, n_harmonics) @ sizes).mean())
    return np.asarray(waves[:, 1:] @ sizes - level, np.float64)


def _waves(time_s: Array, cycle_s: float, n_harmonics: int) -> Array:
    """Cosines and sines of the harmonics, shape (n, 2 * n_harmonics)."""
    angle = 2.0 * math.pi * np.outer(time_s / cycle_s % 1.0, np.arange(1, n_harmonics + 1))
    return np.hstack([np.cos(angle), np.sin(angle)])
