"""Hybrids: most layers mix tokens with linear attention or a state space, some with softmax or latent attention."""

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
from moeplan.files.catalog.models.recurrent import (
    gated_delta_net,
    kimi_delta_attention,
    lightning_attention,
    mamba1,
    mamba2,
)
from moeplan.files.catalog.models.schedule import moe_layers
from moeplan.files.catalog.models.transformer import (
    Body,
    Family,
    read_dense,
    read_heads,
    read_latent_attention,
    read_moe,
    read_mtp,
)
from moeplan.spec.model import Block, FeedForward, Layer, LinearAttention, Mixer, MoeMlp

LINEAR, FULL = "linear_attention", "full_attention"


def _body(f: Fields, layers: list[Layer], mtp: tuple[Layer, ...] | None = None, notes: tuple[str, ...] = ()) -> Body:
    hidden = f.size("hidden_size")
    return Body(
        hidden_size=hidden,
        vocab_size=f.size("vocab_size"),
        max_context_tokens=f.size("max_position_embeddings", "model_max_length", high=10**9),
        layers=tuple(layers),
        mtp_layers=read_mtp(f, layers[-1], hidden) if mtp is None else mtp,
        tied=f.flag("tie_word_embeddings", False),
        n_final_params=norm(hidden),
        notes=notes,
    )


def _feed_forwards(f: Fields, family: Family, hidden: int, n_layers: int) -> list[FeedForward]:
    """The feed-forward of each layer; ``family.moe`` false makes all of them dense."""
    is_moe = moe_layers(f, n_layers) if family.moe else (False,) * n_layers
    moe = read_moe(f, family, hidden, n_layers) if any(is_moe) else None
    dense = read_dense(f, family, hidden) if not all(is_moe) else None
    if all(is_moe):
        f.raw(*family.dense_size)
    return [block for flag in is_moe if (block := moe if flag else dense) is not None]


def _gated_delta(f: Fields, hidden: int) -> LinearAttention:
    return gated_delta_net(
        hidden, n_k_heads=f.size("linear_num_key_heads"), n_v_heads=f.size("linear_num_value_heads"),
        k_head_dim=f.size("linear_key_head_dim"), v_head_dim=f.size("linear_value_head_dim"),
        conv_kernel=f.size("linear_conv_kernel_dim"),
    )  # fmt: skip


def read_qwen3_next(f: Fields, moe: bool) -> Body:
    """Qwen3-Next and Qwen3.5: gated delta net, and gated softmax attention every ``full_attention_interval`` layers."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    kinds = f.per_layer("layer_types", n_layers, (LINEAR, FULL))
    interval = f.size("full_attention_interval", default=4)
    if kinds is None:
        kinds = tuple(LINEAR if (i + 1) % interval else FULL for i in range(n_layers))
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    bias = f.flag("attention_bias", False)
    gated = f.flag("attn_output_gate", True)
    mixers: dict[str, Mixer] = {
        LINEAR: _gated_delta(f, hidden),
        FULL: softmax_attention(
            hidden, n_heads, n_kv_heads, head_dim, qkv_bias=bias, o_bias=bias, gated=gated, qk_norm="head"
        ),
    }
    f.off("use_sliding_window", "mtp_use_dedicated_embeddings")
    feeds = _feed_forwards(f, Family(moe=moe, shared_gate=True), hidden, n_layers)
    layers = [Layer((mixers[k], feed), 2 * norm(hidden)) for k, feed in zip(kinds, feeds, strict=True)]
    mtp = read_mtp(f, Layer((mixers[FULL], feeds[-1]), 2 * norm(hidden)), hidden)  # an MTP layer has full attention
    return _body(f, layers, mtp)


def read_kimi_linear(f: Fields) -> Body:
    """Kimi-Linear, Kimi-K3, Ling-3: Kimi delta attention, and latent attention without positions in some layers."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    family = Family(moe=True, scoring="sigmoid")
    nested = f.section("linear_attn_config")
    notes: tuple[str, ...] = ()
    if nested is None:
        kda = kimi_delta_attention(
            hidden, n_heads=f.size("linear_num_heads"), head_dim=f.size("linear_head_dim"),
            conv_kernel=f.size("linear_conv_kernel_dim", "short_conv_kernel_size"),
        )  # fmt: skip
        f.raw("short_conv_kernel_size")
        kinds = f.per_layer("layer_types", n_layers, (LINEAR, FULL))
        if kinds is None:
            f.problem("layer_types", "missing field 'layer_types' or 'linear_attn_config'")
            kinds = (FULL,) * n_layers
        f.raw("layer_group_size")  # restates layer_types
    else:
        full = nested.numbers("full_attn_layers")
        if sorted(full + nested.numbers("kda_layers")) != list(range(1, n_layers + 1)):
            nested.problem("kda_layers", "kda_layers and full_attn_layers must name every layer once, counted from 1")
        kinds = tuple(FULL if i + 1 in full else LINEAR for i in range(n_layers))
        kda = kimi_delta_attention(
            hidden, n_heads=nested.size("num_heads"), head_dim=nested.size("head_dim"),
            conv_kernel=nested.size("short_conv_kernel_size"),
            full_rank_gate=nested.flag("use_full_rank_gate", False),
        )  # fmt: skip
        nested.raw("gate_lower_bound")
        nested.finish(strict=True)
    f.raw("mla_use_nope", "kda_safe_gate", "kda_lower_bound", "activation_situ_beta", "activation_situ_linear_beta")
    f.raw("use_grouped_topk", "mtp_loss_scaling_factor")
    latent = read_latent_attention(f, hidden, output_gate=f.flag("mla_use_output_gate", False))
    if f.raw("attn_res_block_size"):
        notes += ("attention residuals between blocks of layers are not counted",)
    mixers: dict[str, Mixer] = {LINEAR: kda, FULL: latent}
    feeds = _feed_forwards(f, family, hidden, n_layers)
    layers = [Layer((mixers[k], feed), 2 * norm(hidden)) for k, feed in zip(kinds, feeds, strict=True)]
    return _body(f, layers, read_mtp(f, Layer((latent, feeds[-1]), 2 * norm(hidden)), hidden), notes)


