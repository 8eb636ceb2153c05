"""Measured dense products: `gemm.<engine>.parquet`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import Array, Exclusion, Inputs, OpModel, Place, dtype_column, parameters
from moeplan.costs.gemm import DEFAULTS, gemm_time_s
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS

_BOUNDS = {
    "compute_frac": (0.02, 1.5),
    "memory_frac": (0.02, 1.5),
    "launch_s": (2e-7, 1e-3),
    "sharpness": (1.0, 12.0),
    "small_tile_frac": (0.3, 1.0),
    "fill_k": (1.0, 3000.0),
    "split_k": (32.0, 1e5),
    "wave_frac": (0.01, 1.0),
    "misaligned_factor": (0.9, 2.0),
    "quantize_frac": (0.02, 2.0),
    "quantize_row_values": (32.0, 8000.0),
    "l2_frac": (0.05, 1.0),
    "l2_gain": (0.01, 10.0),
}


_BAD_ROWS = 256  # tokens up to which the tables' README calls vLLM's fp8_block bad


def _inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return {name: frame[name].to_numpy(np.float64) for name in ("m", "n", "k")}


def _time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    return gemm_time_s(inputs["m"], inputs["n"], inputs["k"], fmt=FORMATS[fmt], device=hardware.device, p=values)


def _regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """Small or large batch, and whether the whole product is small enough to be ruled by launch latency."""
    rows = np.select([frame["m"] <= 64, frame["m"] <= 512], ["m<=64", "m<=512"], "m>512")
    small = frame["n"] * frame["k"] <= 2**22
    return pd.Series(np.char.add(rows.astype(str), np.where(small, " small", " large")), index=frame.index)


def _slow_fp8_block(frame: pd.DataFrame, place: Place) -> pd.Series:
    """Rows of vLLM 0.24's fp8_block, but for Arc, whose kernel is another."""
    return (frame["gemm_dtype"] == "fp8_block") & (place.engine == "vllm") & (place.hardware != "arc-pro-b60")


def _known_bad(frame: pd.DataFrame, place: Place) -> pd.Series:
    return _slow_fp8_block(frame, place) & (frame["m"] <= _BAD_ROWS)


def _engine(frame: pd.DataFrame, place: Place) -> pd.Series:
    """What is left of that format starts at 75 to 280 us, bound by the host: apart, so the engine borrows another's."""
    return pd.Series(place.engine, index=frame.index).mask(_slow_fp8_block(frame, place), f"{place.engine}/host_bound")


MODEL = OpModel(
    op="gemm",
    tables=("gemm",),
    columns=("m", "n", "k", "gemm_dtype"),
    latency=("latency_ms", 1e-3),
    shape_columns=("m", "n", "k"),
    parameters=parameters(DEFAULTS, _BOUNDS),
    format_of=dtype_column("gemm_dtype"),
    inputs=_inputs,
    time_s=_time_s,
    regime_of=_regime,
    engine_of=_engine,
    exclusions=(
        Exclusion(
            "vLLM 0.24 fp8_block at m <= 256: 8 to 86 times slower than its bf16, not what the engine does end to end",
            _known_bad,
        ),
    ),
)
