"""Learn from measured runs how wrong whole predictions are: the widths of every plan's intervals.

Split-conformal in the log domain (Vovk et al., Algorithmic Learning in a Random World; Lei et al., JASA 113, 2018): the
interval is the 5 % and 95 % quantile of ln(measured / predicted) over published runs. Rows of one group (model,
hardware, engine) err together, so a group weighs as the square root of its rows: a new run may belong to a well
measured group or to one nobody measured. ``cross_coverage`` tests the latter, one group left out at a time.
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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a metric of a plan is learnt from."""

    signs: Mapping[str, float]  # metric of a run -> sign that turns its log error into this metric's
    loads: frozenset[str] | None = None  # kinds of load that are like a plan's steady traffic; None: all
    any_tier: bool = False  # the cost parameters have no part in it


_STEADY = frozenset({"closed_loop", "poisson"})
EVIDENCE: Mapping[str, Evidence] = {
    "step": Evidence({"tpot": 1.0}, _STEADY),
    "ttft": Evidence({"ttft": 1.0}, _STEADY),
    "throughput": Evidence({"output_throughput": 1.0}),
    "training_step": Evidence({"step_time": 1.0, "tokens_per_s": -1.0}),
    "training_memory": Evidence({"memory": 1.0}, any_tier=True),
}
# Sources whose times no other run of the same setting resembles; judged like all others, but nothing is learnt there.
ANOMALOUS_SOURCES: Mapping[str, str] = {
    "experimental/token_position": "four to ten times slower than every other run of that engine and hardware",
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
        """A group weighs as the square root of its rows; sums to one."""
        _, inverse, counts = np.unique(self.group, return_inverse=True, return_counts=True)
        weight: np.ndarray = 1.0 / np.sqrt(counts[inverse])
        return weight / weight.sum()

    def without(self, group: str) -> Errors:
        keep = self.group != group
        return Errors(self.log_error[keep], self.group[keep])


def gather(results: Sequence[RowResult], groups: Sequence[str], metric: str, tier: Tier) -> Errors:
    """Log errors of the answers that say something about ``metric``; ``groups`` names the group of each result."""
    evidence = EVIDENCE[metric]
    found: list[tuple[float, str]] = []
    for result, group in zip(results, groups, strict=True):
        if (result.tier is not tier and not evidence.any_tier) or (
            evidence.loads is not None and result.load not in evidence.loads
        ):
            continue
        for answer in result.answers:
            sign = evidence.signs.get(answer.metric)
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
    """Weighted 5 % and 95 % quantile."""
    tail = (1.0 - COVERAGE) / 2.0
    order = np.argsort(errors.log_error)
    sorted_errors, cumulative = errors.log_error[order], np.cumsum(errors.weight[order])
    high = sorted_errors[min(int(np.searchsorted(cumulative, 1.0 - tail)), len(order) - 1)]
    low = sorted_errors[int(np.searchsorted(cumulative, tail))]
    return float(low), float(high)


def learn_all(
    results: Sequence[RowResult], groups: Sequence[str], known: ModelError, source: str, *, serving: bool
) -> tuple[ModelError, list[dict[str, Any]]]:
    """``known`` with every interval the runs suffice for, and a line for each of these.

    A tier without enough runs keeps its interval. No tier is narrower than the one above it.
    """
    by_metric = {metric: dict(tiers) for metric, tiers in known.by_metric.items()}
    summary: list[dict[str, Any]] = []
    for metric in ("step", "ttft", "throughput") if serving else ("training_step", "training_memory"):
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
            if above is not None and (above.low < mine.low or above.high > mine.high):
                by_metric[metric][tier] = replace(mine, low=min(above.low, mine.low), high=max(above.high, mine.high))
            above = by_metric[metric][tier]
    return ModelError(by_metric), summary