def read_glm5_next(f: Fields) -> Body:
    """GLM-5.3: Kimi delta attention, sparse latent attention with pooled index keys, hyper-connections."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    indexed = "indexed_attention"
    kda = kimi_delta_attention(
        hidden, n_heads=f.size("linear_num_heads"), head_dim=f.size("linear_head_dim"),
        conv_kernel=f.size("linear_conv_kernel_dim"),
    )  # fmt: skip
    pool, index_dim = f.size("index_kpool", default=1), f.size("index_head_dim")
    latent = read_latent_attention(f, hidden)
    pooling = linear(hidden, index_dim) + pool * index_dim if pool > 1 else 0  # pooling gate and position bias
    latent = replace(latent, n_params=latent.n_params + pooling, index_pool_tokens=pool)
    f.per_layer("indexer_types", n_layers, ("full",))
    f.raw("index_kpool_always_select_tail", "linear_lower_bound", "hc_eps", "hc_sinkhorn_iters")
    kinds = f.per_layer("layer_types", n_layers, (LINEAR, indexed))
    if kinds is None:
        f.problem("layer_types", "missing field 'layer_types'")
        kinds = (LINEAR,) * n_layers
    mixers: dict[str, Mixer] = {LINEAR: kda, indexed: latent}
    extra = 2 * norm(hidden) + 2 * hyper_connection_params(hidden, f.size("hc_mult", default=1))
    feeds = _feed_forwards(f, Family(moe=True, scoring="sigmoid"), hidden, n_layers)
    layers = [Layer((mixers[k], feed), extra) for k, feed in zip(kinds, feeds, strict=True)]
    return _body(f, layers)


def read_minimax_text_01(f: Fields) -> Body:
    """MiniMax-Text-01: lightning attention, softmax attention where ``attn_type_list`` has 1, all layers MoE."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    types = f.per_layer("attn_type_list", n_layers, (0, 1))
    kinds = f.per_layer("layer_types", n_layers, (LINEAR, FULL))
    if types is None and kinds is None:
        f.problem("attn_type_list", "missing field 'attn_type_list' or 'layer_types'")
    is_softmax = [bool(t) for t in types] if types else [k == FULL for k in kinds or (FULL,) * n_layers]
    softmax = softmax_attention(hidden, n_heads, n_kv_heads, head_dim)
    lightning = lightning_attention(hidden, n_heads=n_heads, head_dim=head_dim)
    feeds = _feed_forwards(f, Family(moe=True, expert_size=("intermediate_size",)), hidden, n_layers)
    layers = [
        Layer((softmax if s else lightning, feed), 2 * norm(hidden)) for s, feed in zip(is_softmax, feeds, strict=True)
    ]
    return _body(f, layers)


def read_jamba(f: Fields) -> Body:
    """Jamba: Mamba, attention every ``attn_layer_period``, MoE every ``expert_layer_period`` layers."""
    hidden, n_layers = f.size("hidden_size"), f.size("num_hidden_layers", high=MAX_LAYERS)
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    softmax = softmax_attention(hidden, n_heads, n_kv_heads, head_dim)
    mamba = mamba1(
        hidden, inner=f.size("mamba_expand") * hidden, state=f.size("mamba_d_state"), dt_rank=f.size("mamba_dt_rank"),
        conv_kernel=f.size("mamba_d_conv"), conv_bias=f.flag("mamba_conv_bias", True),
        proj_bias=f.flag("mamba_proj_bias", False), inner_norms=True,
    )  # fmt: skip
    inner = f.size("intermediate_size")
    moe = read_moe(f, Family(expert_size=("intermediate_size",)), hidden, n_layers)
    dense = dense_mlp(hidden, inner)
    attn_period, attn_offset = f.size("attn_layer_period"), f.size("attn_layer_offset", low=0)
    moe_period, moe_offset = f.size("expert_layer_period"), f.size("expert_layer_offset", low=0)
    layers = [
        Layer(
            (softmax if i % attn_period == attn_offset else mamba, moe if i % moe_period == moe_offset else dense),
            2 * norm(hidden),
        )
        for i in range(n_layers)
    ]
    return _body(f, layers)


