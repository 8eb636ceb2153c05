"""Learn from measured runs how wrong whole predictions are: the widths of every plan's intervals.

Mondrian split-conformal in the log domain (Vovk et al., Algorithmic Learning in a Random World, ch. 4; Lei et al., JASA
113, 2018): runs are classed by the tier of the cost parameters behind them, by how their load comes and by engine (a
training run by whether it pretrains), and each class has its own interval of ln(measured / predicted). Runs of one
group (model, hardware, engine; training: family, hardware) err together, so a group weighs as the square root of its
rows: a new run may belong to a well measured group or to one nobody measured. For the latter the quantiles of the
measured groups are too tight; they are stretched until intervals learnt without a group cover nine in ten of the
left-out runs (`cross_coverage`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeplan.calibrate.serving_runs import RowResult
from moeplan.calibrate.training_runs import family_of
from moeplan.provenance import Tier
from moeplan.spec.uncertainty import ANY, LogError, ModelError, situation


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a metric of a plan is learnt from, and into which classes it falls."""

    signs: Mapping[str, float]  # metric of a run -> sign that turns its log error into this metric's
    by_regime: bool = False
    by_engine: bool = False
    timeless: bool = False  # sizes, not times: the tier of the cost parameters and who tuned the run have no part in it
    alike: Callable[[str], str] = str  # from a group of runs to those that err together in this metric

    def classes(self, of_run: str) -> tuple[str, ...]:
        """Situations a run teaches about, the widest last."""
        regime, engine = of_run.split("/")
        regime = regime if self.by_regime else ANY
        return tuple(dict.fromkeys((situation(regime, engine if self.by_engine else ANY), situation(regime, ANY))))


def _kin(group: str) -> str:
    """Family and hardware of a group of training runs: frameworks share libraries, sizes of a family share shapes."""
    model, hardware, _ = group.split(", ", 2)
    return f"{family_of(model)}, {hardware}"


EVIDENCE: Mapping[str, Evidence] = {
    "step": Evidence({"tpot": 1.0}, by_regime=True, by_engine=True),
    "ttft": Evidence({"ttft": 1.0}, by_regime=True, by_engine=True),
    "throughput": Evidence({"output_throughput": 1.0}, by_engine=True),
    "training_step": Evidence({"step_time": 1.0, "tokens_per_s": -1.0}, by_regime=True, alike=_kin),
    "training_memory": Evidence({"memory": 1.0}, timeless=True, alike=_kin),
}
# Sources whose times no other run of the same setting resembles; judged like all others, but nothing is learnt there.
ANOMALOUS_SOURCES: Mapping[str, str] = {
    "experimental/token_position": "four to ten times slower than every other run of that engine and hardware",
}
LEAST_RUNS, LEAST_GROUPS = 20, 6  # fewer say too little about the tails
COVERAGE = 0.90
_STRETCHES = np.arange(1.0, 2.501, 0.02)


@dataclass(frozen=True, slots=True)
class Errors:
    """Log errors of one metric in one class, with the group each run belongs to."""

    log_error: np.ndarray
    group: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """A group weighs as the square root of its rows; sums to one."""
        _, inverse, counts = np.unique(self.group, return_inverse=True, return_counts=True)
        weight: np.ndarray = 1.0 / np.sqrt(counts[inverse])
        return weight / weight.sum()

    def without(self, group: str) -> Errors:
        keep = self.group != group
        return Errors(self.log_error[keep], self.group[keep])

    @property
    def quantiles(self) -> tuple[float, float]:
        """Weighted 5 % and 95 % quantile, on either side of zero: an interval holds its prediction."""
        tail = (1.0 - COVERAGE) / 2.0
        order = np.argsort(self.log_error)
        ordered, cumulative = self.log_error[order], np.cumsum(self.weight[order])
        high = ordered[min(int(np.searchsorted(cumulative, 1.0 - tail)), len(order) - 1)]
        low = ordered[int(np.searchsorted(cumulative, tail))]
        return min(float(low), 0.0), max(float(high), 0.0)


