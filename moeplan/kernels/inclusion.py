"""How likely each expert is to be selected under Plackett-Luce, exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeplan.kernels import compiled

Floats = npt.NDArray[np.float64]


@compiled
def inclusion_probabilities(weights: Floats, top_k: int) -> Floats:
    """Probability that each expert is among the first ``top_k`` of a Plackett-Luce order, shape (n,); exact.

    Expert e is in when fewer than k others arrive before it: integral of w e^(-w t) P(fewer than k others by t) dt, the
    count of independent arrivals by dynamic programming from both sides; trapezoid rule in log t.
    """
    n = weights.size
    found = np.zeros(n)
    if top_k >= n:
        return found + 1.0
    w = weights / weights.max()
    before, after = np.empty((n + 1, top_k)), np.empty((n + 1, top_k))
    width = 0.125
    log_t = -24.0
    while log_t < 60.0:
        t = np.exp(log_t)
        before[0] = 0.0
        before[0, 0] = 1.0
        after[n] = 0.0
        after[n, 0] = 1.0
        for e in range(n):
            miss = np.exp(-w[e] * t)
            before[e + 1, 0] = before[e, 0] * miss
            for j in range(1, top_k):
                before[e + 1, j] = before[e, j] * miss + before[e, j - 1] * (1.0 - miss)
        for e in range(n - 1, -1, -1):
            miss = np.exp(-w[e] * t)
            after[e, 0] = after[e + 1, 0] * miss
            for j in range(1, top_k):
                after[e, j] = after[e + 1, j] * miss + after[e + 1, j - 1] * (1.0 - miss)
        for e in range(n):  # cumulative from here on
            for j in range(1, top_k):
                after[e + 1, j] += after[e + 1, j - 1]
            others = 0.0
            for j in range(top_k):
                others += before[e, j] * after[e + 1, top_k - 1 - j]
            found[e] += width * w[e] * t * np.exp(-w[e] * t) * others
        if log_t > 0.0 and before[n].sum() < 1e-13:
            break
        log_t += width
    return found * (top_k / found.sum())
