"""Softmax attention kernels: prefill (many new tokens a sequence) and decode (one new token a sequence).

Equations, papers and validity: ``docs/method/attention.md``. Sizes are per GPU (heads already divided by tensor
parallelism). Every size may be a scalar or an array; all broadcast. Times are seconds of the attention kernel alone,
without projections, rotary embedding or the KV-cache write.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moeplan.spec.hardware import Device
from moeplan.spec.precision import ComputeType, NumberFormat

Floats = npt.NDArray[np.float64]

ACTIVATION_BYTES = 2.0  # queries and outputs are 16 bit in every engine we model

# Stated estimates, used where nothing was measured. Arithmetic: FlashAttention-2 (arXiv:2307.08691, section 4) reaches
# 50-73 % of peak. Streaming kernels reach 80-90 % of the datasheet bandwidth; a kernel in a graph starts in a few us.
PREFILL_DEFAULTS: Mapping[str, float] = {
    "compute_eff": 0.60,
    "memory_eff": 0.80,
    "ramp_tokens": 200.0,
    "launch_s": 8e-6,
}
DECODE_DEFAULTS: Mapping[str, float] = {
    "compute_eff": 0.40,
    "memory_eff": 0.80,
    "launch_s": 8e-6,
}

QUERY_TILE = 128.0  # rows of one query tile (FlashAttention-2 section 3.3, FlashAttention-3 section 3)


def tensor_flop_per_s(device: Device, compute: ComputeType) -> float:
    """Dense rate [FLOP/s] of `compute`, or of the next wider arithmetic the device has.

    Raises KeyError when the device states no floating-point rate at all.
    """
    order: tuple[ComputeType, ...] = ("fp8", "bf16", "fp16", "tf32", "fp32")
    for kind in order[order.index(compute) :]:
        rate = device.flop_per_s(kind)
        if rate is not None:
            return rate
    raise KeyError(f"{device.slug}: no dense floating-point rate for {compute} or wider")


def causal_pairs(q_tokens: npt.ArrayLike, cached_tokens: npt.ArrayLike, window_tokens: npt.ArrayLike | None) -> Floats:
    """Query-key pairs of one sequence and head under a causal mask.

    The i-th of ``q_tokens`` new tokens sees ``min(cached + i, window)`` keys. ``window_tokens`` None or 0: no window.
    """
    q, cached = np.asarray(q_tokens, float), np.asarray(cached_tokens, float)
    window = window_or_inf(window_tokens)
    growing = np.clip(window - cached, 0.0, q)  # queries that still see everything before them
    capped = np.where(q > growing, window, 0.0)
    return np.asarray(growing * cached + growing * (growing + 1.0) / 2.0 + (q - growing) * capped)


def window_or_inf(window_tokens: npt.ArrayLike | None) -> Floats:
    """Window [tokens] as floats with None and 0 turned into infinity."""
    if window_tokens is None:
        return np.asarray(np.inf)
    window = np.asarray(window_tokens, float)
    return np.where(window > 0.0, window, np.inf)


def prefill_attention_time_s(
    batch: npt.ArrayLike,
    q_tokens: npt.ArrayLike,
    cached_tokens: npt.ArrayLike,
    *,
    n_heads: npt.ArrayLike,
    n_kv_heads: npt.ArrayLike,
    head_dim: npt.ArrayLike,
    v_head_dim: npt.ArrayLike,
    window_tokens: npt.ArrayLike | None,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
    compute: ComputeType = "bf16",
) -> Floats:
    """Time [s] of causal attention of ``batch`` sequences with ``q_tokens`` new tokens after ``cached_tokens`` each."""
    batch, q, cached = (np.asarray(x, float) for x in (batch, q_tokens, cached_tokens))
    heads, kv_heads = np.asarray(n_heads, float), np.asarray(n_kv_heads, float)
    dims = np.asarray(head_dim, float) + np.asarray(v_head_dim, float)
    n_sms = float(device.n_sms or 1)
    flop = 2.0 * batch * heads * causal_pairs(q, cached, window_tokens) * dims
    blocks = batch * heads * np.ceil(q / QUERY_TILE)
    waste = np.maximum(blocks, n_sms) / blocks  # idle SMs when there are fewer query tiles than SMs
    seen = np.minimum(q + cached, window_or_inf(window_tokens) + q)
    ramp = 1.0 + p["ramp_tokens"] / seen
    compute_s = flop * waste * ramp / (p["compute_eff"] * tensor_flop_per_s(device, compute))
    n_bytes = batch * (heads * q * dims * ACTIVATION_BYTES + kv_heads * seen * dims * kv_fmt.bytes_per_value)
    memory_s = n_bytes / (p["memory_eff"] * device.memory_bytes_per_s)
    return np.asarray(p["launch_s"] + np.maximum(compute_s, memory_s))


def decode_attention_time_s(
    batch: npt.ArrayLike,
    context_tokens: npt.ArrayLike,
    *,
    n_heads: npt.ArrayLike,
    n_kv_heads: npt.ArrayLike,
    head_dim: npt.ArrayLike,
    v_head_dim: npt.ArrayLike,
    window_tokens: npt.ArrayLike | None,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
) -> Floats:
    """Time [s] of attention of ``batch`` sequences, one new token each, on ``context_tokens`` keys (itself included)."""
    batch, context = np.asarray(batch, float), np.asarray(context_tokens, float)
    heads, kv_heads = np.asarray(n_heads, float), np.asarray(n_kv_heads, float)
    dims = np.asarray(head_dim, float) + np.asarray(v_head_dim, float)
    keys = np.minimum(context, window_or_inf(window_tokens))
    flop = 2.0 * batch * heads * keys * dims
    n_bytes = batch * dims * (heads * ACTIVATION_BYTES + kv_heads * keys * kv_fmt.bytes_per_value)
    compute_s = flop / (p["compute_eff"] * tensor_flop_per_s(device, "bf16"))
    memory_s = n_bytes / (p["memory_eff"] * device.memory_bytes_per_s)
    return np.asarray(p["launch_s"] + np.maximum(compute_s, memory_s))
