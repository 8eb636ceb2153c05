"""Softmax attention kernels: prefill (many new tokens a sequence) and decode (one new token a sequence).

Equations, papers and validity: ``docs/method/attention.md``. Sizes are per GPU (heads already divided by tensor
parallelism). Every size may be a scalar or an array; all broadcast. Times are seconds of the attention kernel alone,
without projections, rotary embedding or the KV-cache write.

Parameters of prefill (``p``), dimensionless unless the name says otherwise:
    compute_frac: share of the tensor peak the main loop reaches at head size 128 under a causal mask.
    window_frac: the same of windowed tiles relative to causal ones.
    head_64_frac, head_192_frac, head_256_frac, head_512_frac: the same of the kernels compiled for other head sizes.
    prologue_tokens: fixed cost of one query tile, as key columns.
    pack_frac: how far a prompt shorter than a tile shares it among the query heads of one KV head (0 not, 1 fully).
    blocks_per_sm: query tiles that run on one SM at a time.
    split_frac: how far splitting the keys keeps a GPU busy that has fewer query tiles than slots (0 not, 1 fully).
    memory_frac: share of the datasheet bandwidth.
    kv_reads: how often keys and values are read from memory.
    l2_frac: time of traffic whose working set stays in L2, relative to memory.
    sharpness: exponent that joins arithmetic and memory time (see `costs.roofline`).
    launch_s: start of the kernel [s].

Parameters of decode: ``memory_frac``, ``compute_frac`` (of the tensor peak, padded rows counted), the head fractions
(here of both), ``l2_frac``, ``launch_s`` as above, and
    tile_rows: query rows the arithmetic pads the group of one KV head to.
    window_pad_tokens: keys read beyond the window.
    split_tokens: fewest keys of one split.
    blocks_per_sm: splits a kernel makes for each SM, at most.
    saturating_blocks_per_sm: blocks for each SM that draw the full bandwidth.
    mha_split_frac: exponent on the number of splits where every query head has its own KV head (0: never split).
    block_s: overhead of one block on one SM [s]; times group ** group_exponent, or mha_block_frac where every query
        head has its own KV head (engines have a kernel of its own for that).
    split_s: combining the splits, for each doubling of their number [s].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.roofline import Array, ArrayLike, joined_s, peak_flop_per_s
from moeplan.spec.hardware import Device
from moeplan.spec.precision import NumberFormat

BACKWARD = 2.5  # times the forward kernel: five matrix products for two (FlashAttention-2, section 4.1)
ACTIVATION_BYTES = 2.0  # queries and outputs are 16 bit in every engine we model
# Rows of one query tile: 128 in FlashAttention-2 (arXiv:2307.08691, section 3.3) and FlashAttention-3
# (arXiv:2407.08608, section 3); 64 on Ada, as FlashAttention-2's launch code has it for causal masks on sm86 and sm89.
QUERY_TILE = 128.0
QUERY_TILE_OF_ARCHITECTURE: Mapping[str, float] = {"ada": 64.0}
WAVE_FRAC = 0.4  # share of the last wave's idle slots that is lost; fits lie between 0.2 and 0.8, none is sensitive
TAIL_NORM = 2.0  # joins total work and the longest tile; fits lie between 1 and 3
L2_SHARPNESS = 8.0  # a working set larger than L2 evicts itself: the change from hit to miss is steep
DECODE_SHARPNESS = 3.0  # arithmetic and memory of decode overlap well; fits lie between 1 and 8, none is sensitive
NOMINAL_SMS = 128.0  # where the vendor states no count of SMs (TPU, Apple): an estimate, as of a data-centre GPU

# Stated estimates, used where nothing was measured. Arithmetic: FlashAttention-2 (arXiv:2307.08691, section 4) reaches
# 50-73 % of peak. Streaming kernels reach 80-90 % of the datasheet bandwidth; a kernel in a graph starts in a few us.
# The others lie in the middle of what was fitted on measured devices.
HEAD_DEFAULTS: Mapping[str, float] = {
    "head_64_frac": 0.7,
    "head_192_frac": 1.0,
    "head_256_frac": 1.0,
    "head_512_frac": 0.5,
}
# A kernel with one head size, no window and no grouping (MLA) has no use for these; they may be left out of ``p``.
PREFILL_OPTIONAL: Mapping[str, float] = {
    "window_frac": 1.0,
    "head_64_frac": 1.0,
    "head_192_frac": 1.0,
    "head_256_frac": 1.0,
    "head_512_frac": 1.0,
    "pack_frac": 0.0,
}
PREFILL_DEFAULTS: Mapping[str, float] = {
    "compute_frac": 0.6,
    "window_frac": 0.85,
    **HEAD_DEFAULTS,
    "prologue_tokens": 50.0,
    "pack_frac": 0.8,
    "blocks_per_sm": 1.0,
    "split_frac": 0.2,
    "memory_frac": 0.7,
    "kv_reads": 2.0,
    "l2_frac": 0.6,
    "sharpness": 1.3,
    "launch_s": 8e-6,
}
DECODE_DEFAULTS: Mapping[str, float] = {
    "compute_frac": 0.3,
    "memory_frac": 0.8,
    **HEAD_DEFAULTS,
    "head_64_frac": 0.9,
    "tile_rows": 16.0,
    "window_pad_tokens": 64.0,
    "split_tokens": 256.0,
    "blocks_per_sm": 1.0,
    "saturating_blocks_per_sm": 0.7,
    "mha_split_frac": 0.9,
    "l2_frac": 0.5,
    "block_s": 1.5e-6,
    "group_exponent": 0.1,
    "mha_block_frac": 0.7,
    "split_s": 0.5e-6,
    "launch_s": 8e-6,
}


def floats(*values: ArrayLike) -> tuple[Array, ...]:
    """The values as float arrays."""
    return tuple(np.asarray(v, dtype=np.float64) for v in values)


def window_or_inf(window_tokens: ArrayLike | None) -> Array:
    """Window [tokens] as floats with None and 0 (no window) turned into infinity."""
    window = np.asarray(0.0 if window_tokens is None else window_tokens, dtype=np.float64)
    return np.where(window > 0.0, window, np.inf)


def n_sms(device: Device) -> float:
    """SMs of the device, or the nominal count where none is stated."""
    return float(device.n_sms) if device.n_sms else NOMINAL_SMS


def causal_pairs(q_tokens: ArrayLike, cached_tokens: ArrayLike, window_tokens: ArrayLike | None) -> Array:
    """Query-key pairs of one sequence and head under a causal mask.

    The i-th of ``q_tokens`` new tokens sees ``min(cached + i, window)`` keys. ``window_tokens`` None or 0: no window.
    """
    q, cached = floats(q_tokens, cached_tokens)
    window = window_or_inf(window_tokens)
    growing = np.clip(window - cached, 0.0, q)  # queries that still see everything before them
    capped = np.where(q > growing, window, 0.0)
    return np.asarray(growing * (cached + (growing + 1.0) / 2.0) + (q - growing) * capped)


def head_frac(head_dim: ArrayLike, p: Mapping[str, float]) -> Array:
    """Efficiency of the kernel compiled for a head size relative to 128, between the sizes geometrically."""
    sizes = np.log2([64.0, 128.0, 192.0, 256.0, 512.0])
    fractions = [p["head_64_frac"], 1.0, p["head_192_frac"], p["head_256_frac"], p["head_512_frac"]]
    return np.exp(np.interp(np.log2(np.asarray(head_dim, dtype=np.float64)), sizes, np.log(fractions)))


def l2_factor(n_bytes: Array, l2_frac: float, device: Device) -> Array:
    """Factor on memory time of a kernel whose ``n_bytes`` were touched just before: l2_frac in L2, 1 far beyond it."""
    if not device.l2_bytes:
        return np.ones_like(n_bytes)
    # exponent of the ratio clipped: beyond it the factor is 1 to machine precision, and the power does not overflow
    miss = np.minimum(n_bytes / device.l2_bytes, 100.0) ** L2_SHARPNESS
    return np.asarray((l2_frac + miss) / (1.0 + miss))


def prefill_attention_time_s(
    batch: ArrayLike,
    q_tokens: ArrayLike,
    cached_tokens: ArrayLike,
    *,
    n_heads: ArrayLike,
    n_kv_heads: ArrayLike,
    head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    window_tokens: ArrayLike | None,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
) -> Array:
    """Time [s] of causal attention: ``batch`` sequences, ``q_tokens`` new after ``cached_tokens`` old tokens each.

    Zero where ``batch`` or ``q_tokens`` is. ``docs/method/attention.md``, section 1.
    """
    p = {**PREFILL_OPTIONAL, **p}
    batch, q, cached, heads, kv_heads = floats(batch, q_tokens, cached_tokens, n_heads, n_kv_heads)
    dims = np.asarray(head_dim, dtype=np.float64) + np.asarray(v_head_dim, dtype=np.float64)
    window = window_or_inf(window_tokens)
    rows = np.maximum(q, 1.0)
    windowed = window < rows + cached
    group = heads / kv_heads
    tile = QUERY_TILE_OF_ARCHITECTURE.get(device.architecture, QUERY_TILE)
    alone = np.ceil(rows / tile)  # tiles of one head
    packed = np.minimum(np.ceil(rows * group / tile) / group, alone)
    n_tiles = batch * heads * (alone + p["pack_frac"] * (packed - alone))
    slots = n_sms(device) * p["blocks_per_sm"]
    waves = n_tiles / slots
    # a tile on the diagonal computes pairs it masks, half a tile a row on average; a window has a second such edge
    masked = np.where(windowed, tile, tile / 2.0)
    mean_keys = causal_pairs(rows, cached, window) / rows + masked + p["prologue_tokens"]
    longest_keys = np.minimum(rows + cached, window) + tile + p["prologue_tokens"]
    rate = p["compute_frac"] * peak_flop_per_s(kv_fmt, device) * head_frac(head_dim, p)
    key_s = 2.0 * tile * dims * slots / (rate * np.where(windowed, p["window_frac"], 1.0))
    filled = np.where(waves > 1.0, waves + WAVE_FRAC * (np.ceil(waves) - waves), waves)
    tail = longest_keys * np.minimum(waves, 1.0) ** p["split_frac"]
    compute_s = key_s * ((filled * mean_keys) ** TAIL_NORM + tail**TAIL_NORM) ** (1.0 / TAIL_NORM)
    read = np.minimum(rows + cached, window + rows)
    kv_bytes = batch * kv_heads * read * dims * kv_fmt.bytes_per_value * p["kv_reads"]
    n_bytes = batch * heads * rows * dims * ACTIVATION_BYTES + kv_bytes
    memory_s = n_bytes * l2_factor(n_bytes, p["l2_frac"], device) / (p["memory_frac"] * device.memory_bytes_per_s)
    time_s = p["launch_s"] + joined_s(compute_s, memory_s, p["sharpness"])
    return np.where((batch > 0.0) & (q > 0.0), time_s, 0.0)


def decode_attention_time_s(
    batch: ArrayLike,
    context_tokens: ArrayLike,
    *,
    n_heads: ArrayLike,
    n_kv_heads: ArrayLike,
    head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    window_tokens: ArrayLike | None,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
    warm_l2: bool = False,
) -> Array:
    """Time [s] of one new token each in ``batch`` sequences over ``context_tokens`` keys, the new one included.

    ``warm_l2``: the cache was read just before, as when a benchmark repeats one call. In a model's step the other
    layers evict it. Zero where ``batch`` or ``context_tokens`` is. ``docs/method/attention.md``, section 2.
    """
    batch, context, heads, kv_heads = floats(batch, context_tokens, n_heads, n_kv_heads)
    dims = np.asarray(head_dim, dtype=np.float64) + np.asarray(v_head_dim, dtype=np.float64)
    keys = np.minimum(np.maximum(context, 1.0), window_or_inf(window_tokens) + p["window_pad_tokens"])
    group = heads / kv_heads
    head = head_frac(head_dim, p)
    kv_bytes = batch * kv_heads * dims * keys * kv_fmt.bytes_per_value
    padded = np.maximum(group, p["tile_rows"])
    time_s = split_kv_time_s(
        batch * kv_heads,
        keys,
        flop=2.0 * batch * kv_heads * padded * keys * dims / head,
        kv_bytes=kv_bytes,
        query_bytes=batch * heads * dims * ACTIVATION_BYTES,
        memory_scale=1.0 / head,
        block_scale=np.where(group == 1.0, p["mha_block_frac"], group ** p["group_exponent"]),
        split_exponent=np.where(group == 1.0, p["mha_split_frac"], 1.0),
        kv_fmt=kv_fmt,
        device=device,
        p=p,
        warm_l2=warm_l2,
    )
    return np.where((batch > 0.0) & (context > 0.0), time_s, 0.0)


def split_kv_time_s(
    units: Array,
    keys: Array,
    *,
    flop: Array,
    kv_bytes: Array,
    query_bytes: Array,
    memory_scale: Array | float,
    block_scale: Array | float,
    split_exponent: Array | float,
    kv_fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
    warm_l2: bool,
) -> Array:
    """Time [s] of a split-KV decode kernel (Flash-Decoding): ``units`` independent streams of ``keys`` keys.

    Streams are split along the keys until the SMs are busy or a split gets too short; unoccupied SMs neither compute
    nor draw bandwidth. Every split reads the queries and writes a partial output (``query_bytes`` for one split).
    """
    sms = n_sms(device)
    units = np.maximum(units, 1e-300)  # batch 0 is answered by the caller
    splits = np.clip(sms * p["blocks_per_sm"] / units, 1.0, np.maximum(keys / p["split_tokens"], 1.0))
    splits = splits**split_exponent
    blocks_per_sm = units * splits / sms
    n_bytes = kv_bytes + query_bytes * splits
    memory_s = n_bytes * memory_scale / (p["memory_frac"] * device.memory_bytes_per_s)
    if warm_l2:
        memory_s = memory_s * l2_factor(n_bytes, p["l2_frac"], device)
    memory_s = memory_s / np.minimum(blocks_per_sm / p["saturating_blocks_per_sm"], 1.0)
    compute_s = flop / (p["compute_frac"] * peak_flop_per_s(kv_fmt, device)) / np.minimum(blocks_per_sm, 1.0)
    overhead_s = p["block_s"] * block_scale * blocks_per_sm + p["split_s"] * np.log2(splits)
    return np.asarray(p["launch_s"] + joined_s(compute_s, memory_s, DECODE_SHARPNESS) + overhead_s)
