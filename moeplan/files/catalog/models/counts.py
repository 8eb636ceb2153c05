"""Blocks with their parameter counts: plain sums over weight matrices.

``linear(n_in, n_out)`` and ``norm(n)`` are the whole vocabulary; every count below reads as the list of matrices of the
block in the order they are applied.
"""

from __future__ import annotations

from typing import Literal

from moeplan.spec.model import DenseMlp, LatentAttention, MoeMlp, SoftmaxAttention


def linear(n_in: int, n_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return n_in * n_out + (n_out if bias else 0)


def norm(n: int, bias: bool = False) -> int:
    """Parameters of an RMS norm, or with ``bias`` of a layer norm."""
    return 2 * n if bias else n


def attention_params(
    hidden: int, n_heads: int, n_kv_heads: int, head_dim: int, v_head_dim: int, *,
    qkv_bias: bool = False, o_bias: bool = False, gated: bool = False, v_is_k: bool = False,
    qk_norm: Literal["none", "head", "full"] = "none",
) -> int:  # fmt: skip
    """Query (twice with an output gate), key, value, output, and the norms on query and key."""
    projections = (
        linear(hidden, n_heads * head_dim * (2 if gated else 1), qkv_bias)
        + linear(hidden, n_kv_heads * head_dim, qkv_bias)
        + (0 if v_is_k else linear(hidden, n_kv_heads * v_head_dim, qkv_bias))
        + linear(n_heads * v_head_dim, hidden, o_bias)
    )
    norms = {"none": 0, "head": 2 * norm(head_dim), "full": norm(n_heads * head_dim) + norm(n_kv_heads * head_dim)}
    return projections + norms[qk_norm]


def softmax_attention(
    hidden: int, n_heads: int, n_kv_heads: int, head_dim: int, *, v_head_dim: int | None = None,
    qkv_bias: bool = False, o_bias: bool = False, gated: bool = False, v_is_k: bool = False,
    qk_norm: Literal["none", "head", "full"] = "none", extra_params: int = 0,
    pattern: Literal["full", "sliding", "chunked"] = "full", window_tokens: int | None = None,
    sparse_top_k_tokens: int | None = None,
) -> SoftmaxAttention:  # fmt: skip
    """Multi-head (n_kv_heads = n_heads), grouped-query or multi-query (n_kv_heads = 1) attention."""
    v_dim = head_dim if v_head_dim is None else v_head_dim
    n_params = extra_params + attention_params(
        hidden, n_heads, n_kv_heads, head_dim, v_dim,
        qkv_bias=qkv_bias, o_bias=o_bias, gated=gated, v_is_k=v_is_k, qk_norm=qk_norm,
    )  # fmt: skip
    return SoftmaxAttention(
        n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, v_head_dim=v_dim, n_params=n_params,
        pattern=pattern, window_tokens=window_tokens, gated=gated, sparse_top_k_tokens=sparse_top_k_tokens,
        qk_norm=qk_norm != "none",
    )  # fmt: skip


def indexer_params(hidden: int, q_rank: int, n_heads: int, head_dim: int) -> int:
    """Lightning indexer of DeepSeek sparse attention: queries, one key with its layer norm, head weights.

    DeepSeek-V3.2-Exp report, section 2.1.
    """
    query, key = linear(q_rank, n_heads * head_dim), linear(hidden, head_dim) + norm(head_dim, True)
    return query + key + linear(hidden, n_heads)


def latent_attention(
    hidden: int, n_heads: int, *, q_lora_rank: int | None, kv_lora_rank: int, qk_nope_head_dim: int,
    qk_rope_head_dim: int, v_head_dim: int, bias: bool = False, output_gate: bool = False, index_n_heads: int = 0,
    index_head_dim: int = 0, index_top_k_tokens: int | None = None,
) -> LatentAttention:  # fmt: skip
    """Multi-head latent attention (arXiv:2405.04434, equations 37 to 47): low-rank query, joint low-rank key-value."""
    qk_dim = qk_nope_head_dim + qk_rope_head_dim
    query = linear(hidden, n_heads * qk_dim)
    if q_lora_rank is not None:
        query = linear(hidden, q_lora_rank, bias) + norm(q_lora_rank) + linear(q_lora_rank, n_heads * qk_dim)
    key_value = (
        linear(hidden, kv_lora_rank + qk_rope_head_dim, bias)
        + norm(kv_lora_rank)
        + linear(kv_lora_rank, n_heads * (qk_nope_head_dim + v_head_dim))
    )
    output = linear(n_heads * v_head_dim, hidden, bias)
    gate = linear(hidden, n_heads * v_head_dim) if output_gate else 0
    indexer = indexer_params(hidden, q_lora_rank or hidden, index_n_heads, index_head_dim) if index_n_heads else 0
    return LatentAttention(
        n_heads=n_heads, q_lora_rank=q_lora_rank, kv_lora_rank=kv_lora_rank, qk_nope_head_dim=qk_nope_head_dim,
        qk_rope_head_dim=qk_rope_head_dim, v_head_dim=v_head_dim, n_params=query + key_value + output + gate + indexer,
        index_n_heads=index_n_heads, index_head_dim=index_head_dim, index_top_k_tokens=index_top_k_tokens,
    )  # fmt: skip


def hyper_connection_params(hidden: int, streams: int) -> int:
    """Manifold-constrained hyper-connection around one block (arXiv:2512.24880): mixing matrix, base, three scales."""
    mixes = (2 + streams) * streams
    return mixes * streams * hidden + mixes + 3


def mlp_params(n_in: int, inner: int, n_matrices: int = 3, bias: bool = False) -> int:
    """Gate, up and down (3 matrices) or up and down (2)."""
    return (n_matrices - 1) * linear(n_in, inner, bias) + linear(inner, n_in, bias)


def dense_mlp(hidden: int, inner: int, n_matrices: int = 3, bias: bool = False) -> DenseMlp:
    """Dense feed-forward."""
    return DenseMlp(inner, n_matrices, mlp_params(hidden, inner, n_matrices, bias))


def moe_mlp(
    hidden: int, *, n_experts: int, top_k: int, expert_size: int, n_shared: int = 0, shared_size: int = 0,
    shared_gate: bool = False, n_matrices: int = 3, expert_bias: bool = False, router_bias: bool = False,
    latent_size: int | None = None, latent_norm: bool = False, n_zero_experts: int = 0,
    scoring: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax", n_group: int = 1, topk_group: int = 1,
    n_router_rows: int | None = None,
) -> MoeMlp:  # fmt: skip
    """Routed experts, router, shared experts with their gate.

    A load-balancing correction per expert is a buffer, not a parameter, and is not counted.

    ``n_router_rows``: outputs of the router where it scores more than the routed experts.
    In a latent MoE the experts work on ``latent_size`` channels between one down and one up projection.
    """
    expert_hidden = hidden if latent_size is None else latent_size
    expert = mlp_params(expert_hidden, expert_size, n_matrices, expert_bias)
    rows = n_experts + n_zero_experts if n_router_rows is None else n_router_rows
    router = linear(hidden, rows) + (n_experts + n_zero_experts if router_bias else 0)
    shared = mlp_params(hidden, shared_size, n_matrices, expert_bias) if shared_size else 0
    gate = linear(hidden, 1) if shared_gate else 0
    latent = 0
    if latent_size is not None:
        latent = linear(hidden, latent_size) + linear(latent_size, hidden) + (norm(latent_size) if latent_norm else 0)
    return MoeMlp(
        n_experts=n_experts, top_k=top_k, expert_intermediate_size=expert_size, n_matrices=n_matrices,
        n_shared_experts=n_shared, shared_intermediate_size=shared_size,
        n_params=n_experts * expert + router + shared + gate + latent, n_params_per_expert=expert,
        n_router_params=router, expert_hidden_size=expert_hidden, scoring=scoring, n_group=n_group,
        topk_group=topk_group, n_zero_experts=n_zero_experts,
    )  # fmt: skip
