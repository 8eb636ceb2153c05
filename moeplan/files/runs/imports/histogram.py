"""Quantiles of a stream in fixed memory."""

from __future__ import annotations

import math

import numpy as np

from moeplan.files.runs.imports.row import Latency

_STEP = math.log(1.005)  # relative width of a bin: quantiles are within 0.25 %
_LOW, _HIGH = 1e-4, 1e10


class Histogram:
    """Counts on a logarithmic grid from 1e-4 to 1e10 in the values' own unit; the mean is exact."""

    def __init__(self) -> None:
        self._counts = np.zeros(int(math.log(_HIGH / _LOW) / _STEP) + 2, np.int64)
        self.n = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value of at least 0."""
        clipped = min(max(value, _LOW), _HIGH)
        self._counts[int(math.log(clipped / _LOW) / _STEP)] += 1
        self.n += 1
        self.total += value

    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    def quantile(self, share: float) -> float | None:
        """Middle of the bin in which the quantile lies."""
        if not self.n:
            return None
        bin_index = int(np.searchsorted(np.cumsum(self._counts), share * self.n))
        return _LOW * math.exp((bin_index + 0.5) * _STEP)

    def latency(self) -> Latency:
        return Latency(self.mean(), *(self.quantile(share) for share in (0.5, 0.9, 0.99)))
