"""How wrong whole predictions were on measured runs: the width of every interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.provenance import Tier


@dataclass(frozen=True, slots=True)
class LogError:
    """5 % and 95 % quantile of ln(measured / predicted)."""

    low: float
    high: float
    n_runs: int  # runs it was learnt from; 0: an estimate
    source: str


@dataclass(frozen=True, slots=True)
class ModelError:
    """Errors of end-to-end predictions by metric and by the tier of the cost parameters behind them.

    Metrics: ``step`` (time of a serving iteration), ``ttft`` (beyond what the step explains),
    ``throughput`` (of a deployment that runs flat out), ``training_step``, ``training_memory`` (peak).
    """

    by_metric: Mapping[str, Mapping[Tier, LogError]]

    def of(self, metric: str, tier: Tier) -> LogError:
        """Raises KeyError for a metric or tier the data file does not have."""
        return self.by_metric[metric][tier]
