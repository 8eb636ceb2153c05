"""Multi-head latent attention kernels (DeepSeek-V2, arXiv:2405.04434, section 2.1).

Equations, papers and validity: ``docs/method/attention.md``, section 3.

Prefill expands the latent and runs as multi-head attention with key width nope + rope and value width ``v_head_dim``.
Decode absorbs the up-projections into the query and the output: all heads share one latent of width
``kv_lora_rank + qk_rope_head_dim``. Times [s] are the kernel alone; the absorbed batched products of decode are
``mla_absorb_time_s``, the projections are GEMMs. Prefill and decode take the same keywords, so a caller binds a model's
sizes once; each says which of them its kernel does not depend on. Parameters are those of `costs.attention`; there is
one head size, hence no head fractions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.attention import (
    ACTIVATION_BYTES,
    DECODE_DEFAULTS,
    PREFILL_DEFAULTS,
    PREFILL_OPTIONAL,
    floats,
    l2_factor,
    prefill_attention_time_s,
    split_kv_time_s,
)
from moeplan.costs.roofline import Array, ArrayLike, joined_s, peak_flop_per_s
from moeplan.spec.hardware import Device
from moeplan.spec.precision import NumberFormat

HEAD_BLOCK = 64.0  # query heads one decode block covers (FlashMLA: 64 rows a block)
ABSORB_SHARPNESS = 2.0

MLA_PREFILL_DEFAULTS: Mapping[str, float] = {k: v for k, v in PREFILL_DEFAULTS.items() if k not in PREFILL_OPTIONAL}
# Estimates in the middle of the fits on measured devices, see `costs.attention`.
MLA_DECODE_DEFAULTS: Mapping[str, float] = {
    **{
        k: DECODE_DEFAULTS[k]
        for k in ("memory_frac", "l2_frac", "blocks_per_sm", "saturating_blocks_per_sm", "split_tokens", "launch_s")
    },
    "compute_frac": 0.6,
    "tile_rows": 16.0,
    "kv_reread_frac": 0.2,
    "block_s": 5e-6,
    "group_exponent": 0.1,
    "split_s": 1e-6,
}
MLA_ABSORB_DEFAULTS: Mapping[str, float] = {
    "compute_frac": 0.5,
    "memory_frac": 0.7,
    "l2_frac": 0.5,
    "launch_s": 4e-6,
}
# Estimates: five small kernels of a captured graph (norms of the two latents, rotary embedding, cache write, copy of
# the heads' queries and keys), each value read and written once.
MLA_MODULE_DEFAULTS: Mapping[str, float] = {"launch_s": 1e-5, "passes": 2.0}


def mla_prefill_time_s(
    batch: ArrayLike,
    q_tokens: ArrayLike,
    cached_tokens: ArrayLike,
    *,
    n_heads: ArrayLike,
    kv_lora_rank: ArrayLike,
    qk_nope_head_dim: ArrayLike,
    qk_rope_head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
) -> Array:
    """Time [s] of expanded (multi-head) attention: ``batch`` sequences, ``q_tokens`` new after ``cached_tokens`` old.

    Does not depend on ``kv_lora_rank``.
    """
    nope, rope = floats(qk_nope_head_dim, qk_rope_head_dim)
    return prefill_attention_time_s(
        batch,
        q_tokens,
        cached_tokens,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=nope + rope,
        v_head_dim=v_head_dim,
        window_tokens=None,
        kv_fmt=kv_fmt,
        device=device,
        p=p,
    )


def mla_decode_time_s(
    batch: ArrayLike,
    context_tokens: ArrayLike,
    *,
    n_heads: ArrayLike,
    kv_lora_rank: ArrayLike,
    qk_nope_head_dim: ArrayLike,
    qk_rope_head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
    warm_l2: bool = False,
) -> Array:
    """Time [s] of absorbed attention of one new token over ``context_tokens`` latents, ``batch`` sequences.

    ``kv_reread_frac`` is the exponent on the number of head blocks with which the latent is read again. Does not depend
    on ``qk_nope_head_dim`` and ``v_head_dim``: both are absorbed. ``warm_l2``: see
    `costs.attention.decode_attention_time_s`. Zero where ``batch`` or ``context_tokens`` is.
    """
    batch, context, heads, rank, rope = floats(batch, context_tokens, n_heads, kv_lora_rank, qk_rope_head_dim)
    keys = np.maximum(context, 1.0)
    latent = rank + rope
    head_blocks = np.ceil(heads / HEAD_BLOCK)
    latent_bytes = batch * keys * latent * kv_fmt.bytes_per_value * head_blocks ** p["kv_reread_frac"]
    time_s = split_kv_time_s(
        batch * head_blocks,
        keys,
        flop=2.0 * batch * np.maximum(heads, p["tile_rows"]) * keys * (latent + rank),
        kv_bytes=latent_bytes,
        query_bytes=batch * heads * (latent + rank) * ACTIVATION_BYTES,
        memory_scale=1.0,
        block_scale=(heads / 16.0) ** p["group_exponent"],
        split_exponent=1.0,
        kv_fmt=kv_fmt,
        device=device,
        p=p,
        warm_l2=warm_l2,
    )
    return np.where((batch > 0.0) & (context > 0.0), time_s, 0.0)


def mla_absorb_time_s(
    batch: ArrayLike,
    *,
    n_heads: ArrayLike,
    kv_lora_rank: ArrayLike,
    inner_head_dim: ArrayLike,
    fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
    warm_l2: bool = False,
) -> Array:
    """Time [s] of one absorbed batched product of decode: ``batch`` tokens, (inner_head_dim, kv_lora_rank) per head.

    ``inner_head_dim`` is ``qk_nope_head_dim`` on the query side and ``v_head_dim`` on the output side. ``warm_l2``: the
    weights were read just before, see `costs.attention.decode_attention_time_s`.
    """
    tokens, heads, rank, inner = floats(batch, n_heads, kv_lora_rank, inner_head_dim)
    flop = 2.0 * tokens * heads * rank * inner
    n_bytes = heads * (rank * inner * fmt.bytes_per_value + tokens * (rank + inner) * ACTIVATION_BYTES)
    compute_s = flop / (p["compute_frac"] * peak_flop_per_s(fmt, device))
    memory_s = n_bytes / (p["memory_frac"] * device.memory_bytes_per_s)
    if warm_l2:
        memory_s = memory_s * l2_factor(n_bytes, p["l2_frac"], device)
    return np.asarray(p["launch_s"] + joined_s(compute_s, memory_s, ABSORB_SHARPNESS))


def mla_glue_time_s(
    n_tokens: ArrayLike,
    *,
    n_heads: ArrayLike,
    latent_dim: float,
    head_dim: float,
    device: Device,
    p: Mapping[str, float],
) -> Array:
    """Time [s] of what a module runs between its products and its attention: norms, rotary embedding, copies.

    ``latent_dim`` values of a token are shared by the heads, each of which has ``head_dim`` more. ``launch_s`` is the
    start of those kernels, ``passes`` how often their values are read or written.
    """
    tokens, heads = floats(n_tokens, n_heads)
    n_bytes = tokens * (latent_dim + heads * head_dim) * ACTIVATION_BYTES
    return np.asarray(p["launch_s"] + p["passes"] * n_bytes / device.memory_bytes_per_s)
