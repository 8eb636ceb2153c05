"""Plain GPT decoders: two-matrix feed-forwards with layer norms, under the field names of GPT-2, BLOOM and MPT."""

from __future__ import annotations

from moeplan.files.catalog.models.counts import dense_mlp, norm, softmax_attention
from moeplan.files.catalog.models.fields import MAX_LAYERS, Fields
from moeplan.files.catalog.models.transformer import Body
from moeplan.spec.model import Layer


def read_gpt2(f: Fields) -> Body:
    """GPT-2 and GPT-3: learnt positions, biases everywhere, head tied to the embedding."""
    hidden = f.size("n_embd", "hidden_size")
    inner = f.optional_size("n_inner") or 4 * hidden
    context = f.size("n_positions", "n_ctx", high=10**9)
    return _gpt(f, hidden, inner, f.size("n_layer", high=MAX_LAYERS), context, bias=True, positions=context)


def read_bloom(f: Fields) -> Body:
    """BLOOM: ALiBi instead of positions, a norm behind the embedding (arXiv:2211.05100, section 3.2)."""
    hidden = f.size("hidden_size", "n_embed")
    f.raw("num_attention_heads")  # another spelling of n_head
    context = f.size("seq_length", default=2048, high=10**9)  # ALiBi sets no limit; what it was trained on
    extra = norm(hidden, True)
    return _gpt(f, hidden, 4 * hidden, f.size("n_layer", high=MAX_LAYERS), context, bias=True, extra=extra)


def read_mpt(f: Fields) -> Body:
    """MPT (llm-foundry): no biases, learnt positions unless ALiBi is on."""
    hidden, context = f.size("d_model"), f.size("max_seq_len", high=10**9)
    attention = f.section("attn_config")
    alibi = False
    if attention is not None:
        alibi = attention.flag("alibi", False)
        attention.off("qk_ln", "qk_gn")
        attention.raw(
            "attn_type", "attn_impl", "alibi_bias_max", "attn_pdrop", "softmax_scale", "prefix_lm", "clip_qkv"
        )
        attention.finish(strict=False)
    learnt = f.flag("learned_pos_emb", True) and not alibi
    f.raw("init_config", "no_bias", "logit_scale", "embedding_fraction", "init_device", "norm_type")
    inner = f.size("expansion_ratio") * hidden
    positions = context if learnt else 0
    return _gpt(f, hidden, inner, f.size("n_layers", high=MAX_LAYERS), context, bias=False, positions=positions)


def _gpt(
    f: Fields, hidden: int, inner: int, n_layers: int, context: int, *, bias: bool, positions: int = 0, extra: int = 0
) -> Body:
    """``positions`` learnt vectors and ``extra`` parameters lie outside the layers."""
    n_heads = f.size("n_head", "n_heads")
    if hidden % n_heads:
        f.problem("n_head", f"must divide the hidden size {hidden}", n_heads)
    attention = softmax_attention(hidden, n_heads, n_heads, max(1, hidden // n_heads), qkv_bias=bias, o_bias=bias)
    layer = Layer((attention, dense_mlp(hidden, inner, n_matrices=2, bias=bias)), 2 * norm(hidden, bias))
    return Body(
        hidden_size=hidden,
        vocab_size=f.size("vocab_size"),
        max_context_tokens=context,
        layers=(layer,) * n_layers,
        mtp_layers=(),
        tied=f.flag("tie_word_embeddings", True),
        n_final_params=norm(hidden, bias) + positions * hidden + extra,
    )
