"""Fit one operation's parameters to measured rows, and say how good the fit is on shapes it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeResult, least_squares

from moeplan.calibrate.op_model import Array, Inputs, OpModel, Parameter, Place
from moeplan.spec.hardware import Hardware

MAX_TRAIN_ROWS = 4000  # more rows move no parameter by a standard error; keeps a calibration to minutes
MIN_TRAIN_ROWS = 40
N_STARTS, SCOUT_ROWS = 3, 800
MIN_REGIME_ROWS = 30  # fewer rows give no usable quantile
PRIOR_SPREAD = 1.0  # ln units: pulls a parameter the rows say nothing about to its start; one row's weight each
LOSS_SCALE = 0.08  # ln units: residuals beyond about 8 % count linearly, not squared
QUANTILES = (0.05, 0.50, 0.95)

TRAIN, INTERVAL, TEST = "train", "interval", "test"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors of predictions against truth; fractions. ``bias_frac`` is the median signed error."""

    n: int
    mdape_frac: float
    mape_frac: float
    bias_frac: float
    coverage_frac: float
    median_width_frac: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A converged fit. ``log_residual`` are quantiles of ln(measured / predicted) on rows not fitted."""

    values: dict[str, float]
    covariance: list[list[float]]  # of the fitted coordinates: ln(value) for log parameters
    log_residual: tuple[float, float, float]
    regimes: dict[str, tuple[float, float, float]]
    n_rows: int
    heldout: Accuracy


class NotConvergedError(Exception):
    """The optimiser stopped without a solution; the message says why."""


class TooFewRowsError(Exception):
    """There is not enough to fit."""


def split_of(frame: pd.DataFrame, shape_columns: tuple[str, ...]) -> pd.Series:
    """Per row "train" (70 %), "interval" (10 %: residual quantiles) or "test" (20 %: never used).

    The part follows from a hash of the shape: rows of one shape always fall together, on every device and in every run.
    """
    # Distinct values are few: text is made of them, not of the rows.
    columns = [frame[name].astype("category") for name in shape_columns]
    key = np.full(len(frame), "", dtype=object)
    for i, column in enumerate(columns):
        texts = np.array([("|" if i else "") + str(value) for value in column.cat.categories], dtype=object)
        key = key + texts[column.cat.codes.to_numpy()]
    bucket = pd.util.hash_array(key, categorize=False) % 10
    return pd.Series(np.select([bucket < 2, bucket == 2], [TEST, INTERVAL], TRAIN), index=frame.index)


def thinned(frame: pd.DataFrame, regime: pd.Series, n_max: int, rng: np.random.Generator) -> pd.DataFrame:
    """At most about ``n_max`` rows, by regime in proportion to its size, at least a twentieth of ``n_max`` each."""
    if len(frame) <= n_max:
        return frame
    picked = []
    for _, rows in frame.groupby(regime, sort=True).groups.items():
        n = min(len(rows), max(round(n_max * len(rows) / len(frame)), n_max // 20))
        picked.append(rng.choice(np.asarray(rows), size=n, replace=False))
    return frame.loc[np.sort(np.concatenate(picked))]


def fit_rows(model: OpModel, frame: pd.DataFrame, place: Place, hardware: Hardware, fmt: str, *, seed: int) -> Fit:
    """Fit ``model`` to ``frame`` (one format, exclusions applied, column ``measured_s``).

    Raises:
        TooFewRowsError: not enough shapes to fit and judge.
        NotConvergedError: the optimiser did not converge.
    """
    split = split_of(frame, model.shape_columns)
    regime = model.regime_of(frame, place)
    train = thinned(frame[split == TRAIN], regime[split == TRAIN], MAX_TRAIN_ROWS, np.random.default_rng(seed))
    if len(train) < MIN_TRAIN_ROWS:
        raise TooFewRowsError(f"only {len(train)} usable rows to fit, {MIN_TRAIN_ROWS} needed")
    measured_s = train["measured_s"].to_numpy(np.float64)
    values, covariance = solve(model, model.inputs(train, hardware, fmt), measured_s, hardware, fmt, seed=seed)
    rest = frame[split != TRAIN]
    if rest.empty:
        raise TooFewRowsError("no shape is left to judge the fit")
    predicted = model.time_s(model.inputs(rest, hardware, fmt), hardware, fmt, values)
    log_error = pd.Series(np.log(rest["measured_s"].to_numpy() / predicted), index=rest.index)
    chosen = split[rest.index]
    # A small table may have all its other shapes in one part; then both uses share the rows.
    interval = rest.index[chosen == INTERVAL] if (chosen == INTERVAL).sum() >= MIN_REGIME_ROWS else rest.index
    test = rest.index[chosen == TEST] if (chosen == TEST).any() else rest.index
    shapes = frame.groupby(list(model.shape_columns), dropna=False).ngroup()
    overall = quantiles(log_error[interval], shapes[interval].nunique())
    regimes = {
        str(name): quantiles(errors, shapes[errors.index].nunique())
        for name, errors in log_error[interval].groupby(regime[interval])
        if len(errors) >= MIN_REGIME_ROWS
    }
    low, high = bounds_of(regime[test], overall, regimes)
    heldout = accuracy(np.exp(log_error[test].to_numpy()), low, high)
    return Fit(values, covariance, overall, regimes, len(frame), heldout)


def solve(
    model: OpModel, inputs: Inputs, measured_s: Array, hardware: Hardware, fmt: str, *, seed: int
) -> tuple[dict[str, float], list[list[float]]]:
    """Robust bounded least squares of ln(predicted / measured); values and covariance.

    The problem has local minima (which ceiling explains a floor?), so a few seeded starts run on some of the rows, and
    the best continues on all.

    Raises:
        NotConvergedError: the last run stopped without a solution.
    """
    parameters = model.parameters
    rng = np.random.default_rng(seed)
    start, lower, upper = (
        np.array([_to_theta(p, getattr(p, end)) for p in parameters]) for end in ("start", "lower", "upper")
    )
    prior = np.array([PRIOR_SPREAD if p.log else p.upper - p.lower for p in parameters]) / LOSS_SCALE

    def run(theta: Array, rows: slice | Array, max_evaluations: int) -> OptimizeResult:
        part = {name: column[rows] for name, column in inputs.items()}
        log_measured = np.log(measured_s[rows])

        def residual(theta: Array) -> Array:
            predicted = model.time_s(part, hardware, fmt, from_theta(parameters, theta))
            return np.append(np.log(predicted) - log_measured, (theta - start) / prior)

        return least_squares(
            residual,
            np.clip(theta, lower, upper),
            bounds=(lower, upper),
            loss="soft_l1",
            f_scale=LOSS_SCALE,
            x_scale="jac",
            max_nfev=max_evaluations,
        )

    some = rng.permutation(len(measured_s))[:SCOUT_ROWS]
    starts = [start, *(start + rng.normal(0.0, 1.0, start.size) * prior * LOSS_SCALE for _ in range(N_STARTS - 1))]
    scouts = [run(theta, some, 60) for theta in starts]
    solution = run(min(scouts, key=lambda scout: float(scout.cost)).x, slice(None), 400)
    if not solution.success or not np.isfinite(solution.fun).all():
        raise NotConvergedError(f"the optimiser stopped: {solution.message}")
    return from_theta(parameters, solution.x), _covariance(solution.jac, solution.cost)


def quantiles(log_error: pd.Series, n_shapes: int) -> tuple[float, float, float]:
    """5 %, 50 %, 95 % quantile of ln(measured / predicted), the outer two for the next shape.

    The next of n exchangeable shapes falls below the k-th smallest with probability k / (n + 1), so a few shapes ask
    for quantiles further out (split conformal prediction, Vovk et al. 2005, section 2.2). Rows of one shape err alike.
    """
    outside = max((QUANTILES[0] * (n_shapes + 1) - 0.5) / n_shapes, 0.0)
    low, middle, high = np.quantile(log_error.to_numpy(), (outside, QUANTILES[1], 1.0 - outside))
    return float(low), float(middle), float(high)


def bounds_of(
    regime: pd.Series, overall: tuple[float, float, float], regimes: Mapping[str, tuple[float, float, float]]
) -> tuple[Array, Array]:
    """Factors (low, high) of the 90 % interval of each row: its regime's quantiles, else those of all rows."""
    chosen = [regimes.get(str(name), overall) for name in regime]
    triples = np.asarray(chosen, dtype=np.float64).reshape(-1, 3)
    return np.exp(triples[:, 0]), np.exp(triples[:, 2])


