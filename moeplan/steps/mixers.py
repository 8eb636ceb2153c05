"""Seconds of the token mixers' kernels of one layer on one GPU: attention, latent attention, recurrence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeplan.costs.attention import causal_pairs, decode_attention_time_s, prefill_attention_time_s
from moeplan.costs.latent_attention import mla_absorb_time_s, mla_decode_time_s, mla_prefill_time_s
from moeplan.costs.projections import is_entry_shared, kv_heads_per_gpu, split
from moeplan.costs.recurrent import linear_attention_time_s, state_space_time_s
from moeplan.spec.model import LatentAttention, LinearAttention, Mixer, SoftmaxAttention, StateSpace
from moeplan.spec.precision import FORMATS
from moeplan.steps.operations import Operations

Array = npt.NDArray[np.float64]


def window_tokens(block: SoftmaxAttention | LatentAttention) -> float | None:
    """Keys a query attends at most, None without a limit.

    In a chunk of size c the mean query sees c / 2 keys; sparse attention sees its top k.
    """
    limits = []
    if block.window_tokens:
        chunked = isinstance(block, SoftmaxAttention) and block.pattern == "chunked"
        limits.append(block.window_tokens / (2.0 if chunked else 1.0))
    sparse = block.index_top_k_tokens if isinstance(block, LatentAttention) else block.sparse_top_k_tokens
    if sparse:
        limits.append(float(sparse))
    return min(limits) if limits else None


def decode_mixer_s(block: Mixer, batch: Array, context: Array, *, tp: int, fmt: str, kv: str, ops: Operations) -> Array:
    """One new token in each of ``batch`` sequences with ``context`` tokens; ``fmt`` is the weights' format."""
    device, kv_fmt = ops.hardware.device, FORMATS[kv]
    match block:
        case SoftmaxAttention():
            return decode_attention_time_s(
                batch, context, n_heads=split(block.n_heads, tp), n_kv_heads=kv_heads_per_gpu(block, tp),
                head_dim=block.head_dim, v_head_dim=block.v_head_dim, window_tokens=window_tokens(block),
                kv_fmt=kv_fmt, device=device, p=ops.parameters("attention_decode", kv),
            )  # fmt: skip
        case LatentAttention():
            heads = split(block.n_heads, tp)
            attended = np.minimum(context / block.kv_compression_ratio, window_tokens(block) or np.inf)
            attended = attended + np.minimum(context, block.raw_window_tokens)
            time_s = mla_decode_time_s(
                batch, attended, n_heads=heads, kv_lora_rank=block.kv_lora_rank,
                qk_nope_head_dim=block.qk_nope_head_dim, qk_rope_head_dim=block.qk_rope_head_dim,
                v_head_dim=block.v_head_dim, kv_fmt=kv_fmt, device=device, p=ops.parameters("mla_decode", kv),
            )  # fmt: skip
            for inner in () if is_entry_shared(block) else (block.qk_nope_head_dim, block.v_head_dim):
                time_s = time_s + mla_absorb_time_s(
                    batch, n_heads=heads, kv_lora_rank=block.kv_lora_rank, inner_head_dim=inner,
                    fmt=FORMATS[fmt], device=device, p=ops.parameters("mla_absorb", fmt),
                )  # fmt: skip
            if block.index_n_heads:
                # the indexer scores every cached token with one key head (DeepSeek-V3.2-Exp, section 2.1)
                time_s = time_s + decode_attention_time_s(
                    batch, context / block.index_pool_tokens, n_heads=block.index_n_heads, n_kv_heads=1,
                    head_dim=block.index_head_dim, v_head_dim=0, window_tokens=None, kv_fmt=FORMATS["fp8"],
                    device=device, p=ops.parameters("attention_decode", "fp8"),
                )  # fmt: skip
            return time_s
        case _:
            return np.broadcast_to(
                recurrent_mixer_s(block, batch, np.asarray(1.0), tp=tp, ops=ops), np.broadcast(batch, context).shape
            )


