"""An estimate with its interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Q:
    """An estimate with its 90 % interval."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float, float]:
        """Value, low and high."""
        return self.value, self.low, self.high

    def scaled(self, factor: float) -> Q:
        """The same quantity in another unit (factor > 0)."""
        return Q(self.value * factor, self.low * factor, self.high * factor)

    def inverse(self) -> Q:
        """1 / quantity; ends swap."""
        return Q(1.0 / self.value, 1.0 / self.high, 1.0 / self.low)
