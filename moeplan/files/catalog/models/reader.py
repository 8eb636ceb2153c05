"""From a parsed Hugging Face configuration to a ``ModelArchitecture``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from moeplan.errors import InputError, did_you_mean
from moeplan.files.catalog.models.checkpoint import checkpoint_format
from moeplan.files.catalog.models.classic import read_bloom, read_gpt2, read_mpt
from moeplan.files.catalog.models.fields import Fields
from moeplan.files.catalog.models.hybrid import (
    read_glm5_next,
    read_jamba,
    read_kimi_linear,
    read_minimax_text_01,
    read_nemotron_h,
    read_qwen3_next,
)
from moeplan.files.catalog.models.transformer import FAMILIES, Body, Family, read_transformer
from moeplan.files.catalog.models.variants import (
    read_dbrx,
    read_deepseek_v4,
    read_gemma4,
    read_grok,
    read_inkling,
    read_longcat,
    read_mimo,
    read_minimax_m3,
)
from moeplan.spec.model import Layer, ModelArchitecture

READERS: dict[str, Callable[[Fields], Body]] = {
    **{model_type: partial(read_transformer, family=family) for model_type, family in FAMILIES.items()},
    "gpt2": read_gpt2,
    "bloom": read_bloom,
    "mpt": read_mpt,
    "dbrx": read_dbrx,
    "grok-1": read_grok,
    "longcat_flash": read_longcat,
    "mimo_v2_flash": read_mimo,
    "minimax_m3": read_minimax_m3,
    "gemma4_text": read_gemma4,
    "deepseek_v4": read_deepseek_v4,
    "qwen3_next": partial(read_qwen3_next, moe=True),
    "qwen3_5_moe_text": partial(read_qwen3_next, moe=True),
    "qwen3_5_text": partial(read_qwen3_next, moe=False),
    "kimi_linear": read_kimi_linear,
    "bailing_hybrid": read_kimi_linear,
    "glm5_next_text": read_glm5_next,
    "inkling_text": read_inkling,
    "minimax_text_01": read_minimax_text_01,
    "minimax": read_minimax_text_01,
    "jamba": read_jamba,
    "nemotron_h": read_nemotron_h,
}

# Multimodal wrappers keep the language model under one of these.
NESTED = ("text_config", "language_config", "llm_config")
OUTER_KEYS = ("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype")


def read_model(config: Mapping[str, Any], file: str, name: str) -> ModelArchitecture:
    """The architecture that ``config`` describes.

    Args:
        config: the parsed JSON object.
        file: where it came from, for messages.
        name: the name to give the model.

    Raises:
        InputError: naming every missing, unknown or wrong field.
    """
    outer = Fields(config, file)
    inner = next((outer.section(key) for key in NESTED if outer.has(key)), None)
    notes: list[str] = []
    f = outer if inner is None else inner
    if inner is not None:
        notes.append("text part only: the vision or audio encoder is not counted")
        for key in OUTER_KEYS:
            if key in config and key not in inner.values:
                inner.values = {**inner.values, key: config[key]}
    model_type = f.raw("model_type")
    if not isinstance(model_type, str):
        f.problem("model_type", "missing field 'model_type'", model_type, hint="is this a Hugging Face config.json?")
        f.raise_problems()
    reader = READERS.get(str(model_type))
    if reader is None:
        # Read it as a plain decoder all the same, so that the message names every field that is not understood.
        moe = f.has("num_local_experts", "num_experts", "n_routed_experts")
        read_transformer(f, Family(moe=moe))
        checkpoint_format(f)
        f.finish(strict=True)
        near = did_you_mean(str(model_type), READERS)
        hint = near or "if its layers equal those of a known model_type, name that one"
        f.problem("model_type", "unknown architecture", model_type, ", ".join(sorted(READERS)), hint)
        raise InputError(f.problems)
    body = reader(f)
    checkpoint = checkpoint_format(f)
    notes += [*body.notes, *f.finish(strict=False)]
    f.raise_problems()
    return ModelArchitecture(
        name=name,
        model_type=str(model_type),
        hidden_size=body.hidden_size,
        vocab_size=body.vocab_size,
        max_context_tokens=body.max_context_tokens,
        layers=_shared(body.layers),
        mtp_layers=body.mtp_layers,
        tie_embeddings=body.tied,
        n_final_params=body.n_final_params,
        checkpoint=checkpoint,
        notes=tuple(notes),
    )


def _shared(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The same layers, equal ones as one object: what counts them compares identities first."""
    one: dict[Layer, Layer] = {}
    return tuple(one.setdefault(layer, layer) for layer in layers)
