"""Measured copies: `memory_copy` inside the device's memory, `host_copy` over its link to the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import Array, Inputs, OpModel, Place, parameters
from moeplan.costs import elementwise
from moeplan.costs.collectives import DEFAULTS, host_copy_time_s
from moeplan.spec.hardware import Hardware

_BOUNDS = {
    "memory_frac": (0.02, 1.2),
    "launch_s": (1e-7, 1e-3),
    "l2_frac": (0.02, 2.0),
    "l2_gain": (0.01, 10.0),
    "base_s": (1e-7, 1e-3),
    "efficiency": (0.02, 1.2),
}
_BANDS = (2**20, 2**26)  # bytes


def _bytes_moved(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return {"n_bytes": frame["n_bytes"].to_numpy(np.float64)}


def _any_format(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """Bytes move alike whatever they mean; stored as bf16."""
    return pd.Series("bf16", index=frame.index)


def _regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    small, medium = (frame["n_bytes"] <= band for band in _BANDS)
    return pd.Series(np.select([small, medium], ["small copy", "medium copy"], "large copy"), index=frame.index)


def _memory_s(inputs: Inputs, hardware: Hardware, _fmt: str, values: Mapping[str, float]) -> Array:
    return elementwise.elementwise_time_s(inputs["n_bytes"], device=hardware.device, p=values)


def _host_s(inputs: Inputs, hardware: Hardware, _fmt: str, values: Mapping[str, float]) -> Array:
    return host_copy_time_s(inputs["n_bytes"], hardware=hardware, p=values)


MEMORY = OpModel(
    op="elementwise",
    tables=("memory_copy",),
    columns=("n_bytes",),
    latency=("latency_ms", 1e-3),
    shape_columns=("n_bytes",),
    parameters=parameters(elementwise.DEFAULTS, _BOUNDS),
    format_of=_any_format,
    inputs=_bytes_moved,
    time_s=_memory_s,
    regime_of=_regime,
)

HOST = OpModel(
    op="host_copy",
    tables=("host_copy",),
    columns=("n_bytes",),
    latency=("latency_ms", 1e-3),
    shape_columns=("n_bytes",),
    parameters=parameters(DEFAULTS["host_copy"], _BOUNDS),
    format_of=_any_format,
    inputs=_bytes_moved,
    time_s=_host_s,
    regime_of=_regime,
)
