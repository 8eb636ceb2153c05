"""Measured multi-head latent attention kernels: `mla_prefill`, `mla_decode`, `mla_bmm`.

The tables were measured with DeepSeek-V3's sizes (latent 512 + 64, heads 128 + 64 and 128) over tensor parallelism;
`mla_prefill_module` and `mla_decode_module` hold the whole block with its projections and are not fitted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import Array, Inputs, OpModel, Parameter, Place, dtype_column
from moeplan.calibrate.ops.attention import PREFILL_PARAMETERS, cache_format
from moeplan.costs.attention import prefill_attention_time_s
from moeplan.costs.latent_attention import (
    MLA_ABSORB_DEFAULTS,
    MLA_DECODE_DEFAULTS,
    mla_absorb_time_s,
    mla_decode_time_s,
)
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS

# DeepSeek-V3 technical report (arXiv:2412.19437), section 4.2.
KV_LORA_RANK, NOPE_DIM, ROPE_DIM, V_DIM = 512.0, 128.0, 64.0, 128.0
_SIZES = {"kv_lora_rank": KV_LORA_RANK, "qk_nope_head_dim": NOPE_DIM, "qk_rope_head_dim": ROPE_DIM, "v_head_dim": V_DIM}


# SGLang's prefill tables on these kernels ran in the absorbed form, all heads on one latent: taken as the expanded
# form they would reach a third of what TensorRT-LLM reaches, the ratio of the two forms' FLOP. Engines expand, and so
# does the cost; the rows are compared with the form that was measured.
_ABSORBED_KERNELS = ("flash_attention", "triton")


def _prefill_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    columns = {"batch": "batch_size", "q_tokens": "isl", "cached_tokens": "step", "n_heads": "num_heads"}
    sizes = {name: frame[column].to_numpy(np.float64) for name, column in columns.items()}
    absorbed = frame["kernel_source"].isin(_ABSORBED_KERNELS).to_numpy()
    return {
        **sizes,
        "n_kv_heads": np.where(absorbed, 1.0, sizes["n_heads"]),
        "head_dim": np.where(absorbed, KV_LORA_RANK + ROPE_DIM, NOPE_DIM + ROPE_DIM),
        "v_head_dim": np.where(absorbed, KV_LORA_RANK, V_DIM),
    }


def _decode_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return {
        "batch": frame["batch_size"].to_numpy(np.float64),
        "context_tokens": (frame["isl"] + frame["step"]).to_numpy(np.float64),
        "n_heads": frame["num_heads"].to_numpy(np.float64),
    }


def _absorb_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    side = {"mla_gen_pre": NOPE_DIM, "mla_gen_post": V_DIM}
    return {
        "batch": frame["num_tokens"].to_numpy(np.float64),
        "n_heads": frame["num_heads"].to_numpy(np.float64),
        "inner_head_dim": frame["op_name"].map(side).to_numpy(np.float64),
    }


def _prefill_time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    return prefill_attention_time_s(**inputs, window_tokens=None, kv_fmt=FORMATS[fmt], device=hardware.device, p=values)


def _decode_time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    # the tables repeat one call on the same cache: what fits in L2 is read from there
    return mla_decode_time_s(**inputs, **_SIZES, kv_fmt=FORMATS[fmt], device=hardware.device, p=values, warm_l2=True)


def _absorb_time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    common = {"fmt": FORMATS[fmt], "device": hardware.device, "p": values, "warm_l2": True}
    return mla_absorb_time_s(**inputs, kv_lora_rank=KV_LORA_RANK, **common)


def _by_work(work: pd.Series, small: float, large: float) -> pd.Series:
    return pd.Series(np.select([work <= small, work <= large], ["tiny", "small"], "large"), index=work.index)


def _prefill_regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    return _by_work(frame["batch_size"] * frame["num_heads"] * frame["isl"] ** 2.0, 2**22, 2**28)


def _decode_regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    return _by_work(frame["batch_size"] * (frame["isl"] + frame["step"]) * 1.0, 2**12, 2**17)


def _absorb_regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    return _by_work(frame["num_tokens"] * 1.0, 64, 512)


def _format(frame: pd.DataFrame, place: Place) -> pd.Series:
    """The cache's format. "fp8" rows of A100 and L40S repeat their bf16 rows (median ratio 1.00): it was 16 bit."""
    fmt = cache_format(frame, place)
    return fmt.replace("fp8", "bf16") if place.hardware in ("a100-sxm-80gb", "l40s") else fmt


def _moved(name: str, defaults: Mapping[str, float], lower: float, upper: float, *, log: bool = True) -> Parameter:
    return Parameter(name, defaults[name], lower, upper, log)


_COLUMNS = ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype")
_SHAPE = ("batch_size", "isl", "step", "num_heads")

PREFILL = OpModel(
    op="mla_prefill",
    tables=("mla_prefill",),
    columns=(*_COLUMNS, "kernel_source"),
    latency=("latency_ms", 1e-3),
    shape_columns=_SHAPE,
    parameters=PREFILL_PARAMETERS,
    format_of=_format,
    inputs=_prefill_inputs,
    time_s=_prefill_time_s,
    regime_of=_prefill_regime,
)

DECODE = OpModel(
    op="mla_decode",
    tables=("mla_decode",),
    columns=_COLUMNS,
    latency=("latency_ms", 1e-3),
    shape_columns=_SHAPE,
    parameters=(
        _moved("compute_frac", MLA_DECODE_DEFAULTS, 0.01, 1.2),
        _moved("memory_frac", MLA_DECODE_DEFAULTS, 0.05, 1.1),
        _moved("tile_rows", MLA_DECODE_DEFAULTS, 1.0, 128.0),
        _moved("kv_reread_frac", MLA_DECODE_DEFAULTS, 0.0, 1.0, log=False),
        _moved("split_tokens", MLA_DECODE_DEFAULTS, 16.0, 262144.0),
        _moved("blocks_per_sm", MLA_DECODE_DEFAULTS, 0.3, 16.0),
        _moved("saturating_blocks_per_sm", MLA_DECODE_DEFAULTS, 0.05, 2.0),
        _moved("l2_frac", MLA_DECODE_DEFAULTS, 0.02, 1.0),
        _moved("block_s", MLA_DECODE_DEFAULTS, 1e-9, 3e-5),
        _moved("group_exponent", MLA_DECODE_DEFAULTS, 0.0, 0.6, log=False),
        _moved("split_s", MLA_DECODE_DEFAULTS, 1e-9, 5e-6),
        _moved("launch_s", MLA_DECODE_DEFAULTS, 1e-6, 3e-4),
    ),
    format_of=_format,
    inputs=_decode_inputs,
    time_s=_decode_time_s,
    regime_of=_decode_regime,
)

ABSORB = OpModel(
    op="mla_absorb",
    tables=("mla_bmm",),
    columns=("op_name", "bmm_dtype", "num_tokens", "num_heads"),
    latency=("latency_ms", 1e-3),
    shape_columns=("num_tokens", "num_heads"),
    parameters=(
        _moved("compute_frac", MLA_ABSORB_DEFAULTS, 0.02, 1.2),
        _moved("memory_frac", MLA_ABSORB_DEFAULTS, 0.02, 1.1),
        _moved("l2_frac", MLA_ABSORB_DEFAULTS, 0.02, 1.0),
        _moved("launch_s", MLA_ABSORB_DEFAULTS, 2e-7, 3e-4),
    ),
    format_of=dtype_column("bmm_dtype"),
    inputs=_absorb_inputs,
    time_s=_absorb_time_s,
    regime_of=_absorb_regime,
)
