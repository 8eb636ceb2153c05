"""Expected maximum of independent normals: the fullest of many experts or GPUs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moeplan.kernels import compiled

Floats = npt.NDArray[np.float64]

_N_STEPS = 28
_REACH = 4.5  # deviations above the largest mean beyond which a maximum is not expected


@compiled
def expected_maxima(mean: Floats, deviation: Floats) -> Floats:
    """Expected largest of n independent normals in each row of (n_rows, n), shape (n_rows,).

    Integral of 1 - prod F above a level hardly ever undercut, by the trapezoid rule. Integer counts whose deviation
    is far below one are in effect constants.
    """
    found = np.empty(mean.shape[0])
    for row in range(mean.shape[0]):
        top, spread = mean[row].max(), deviation[row].max()
        if spread <= 0.0:
            found[row] = top
            continue
        low = top - _REACH * spread
        for i in range(mean.shape[1]):  # no maximum lies far below any of them
            low = max(low, mean[row, i] - 4.0 * deviation[row, i])
        width = (top + _REACH * spread - low) / _N_STEPS
        total = 0.0
        for step in range(_N_STEPS + 1):
            level = low + width * step
            below, last_mean, last_deviation, share = 1.0, math.nan, math.nan, 1.0
            for i in range(mean.shape[1]):
                m, d = mean[row, i], deviation[row, i]
                if m + 6.0 * d < level:
                    continue
                if m != last_mean or d != last_deviation:  # equal neighbours are common: uniform popularity
                    share = 0.5 * math.erfc((m - level) / (max(d, 1e-12) * math.sqrt(2.0)))
                    last_mean, last_deviation = m, d
                below *= share
                if below < 1e-12:
                    below = 0.0
                    break
            total += (1.0 - below) * (0.5 if step in (0, _N_STEPS) else 1.0)
        found[row] = low + width * total
    return found