def gather(results: Sequence[RowResult], groups: Sequence[str], metric: str, tier: Tier) -> dict[str, Errors]:
    """Log errors of the answers that say something about ``metric``, by class; ``groups`` names each result's group."""
    evidence = EVIDENCE[metric]
    found: dict[str, list[tuple[float, str]]] = {}
    for result, group in zip(results, groups, strict=True):
        if not evidence.timeless and (result.tier is not tier or not result.representative):
            continue
        for answer in result.answers:
            sign = evidence.signs.get(answer.metric)
            if sign is not None and answer.predicted.value > 0.0:
                error = sign * math.log(answer.truth / answer.predicted.value)
                for key in evidence.classes(result.situation):
                    found.setdefault(key, []).append((error, evidence.alike(group)))
    return {
        key: Errors(np.array([e for e, _ in rows]), np.array([g for _, g in rows]))
        for key, rows in sorted(found.items())
    }


def learn(errors: Errors, source: str) -> LogError | None:
    """Interval from the errors; None when there are too few runs or groups."""
    if errors.log_error.size < LEAST_RUNS or np.unique(errors.group).size < LEAST_GROUPS:
        return None
    stretch = _stretch(errors)
    low, high = (round(stretch * end, 4) for end in errors.quantiles)
    return LogError(low, high, int(errors.log_error.size), source)


def cross_coverage(errors: Errors, stretch: float = 1.0) -> float:
    """Share of runs (in their weights) inside ``stretch`` times the interval learnt without their group."""
    return _share(_stretch_to_hold(errors) <= stretch, errors)


def _stretch(errors: Errors) -> float:
    """The least stretch with which intervals learnt without a group cover it as well as they claim."""
    needed = _stretch_to_hold(errors)
    return float(next((s for s in _STRETCHES if _share(needed <= s, errors) >= COVERAGE), _STRETCHES[-1]))


def _stretch_to_hold(errors: Errors) -> np.ndarray:
    """By how much the interval learnt without a run's group must be stretched to hold the run; shape (n_runs,)."""
    needed = np.zeros(errors.log_error.size)
    for group in np.unique(errors.group):
        low, high = errors.without(str(group)).quantiles
        mine = errors.group == group
        held = errors.log_error[mine]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(held < 0.0, held / low, held / high)
        needed[mine] = np.where(held == 0.0, 0.0, ratio)
    return needed


def _share(inside: np.ndarray, errors: Errors) -> float:
    return float(np.sum(errors.weight[inside]))


def _no_further(found: LogError, errors: Errors, wider: LogError) -> LogError:
    """``found``, not stretched beyond both the worst error seen in its class and the interval of the wider class.

    A few groups with one far from the others would be stretched to multiples of anything seen.
    """
    low = max(found.low, min(round(float(errors.log_error.min()), 4), wider.low))
    high = min(found.high, max(round(float(errors.log_error.max()), 4), wider.high))
    return replace(found, low=low, high=high)


def learn_all(
    results: Sequence[RowResult], groups: Sequence[str], known: ModelError, source: str, *, serving: bool
) -> tuple[ModelError, list[dict[str, Any]]]:
    """``known`` with every interval the runs suffice for, and a line for each of these.

    A class without enough runs keeps its interval.
    """
    by_metric = {m: {tier: dict(classes) for tier, classes in tiers.items()} for m, tiers in known.by_metric.items()}
    summary: list[dict[str, Any]] = []
    for metric in ("step", "ttft", "throughput") if serving else ("training_step", "training_memory"):
        for tier in Tier:
            for key, errors in gather(results, groups, metric, tier).items():
                found = learn(errors, source)
                if found is None:
                    continue
                if (wider := by_metric[metric][tier].get(situation(key.split("/")[0], ANY))) is not None:
                    found = _no_further(found, errors, wider)
                by_metric[metric][tier][key] = found
                summary.append(
                    {
                        "metric": metric,
                        "tier": tier.value,
                        "situation": key,
                        "low": found.low,
                        "high": found.high,
                        "n_runs": found.n_runs,
                        "n_groups": int(np.unique(errors.group).size),
                        "cross_coverage": round(cross_coverage(errors), 3),
                        "stretch": round(_stretch(errors), 2),
                    }
                )
    return ModelError(by_metric), summary
