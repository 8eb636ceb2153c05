"""Which layers are MoE, and which tokens each layer's attention sees: the per-layer patterns of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.files.catalog.models.fields import Fields

DENSE_SPARSE = ("dense", "sparse")


def moe_layers(f: Fields, n_layers: int) -> tuple[bool, ...]:
    """For each layer whether its feed-forward is MoE: all of them less what the fields make dense."""
    moe = [True] * n_layers
    kinds = f.per_layer("mlp_layer_types", n_layers, DENSE_SPARSE)
    if kinds is not None:
        moe = [kind == "sparse" for kind in kinds]
    first_dense = f.size("first_k_dense_replace", "moe_layer_num_skipped", default=0, low=0)
    if isinstance(f.values.get("moe_layer_freq"), list):
        flags = f.per_layer("moe_layer_freq", n_layers, (0, 1)) or (1,) * n_layers
        moe = [m and bool(flag) for m, flag in zip(moe, flags, strict=True)]
        every = 1
    else:
        every = f.size("moe_layer_freq", default=1)
    dense_only = f.numbers("mlp_only_layers")
    moe_only = f.numbers("moe_layers")  # Llama 4 may list them
    step = f.size("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1)
    start = f.size("moe_layer_start_index", default=0, low=0)
    end = f.size("moe_layer_end_index", default=n_layers - 1, low=-1)
    end = n_layers - 1 if end == -1 else end
    return tuple(
        m
        and i >= first_dense
        and i % every == 0
        and (i + 1) % step == 0
        and start <= i <= end
        and i not in dense_only
        and (not moe_only or i in moe_only)
        for i, m in enumerate(moe)
    )


@dataclass(frozen=True, slots=True)
class View:
    """What one layer's softmax attention sees."""

    pattern: Literal["full", "sliding", "chunked"]
    window_tokens: int | None = None


FULL = View("full")


def attention_views(f: Fields, n_layers: int, default_pattern: str) -> tuple[View, ...]:
    """For each layer the pattern of its attention.

    ``default_pattern`` is what the family does where the file has no ``layer_types``: "full"; "window" = every layer
    slides when ``sliding_window`` is set; "qwen" = only with ``use_sliding_window``, from ``max_window_layers`` on;
    "alternate" = even layers slide (gpt-oss); "gemma3" = all but every sixth; "llama4" = chunked except every fourth
    (no-position) layer.
    """
    window = f.optional_size("sliding_window", "sliding_window_size")
    chunk = f.optional_size("attention_chunk_size")
    kinds = f.per_layer("layer_types", n_layers, ("full_attention", "sliding_attention", "chunked_attention"))
    if default_pattern != "qwen":
        f.off("use_sliding_window")
        f.raw("max_window_layers")
    if default_pattern == "qwen":
        first_sliding = f.size("max_window_layers", default=n_layers, low=0)
        if not f.flag("use_sliding_window", False):
            window = None
        if kinds is None:
            kinds = tuple(
                "sliding_attention" if window and i >= first_sliding else "full_attention" for i in range(n_layers)
            )
    elif default_pattern == "llama4":
        rope = f.per_layer("no_rope_layers", n_layers, (0, 1)) if f.values.get("no_rope_layers") else None
        interval = f.size("no_rope_layer_interval", default=4)
        if kinds is None:
            chunked = rope or tuple(int((i + 1) % interval != 0) for i in range(n_layers))
            kinds = tuple("chunked_attention" if c and chunk else "full_attention" for c in chunked)
    elif default_pattern == "gemma3":
        period = f.size("sliding_window_pattern", default=6)
        if kinds is None:
            kinds = tuple("sliding_attention" if (i + 1) % period else "full_attention" for i in range(n_layers))
    elif kinds is None and default_pattern == "alternate":
        kinds = tuple("full_attention" if i % 2 else "sliding_attention" for i in range(n_layers))
    elif kinds is None:
        slides = default_pattern == "window" and window is not None
        kinds = ("sliding_attention" if slides else "full_attention",) * n_layers
    if "sliding_attention" in kinds and window is None:
        f.problem("sliding_window", "missing field 'sliding_window'", hint="layer_types names sliding layers")
    if "chunked_attention" in kinds and chunk is None:
        f.problem("attention_chunk_size", "missing field 'attention_chunk_size'")
    views = {
        "full_attention": FULL,
        "sliding_attention": View("sliding", window or 1),
        "chunked_attention": View("chunked", chunk or 1),
    }
    return tuple(views[kind] for kind in kinds)
