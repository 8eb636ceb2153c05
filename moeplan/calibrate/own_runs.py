"""A user's own few runs: how far they move the shipped predictions for that hardware and engine, and how sure that is.

Errors of runs, ln(measured / predicted), have a part that a group (hardware, engine, model) shares and a part of each
run. Both spreads are known from published runs; a group's own runs update the shared part (normal prior and posterior).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeplan.calibrate import runs
from moeplan.calibrate.leakage import leakage
from moeplan.calibrate.model_error import EVIDENCE, LEAST_GROUPS
from moeplan.calibrate.model_error import LEAST_RUNS as LEAST_PUBLISHED
from moeplan.calibrate.serving_runs import RowResult
from moeplan.files.runs.measured_runs import RunTable
from moeplan.spec.uncertainty import LogError, ModelError

LEAST_RUNS = 3
_PRIOR_RUNS = 10.0  # weight of the published spread of single runs against the user's own, in runs: an estimate
_Z90 = 1.645


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations of ln(measured / predicted) in published runs."""

    between: float  # of what the runs of a group share
    within: float  # of single runs about it
    n_runs: int
    n_groups: int


@dataclass(frozen=True, slots=True)
class Update:
    """What own runs say of one metric, in ln(measured / predicted).

    ``shift`` corrects the prediction; ``low`` and ``high`` hold nine of ten further runs; ``mean`` and ``sd`` are the
    shared error's posterior. ``before`` and ``after``: mean absolute error of the own runs, each judged by the others.
    """

    shift: float
    low: float
    high: float
    mean: float
    sd: float
    n_runs: int
    before: float
    after: float


def update(errors: Sequence[float], spread: Spread) -> Update:
    """Update on own ``errors``, ln(measured / predicted) of runs of one hardware and engine.

    The correction is careful: one posterior standard deviation short of the posterior mean, none where the runs err to
    both sides, and none where correcting each run by the others would not have brought them nearer.

    Raises:
        ValueError: fewer than `LEAST_RUNS` runs, or an error that is not finite.
    """
    own = np.asarray(errors, np.float64)
    if len(own) < LEAST_RUNS or not np.isfinite(own).all():
        raise ValueError(f"at least {LEAST_RUNS} runs with finite errors (got {len(own)})")
    mean, sd, within = _posterior(own, spread)
    others = np.array([_careful(np.delete(own, i), spread) for i in range(len(own))])
    before, after = float(np.abs(own).mean()), float(np.abs(own - others).mean())
    shift = _careful(own, spread) if after < before else 0.0
    half = _Z90 * math.hypot(sd, within)
    return Update(shift, mean - half, mean + half, mean, sd, len(own), before, after)


def _posterior(own: np.ndarray, spread: Spread) -> tuple[float, float, float]:
    """Mean and standard deviation of the shared error, and the spread of single runs."""
    n = len(own)
    scatter = float(np.square(own - own.mean()).sum())
    within2 = (_PRIOR_RUNS * spread.within**2 + scatter) / (_PRIOR_RUNS + n - 1)
    variance = 1.0 / (1.0 / spread.between**2 + n / within2)
    return variance * n / within2 * float(own.mean()), math.sqrt(variance), math.sqrt(within2)


def _careful(own: np.ndarray, spread: Spread) -> float:
    if own.min() < 0.0 < own.max():
        return 0.0
    mean, sd, _ = _posterior(own, spread)
    return math.copysign(max(abs(mean) - sd, 0.0), mean)


def spread_of(errors: Sequence[float], groups: Sequence[str]) -> Spread:
    """Spreads of published runs by one-way analysis of variance (method of moments, unequal groups).

    The outermost 1 % at each end count as the quantile there: single mistaken rows must not set the spread.

    Raises:
        ValueError: fewer than two groups, or no group with two runs.
    """
    values, labels = np.asarray(errors, np.float64), np.asarray(groups)
    values = np.clip(values, *np.quantile(values, (0.01, 0.99)))
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    n, k = len(values), len(names)
    if k < 2 or n <= k:
        raise ValueError(f"spread needs several groups with several runs (got {n} runs of {k} groups)")
    means = np.bincount(index, values) / counts
    within2 = float(np.square(values - means[index]).sum()) / (n - k)
    between_square = float((counts * np.square(means - values.mean())).sum()) / (k - 1)
    typical = (n - float(np.square(counts).sum()) / n) / (k - 1)
    return Spread(math.sqrt(max((between_square - within2) / typical, 0.0)), math.sqrt(within2), n, k)


@dataclass(frozen=True, slots=True)
class OwnUpdate:
    """An update and what it is for."""

    hardware: str
    engine: str
    metric: str  # as `model_error.EVIDENCE`
    update: Update


# In this order: first-token times and rates are judged with iterations already corrected.
_METRICS = {"serving": ("step", "ttft", "throughput"), "training": ("training_step",)}


def own_updates(
    table: RunTable, known: ModelError, spreads: Mapping[str, Spread], say: Callable[[str], None]
) -> tuple[list[OwnUpdate], list[str]]:
    """Updates for every hardware and engine of ``table`` with enough runs, and why others have none.

    A run that stands there twice counts once: copies would feign certainty.
    """
    engine = "engine" if table.kind == "serving" else "framework"
    found: list[OwnUpdate] = []
    without: list[str] = []
    repeated = np.array(leakage(table.kind, table.frame.to_dict("records"), ()).repeated, np.bool_)
    if repeated.any():
        without.append(f"{repeated.sum()} runs stand in the table twice and count once")
    for (hardware, name), part in table.frame[~repeated].groupby(["hardware", engine], sort=True):
        error = known
        for metric in _METRICS[table.kind]:
            results = runs.predict(replace(table, frame=part), error, say)
            errors = _errors(results, metric)
            if len(errors) < LEAST_RUNS:
                without.append(f"{metric} on {hardware} under {name}: {len(errors)} runs, at least {LEAST_RUNS} needed")
                continue
            one = update(errors, spreads[metric])
            found.append(OwnUpdate(str(hardware), str(name), metric, one))
            error = replace(error, own={**error.own, metric: log_error(one, "own runs")})
    return found, without


def log_error(one: Update, source: str) -> LogError:
    """The update as plans use it."""
    return LogError(one.low, one.high, one.n_runs, source, one.shift)


def learn_spreads(results: Sequence[RowResult], groups: Sequence[str], kind: str) -> dict[str, Spread]:
    """Spreads of published runs by metric; a metric with too few runs or groups is left out."""
    found = {}
    for metric in _METRICS[kind]:
        pairs = [(e, g) for r, g in zip(results, groups, strict=True) for e in _errors([r], metric)]
        if len(pairs) >= LEAST_PUBLISHED and len({g for _, g in pairs}) >= LEAST_GROUPS:
            found[metric] = spread_of([e for e, _ in pairs], [g for _, g in pairs])
    return found


def _errors(results: Sequence[RowResult], metric: str) -> list[float]:
    """ln(measured / predicted) of every answer that says something about ``metric``."""
    signs = EVIDENCE[metric].signs
    return [
        signs[answer.metric] * math.log(answer.truth / answer.predicted.value)
        for result in results
        for answer in result.answers
        if answer.metric in signs and answer.predicted.value > 0.0
    ]
