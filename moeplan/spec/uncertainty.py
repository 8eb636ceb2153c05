"""How wrong whole predictions are on measured runs: the width of every interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moeplan.provenance import Tier

ANY = "any"


@dataclass(frozen=True, slots=True)
class LogError:
    """Interval of ln(measured / predicted) that holds nine runs of ten."""

    low: float
    high: float
    n_runs: int  # runs it was learnt from; 0: an estimate
    source: str
    shift: float = 0.0  # what own runs correct the prediction by


def situation(regime: str, engine: str) -> str:
    """Key of a class of predictions that err alike, either part `ANY`.

    Regimes: ``steady`` or ``flood`` (all at once) load of an engine; ``pretrain`` or ``tune``.
    """
    return f"{regime}/{engine}"


@dataclass(frozen=True, slots=True)
class ModelError:
    """Errors of end-to-end predictions by metric, by the tier of the cost parameters behind them, and by situation.

    Metrics: ``step`` (time of a serving iteration), ``ttft``, ``throughput`` (of a deployment that runs flat out),
    ``training_step``, ``training_memory`` (peak per GPU, whatever the tier).
    """

    by_metric: Mapping[str, Mapping[Tier, Mapping[str, LogError]]]
    situation: str = situation(ANY, ANY)
    own: Mapping[str, LogError] = field(default_factory=dict)  # by metric: learnt from the user's own runs

    def where(self, situation: str) -> ModelError:
        """The errors of predictions in ``situation``."""
        return replace(self, situation=situation)

    def of(self, metric: str, tier: Tier) -> LogError:
        """What own runs say, else the nearest situation learnt of the tier, never narrower than of a better tier.

        Raises KeyError for a metric or tier the data file does not have.
        """
        if metric in self.own:
            return self.own[metric]
        tiers = list(Tier)
        found = [self._nearest(self.by_metric[metric][t]) for t in tiers[: tiers.index(tier) + 1]]
        return replace(found[-1], low=min(e.low for e in found), high=max(e.high for e in found))

    def _nearest(self, by_situation: Mapping[str, LogError]) -> LogError:
        """Same regime and engine, else the engine under any load, else the regime, else everything."""
        regime, engine = self.situation.split("/")
        keys = (self.situation, situation(ANY, engine), situation(regime, ANY), situation(ANY, ANY))
        return by_situation[next(key for key in keys if key in by_situation)]
