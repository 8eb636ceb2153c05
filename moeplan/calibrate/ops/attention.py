"""Measured softmax attention: `attention_prefill.<engine>.parquet` and `attention_decode.<engine>.parquet`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import FORMAT_OF_DTYPE, Array, Exclusion, Inputs, OpModel, Parameter, Place
from moeplan.costs.attention import (
    DECODE_DEFAULTS,
    PREFILL_DEFAULTS,
    decode_attention_time_s,
    prefill_attention_time_s,
)
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS

COLUMNS = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype")
SHAPE = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")

_HEAD_BOUNDS = {"head_64_frac": (0.1, 1.5), "head_192_frac": (0.05, 1.5), "head_256_frac": (0.1, 2.0)}


def window_of(frame: pd.DataFrame) -> pd.Series:
    """Window [tokens] per row, 0 where there is none; some A100 tables lack the column."""
    if "window_size" not in frame:
        return pd.Series(0.0, index=frame.index)
    return frame["window_size"].fillna(0.0).astype(np.float64)


def cache_format(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """Key of ``precision.FORMATS``: the KV cache's format."""
    return frame["kv_cache_dtype"].map(FORMAT_OF_DTYPE).fillna("")


def arithmetic_format(frame: pd.DataFrame, place: Place) -> pd.Series:
    """The KV cache's format; "fp8_kv" where an fp8 cache is read by 16-bit arithmetic and the engine has both.

    vLLM and Arc have one kernel for an fp8 cache: it is "fp8" whatever the table says of the arithmetic.
    """
    cache = cache_format(frame, place)
    if "attn_dtype" not in frame or not (frame["attn_dtype"] == "fp8").any():
        return cache
    return cache.mask((cache == "fp8") & (frame["attn_dtype"] != "fp8"), "fp8_kv")


def _sizes(frame: pd.DataFrame) -> dict[str, Array]:
    heads = frame["num_heads"].to_numpy(np.float64)
    kv_heads = frame["num_key_value_heads"].to_numpy(np.float64)
    return {
        "batch": frame["batch_size"].to_numpy(np.float64),
        "n_heads": heads,
        "n_kv_heads": np.where(kv_heads == 0.0, heads, kv_heads),
        "head_dim": frame["head_dim"].to_numpy(np.float64),
        "v_head_dim": _v_head_dim(frame),
        "window_tokens": window_of(frame).to_numpy(),
    }


def _v_head_dim(frame: pd.DataFrame) -> Array:
    """SGLang's tables run head size 192 with values of 128 (they would exceed the memory bandwidth otherwise)."""
    head_dim = frame["head_dim"].to_numpy(np.float64)
    sglang = frame["kernel_source"].isin(["fa3", "triton"]).to_numpy()
    return np.where((head_dim == 192.0) & sglang, 128.0, head_dim)


def _prefill_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return {
        **_sizes(frame),
        "q_tokens": frame["isl"].to_numpy(np.float64),
        "cached_tokens": frame["step"].to_numpy(np.float64),
    }


def _decode_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    context = (frame["isl"] + frame["step"]).to_numpy(np.float64)
    return {**_sizes(frame), "context_tokens": context}


def _prefill_time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    return prefill_attention_time_s(**inputs, kv_fmt=FORMATS[fmt.removesuffix("_kv")], device=hardware.device, p=values)


def _decode_time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    # the tables repeat one call on the same cache: what fits in L2 is read from there
    return decode_attention_time_s(**inputs, kv_fmt=FORMATS[fmt], device=hardware.device, p=values, warm_l2=True)


def _prefill_regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """Window or not, and how much work: the product of batch, heads, tokens and keys."""
    keys = np.minimum(frame["isl"], window_of(frame).replace(0.0, np.inf))
    pairs = frame["batch_size"] * frame["num_heads"] * frame["isl"] * keys * frame["head_dim"] / 128.0
    work = np.select([pairs <= 2**22, pairs <= 2**28], ["tiny", "small"], "large")
    windowed = (window_of(frame) > 0.0) & (window_of(frame) < frame["isl"])
    return pd.Series(np.char.add(work.astype(str), np.where(windowed, " window", " full")), index=frame.index)


def _decode_regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """Window or not, and the values of the cache read."""
    keys = np.minimum(frame["isl"] + frame["step"], window_of(frame).replace(0.0, np.inf))
    kv_heads = frame["num_key_value_heads"].mask(frame["num_key_value_heads"] == 0, frame["num_heads"])
    values = frame["batch_size"] * kv_heads * keys * frame["head_dim"]
    work = np.select([values <= 2**20, values <= 2**25], ["tiny", "small"], "large")
    windowed = (window_of(frame) > 0.0) & (window_of(frame) < frame["isl"] + frame["step"])
    return pd.Series(np.char.add(work.astype(str), np.where(windowed, " window", " full")), index=frame.index)


def _engine(frame: pd.DataFrame, place: Place) -> pd.Series:
    """The kernel most rows of a head size and format ran on is stored under the engine, another as ``engine/kernel``.

    Such are fallbacks beside it, and the decode kernels some engines run for one-token prompts.
    """
    fmt = arithmetic_format(frame, place) if "attn_dtype" in frame else cache_format(frame, place)
    counts = frame.groupby([frame["head_dim"], fmt, frame["kernel_source"]])["isl"].transform("size")
    minor = counts < counts.groupby([frame["head_dim"], fmt]).transform("max")
    return pd.Series(place.engine, index=frame.index).mask(minor, place.engine + "/" + frame["kernel_source"])


