"""Learn from measured runs how wrong whole predictions are: the widths of every plan's intervals.

Split-conformal in the log domain (Vovk et al., Algorithmic Learning in a Random World; Lei et al., JASA 113, 2018): the
interval is the 5 % and 95 % quantile of ln(measured / predicted) over runs whose end-to-end times fitted nothing.
Rows of one group (model, hardware, engine) err together, so every group gets the same weight: a new run most often
belongs to a group nobody measured. ``cross_coverage`` tests exactly that, one group left out at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeplan.calibrate.serving_runs import RowResult
from moeplan.provenance import Tier
from moeplan.spec.uncertainty import LogError, ModelError

# metric of a plan -> metrics of runs it is learnt from, with the sign that turns their log error into one of time
EVIDENCE: Mapping[str, Mapping[str, float]] = {
    "step": {"tpot": 1.0, "output_throughput": -1.0},
    "ttft": {"ttft": 1.0},
    "training_step": {"step_time": 1.0, "tokens_per_s": -1.0},
}
LEAST_RUNS, LEAST_GROUPS = 20, 4  # fewer say too little about the tails
COVERAGE = 0.90


@dataclass(frozen=True, slots=True)
class Errors:
    """Log errors of one metric in one tier, with the group each run belongs to."""

    log_error: np.ndarray
    group: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """Equal for every group, sums to one."""
        _, inverse, counts = np.unique(self.group, return_inverse=True, return_counts=True)
        return 1.0 / (counts[inverse] * len(counts))

    def without(self, group: str) -> Errors:
        keep = self.group != group
        return Errors(self.log_error[keep], self.group[keep])


def gather(results: Sequence[RowResult], groups: Sequence[str], metric: str, tier: Tier) -> Errors:
    """Log errors of the answers that say something about ``metric``; ``groups`` names the group of each result."""
    found: list[tuple[float, str]] = []
    for result, group in zip(results, groups, strict=True):
        if result.tier is not tier:
            continue
        for answer in result.answers:
            sign = EVIDENCE[metric].get(answer.metric)
            if sign is not None and answer.predicted.value > 0.0:
                found.append((sign * math.log(answer.truth / answer.predicted.value), group))
    return Errors(np.array([e for e, _ in found]), np.array([g for _, g in found]))


def learn(errors: Errors, source: str) -> LogError | None:
    """Interval from the errors; None when there are too few runs or groups."""
    if errors.log_error.size < LEAST_RUNS or np.unique(errors.group).size < LEAST_GROUPS:
        return None
    low, high = _quantiles(errors)
    return LogError(round(min(low, 0.0), 4), round(max(high, 0.0), 4), int(errors.log_error.size), source)


def cross_coverage(errors: Errors) -> float:
    """Share of runs inside the interval learnt without their group, groups weighted alike."""
    inside: list[float] = []
    for group in np.unique(errors.group):
        rest = errors.without(str(group))
        if np.unique(rest.group).size < LEAST_GROUPS - 1:
            continue
        low, high = _quantiles(rest)
        held = errors.log_error[errors.group == group]
        inside.append(float(np.mean((held >= low) & (held <= high))))
    return float(np.mean(inside)) if inside else math.nan


def _quantiles(errors: Errors) -> tuple[float, float]:
    """Weighted quantiles, a step outside the empirical ones as in split-conformal prediction with as many groups."""
    n = np.unique(errors.group).size
    tail = (1.0 - COVERAGE) / 2.0
    level = min(1.0, (1.0 - tail) * (n + 1) / n)
    order = np.argsort(errors.log_error)
    sorted_errors, cumulative = errors.log_error[order], np.cumsum(errors.weight[order])
    high = sorted_errors[min(int(np.searchsorted(cumulative, level)), len(order) - 1)]
    low = sorted_errors[int(np.searchsorted(cumulative, 1.0 - level))]
    return float(low), float(high)


def learn_all(
    results: Sequence[RowResult], groups: Sequence[str], known: ModelError, source: str, *, serving: bool
) -> tuple[ModelError, list[dict[str, Any]]]:
    """``known`` with every interval the runs suffice for, and a line for each of these.

    A tier without enough runs keeps its interval, or takes that of the tier above where it would be narrower.
    """
    by_metric = {metric: dict(tiers) for metric, tiers in known.by_metric.items()}
    summary: list[dict[str, Any]] = []
    for metric in ("step", "ttft") if serving else ("training_step",):
        for tier in Tier:
            errors = gather(results, groups, metric, tier)
            found = learn(errors, source)
            if found is None:
                continue
            by_metric[metric][tier] = found
            summary.append(
                {
                    "metric": metric,
                    "tier": tier.value,
                    "low": found.low,
                    "high": found.high,
                    "n_runs": found.n_runs,
                    "n_groups": int(np.unique(errors.group).size),
                    "cross_coverage": round(cross_coverage(errors), 3),
                }
            )
        above: LogError | None = None
        for tier in Tier:
            mine = by_metric[metric][tier]
            if above is not None and mine.n_runs == 0 and (above.low < mine.low or above.high > mine.high):
                by_metric[metric][tier] = replace(mine, low=min(above.low, mine.low), high=max(above.high, mine.high))
            above = by_metric[metric][tier]
    return ModelError(by_metric), summary
