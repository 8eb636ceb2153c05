"""Bytes one sequence keeps on the GPUs: the key-value cache that grows with its context, and constant recurrent state.

Per layer and cached token:
    softmax attention        n_kv_heads * (head_dim + v_head_dim) values
    latent attention (MLA)   kv_lora_rank + qk_rope_head_dim values for all heads (arXiv:2405.04434, section 2.1.2);
                             with the DSA indexer index_head_dim more (DeepSeek-V3.2-Exp report, section 2.1)
    compressed (DeepSeek-V4)  the same entry once per ``kv_compression_ratio`` tokens, beside a window of raw entries
A sliding or chunked layer keeps at most its window. Index keys are 8-bit numbers whatever the cache
holds (DeepSeek-V3.2-Exp report, section 2.1: the indexer works in FP8), unless the caller says otherwise.
Sizes are of the whole model; a layout divides or replicates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeplan.spec.model import (
    Block,
    LatentAttention,
    Layer,
    LinearAttention,
    ModelArchitecture,
    SoftmaxAttention,
    StateSpace,
)

INDEX_BYTES = 1.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CacheGrowth:
    """Cache of one block in values: per token without end, and per token up to ``window_tokens``."""

    per_token: float
    per_window_token: float
    window_tokens: int
    index_per_token: float = 0.0  # index keys of sparse attention, kept in a format of their own


def cache_growth(block: Block) -> CacheGrowth:
    """How the cache of ``block`` grows; zeros for blocks that keep none."""
    if isinstance(block, SoftmaxAttention):
        values = float(block.n_kv_heads * (block.head_dim + block.v_head_dim))
        if block.pattern != "full":
            return CacheGrowth(0.0, values, block.window_tokens or 0)
        return CacheGrowth(values, 0.0, 0, float(block.index_head_dim))
    if isinstance(block, LatentAttention):
        latent = float(block.kv_lora_rank + block.qk_rope_head_dim)
        index = block.index_head_dim / block.index_pool_tokens if block.index_n_heads else 0.0
        if block.pattern == "sliding":
            return CacheGrowth(0.0, latent, block.window_tokens or 0)
        return CacheGrowth(latent / block.kv_compression_ratio, latent, block.raw_window_tokens, index)
    return CacheGrowth(0.0, 0.0, 0)


def without_windows(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """``layers`` with every cache as long as the sequence: what an engine keeps that does not trim windows."""

    def whole(block: Block) -> Block:
        if isinstance(block, SoftmaxAttention | LatentAttention) and block.pattern != "full":
            return replace(block, pattern="full", window_tokens=None)
        return block

    changed = {layer: replace(layer, blocks=tuple(map(whole, layer.blocks))) for layer in dict.fromkeys(layers)}
    return tuple(changed[layer] for layer in layers)


def kv_bytes_per_token(
    model: ModelArchitecture, bytes_per_value: float, index_bytes_per_value: float = INDEX_BYTES
) -> float:
    """Bytes each further token costs once all windows are full: the layers whose cache keeps growing."""
    total = 0.0
    for layer, count in model.unique_layers():
        for growth in map(cache_growth, layer.blocks):
            total += count * (growth.per_token * bytes_per_value + growth.index_per_token * index_bytes_per_value)
    return total


def kv_bytes_per_sequence(
    model: ModelArchitecture,
    context_tokens: npt.ArrayLike,
    bytes_per_value: float,
    index_bytes_per_value: float = INDEX_BYTES,
) -> Floats:
    """Cache bytes of sequences of ``context_tokens`` (any shape); windows bound their layers."""
    context = np.asarray(context_tokens, dtype=np.float64)
    total = np.zeros_like(context)
    for layer, count in model.unique_layers():
        for growth in map(cache_growth, layer.blocks):
            windowed = growth.per_window_token * np.minimum(context, growth.window_tokens)
            index = index_bytes_per_value * growth.index_per_token * context
            total = total + count * (bytes_per_value * (growth.per_token * context + windowed) + index)
    return total


def state_values(block: Block) -> tuple[int, int]:
    """Values of (recurrent state, convolution state) one sequence keeps in this block.

    Gated delta net (arXiv:2412.06464) and KDA (Kimi Linear, arXiv:2510.26692): one k x v matrix a value head, and the
    last ``conv_kernel - 1`` inputs of the short convolution over query, key and value. Lightning attention
    (arXiv:2405.17381): the matrix only. Mamba (arXiv:2312.00752): inner_size x state_size, convolution over inner_size.
    Mamba-2 (arXiv:2405.21060): the same state; its convolution also covers B and C of every group.
    """
    if isinstance(block, LinearAttention):
        state = block.n_v_heads * block.k_head_dim * block.v_head_dim
        channels = 2 * block.n_k_heads * block.k_head_dim + block.n_v_heads * block.v_head_dim
        return state, max(block.conv_kernel - 1, 0) * channels
    if isinstance(block, StateSpace):
        channels = block.inner_size + (2 * block.n_groups * block.state_size if block.variant == 2 else 0)
        return block.inner_size * block.state_size, max(block.conv_kernel - 1, 0) * channels
    return 0, 0


def state_bytes_per_sequence(
    model: ModelArchitecture, state_bytes_per_value: float = 4.0, conv_bytes_per_value: float = 2.0
) -> float:
    """Bytes of recurrent state one sequence keeps whatever its context (fp32 state, 16-bit convolution inputs)."""
    total = 0.0
    for layer, count in model.unique_layers():
        for block in layer.blocks:
            state, conv = state_values(block)
            total += count * (state * state_bytes_per_value + conv * conv_bytes_per_value)
    return total