NEMOTRON_SYMBOLS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def _nemotron_kinds(f: Fields, list_key: str, pattern_key: str) -> tuple[str, ...]:
    kinds = f.raw(list_key)
    pattern = f.raw(pattern_key)
    if not isinstance(kinds, list):
        if kinds is not None:
            f.problem(list_key, "must be a list of layer types", kinds)
        kinds = [NEMOTRON_SYMBOLS.get(symbol, symbol) for symbol in str(pattern or "")]
    unknown = set(map(str, kinds)) - set(NEMOTRON_SYMBOLS.values())
    if unknown or len(kinds) > MAX_LAYERS:
        f.problem(list_key, "not understood", sorted(unknown), ", ".join(NEMOTRON_SYMBOLS.values()))
        return ("mlp",)
    return tuple(map(str, kinds))


def _nemotron_moe(f: Fields, hidden: int) -> MoeMlp:
    n_experts, top_k = f.size("n_routed_experts", high=10**5), f.size("num_experts_per_tok")
    if top_k > n_experts:
        f.problem("num_experts_per_tok", "cannot exceed the number of experts", top_k, f"1 to {n_experts}")
    n_shared = f.size("n_shared_experts", default=0, low=0)
    return moe_mlp(
        hidden, n_experts=n_experts, top_k=top_k, expert_size=f.size("moe_intermediate_size"),
        n_shared=n_shared, shared_size=n_shared * f.size("moe_shared_expert_intermediate_size", default=0, low=0),
        n_matrices=2, scoring="sigmoid", n_group=f.size("n_group", default=1),
        topk_group=f.size("topk_group", default=1), latent_size=f.optional_size("moe_latent_size"),
    )  # fmt: skip


def read_nemotron_h(f: Fields) -> Body:
    """Nemotron-H: every layer is one block (Mamba-2, attention, MoE or MLP) behind one norm, with squared ReLU."""
    hidden = f.size("hidden_size")
    kinds = _nemotron_kinds(f, "layers_block_type", "hybrid_override_pattern")
    if not kinds:
        f.problem("layers_block_type", "missing field 'layers_block_type' or 'hybrid_override_pattern'")
        kinds = ("mlp",)
    if f.has("num_hidden_layers") and f.size("num_hidden_layers") != len(kinds):
        f.problem("num_hidden_layers", "differs from the layer pattern", f.raw("num_hidden_layers"), str(len(kinds)))
    f.word("mlp_hidden_act", ("relu2",), "relu2")
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    bias = f.flag("attention_bias", False)
    f.flag("use_bias", False)
    mlp_bias = f.flag("mlp_bias", False)
    n_mamba_heads, mamba_head_dim = f.size("mamba_num_heads"), f.size("mamba_head_dim")
    f.raw("expand")  # inner size is heads x head size
    blocks: dict[str, Block] = {
        "mamba": mamba2(
            hidden, n_heads=n_mamba_heads, head_dim=mamba_head_dim, state=f.size("ssm_state_size"),
            n_groups=f.size("n_groups"), conv_kernel=f.size("conv_kernel"), conv_bias=f.flag("use_conv_bias", True),
            proj_bias=f.flag("mamba_proj_bias", False),
        ),
        "attention": softmax_attention(hidden, n_heads, n_kv_heads, head_dim, qkv_bias=bias, o_bias=bias),
        "mlp": dense_mlp(hidden, f.size("intermediate_size"), n_matrices=2, bias=mlp_bias),
    }  # fmt: skip
    if "moe" in kinds:
        blocks["moe"] = _nemotron_moe(f, hidden)
    layers = [Layer((blocks[kind],), norm(hidden)) for kind in kinds]
    n_mtp = f.size("num_nextn_predict_layers", default=0, low=0, high=64)
    mtp_kinds = _nemotron_kinds(f, "mtp_layers_block_type", "mtp_hybrid_override_pattern")
    merge = linear(2 * hidden, hidden) + (2 + len(mtp_kinds)) * norm(hidden)
    mtp = (Layer(tuple(blocks[kind] for kind in mtp_kinds), merge),) * n_mtp
    return _body(f, layers, mtp)