def prefill_mixer_s(
    block: Mixer, batch: Array, query: Array, cached: Array, *, tp: int, fmt: str, kv: str, ops: Operations
) -> Array:
    """``query`` new tokens after ``cached`` ones in each of ``batch`` sequences; latent attention expands its cache."""
    if isinstance(block, LinearAttention | StateSpace):
        shape = np.broadcast(batch, query, cached).shape
        return np.broadcast_to(recurrent_mixer_s(block, batch, query, tp=tp, ops=ops), shape)
    time_s = softmax_prefill_s(block, batch, query, cached, tp=tp, kv=kv, ops=ops)
    if isinstance(block, LatentAttention):
        if not is_entry_shared(block):
            width = split(block.n_heads, tp) * (block.qk_nope_head_dim + block.v_head_dim)
            time_s = time_s + ops.gemm_s(batch * (query + cached), width, block.kv_lora_rank, fmt)
        if block.index_n_heads:
            index_s = prefill_attention_time_s(
                batch, query, cached, n_heads=block.index_n_heads, n_kv_heads=1, head_dim=block.index_head_dim,
                v_head_dim=0, window_tokens=None, kv_fmt=FORMATS["fp8"], device=ops.hardware.device,
                p=ops.parameters("attention_prefill", "fp8"),
            )  # fmt: skip
            time_s = time_s + index_s / block.index_pool_tokens
    return time_s


def softmax_prefill_s(
    block: SoftmaxAttention | LatentAttention,
    batch: npt.ArrayLike,
    query: npt.ArrayLike,
    cached: npt.ArrayLike,
    *,
    tp: int,
    kv: str,
    ops: Operations,
) -> Array:
    """The causal attention kernel alone; where latent attention sees less, its share of the query-key pairs."""
    device, kv_fmt, heads, window = ops.hardware.device, FORMATS[kv], split(block.n_heads, tp), window_tokens(block)
    if isinstance(block, SoftmaxAttention):
        return prefill_attention_time_s(
            batch, query, cached, n_heads=heads, n_kv_heads=kv_heads_per_gpu(block, tp), head_dim=block.head_dim,
            v_head_dim=block.v_head_dim, window_tokens=window, kv_fmt=kv_fmt, device=device,
            p=ops.parameters("attention_prefill", kv),
        )  # fmt: skip
    time_s = mla_prefill_time_s(
        batch, query, cached, n_heads=heads, kv_lora_rank=block.kv_lora_rank, qk_nope_head_dim=block.qk_nope_head_dim,
        qk_rope_head_dim=block.qk_rope_head_dim, v_head_dim=block.v_head_dim, kv_fmt=kv_fmt, device=device,
        p=ops.parameters("mla_prefill", kv),
    )  # fmt: skip
    ratio = block.kv_compression_ratio
    if window is None and ratio == 1.0:
        return time_s
    pairs = causal_pairs(query, cached, None if window is None else window * ratio) / ratio
    if block.raw_window_tokens:
        pairs = pairs + causal_pairs(query, cached, block.raw_window_tokens)
    return np.asarray(time_s * np.minimum(1.0, pairs / causal_pairs(query, cached, None)))


def recurrent_mixer_s(
    block: LinearAttention | StateSpace, batch: npt.ArrayLike, query: npt.ArrayLike, *, tp: int, ops: Operations
) -> Array:
    """Scan over ``query`` new tokens in each of ``batch`` sequences, whatever their context."""
    device = ops.hardware.device
    if isinstance(block, LinearAttention):
        return linear_attention_time_s(
            batch, query, n_k_heads=split(block.n_k_heads, tp), n_v_heads=split(block.n_v_heads, tp),
            k_head_dim=block.k_head_dim, v_head_dim=block.v_head_dim, conv_kernel=block.conv_kernel,
            device=device, p=ops.parameters("linear_attention", "bf16"),
        )  # fmt: skip
    return state_space_time_s(
        batch, query, inner_size=split(block.inner_size, tp), state_size=block.state_size,
        n_groups=max(1, split(block.n_groups, tp)), conv_kernel=block.conv_kernel,
        device=device, p=ops.parameters("state_space", "bf16"),
    )  # fmt: skip
