"""Bytes one sequence keeps on the GPUs: the key-value cache that grows with its context, and recurrent state that does not.

Per layer and cached token:
    softmax attention        n_kv_heads * (head_dim + v_head_dim) values
    latent attention (MLA)   kv_lora_rank + qk_rope_head_dim values (arXiv:2405.04434, section 2.1.2), shared by all heads;
                             with the DSA indexer index_head_dim more (DeepSeek-V3.2-Exp report, section 2.1)
A sliding or chunked layer keeps at most its window. Sizes are of the whole model; a layout divides or replicates them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeplan.spec.model import Block, LatentAttention, LinearAttention, ModelArchitecture, SoftmaxAttention, StateSpace

Floats = npt.NDArray[np.float64]


def kv_values_per_token(block: Block) -> float:
    """Values one token adds to the cache of this block while it grows; 0 for blocks without a cache."""
    if isinstance(block, SoftmaxAttention):
        return block.n_kv_heads * (block.head_dim + block.v_head_dim)
    if isinstance(block, LatentAttention):
        latent = block.kv_lora_rank + block.qk_rope_head_dim
        return (latent + (block.index_head_dim if block.index_n_heads else 0)) / block.kv_compression_ratio
    return 0.0


def cache_window_tokens(block: Block) -> int | None:
    """Most tokens the cache of this block holds, None = the whole context."""
    if isinstance(block, (SoftmaxAttention, LatentAttention)) and block.pattern != "full":
        return block.window_tokens
    return None


def kv_bytes_per_token(model: ModelArchitecture, bytes_per_value: float) -> float:
    """Bytes each further token costs once all windows are full: the layers whose cache keeps growing."""
    return bytes_per_value * sum(
        count * kv_values_per_token(block)
        for layer, count in model.unique_layers()
        for block in layer.blocks
        if cache_window_tokens(block) is None
    )


def kv_bytes_per_sequence(model: ModelArchitecture, context_tokens: npt.ArrayLike, bytes_per_value: float) -> Floats:
    """Cache bytes of sequences of ``context_tokens`` (any shape); windows bound their layers."""
    context = np.asarray(context_tokens, dtype=np.float64)
    total = np.zeros_like(context)
    for layer, count in model.unique_layers():
        for block in layer.blocks:
            window = cache_window_tokens(block)
            tokens = context if window is None else np.minimum(context, window)
            total = total + count * kv_values_per_token(block) * tokens
    return bytes_per_value * total


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
    """Bytes of recurrent state one sequence keeps whatever its context (state in fp32, convolution inputs in 16 bit)."""
    total = 0.0
    for layer, count in model.unique_layers():
        for block in layer.blocks:
            state, conv = state_values(block)
            total += count * (state * state_bytes_per_value + conv * conv_bytes_per_value)
    return total