def accuracy(measured_over_predicted: Array, low: Array, high: Array) -> Accuracy:
    """Errors of predictions, given truth / prediction and the interval's ends / prediction."""
    error = 1.0 / measured_over_predicted - 1.0
    covered = (measured_over_predicted >= low) & (measured_over_predicted <= high)
    return Accuracy(
        n=len(error),
        mdape_frac=float(np.median(np.abs(error))),
        mape_frac=float(np.mean(np.abs(error))),
        bias_frac=float(np.median(error)),
        coverage_frac=float(np.mean(covered)),
        median_width_frac=float(np.median(high - low)),
    )


def from_theta(parameters: tuple[Parameter, ...], theta: Array) -> dict[str, float]:
    """Named values of the fitted coordinates."""
    return {p.name: float(np.exp(x)) if p.log else float(x) for p, x in zip(parameters, theta, strict=True)}


def _to_theta(parameter: Parameter, value: float) -> float:
    return float(np.log(value)) if parameter.log else value


def _covariance(jacobian: Array, cost: float) -> list[list[float]]:
    """Gauss-Newton covariance of the robust problem: (J'J)^-1 times the residual variance (pseudo-inverse)."""
    n, k = jacobian.shape
    variance = 2.0 * cost / max(n - k, 1)
    return (np.linalg.pinv(jacobian.T @ jacobian) * variance).tolist()
