"""Decoder-only transformers whose layers or field names differ from the common form: one reader each."""

from __future__ import annotations

from dataclasses import replace

from moeplan.files.catalog.models.counts import (
    dense_mlp,
    hyper_connection_params,
    linear,
    moe_mlp,
    norm,
    softmax_attention,
)
from moeplan.files.catalog.models.fields import MAX_LAYERS, Fields
from moeplan.files.catalog.models.schedule import attention_views, moe_layers
from moeplan.files.catalog.models.transformer import Body, Family, read_heads, read_latent_attention, read_moe, read_mtp
from moeplan.spec.model import FeedForward, LatentAttention, Layer, SoftmaxAttention


def _body(
    f: Fields, layers: list[Layer], mtp: tuple[Layer, ...] = (), tied: bool = False, final: int | None = None,
    notes: tuple[str, ...] = (), context: tuple[str, ...] = ("max_position_embeddings",),
) -> Body:  # fmt: skip
    hidden = f.size("hidden_size", "d_model")
    return Body(
        hidden_size=hidden,
        vocab_size=f.size("vocab_size"),
        max_context_tokens=f.size(*context, high=10**9),
        layers=tuple(layers),
        mtp_layers=mtp,
        tied=f.flag("tie_word_embeddings", tied),
        n_final_params=norm(hidden) if final is None else final,
        notes=notes,
    )


