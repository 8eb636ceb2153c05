"""Measured routed experts: `moe.<engine>.parquet` and `wideep_moe.<engine>.parquet`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moeplan.calibrate.loads import RankLoads, rank_loads
from moeplan.calibrate.op_model import Array, Exclusion, Inputs, OpModel, Place, dtype_column, parameters
from moeplan.costs.experts import DEFAULTS, expert_ffn_time_s
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS

_SHAPE = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_BOUNDS = {
    "compute_frac": (0.02, 1.5),
    "memory_frac": (0.02, 1.5),
    "launch_s": (1e-6, 1e-3),
    "sharpness": (1.0, 12.0),
    "small_tile_frac": (0.02, 1.0),
    "fill_k": (1.0, 3000.0),
    "stream_tiles": (0.05, 20.0),
    "permute_frac": (0.02, 3.0),
    "local_frac": (0.01, 0.99),
    "align_s": (1e-9, 2e-5),
    "skew_frac": (0.001, 1.0),
}

# Widths (hidden, expert) that the TensorRT-LLM tables label "nongated": squared-ReLU experts of two matrices. The other
# engines measured the same widths without the label.
_TWO_MATRIX_WIDTHS = frozenset({(8192, 5120), (2688, 1856), (2048, 5120), (1024, 2688), (4096, 2688)})


# Versions of tables whose rounding leftovers went to the last experts (`calibrate.loads`): rows of few tokens took the
# time to read the weights of as many experts on one rank; those of later versions and other engines did not.
_TAIL_VERSIONS = frozenset({"1.3.0rc10"})


def _exponent(distribution: str) -> float | None:
    return None if distribution == "balanced" else float(distribution.removeprefix("power_law_").removesuffix("_eplb"))


def _moe_loads(frame: pd.DataFrame) -> list[RankLoads]:
    """Loads as the table states them (`moeplan measure` does), else what its ``distribution`` stands for."""
    if "distinct_experts" in frame and "max_load" in frame:
        pairs = (frame["num_tokens"] * frame["topk"]).tolist()
        stated = zip(pairs, frame["distinct_experts"].tolist(), frame["max_load"].tolist(), strict=True)
        return [RankLoads(*map(float, load)) for load in stated]
    keys = zip(*(frame[c].tolist() for c in ("num_tokens", "topk", "num_experts", "moe_ep_size")), strict=True)
    exponents = {name: _exponent(name) for name in frame["distribution"].unique()}
    tail = [str(version) in _TAIL_VERSIONS for version in frame.get("version", [""] * len(frame))]
    rows = zip(keys, frame["distribution"], tail, strict=True)
    return [rank_loads(*key, exponents[d], tail=t) for key, d, t in rows]


def _wide_loads(frame: pd.DataFrame) -> list[RankLoads]:
    """Redundant slots: `_eplb` rows replicate hot experts until ranks are level, so slots count as balanced experts."""
    columns = ("num_tokens", "topk", "num_slots", "num_experts", "moe_ep_size", "distribution")
    return [
        rank_loads(t, k, slots, ep, None) if d.endswith("_eplb") else rank_loads(t, k, experts, ep, _exponent(d))
        for t, k, slots, experts, ep, d in zip(*(frame[c].tolist() for c in columns), strict=True)
    ]


def _arrays(frame: pd.DataFrame, loads: list[RankLoads], n_slots: pd.Series, entering: pd.Series) -> Inputs:
    widths = zip(frame["hidden_size"].tolist(), frame["inter_size"].tolist(), strict=True)
    return {
        "n_tokens": entering.to_numpy(np.float64),
        "assignments": np.array([load.assignments for load in loads]),
        "distinct": np.array([load.distinct for load in loads]),
        "max_load": np.array([load.max_load for load in loads]),
        "n_local_experts": np.maximum(n_slots.to_numpy(np.float64) / frame["moe_ep_size"].to_numpy(np.float64), 1.0),
        "hidden_size": frame["hidden_size"].to_numpy(np.float64),
        "intermediate_size": (frame["inter_size"] / frame["moe_tp_size"]).to_numpy(np.float64),
        "n_matrices": np.array([2.0 if width in _TWO_MATRIX_WIDTHS else 3.0 for width in widths]),
        "routed_pairs": (entering * frame["topk"]).to_numpy(np.float64),
    }


def _moe_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return _arrays(frame, _moe_loads(frame), frame["num_experts"], frame["num_tokens"])


def _wide_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str) -> Inputs:
    return _arrays(frame, _wide_loads(frame), frame["num_slots"], frame["rank0_num_tokens"])


def _time_s(inputs: Inputs, hardware: Hardware, fmt: str, values: Mapping[str, float]) -> Array:
    return expert_ffn_time_s(**inputs, fmt=FORMATS[fmt], device=hardware.device, p=values)


def _regime(frame: pd.DataFrame, _place: Place) -> pd.Series:
    """By token count: weights of few experts, weights of most experts, arithmetic."""
    tokens = frame["num_tokens"]
    names = np.select([tokens <= 8, tokens <= 256], ["tokens<=8", "tokens<=256"], "tokens>256")
    return pd.Series(names, index=frame.index)


def _vllm_fp8_hopper(frame: pd.DataFrame, place: Place) -> pd.Series:
    known_bad = place.engine == "vllm" and place.hardware in ("h100-sxm", "h200-sxm")
    return (frame["moe_dtype"] == "fp8") & known_bad


def _engine(frame: pd.DataFrame, place: Place) -> pd.Series:
    """The engine's usual kernel of a format (most rows) is stored under the engine, any other as ``engine/kernel``.

    Kernels of one engine differ by up to three times; a scenario, which names none, gets the usual one.
    """
    kernel = frame["kernel_source"].astype(str)
    usual = kernel.groupby(frame["moe_dtype"]).transform(lambda names: names.value_counts().index[0])
    return pd.Series(np.where(kernel == usual, place.engine, place.engine + "/" + kernel), index=frame.index)


MODEL = OpModel(
    op="moe",
    tables=("moe",),
    columns=(*_SHAPE, "moe_dtype", "distribution", "kernel_source"),
    latency=("latency_ms", 1e-3),
    shape_columns=_SHAPE,
    parameters=parameters(DEFAULTS, _BOUNDS),
    format_of=dtype_column("moe_dtype"),
    inputs=_moe_inputs,
    time_s=_time_s,
    regime_of=_regime,
    engine_of=_engine,
    exclusions=(
        Exclusion(
            "vLLM 0.24 fp8 experts on H100/H200: 2.2 to 2.5 times slower than its bf16, not what the engine does",
            _vllm_fp8_hopper,
        ),
    ),
)

WIDE_MODEL = OpModel(
    op="wideep_moe",
    tables=("wideep_moe",),
    columns=(*_SHAPE, "num_slots", "rank0_num_tokens", "moe_dtype", "distribution"),
    latency=("latency_ms", 1e-3),
    shape_columns=(*_SHAPE, "num_slots"),
    parameters=parameters(DEFAULTS, _BOUNDS),
    format_of=dtype_column("moe_dtype"),
    inputs=_wide_inputs,
    time_s=_time_s,
    regime_of=_regime,
)
