"""Parameter counts of linear-attention and state-space blocks, in the vocabulary of ``counts``."""

from __future__ import annotations

from moeplan.files.catalog.models.counts import linear, norm
from moeplan.spec.model import LinearAttention, StateSpace


def gated_delta_net(
    hidden: int, *, n_k_heads: int, n_v_heads: int, k_head_dim: int, v_head_dim: int, conv_kernel: int
) -> LinearAttention:
    """Gated delta net as in Qwen3-Next (arXiv:2412.06464): q, k, v, output gate, two gates a value head."""
    k_dim, v_dim = n_k_heads * k_head_dim, n_v_heads * v_head_dim
    n_params = (
        linear(hidden, 2 * k_dim + 2 * v_dim)  # query, key, value, output gate
        + linear(hidden, 2 * n_v_heads)  # write strength and decay
        + (2 * k_dim + v_dim) * conv_kernel
        + 2 * n_v_heads  # decay base and time-step bias
        + norm(v_head_dim)
        + linear(v_dim, hidden)
    )
    return LinearAttention("gated_delta", n_k_heads, n_v_heads, k_head_dim, v_head_dim, conv_kernel, n_params)


def kimi_delta_attention(
    hidden: int, *, n_heads: int, head_dim: int, conv_kernel: int, full_rank_gate: bool = False
) -> LinearAttention:
    """Kimi delta attention (arXiv:2510.26692, section 3): decay per channel from a low-rank projection.

    ``full_rank_gate``: the output gate is one full matrix instead of a low-rank pair.
    """
    inner = n_heads * head_dim
    low_rank = linear(hidden, head_dim) + linear(head_dim, inner)
    gate = linear(hidden, inner) if full_rank_gate else low_rank
    n_params = (
        3 * linear(hidden, inner)
        + 3 * inner * conv_kernel
        + low_rank + inner + n_heads  # decay: projection, time-step bias, base
        + linear(hidden, n_heads)  # write strength
        + gate
        + norm(head_dim)
        + linear(inner, hidden)
    )  # fmt: skip
    return LinearAttention("kda", n_heads, n_heads, head_dim, head_dim, conv_kernel, n_params)


def lightning_attention(hidden: int, *, n_heads: int, head_dim: int) -> LinearAttention:
    """Lightning attention of MiniMax-01 (arXiv:2501.08313, section 2.2): q, k, v, output gate, norm, output."""
    inner = n_heads * head_dim
    n_params = linear(hidden, 3 * inner) + linear(hidden, inner) + norm(inner) + linear(inner, hidden)
    return LinearAttention("lightning", n_heads, n_heads, head_dim, head_dim, 0, n_params)


def mamba1(
    hidden: int, *, inner: int, state: int, dt_rank: int, conv_kernel: int, conv_bias: bool, proj_bias: bool,
    inner_norms: bool,
) -> StateSpace:  # fmt: skip
    """Mamba (arXiv:2312.00752, section 3.4); ``inner_norms``: norms on time step, B and C (Jamba, arXiv:2403.19887)."""
    n_params = (
        linear(hidden, 2 * inner, proj_bias)
        + inner * conv_kernel + (inner if conv_bias else 0)
        + linear(inner, dt_rank + 2 * state)
        + linear(dt_rank, inner, True)
        + inner * state + inner  # A and D
        + (norm(dt_rank) + 2 * norm(state) if inner_norms else 0)
        + linear(inner, hidden, proj_bias)
    )  # fmt: skip
    return StateSpace(1, inner, state, 1, 1, conv_kernel, dt_rank, n_params)


def mamba2(
    hidden: int, *, n_heads: int, head_dim: int, state: int, n_groups: int, conv_kernel: int, conv_bias: bool,
    proj_bias: bool,
) -> StateSpace:  # fmt: skip
    """Mamba-2 (arXiv:2405.21060, section 7): one projection gives gate, input, B, C and time step."""
    inner = n_heads * head_dim
    channels = inner + 2 * n_groups * state
    n_params = (
        linear(hidden, inner + channels + n_heads, proj_bias)
        + channels * conv_kernel + (channels if conv_bias else 0)
        + 3 * n_heads  # A, D and time-step bias
        + norm(inner)
        + linear(inner, hidden, proj_bias)
    )  # fmt: skip
    return StateSpace(2, inner, state, n_heads, n_groups, conv_kernel, 0, n_params)
