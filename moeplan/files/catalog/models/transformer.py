"""Decoder-only transformers whose layers are one softmax or latent attention and one dense or MoE feed-forward.

``FAMILIES`` holds, by ``model_type``, what the architecture fixes in code and the fields do not state (a norm on query
and key, biases, a gate on the shared expert). Everything else is read from the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

from moeplan.files.catalog.models.counts import (
    dense_mlp,
    indexer_params,
    latent_attention,
    linear,
    moe_mlp,
    norm,
    softmax_attention,
)
from moeplan.files.catalog.models.fields import MAX_LAYERS, Fields
from moeplan.files.catalog.models.schedule import View, attention_views, moe_layers
from moeplan.spec.model import DenseMlp, LatentAttention, Layer, MoeMlp, SoftmaxAttention

SHARED_KEYS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
SHARED_WIDTH_KEYS = ("shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size")
Scoring: TypeAlias = Literal["softmax", "sigmoid", "sqrtsoftplus"]
SCORING: tuple[Scoring, ...] = ("softmax", "sigmoid", "sqrtsoftplus")


@dataclass(frozen=True, slots=True)
class Family:
    """What a ``model_type`` implies beyond its fields."""

    views: Literal["full", "window", "qwen", "alternate", "gemma3", "llama4"] = "full"
    qk_norm: Literal["none", "head", "full"] = "none"
    qkv_bias: bool | None = None  # None: the field attention_bias decides, false when absent
    o_bias: bool | None = None
    mlp_bias: bool | None = None  # None: the field mlp_bias decides
    n_matrices: int = 3  # of a dense feed-forward; 2 without a gate
    sinks: bool = False  # a learnt sink logit per head
    norms_per_layer: int = 2
    norm_bias: bool = False
    tied: bool = False  # when tie_word_embeddings is absent
    moe: bool = False  # feed-forwards are MoE
    expert_size: tuple[str, ...] = ("moe_intermediate_size",)
    dense_size: tuple[str, ...] = ("intermediate_size",)
    n_shared: int | None = None  # None: read from the fields
    shared_gate: bool = False
    router_bias: bool = False  # a bias on the router's logits (a load-balancing correction is no parameter)
    expert_bias: bool = False
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    lm_head_bias: bool = False
    mtp_dense: bool = False  # the MTP modules have the dense feed-forward of the first layers


_MIXTRAL_SIZE = ("intermediate_size",)
_DEEPSEEK_V3 = Family(moe=True, scoring="sigmoid")

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(views="window"),
    "qwen2": Family(views="qwen", qkv_bias=True, o_bias=False),
    "qwen3": Family(views="qwen", qk_norm="head"),
    "mixtral": Family(views="window", moe=True, expert_size=_MIXTRAL_SIZE),
    "qwen2_moe": Family(views="qwen", qkv_bias=True, o_bias=False, moe=True, shared_gate=True),
    "qwen3_moe": Family(views="qwen", qk_norm="head", moe=True),
    "olmoe": Family(qk_norm="full", moe=True, expert_size=_MIXTRAL_SIZE),
    "phimoe": Family(views="window", norm_bias=True, moe=True, expert_size=_MIXTRAL_SIZE),
    "granitemoe": Family(moe=True, expert_size=_MIXTRAL_SIZE),
    "gpt_oss": Family(
        views="alternate", qkv_bias=True, o_bias=True, sinks=True, moe=True, expert_size=_MIXTRAL_SIZE,
        router_bias=True, expert_bias=True,
    ),
    "deepseek": Family(moe=True),
    "deepseek_v2": Family(moe=True),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe_lite": _DEEPSEEK_V3,
    "glm_moe_dsa": _DEEPSEEK_V3,
    "glm4_moe": Family(o_bias=False, moe=True, scoring="sigmoid"),
    "solar_open": Family(o_bias=False, moe=True, scoring="sigmoid"),
    "dots1": Family(views="qwen", qk_norm="head", moe=True, scoring="sigmoid"),
    "ernie4_5_moe": Family(moe=True, tied=True),
    "minimax_m2": Family(
        qk_norm="full", moe=True, expert_size=_MIXTRAL_SIZE, n_shared=0, scoring="sigmoid"
    ),
    "llama4_text": Family(
        views="llama4", moe=True, expert_size=_MIXTRAL_SIZE, dense_size=("intermediate_size_mlp",), n_shared=1,
        scoring="sigmoid",
    ),
    "hunyuan": Family(qk_norm="head", moe=True, tied=True),
    "step3p7": Family(qk_norm="head", moe=True, scoring="sigmoid", mtp_dense=True),
    "phi3": Family(views="window"),
    "granite": Family(),
    "granitemoeshared": Family(moe=True, expert_size=_MIXTRAL_SIZE),
    "nemotron": Family(norm_bias=True, n_matrices=2),
    "olmo2": Family(qk_norm="full"),
    "gemma2": Family(views="alternate", norms_per_layer=4, tied=True),
    "gemma3_text": Family(views="gemma3", qk_norm="head", norms_per_layer=4, tied=True),
    "ernie4_5": Family(tied=True),
    "qwen2_5_vl": Family(views="qwen", qkv_bias=True, o_bias=False),
    "qwen2_5_vl_text": Family(views="qwen", qkv_bias=True, o_bias=False),
    "qwen3_vl_text": Family(views="qwen", qk_norm="head"),
    "qwen3_vl_moe_text": Family(views="qwen", qk_norm="head", moe=True),
    "hunyuan_v1_moe": Family(qk_norm="head", moe=True, tied=True),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Body:
    """What a family reader hands back."""

    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    layers: tuple[Layer, ...]
    mtp_layers: tuple[Layer, ...]
    tied: bool
    n_final_params: int
    notes: tuple[str, ...] = ()


def read_transformer(f: Fields, family: Family) -> Body:
    """Read the whole stack of layers."""
    hidden = f.size("hidden_size")
    vocab = f.size("vocab_size")
    n_layers = f.size("num_hidden_layers", high=MAX_LAYERS)
    norms = family.norms_per_layer * norm(hidden, family.norm_bias)
    views = attention_views(f, n_layers, family.views)
    attention = _attention_reader(f, family, hidden, n_layers)
    f.raw("use_moe_router_bias", "use_routing_bias", "qk_norm_type", "router_bias")  # stated by the family
    f.per_layer("attn_type_list", n_layers, (1,))  # MiniMax-M2: all softmax
    f.off("use_mla", "use_cla", "add_classification_head", "use_kv_shared")
    is_moe = moe_layers(f, n_layers) if family.moe else (False,) * n_layers
    feed_forward = {
        True: read_moe(f, family, hidden, n_layers) if any(is_moe) else None,
        False: read_dense(f, family, hidden) if not all(is_moe) else None,
    }
    if all(is_moe):
        f.raw(*family.dense_size)  # Qwen3-MoE states a dense width that no layer uses
    layers = []
    for i, (view, moe) in enumerate(zip(views, is_moe, strict=True)):
        block = feed_forward[moe]
        assert block is not None
        layers.append(Layer(blocks=(attention(i, view), block), n_norm_params=norms))
    # Of IndexShare models the first layer, like the MTP module, has an indexer of its own.
    mtp_feed_forward = (feed_forward[False] if family.mtp_dense else None) or layers[-1].blocks[-1]
    lm_head_bias = vocab if f.flag("lm_head_bias", family.lm_head_bias) else 0
    return Body(
        hidden_size=hidden,
        vocab_size=vocab,
        max_context_tokens=f.size("max_position_embeddings", "model_max_length", high=10**9),
        layers=tuple(layers),
        mtp_layers=read_mtp(f, Layer((layers[0].blocks[0], mtp_feed_forward), norms), hidden),
        tied=f.flag("tie_word_embeddings", family.tied),
        n_final_params=norm(hidden, family.norm_bias) + lm_head_bias,
    )


def read_mtp(f: Fields, like: Layer, hidden: int) -> tuple[Layer, ...]:
    """Multi-token-prediction modules: a layer ``like`` the given, a projection of [hidden, embedding], three norms.

    Embedding and head are shared with the main model (DeepSeek-V3, arXiv:2412.19437, section 2.2).
    """
    spellings = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
    n_modules = f.size(next((k for k in spellings if f.has(k)), spellings[0]), default=0, low=0, high=64)
    f.raw("use_mtp", "mtp_transformer_layers", *spellings)  # MiniMax-M3: 7 uses of 1 stored module
    merge = linear(2 * hidden, hidden) + 3 * norm(hidden)
    return (Layer(blocks=like.blocks, n_norm_params=like.n_norm_params + merge),) * n_modules


def read_heads(f: Fields, hidden: int) -> tuple[int, int, int]:
    """Query heads, key-value heads, head size."""
    n_heads = f.size("num_attention_heads")
    n_kv_heads = f.size("num_key_value_heads", default=n_heads)
    if n_heads % n_kv_heads:
        f.problem("num_key_value_heads", "must divide num_attention_heads", n_kv_heads, f"divisors of {n_heads}")
    if f.has("head_dim", "attention_head_dim"):
        return n_heads, n_kv_heads, f.size("head_dim", "attention_head_dim")
    if hidden % n_heads:
        hint = f"hidden_size {hidden} is no multiple of {n_heads} heads"
        f.problem("head_dim", "missing field 'head_dim'", hint=hint)
    return n_heads, n_kv_heads, max(1, hidden // n_heads)


def _attention_reader(
    f: Fields, family: Family, hidden: int, n_layers: int
) -> Callable[[int, View], SoftmaxAttention | LatentAttention]:
    """Reads the attention fields once; the result builds the block of layer i with its view."""
    if f.has("kv_lora_rank"):
        latent = read_latent_attention(f, hidden)
        if latent.index_n_heads == 0:
            return lambda _i, _view: latent
        kinds = f.per_layer("indexer_types", n_layers, ("full", "shared")) or ("full",) * n_layers
        # A "shared" layer attends to the tokens its predecessor selected: no indexer weights, no index keys.
        shared = replace(
            latent, index_n_heads=0, index_head_dim=0,
            n_params=latent.n_params
            - indexer_params(hidden, latent.q_lora_rank or hidden, latent.index_n_heads, latent.index_head_dim),
        )  # fmt: skip
        return lambda i, _view: latent if kinds[i] == "full" else shared
    n_heads, n_kv_heads, head_dim = read_heads(f, hidden)
    bias = f.flag("attention_bias", f.flag("use_bias", False))
    qk_norm = family.qk_norm if f.flag("use_qk_norm", family.qk_norm != "none") else "none"
    if family.views == "llama4":
        qk_norm = "none"  # an L2 norm without weights
    elif qk_norm == "none" and f.values.get("use_qk_norm"):
        qk_norm = "head"
    qkv_bias = bias if family.qkv_bias is None else family.qkv_bias
    o_bias = bias if family.o_bias is None else family.o_bias

    def build(_i: int, view: View) -> SoftmaxAttention:
        return softmax_attention(
            hidden, n_heads, n_kv_heads, head_dim, qkv_bias=qkv_bias, o_bias=o_bias, qk_norm=qk_norm,
            extra_params=n_heads if family.sinks else 0, pattern=view.pattern, window_tokens=view.window_tokens,
        )  # fmt: skip

    return build


def read_latent_attention(f: Fields, hidden: int, output_gate: bool = False) -> LatentAttention:
    """Multi-head latent attention with or without the DSA indexer."""
    nope, rope = f.size("qk_nope_head_dim"), f.size("qk_rope_head_dim", low=0)
    if f.has("qk_head_dim") and f.size("qk_head_dim") != nope + rope:
        f.problem("qk_head_dim", "must be qk_nope_head_dim + qk_rope_head_dim", f.raw("qk_head_dim"), str(nope + rope))
    f.raw("head_dim", "num_key_value_heads")  # meaningless here: one latent vector serves every head
    indexed = f.has("index_topk")
    return latent_attention(
        hidden, f.size("num_attention_heads"), q_lora_rank=f.optional_size("q_lora_rank"),
        kv_lora_rank=f.size("kv_lora_rank"), qk_nope_head_dim=nope, qk_rope_head_dim=rope,
        v_head_dim=f.size("v_head_dim"), bias=f.flag("attention_bias", False), output_gate=output_gate,
        index_n_heads=f.size("index_n_heads") if indexed else 0,
        index_head_dim=f.size("index_head_dim") if indexed else 0,
        index_top_k_tokens=f.optional_size("index_topk"),
    )  # fmt: skip


def read_dense(f: Fields, family: Family, hidden: int) -> DenseMlp:
    """Dense feed-forward of the layers that are not MoE."""
    bias = f.flag("mlp_bias", f.flag("use_bias", False)) if family.mlp_bias is None else family.mlp_bias
    return dense_mlp(hidden, f.size(*family.dense_size), family.n_matrices, bias=bias)


def read_moe(f: Fields, family: Family, hidden: int, n_layers: int) -> MoeMlp:
    """Routed and shared experts."""
    n_experts = f.size("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", high=10**5)
    top_k_keys = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk")
    top_k = f.constant_list(next((k for k in top_k_keys if f.has(k)), top_k_keys[0]), n_layers)
    f.raw(*top_k_keys)
    if top_k > n_experts:
        f.problem("num_experts_per_tok", "cannot exceed the number of experts", top_k, f"1 to {n_experts}")
    size_key = next((k for k in family.expert_size if f.has(k)), family.expert_size[0])
    expert_size = f.constant_list(size_key, n_layers)
    n_group = f.size("n_group", "num_expert_group", default=1)
    topk_group = f.size("topk_group", default=1)
    if n_experts % n_group or topk_group > n_group:
        f.problem("n_group", "expert groups do not fit", [n_group, topk_group], f"n_group divides {n_experts}")
    scoring = f.word("scoring_func", SCORING, f.word("moe_router_activation_func", SCORING, family.scoring))
    n_shared, shared_size = _read_shared(f, family, expert_size, n_layers)
    return moe_mlp(
        hidden, n_experts=n_experts, top_k=top_k, expert_size=expert_size, n_shared=n_shared, shared_size=shared_size,
        shared_gate=family.shared_gate, expert_bias=family.expert_bias, router_bias=family.router_bias,
        latent_size=f.optional_size("routed_expert_hidden_size"), latent_norm=f.flag("latent_moe_use_norm", False),
        scoring=cast(Scoring, scoring), n_group=n_group, topk_group=topk_group,
    )  # fmt: skip


def _read_shared(f: Fields, family: Family, expert_size: int, n_layers: int) -> tuple[int, int]:
    """Number of shared experts and their width together: stated as a width, or as a count of expert widths."""
    width = f.size(*SHARED_WIDTH_KEYS, default=0, low=0)
    key = next((k for k in SHARED_KEYS if f.has(k)), SHARED_KEYS[0])
    count = f.constant_list(key, n_layers, default=0) if f.values.get(key) else 0
    f.raw(*SHARED_KEYS)
    if family.n_shared is not None:
        return family.n_shared, family.n_shared * expert_size
    if width:
        return max(count, 1), width
    return count, count * expert_size
