"""Measured communication: `nccl`, `custom_allreduce`, `deepep_*`, `moe_all_to_all` and `trtllm_all_to_all` tables.

A collective moves bytes whatever their type, so all types of a table are fitted together and stored as bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import Array, Exclusion, Inputs, OpModel, Place, parameters
from moeplan.costs import collectives, expert_exchange
from moeplan.spec.hardware import Hardware

_EFFICIENCY = (0.02, 1.0)
_SECONDS = (1e-9, 1e-3)
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "base_s": (1e-7, 1e-3),
    "hop_s": _SECONDS,
    "wide_step": (0.001, 2.0),
    "low_latency_efficiency": (0.005, 1.0),
    "switch_bytes": (1e3, 1e8),
    "bulk_hop_s": _SECONDS,
    "efficiency": _EFFICIENCY,
    "local_chunks": (0.01, 8.0),
    "sharpness": (1.0, 8.0),
    "host_path": (0.02, 1.0),
    "multicast_efficiency": _EFFICIENCY,
    "one_shot_efficiency": _EFFICIENCY,
    "two_shot_s": _SECONDS,
    "two_shot_efficiency": _EFFICIENCY,
    "limit_bytes": (1e5, 1e9),
    "token_s": (1e-11, 1e-6),
    "local_copies": (0.001, 10.0),
    "sm_bytes_per_s": (1e9, 2e11),
    "expert_s": (1e-10, 1e-5),
    "expert_bytes_per_s": (1e8, 1e12),
}
# Bytes of one value of the tables' types, with the scales of the block formats. "default" is what vLLM sends: bf16.
_MESSAGE_BYTES = {"half": 2.0, "int8": 1.0, "bfloat16": 2.0}
_PAYLOAD_BYTES = {"default": 2.0, "bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.5 + 1 / 16, "fp4": 0.5 + 1 / 16}
_FP8_WITH_SCALES = 1 + 4 / 128  # DeepEP's benchmark: one float per 128 values
_COMBINE_BYTES = 2.0

_BROKEN_HOST_PATH = Exclusion(
    "more than 2 GPUs on the L40S machine: 8 GB/s with 4, 0.8 to 2.6 with 8, a broken host path",
    lambda frame, place: (frame["num_gpus"] > 2) & (place.hardware == "l40s"),
)
_SLOW_PAIR = Exclusion(
    "2 GPUs of GB200 under vLLM: up to 5.2 ms, half the rate of NCCL on the same link",
    lambda frame, place: (frame["num_gpus"] == 2) & (place.hardware == "gb200-nvl72") & (place.engine == "vllm"),
)


def _only(**wanted: str) -> Callable[[pd.DataFrame, Place], pd.Series]:
    """``format_of`` for tables that hold several operations: bf16 where the columns match, none elsewhere."""

    def format_of(frame: pd.DataFrame, _place: Place) -> pd.Series:
        hit = pd.Series(True, index=frame.index)
        for column, pattern in wanted.items():
            hit &= frame[column].str.fullmatch(pattern)
        return hit.map({True: "bf16", False: ""})

    return format_of


def _all_rows(frame: pd.DataFrame, _place: Place) -> pd.Series:
    return pd.Series("bf16", index=frame.index)


def _band(value: pd.Series, unit: str, low: float, high: float) -> pd.Series:
    names = np.select([value <= low, value <= high], [f"small {unit}", f"medium {unit}"], f"large {unit}")
    return pd.Series(names, index=value.index)


def _message_bytes(frame: pd.DataFrame, dtype: str) -> pd.Series:
    """The tables count elements."""
    return frame["message_size"] * frame[dtype].map(_MESSAGE_BYTES)


def _message_regime(frame: pd.DataFrame, _place: Place, dtype: str) -> pd.Series:
    return _band(_message_bytes(frame, dtype), "message", 64 * 1024, 8 * 1024**2)


def _message_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str, dtype: str) -> Inputs:
    n_bytes = _message_bytes(frame, dtype).to_numpy(np.float64)
    return {"n_bytes": n_bytes, "n_gpus": frame["num_gpus"].to_numpy(np.float64)}


def _nccl(op: str, op_name: str, cost: Callable[..., Array]) -> OpModel:
    def time_s(inputs: Inputs, hardware: Hardware, _fmt: str, values: Mapping[str, float]) -> Array:
        n = inputs["n_gpus"]
        return cost(inputs["n_bytes"], n, hardware=hardware, p=values, ranks_per_domain=n)

    return OpModel(
        op=op,
        tables=("nccl",),
        columns=("op_name", "nccl_dtype", "num_gpus", "message_size"),
        latency=("latency_ms", 1e-3),
        shape_columns=("num_gpus", "message_size"),
        parameters=parameters(collectives.DEFAULTS[op], _BOUNDS),
        format_of=_only(op_name=op_name),
        inputs=partial(_message_inputs, dtype="nccl_dtype"),
        time_s=time_s,
        regime_of=partial(_message_regime, dtype="nccl_dtype"),
        exclusions=(_BROKEN_HOST_PATH,),
    )


def _custom_time_s(inputs: Inputs, hardware: Hardware, _fmt: str, values: Mapping[str, float]) -> Array:
    return collectives.custom_all_reduce_time_s(inputs["n_bytes"], inputs["n_gpus"], hardware=hardware, p=values)


def _custom_engine(frame: pd.DataFrame, place: Place) -> pd.Series:
    """Eager launches apart: engines run decode in CUDA graphs. Arc has no graphs, so eager is what its engine runs."""
    eager = frame["kernel_source"].str.endswith("_eager") & (place.hardware != "arc-pro-b60")
    return eager.map({True: f"{place.engine}/eager", False: place.engine})


_CUSTOM = OpModel(
    op="custom_allreduce",
    tables=("custom_allreduce",),
    columns=("kernel_source", "allreduce_dtype", "num_gpus", "message_size"),
    latency=("latency_ms", 1e-3),
    shape_columns=("num_gpus", "message_size"),
    parameters=parameters(collectives.DEFAULTS["custom_allreduce"], _BOUNDS),
    format_of=_all_rows,
    inputs=partial(_message_inputs, dtype="allreduce_dtype"),
    time_s=_custom_time_s,
    regime_of=partial(_message_regime, dtype="allreduce_dtype"),
    engine_of=_custom_engine,
    exclusions=(_BROKEN_HOST_PATH, _SLOW_PAIR),
)


def _exchange_time_s(
    inputs: Inputs, hardware: Hardware, _fmt: str, values: Mapping[str, float], *, low_latency: bool
) -> Array:
    """Dispatch and combine share one formula."""
    return expert_exchange.moe_dispatch_time_s(
        inputs["tokens"],
        inputs["hidden"],
        inputs["topk"],
        n_experts=inputs["experts"],
        ep=inputs["ep"],
        bytes_per_value=inputs["width"],
        hardware=hardware,
        p=values,
        low_latency=low_latency,
        n_sms=inputs["sms"],
    )


def _start(op: str, *, sms_vary: bool) -> Mapping[str, float]:
    """Estimates of ``op``; a table with one SM count cannot tell an SM's rate from the link's efficiency."""
    values = expert_exchange.DEFAULTS[op]
    return values if sms_vary else {name: value for name, value in values.items() if name != "sm_bytes_per_s"}


def _deepep_inputs(frame: pd.DataFrame, hardware: Hardware, _fmt: str, *, width: float, sms: str | None) -> Inputs:
    columns = {"tokens": "num_token", "hidden": "hidden_size", "topk": "num_topk", "experts": "num_experts"}
    inputs = {name: frame[column].to_numpy(np.float64) for name, column in columns.items()}
    inputs["ep"] = np.full(len(frame), float(hardware.n_gpus_per_node))  # the tables cover one node
    inputs["width"] = np.full(len(frame), width)
    inputs["sms"] = np.zeros(len(frame)) if sms is None else frame[sms].to_numpy(np.float64)
    return inputs


def _deepep(phase: str, *, low_latency: bool) -> OpModel:
    op = f"moe_{phase}" + ("_low_latency" if low_latency else "")
    sms = () if low_latency else (f"{phase}_sms",)
    return OpModel(
        op=op,
        tables=("deepep_low_latency" if low_latency else "deepep_normal",),
        columns=("num_token", "hidden_size", "num_topk", "num_experts", *sms),
        latency=(f"{phase}_avg_t_us" if low_latency else f"{phase}_transmit_us", 1e-6),
        shape_columns=("num_token", "hidden_size", "num_topk", "num_experts"),
        parameters=parameters(_start(op, sms_vary=True), _BOUNDS),
        format_of=_all_rows,
        inputs=partial(
            _deepep_inputs,
            width=_FP8_WITH_SCALES if phase == "dispatch" else _COMBINE_BYTES,
            sms=None if low_latency else f"{phase}_sms",
        ),
        time_s=partial(_exchange_time_s, low_latency=low_latency),
        regime_of=lambda frame, _place: _band(frame["num_token"], "tokens", 64, 1024),
    )


def _engine_inputs(frame: pd.DataFrame, _hardware: Hardware, _fmt: str, *, phase: str, dtype: str, ep: str) -> Inputs:
    columns = {"tokens": "num_tokens", "hidden": "hidden_size", "topk": "topk", "experts": "num_experts", "ep": ep}
    inputs = {name: frame[column].to_numpy(np.float64) for name, column in columns.items()}
    width = frame[dtype].map(_PAYLOAD_BYTES).to_numpy(np.float64)
    # DeepEP and the NVLink kernels return bf16 whatever the dispatch carried, but for the fp4 combine.
    narrow = (frame["comm_dtype"] == "fp4") if "comm_dtype" in frame else frame["op_name"].str.endswith("low_precision")
    inputs["width"] = width if phase == "dispatch" else np.where(narrow, width, _COMBINE_BYTES)
    if phase == "prepare":  # of every choice its expert and its weight, 4 bytes each
        inputs["hidden"], inputs["width"] = inputs["topk"], np.full(len(frame), 8.0)
    inputs["sms"] = np.full(len(frame), float(expert_exchange.COMMUNICATION_SMS))
    return inputs


def _engine_format(frame: pd.DataFrame, place: Place, *, phase: str, backend: str) -> pd.Series:
    """A combine in fp4 is a kernel of its own; every other row of the phase and back end is fitted together."""
    fmt = _only(phase=phase, comm_backend=backend)(frame, place)
    return fmt.where((fmt == "") | (frame["comm_dtype"] != "fp4"), "nvfp4")


_THROUGHPUT, _LOW_LATENCY = r".*deepep_ht|deepep_v2_context", r".*deepep_ll|deepep_v2_generation"


def _engine_of_backend(frame: pd.DataFrame, place: Place) -> pd.Series:
    """DeepEP V2 (a preview, on one H100 node only, where neighbouring sizes differ by factors) is kept apart."""
    preview = frame["comm_backend"].str.startswith("deepep_v2")
    return preview.map({True: f"{place.engine}/deepep_v2", False: place.engine})


def _engine(phase: str, *, low_latency: bool) -> OpModel:
    op = f"moe_{phase}" + ("_low_latency" if low_latency else "")
    return OpModel(
        op=op,
        tables=("moe_all_to_all",),
        columns=("comm_backend", "phase", "comm_dtype", "ep_size", "num_tokens", "hidden_size", "topk", "num_experts"),
        latency=("latency_ms", 1e-3),
        shape_columns=("num_tokens", "hidden_size", "topk", "num_experts"),
        parameters=parameters(_start(op, sms_vary=False), _BOUNDS),
        format_of=partial(_engine_format, phase=phase, backend=_LOW_LATENCY if low_latency else _THROUGHPUT),
        engine_of=_engine_of_backend,
        inputs=partial(_engine_inputs, phase=phase, dtype="comm_dtype", ep="ep_size"),
        time_s=partial(_exchange_time_s, low_latency=low_latency),
        regime_of=lambda frame, _place: _band(frame["num_tokens"], "tokens", 64, 1024),
    )


def _nvlink_engine(frame: pd.DataFrame, place: Place) -> pd.Series:
    one_sided = frame["kernel_source"] == "NVLinkOneSided"
    return one_sided.map({True: f"{place.engine}_one_sided", False: place.engine})


def _nvlink_format(frame: pd.DataFrame, place: Place, *, phase: str) -> pd.Series:
    """A combine in low precision is a kernel of its own."""
    fmt = _only(op_name=f"alltoall_{phase}(_low_precision)?")(frame, place)
    return fmt.where((fmt == "") | ~frame["op_name"].str.endswith("low_precision"), "nvfp4")


def _nvlink(phase: str) -> OpModel:
    """TensorRT-LLM's own kernels over NVLink on a GB200 rack, 2 to 64 ranks."""
    return OpModel(
        op=f"nvlink_{phase}",
        tables=("trtllm_all_to_all",),
        columns=("op_name", "kernel_source", "moe_dtype", "moe_ep_size", "num_tokens", "hidden_size", "topk"),
        latency=("latency_ms", 1e-3),
        shape_columns=("num_tokens", "moe_ep_size"),
        parameters=parameters(expert_exchange.DEFAULTS[f"nvlink_{phase}"], _BOUNDS),
        format_of=partial(_nvlink_format, phase=phase),
        engine_of=_nvlink_engine,
        inputs=partial(_engine_inputs, phase=phase, dtype="moe_dtype", ep="moe_ep_size"),
        time_s=partial(_exchange_time_s, low_latency=False),
        regime_of=lambda frame, _place: _band(frame["num_tokens"], "tokens", 64, 1024),
    )


MODELS: tuple[OpModel, ...] = (
    _nccl("all_reduce", "all_reduce", collectives.all_reduce_time_s),
    _nccl("all_gather", "all_gather", collectives.all_gather_time_s),
    _nccl("reduce_scatter", "reduce_scatter", collectives.reduce_scatter_time_s),
    _nccl("all_to_all", "alltoall", collectives.all_to_all_time_s),
    _CUSTOM,
    *(_deepep(phase, low_latency=low) for phase in ("dispatch", "combine") for low in (False, True)),
    *(_engine(phase, low_latency=low) for phase in ("dispatch", "combine") for low in (False, True)),
    _nvlink("prepare"),
    _nvlink("dispatch"),
    _nvlink("combine"),
)