def read_dbrx(f: Fields) -> Body:
    """DBRX: attention and experts under ``attn_config`` and ``ffn_config``; all layers MoE."""
    hidden, n_layers = f.size("d_model"), f.size("n_layers", high=MAX_LAYERS)
    n_heads = f.size("n_heads")
    attn = f.section("attn_config") or Fields({}, f.file, "attn_config.", f.problems)
    ffn = f.section("ffn_config") or Fields({}, f.file, "ffn_config.", f.problems)
    n_kv_heads = attn.size("kv_n_heads")
    if hidden % n_heads or n_heads % n_kv_heads:
        f.problem("n_heads", "must divide d_model and be a multiple of attn_config.kv_n_heads", n_heads)
    n_experts, top_k = ffn.size("moe_num_experts", high=10**5), ffn.size("moe_top_k")
    if top_k > n_experts:
        ffn.problem("moe_top_k", "cannot exceed the number of experts", top_k, f"1 to {n_experts}")
    attention = softmax_attention(hidden, n_heads, n_kv_heads, max(1, hidden // n_heads))
    moe = moe_mlp(hidden, n_experts=n_experts, top_k=top_k, expert_size=ffn.size("ffn_hidden_size"))
    attn.finish(strict=False)
    ffn.finish(strict=False)
    return _body(f, [Layer((attention, moe), 2 * norm(hidden))] * n_layers, context=("max_seq_len",))


def read_grok(f: Fields) -> Body:
    """Grok-1: expert width = widening_factor * hidden * 2/3 rounded up to 8; norms before and after each block."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    width = -(-(f.size("widening_factor") * hidden * 2 // 3) // 8) * 8
    attention = softmax_attention(hidden, n_heads, n_kv_heads, head_dim)
    moe = moe_mlp(
        hidden, n_experts=f.size("num_experts", high=10**5), top_k=f.size("num_experts_per_tok"), expert_size=width
    )
    return _body(f, [Layer((attention, moe), 4 * norm(hidden))] * n_layers, tied=True)


def read_longcat(f: Fields) -> Body:
    """LongCat-Flash: two latent attentions and two dense blocks a layer, one MoE in parallel, zero experts."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_layers", "num_hidden_layers", high=MAX_LAYERS)
    n_experts, top_k = f.size("n_routed_experts", high=10**5), f.size("moe_topk")
    if top_k > n_experts:
        f.problem("moe_topk", "cannot exceed the number of experts", top_k, f"1 to {n_experts}")
    attention = read_latent_attention(f, hidden)
    dense = dense_mlp(hidden, f.size("ffn_hidden_size"))
    moe = moe_mlp(
        hidden, n_experts=n_experts, top_k=top_k, expert_size=f.size("expert_ffn_hidden_size"),
        n_zero_experts=f.size("zero_expert_num", default=0, low=0),
    )  # fmt: skip
    f.word("zero_expert_type", ("identity",), "identity")
    layer = Layer((attention, moe, dense, attention, dense), 4 * norm(hidden))
    notes = ("active parameters are an upper bound: tokens that select zero experts use fewer routed experts",)
    return _body(f, [layer] * n_layers, notes=notes)


def read_mimo(f: Fields) -> Body:
    """MiMo-V2: full and sliding layers with their own head counts; sinks on the sliding ones."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    bias = f.flag("attention_bias", False)
    window = f.size("sliding_window", "sliding_window_size")
    f.raw("attention_chunk_size", "sliding_window_size")  # restate the window
    full = softmax_attention(
        hidden, n_heads, n_kv_heads, head_dim, v_head_dim=f.size("v_head_dim"), qkv_bias=bias,
        extra_params=n_heads if f.flag("add_full_attention_sink_bias", False) else 0,
    )  # fmt: skip
    swa_heads = f.size("swa_num_attention_heads")
    sliding = softmax_attention(
        hidden, swa_heads, f.size("swa_num_key_value_heads"), f.size("swa_head_dim"),
        v_head_dim=f.size("swa_v_head_dim"), qkv_bias=bias, pattern="sliding", window_tokens=window,
        extra_params=swa_heads if f.flag("add_swa_attention_sink_bias", False) else 0,
    )  # fmt: skip
    pattern = f.per_layer("hybrid_layer_pattern", n_layers, (0, 1))
    if pattern is None:
        f.problem("hybrid_layer_pattern", "missing field 'hybrid_layer_pattern'")
        pattern = (0,) * n_layers
    moe = read_moe(f, Family(scoring="sigmoid"), hidden, n_layers)
    dense = dense_mlp(hidden, f.size("intermediate_size"))
    layers = [
        Layer((sliding if slides else full, moe if is_moe else dense), 2 * norm(hidden))
        for slides, is_moe in zip(pattern, moe_layers(f, n_layers), strict=True)
    ]
    return _body(f, layers, read_mtp(f, layers[-1], hidden))


def read_minimax_m3(f: Fields) -> Body:
    """MiniMax-M3: grouped-query attention that reads only the best key blocks in its sparse layers."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    f.word("qk_norm_type", ("per_head",), "per_head")
    gated = f.flag("attention_output_gate", False)
    f.raw("use_qk_norm", "use_routing_bias", "use_gemma_norm", "num_mtp_modules", "intermediate_size")
    full = softmax_attention(hidden, n_heads, n_kv_heads, head_dim, gated=gated, qk_norm="head")
    sparse, is_sparse = full, (0,) * n_layers
    config = f.section("sparse_attention_config")
    if config is not None and config.flag("use_sparse_attention", True):
        n_index, index_dim = config.size("sparse_num_index_heads"), config.size("sparse_index_dim")
        block = config.size("sparse_block_size")
        top_k = block * config.size("sparse_topk_blocks")  # the local blocks are among them
        indexer = linear(hidden, n_index * index_dim) + linear(hidden, index_dim) + 2 * norm(index_dim)
        sparse = replace(full, n_params=full.n_params + indexer, sparse_top_k_tokens=top_k, index_head_dim=index_dim)
        is_sparse = config.per_layer("sparse_attention_freq", n_layers, (0, 1)) or is_sparse
        config.raw("sparse_disable_index_value", "sparse_init_block", "sparse_local_block", "sparse_score_type")
        config.finish(strict=True)
    moe = read_moe(f, Family(scoring="sigmoid"), hidden, n_layers)
    dense = dense_mlp(hidden, f.size("dense_intermediate_size"))
    layers = [
        Layer((sparse if s else full, moe if m else dense), 2 * norm(hidden))
        for s, m in zip(is_sparse, moe_layers(f, n_layers), strict=True)
    ]
    return _body(f, layers, read_mtp(f, layers[-1], hidden))


def read_gemma4(f: Fields) -> Body:
    """Gemma 4 text: sliding layers, full layers with fewer wider heads and shared keys and values, dense beside MoE."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    f.off("hidden_size_per_layer_input", "num_kv_shared_layers", "use_double_wide_mlp")
    f.raw("vocab_size_per_layer_input", "use_bidirectional_attention")
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    bias = f.flag("attention_bias", False)
    views = attention_views(f, n_layers, "full")
    global_kv = f.size("num_global_key_value_heads", default=n_kv_heads)
    global_dim = f.size("global_head_dim", default=head_dim)
    v_is_k = f.flag("attention_k_eq_v", False)
    dense = dense_mlp(hidden, f.size("intermediate_size"))
    blocks: tuple[FeedForward, ...] = (dense,)
    n_norms = 4
    if f.flag("enable_moe_block", False):
        n_experts = f.size("num_experts", high=10**5)
        top_k = f.size("top_k_experts", "num_experts_per_tok")
        if top_k > n_experts:
            f.problem("top_k_experts", "cannot exceed the number of experts", top_k, f"1 to {n_experts}")
        moe = moe_mlp(
            hidden, n_experts=n_experts, top_k=top_k, expert_size=f.size("moe_intermediate_size"), router_bias=True
        )
        blocks, n_norms = (dense, moe), 8  # two more after, one before the experts, a scale in the router
    f.raw("num_experts", "top_k_experts", "moe_intermediate_size")

    def attention(pattern: str, window: int | None) -> SoftmaxAttention:
        if pattern == "full":
            return softmax_attention(
                hidden, n_heads, global_kv, global_dim, qkv_bias=bias, o_bias=bias, v_is_k=v_is_k, qk_norm="head"
            )
        return softmax_attention(
            hidden, n_heads, n_kv_heads, head_dim, qkv_bias=bias, o_bias=bias, qk_norm="head", pattern="sliding",
            window_tokens=window,
        )  # fmt: skip

    layers = [Layer((attention(v.pattern, v.window_tokens), *blocks), n_norms * norm(hidden)) for v in views]
    return _body(f, layers, tied=True)


def _v4_attention(f: Fields, hidden: int, ratio: int, window: int) -> LatentAttention:
    """One DeepSeek-V4 attention: a window of raw entries, and one compressed entry per ``ratio`` tokens (0: none).

    One key-value head of ``head_dim`` whose entry is key and value at once; grouped low-rank output projection.
    """
    n_heads, head_dim, rope = f.size("num_attention_heads"), f.size("head_dim"), f.size("qk_rope_head_dim")
    q_rank, groups, o_rank = f.size("q_lora_rank"), f.size("o_groups"), f.size("o_lora_rank")
    if n_heads % groups:
        f.problem("o_groups", "must divide num_attention_heads", groups, f"divisors of {n_heads}")
    n_params = (
        linear(hidden, q_rank) + norm(q_rank) + linear(q_rank, n_heads * head_dim)
        + linear(hidden, head_dim) + norm(head_dim)
        + groups * linear(n_heads * head_dim // groups, o_rank) + linear(groups * o_rank, hidden)
        + n_heads  # sinks
    )  # fmt: skip
    # Overlapping windows (ratio 4, with indexer) project to twice the width; the long ratio does not overlap.
    indexed = ratio == 4
    index_heads, index_dim = f.size("index_n_heads"), f.size("index_head_dim")
    top_k = f.size("index_topk")
    if ratio:
        n_params += _compressor(hidden, head_dim * (2 if indexed else 1), ratio, head_dim)
    if indexed:
        n_params += _compressor(hidden, 2 * index_dim, ratio, index_dim)
        n_params += linear(q_rank, index_heads * index_dim) + linear(hidden, index_heads)
    return LatentAttention(
        n_heads=n_heads, q_lora_rank=q_rank, kv_lora_rank=head_dim - rope, qk_nope_head_dim=head_dim - rope,
        qk_rope_head_dim=rope, v_head_dim=head_dim, n_params=n_params, index_n_heads=index_heads if indexed else 0,
        index_head_dim=index_dim if indexed else 0, index_top_k_tokens=top_k if indexed else None,
        pattern="full" if ratio else "sliding", window_tokens=None if ratio else window,
        raw_window_tokens=window if ratio else 0, kv_compression_ratio=float(max(ratio, 1)),
        index_pool_tokens=max(ratio, 1),
    )  # fmt: skip


def _compressor(hidden: int, width: int, ratio: int, head_dim: int) -> int:
    """Key-value and gate projections, a position bias per token of the window, a norm."""
    return 2 * linear(hidden, width) + ratio * width + norm(head_dim)


def read_deepseek_v4(f: Fields) -> Body:
    """DeepSeek-V4: compressed attention with a sliding window, hyper-connections, all layers MoE."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    ratios = f.raw("compress_ratios")
    if not isinstance(ratios, list) or len(ratios) < n_layers or not all(r in (0, 4, 128) for r in ratios):
        f.problem("compress_ratios", "must list 0, 4 or 128 for every layer", ratios, f"at least {n_layers} entries")
        ratios = [0] * n_layers
    window = f.size("sliding_window")
    f.off("attention_bias")
    f.raw("num_key_value_heads", "hc_eps", "hc_sinkhorn_iters")
    f.raw("num_hash_layers")  # routed by token id: same experts, the table holds no weights
    streams = f.size("hc_mult", default=1)
    connections = 2 * hyper_connection_params(hidden, streams)  # around attention and around the feed-forward
    moe = read_moe(f, Family(), hidden, n_layers)
    attention = {ratio: _v4_attention(f, hidden, ratio, window) for ratio in sorted(set(ratios))}
    extra = 2 * norm(hidden) + connections
    layers = [Layer((attention[ratio], moe), extra) for ratio in ratios[:n_layers]]
    head = streams * streams * hidden + streams + 1
    last = Layer((attention.get(ratios[-1], layers[-1].blocks[0]), moe), extra)
    notes = ("hyper-connections and compressors are counted from the published model code",)
    return _body(f, layers, read_mtp(f, last, hidden), final=norm(hidden) + head, notes=notes)


def read_inkling(f: Fields) -> Body:
    """Inkling: short convolutions on keys, values and block outputs; learnt relative positions; shared experts scored.

    Counted from the module definitions of transformers 5 (``inkling``).
    """
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    kernel, d_rel = f.size("conv_kernel_size"), f.size("d_rel")
    window = f.size("sliding_window_size")
    f.raw("log_scaling_n_floor", "log_scaling_alpha", "route_scale", "logits_mup_width_multiplier")
    f.raw("number_of_conv_states", "chain_hidden_post_norm", "mtp_hidden_states_first")
    f.off("num_mtp_layers")

    def attention(prefix: str, extent: int, sliding: bool) -> SoftmaxAttention:
        n_heads, n_kv_heads = f.size(prefix + "num_attention_heads"), f.size(prefix + "num_key_value_heads")
        head_dim = f.size(prefix + "head_dim")
        positions = linear(hidden, n_heads * d_rel) + d_rel * extent
        return softmax_attention(
            hidden, n_heads, n_kv_heads, head_dim, qk_norm="head",
            extra_params=positions + 2 * n_kv_heads * head_dim * kernel,
            pattern="sliding" if sliding else "full", window_tokens=window if sliding else None,
        )  # fmt: skip

    mixers = {
        "hybrid": attention("", f.size("rel_extent"), False),
        "hybrid_sliding": attention("swa_", window, True),
    }
    n_experts, top_k = f.size("n_routed_experts", high=10**5), f.size("num_experts_per_tok")
    if top_k > n_experts:
        f.problem("num_experts_per_tok", "cannot exceed the number of experts", top_k, f"1 to {n_experts}")
    n_shared, expert_size = f.size("n_shared_experts", low=0), f.size("moe_intermediate_size")
    sink = n_shared if f.flag("shared_expert_sink", True) else 0
    moe = moe_mlp(
        hidden, n_experts=n_experts, top_k=top_k, expert_size=expert_size, n_shared=n_shared,
        shared_size=n_shared * expert_size, n_router_rows=n_experts + sink, scoring="sigmoid",
    )  # fmt: skip
    dense = dense_mlp(hidden, f.size("intermediate_size"))
    kinds = f.per_layer("layer_types", n_layers, tuple(mixers))
    if kinds is None:
        f.problem("layer_types", "missing field 'layer_types'")
        kinds = ("hybrid",) * n_layers
    extra = 2 * norm(hidden) + 2 * hidden * kernel + 1  # norms, convolutions after both blocks, a scale
    layers = [
        Layer((mixers[kind], moe if is_moe else dense), extra)
        for kind, is_moe in zip(kinds, moe_layers(f, n_layers), strict=True)
    ]
    return _body(f, layers, final=2 * norm(hidden))  # one on the embedding
