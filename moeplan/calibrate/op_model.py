"""What one measured operation must declare so that `fit` and `judge` can do the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from moeplan.spec.hardware import Hardware

Array: TypeAlias = npt.NDArray[np.float64]
Inputs: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number the fit may move, between ``lower`` and ``upper``, starting at ``start``.

    ``log`` parameters (all must be positive) move on a logarithmic scale.
    """

    name: str
    start: float
    lower: float
    upper: float
    log: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Which table a row comes from."""

    hardware: str
    op: str
    engine: str


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A documented rule that leaves rows out of fits: ``rows(frame, place)`` is True where the rule applies."""

    reason: str
    rows: Callable[[pd.DataFrame, Place], pd.Series]


@dataclass(frozen=True, slots=True)
class OpModel:
    """A measured operation.

    ``frame`` below is a table as read, with the columns named in ``columns`` checked, and ``measured_s`` [s] and
    ``engine`` added.

    Attributes:
        op: name of the operation in `costs.parameters` and in reports.
        tables: names of the measured tables (`<op>.<engine>.parquet`) it explains.
        columns: columns it needs besides ``latency``; a table without one of them is refused.
        latency: column with the time, and its unit in seconds.
        shape_columns: columns that identify a shape; train and held-out rows never share one.
        parameters: what is fitted.
        format_of: per row, the number format (key of ``precision.FORMATS``), or "" where the row's type is unknown.
        engine_of: per row, the engine the parameters are stored under (most operations: the table's engine).
        composed: its inputs are times of other operations, so these are fitted first.
        exclusions: rows not fitted, with reasons.
        inputs: (frame, hardware, format) -> arrays of shape (n_rows,); called once per fit.
        time_s: (inputs, hardware, format, values) -> predicted seconds of shape (n_rows,); calls the cost function.
        regime_of: per row, a short regime name; residual quantiles are kept by regime.
    """

    op: str
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    latency: tuple[str, float]
    shape_columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    format_of: Callable[[pd.DataFrame, Place], pd.Series]
    inputs: Callable[[pd.DataFrame, Hardware, str], Inputs]
    time_s: Callable[[Inputs, Hardware, str, Mapping[str, float]], Array]
    regime_of: Callable[[pd.DataFrame, Place], pd.Series]
    exclusions: tuple[Exclusion, ...] = ()
    engine_of: Callable[[pd.DataFrame, Place], pd.Series] | None = None
    composed: bool = False


# Names of the measured tables' types -> ``precision.FORMATS``.
FORMAT_OF_DTYPE: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int8_wo": "int8_wo",
    "int4_wo": "int4",
    "sq": "int8",
    "w4a16_mxfp4": "w4a16_mxfp4",
    "w4a8_mxfp4_mxfp8": "w4a8_mxfp4_mxfp8",
}


def dtype_column(name: str) -> Callable[[pd.DataFrame, Place], pd.Series]:
    """``format_of`` for tables whose column ``name`` holds the type."""

    def format_of(frame: pd.DataFrame, _place: Place) -> pd.Series:
        return frame[name].map(FORMAT_OF_DTYPE).fillna("")

    return format_of


def parameters(start: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> tuple[Parameter, ...]:
    """Logarithmic parameters that start at a cost module's estimates."""
    return tuple(Parameter(name, value, *bounds[name]) for name, value in start.items())


def usable(model: OpModel, frame: pd.DataFrame, place: Place) -> tuple[pd.Series, dict[str, int]]:
    """Mask of the rows no exclusion applies to, and how many rows each reason took."""
    keep = pd.Series(True, index=frame.index)
    taken: dict[str, int] = {}
    for exclusion in model.exclusions:
        hit = exclusion.rows(frame, place).fillna(False).astype(bool) & keep
        if hit.any():
            taken[exclusion.reason] = int(hit.sum())
            keep &= ~hit
    return keep, taken
