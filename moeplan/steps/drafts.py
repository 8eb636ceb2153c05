"""What speculative decoding adds to an iteration: drafting, by the model's multi-token-prediction module or for free.

The module (DeepSeek-V3 report, arXiv:2412.19437, section 2.2) is one layer behind a projection of two hidden states to
one, with the model's head; it runs once a draft, one after the other. Looking drafts up in the prompt (n-grams) costs
the device nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moeplan.steps.serving import ServingStep

Array = npt.NDArray[np.float64]


def draft_step(step: ServingStep) -> ServingStep | None:
    """The module as a model of one layer; None where drafting costs nothing.

    Raises ValueError when the model has no such module.
    """
    if step.engine.draft_tokens == 0 or step.engine.drafts == "ngram":
        return None
    if not step.model.mtp_layers:
        raise ValueError(f"{step.model.name}: no multi-token-prediction module to draft with; use n-grams")
    return replace(step, model=replace(step.model, layers=step.model.mtp_layers[:1], mtp_layers=()))


def draft_time_s(step: ServingStep, batch: Array) -> Array:
    """Time of drafting for ``batch`` sequences, attention aside [s]."""
    module = draft_step(step)
    if module is None:
        return np.zeros_like(batch)
    hidden = step.model.hidden_size
    one = np.sum(list(module.linear_parts_s(batch).values()), axis=0)
    one = one + step.ops.gemm_s(batch, hidden, 2 * hidden, step.precision.dense) + step.head_s(batch)
    return np.asarray(step.engine.draft_tokens * one)


def draft_mixers_s(step: ServingStep, batch: Array, context: Array) -> Array:
    """Attention of drafting [s]: every draft reads the module's cache of the whole context."""
    module = draft_step(step)
    if module is None:
        return np.zeros(np.broadcast(batch, context).shape)
    return np.asarray(step.engine.draft_tokens * module.decode_mixers_s(batch, context))


def graph_sizes(most_tokens: int) -> Array:
    """Batches that have a captured graph: 1, 2, 4, every 8 up to 256, every 16 beyond.

    vLLM: vllm/config/vllm.py, cudagraph_capture_sizes; SGLang and TensorRT-LLM capture nearly the same ones.
    """
    sizes = np.concatenate([[1, 2, 4], np.arange(8, 256, 8), np.arange(256, max(most_tokens, 256) + 1, 16)])
    return np.asarray(sizes[sizes <= most_tokens], np.float64)