def _decode_engine(frame: pd.DataFrame, place: Place) -> pd.Series:
    """TensorRT-LLM runs large groups on a kernel that does not share the cache; catalogued models have at most 32."""
    return _engine(frame, place).mask(_large_group(frame, place), f"{place.engine}/unshared")


def _large_group(frame: pd.DataFrame, place: Place) -> pd.Series:
    kv_heads = frame["num_key_value_heads"].mask(frame["num_key_value_heads"] == 0, frame["num_heads"])
    return (frame["num_heads"] / kv_heads >= 64) & (place.engine == "trtllm")


def _above_bandwidth(frame: pd.DataFrame, place: Place) -> pd.Series:
    """A100 TensorRT-LLM decode rows faster than the datasheet's 2.039 TB/s allows, L2 (40 MB) aside."""
    if (place.hardware, place.engine) != ("a100-sxm-80gb", "trtllm"):
        return pd.Series(False, index=frame.index)
    kv_heads = frame["num_key_value_heads"].mask(frame["num_key_value_heads"] == 0, frame["num_heads"])
    n_bytes = frame["batch_size"] * kv_heads * (frame["isl"] + frame["step"]) * frame["head_dim"] * 4.0
    return (n_bytes / frame["measured_s"] > 2.039e12) & (n_bytes > 40e6)


def _moved(name: str, defaults: Mapping[str, float], lower: float, upper: float, *, log: bool = True) -> Parameter:
    return Parameter(name, defaults[name], lower, upper, log)


def _head_parameters(defaults: Mapping[str, float]) -> tuple[Parameter, ...]:
    bounds = {**_HEAD_BOUNDS, "head_512_frac": (0.02, 2.0)}
    return tuple(_moved(name, defaults, low, high) for name, (low, high) in bounds.items())


# Above 1 only because the catalogue's peak is disputed for B300 and undercut by some Blackwell rows (tables' README).
PREFILL_PARAMETERS = (
    _moved("compute_frac", PREFILL_DEFAULTS, 0.02, 1.2),
    _moved("prologue_tokens", PREFILL_DEFAULTS, 1.0, 2000.0),
    _moved("blocks_per_sm", PREFILL_DEFAULTS, 0.3, 6.0),
    _moved("split_frac", PREFILL_DEFAULTS, 0.0, 1.0, log=False),
    _moved("memory_frac", PREFILL_DEFAULTS, 0.05, 1.0),
    _moved("kv_reads", PREFILL_DEFAULTS, 0.3, 20.0),
    _moved("l2_frac", PREFILL_DEFAULTS, 0.02, 1.0),
    _moved("sharpness", PREFILL_DEFAULTS, 1.0, 4.0),
    _moved("launch_s", PREFILL_DEFAULTS, 1e-6, 3e-4),
)

PREFILL = OpModel(
    op="attention_prefill",
    tables=("attention_prefill",),
    columns=(*COLUMNS, "attn_dtype", "kernel_source"),
    latency=("latency_ms", 1e-3),
    shape_columns=SHAPE,
    parameters=(
        *PREFILL_PARAMETERS,
        _moved("window_frac", PREFILL_DEFAULTS, 0.05, 1.0),
        _moved("pack_frac", PREFILL_DEFAULTS, 0.0, 1.0, log=False),
        *_head_parameters(PREFILL_DEFAULTS),
    ),
    format_of=arithmetic_format,
    inputs=_prefill_inputs,
    time_s=_prefill_time_s,
    regime_of=_prefill_regime,
    engine_of=_engine,
)

DECODE = OpModel(
    op="attention_decode",
    tables=("attention_decode",),
    columns=(*COLUMNS, "kernel_source"),
    latency=("latency_ms", 1e-3),
    shape_columns=SHAPE,
    parameters=(
        _moved("compute_frac", DECODE_DEFAULTS, 0.01, 1.2),
        _moved("memory_frac", DECODE_DEFAULTS, 0.05, 1.1),
        *_head_parameters(DECODE_DEFAULTS),
        _moved("tile_rows", DECODE_DEFAULTS, 1.0, 128.0),
        _moved("window_pad_tokens", DECODE_DEFAULTS, 1.0, 512.0),
        _moved("split_tokens", DECODE_DEFAULTS, 16.0, 262144.0),
        _moved("blocks_per_sm", DECODE_DEFAULTS, 0.3, 16.0),
        _moved("saturating_blocks_per_sm", DECODE_DEFAULTS, 0.05, 2.0),
        _moved("mha_split_frac", DECODE_DEFAULTS, 0.0, 1.0, log=False),
        _moved("l2_frac", DECODE_DEFAULTS, 0.02, 1.0),
        _moved("block_s", DECODE_DEFAULTS, 1e-9, 2e-5),
        _moved("group_exponent", DECODE_DEFAULTS, 0.0, 0.6, log=False),
        _moved("mha_block_frac", DECODE_DEFAULTS, 0.05, 5.0),
        _moved("split_s", DECODE_DEFAULTS, 1e-9, 5e-6),
        _moved("launch_s", DECODE_DEFAULTS, 1e-6, 3e-4),
    ),
    format_of=cache_format,
    inputs=_decode_inputs,
    time_s=_decode_time_s,
    regime_of=_decode_regime,
    engine_of=_decode_engine,
    exclusions=(Exclusion("A100 TensorRT-LLM rows above the memory bandwidth", _above_bandwidth),),
)
