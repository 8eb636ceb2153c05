"""Multi-head latent attention kernels (DeepSeek-V2, arXiv:2405.04434, section 2.1).

Equations, papers and validity: ``docs/method/attention.md``.

Prefill expands the latent and runs as multi-head attention with key width nope + rope and value width ``v_head_dim``.
Decode absorbs the up-projections into the query and the output: all heads share one latent of width
``kv_lora_rank + qk_rope_head_dim``. Times [s] are the kernel alone; the absorbed batched products of decode are
``mla_absorb_time_s``, the projections are GEMMs. Prefill and decode take the same keywords, so a caller binds a model's
sizes once; each says which of them its kernel does not depend on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moeplan.costs.attention import (
    ACTIVATION_BYTES,
    DECODE_DEFAULTS,
    PREFILL_DEFAULTS,
    Floats,
    prefill_attention_time_s,
    tensor_flop_per_s,
)
from moeplan.spec.hardware import Device
from moeplan.spec.precision import NumberFormat

MLA_PREFILL_DEFAULTS: Mapping[str, float] = PREFILL_DEFAULTS
MLA_DECODE_DEFAULTS: Mapping[str, float] = DECODE_DEFAULTS
MLA_ABSORB_DEFAULTS: Mapping[str, float] = DECODE_DEFAULTS


def mla_prefill_time_s(
    batch: npt.ArrayLike,
    q_tokens: npt.ArrayLike,
    cached_tokens: npt.ArrayLike,
    *,
    n_heads: npt.ArrayLike,
    kv_lora_rank: npt.ArrayLike,  # noqa: ARG001
    qk_nope_head_dim: npt.ArrayLike,
    qk_rope_head_dim: npt.ArrayLike,
    v_head_dim: npt.ArrayLike,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
) -> Floats:
    """Time [s] of expanded (multi-head) attention: ``batch`` sequences, ``q_tokens`` new after ``cached_tokens`` old.

    Does not depend on ``kv_lora_rank``.
    """
    head_dim = np.asarray(qk_nope_head_dim, float) + np.asarray(qk_rope_head_dim, float)
    return prefill_attention_time_s(
        batch,
        q_tokens,
        cached_tokens,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        window_tokens=None,
        kv_fmt=kv_fmt,
        device=device,
        p=p,
    )


def mla_decode_time_s(
    batch: npt.ArrayLike,
    context_tokens: npt.ArrayLike,
    *,
    n_heads: npt.ArrayLike,
    kv_lora_rank: npt.ArrayLike,
    qk_nope_head_dim: npt.ArrayLike,  # noqa: ARG001
    qk_rope_head_dim: npt.ArrayLike,
    v_head_dim: npt.ArrayLike,  # noqa: ARG001
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
) -> Floats:
    """Time [s] of absorbed attention of one new token over ``context_tokens`` latents, ``batch`` sequences.

    Does not depend on ``qk_nope_head_dim`` and ``v_head_dim``: both are absorbed.
    """
    batch, context = np.asarray(batch, float), np.asarray(context_tokens, float)
    heads, rank = np.asarray(n_heads, float), np.asarray(kv_lora_rank, float)
    latent = rank + np.asarray(qk_rope_head_dim, float)
    flop = 2.0 * batch * heads * context * (latent + rank)
    n_bytes = batch * (context * latent * kv_fmt.bytes_per_value + heads * (latent + rank) * ACTIVATION_BYTES)
    compute_s = flop / (p["compute_eff"] * tensor_flop_per_s(device, "bf16"))
    memory_s = n_bytes / (p["memory_eff"] * device.memory_bytes_per_s)
    return np.asarray(p["launch_s"] + np.maximum(compute_s, memory_s))


def mla_absorb_time_s(
    batch: npt.ArrayLike,
    *,
    n_heads: npt.ArrayLike,
    kv_lora_rank: npt.ArrayLike,
    inner_head_dim: npt.ArrayLike,
    fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
) -> Floats:
    """Time [s] of one absorbed batched product of decode: ``batch`` tokens, (inner_head_dim, kv_lora_rank) per head.

    ``inner_head_dim`` is ``qk_nope_head_dim`` for the query side and ``v_head_dim`` for the output side.
    """
    tokens, heads = np.asarray(batch, float), np.asarray(n_heads, float)
    rank, inner = np.asarray(kv_lora_rank, float), np.asarray(inner_head_dim, float)
    flop = 2.0 * tokens * heads * rank * inner
    n_bytes = heads * (rank * inner * fmt.bytes_per_value + tokens * (rank + inner) * ACTIVATION_BYTES)
    compute_s = flop / (p["compute_eff"] * tensor_flop_per_s(device, fmt.compute))
    memory_s = n_bytes / (p["memory_eff"] * device.memory_bytes_per_s)
    return np.asarray(p["launch_s"] + np.maximum(compute_s, memory_s))
