"""Measured dense products: `gemm.<engine>.parquet`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import Array, Exclusion, Inputs, OpModel, Parameter, Place, dtype_column
from moeplan.costs.gemm import DEFAULTS, gemm_time_s
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS


def _inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return {name: frame[name].to_numpy(np.float64) for name in ("m", "n", "k")}


def _time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    return gemm_time_s(inputs["m"], inputs["n"], inputs["k"], fmt=FORMATS[fmt], device=hardware.device, p=values)


def _regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """Small or large batch, and whether the whole product is small enough to be ruled by launch latency."""
    rows = np.select([frame["m"] <= 64, frame["m"] <= 512], ["m<=64", "m<=512"], "m>512")
    small = frame["n"] * frame["k"] <= 2**22
    return pd.Series(np.char.add(rows.astype(str), np.where(small, " small", " large")), index=frame.index)


def _vllm_fp8_block_small_m(frame: pd.DataFrame, place: Place) -> pd.Series:
    known_bad = place.engine == "vllm" and place.hardware != "arc-pro-b60"
    return (frame["gemm_dtype"] == "fp8_block") & (frame["m"] <= 256) & known_bad


MODEL = OpModel(
    op="gemm",
    tables=("gemm",),
    columns=("m", "n", "k", "gemm_dtype"),
    latency=("latency_ms", 1e-3),
    shape_columns=("m", "n", "k"),
    parameters=(
        Parameter("compute_frac", DEFAULTS["compute_frac"], 0.02, 1.5),
        Parameter("memory_frac", DEFAULTS["memory_frac"], 0.02, 1.5),
        Parameter("launch_s", DEFAULTS["launch_s"], 2e-7, 1e-3),
        Parameter("sharpness", DEFAULTS["sharpness"], 1.0, 12.0),
    ),
    format_of=dtype_column("gemm_dtype"),
    inputs=_inputs,
    time_s=_time_s,
    regime_of=_regime,
    exclusions=(
        Exclusion(
            "vLLM 0.24 fp8_block at m <= 256: 8 to 86 times slower than its bf16, not what the engine does end to end",
            _vllm_fp8_block_small_m,
        ),
    ),
)
