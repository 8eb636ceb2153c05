"""FLOP of training by the published conventions.

Which ones: docs/method/training.md.
"""

from __future__ import annotations

from moeplan.costs.model_state import adapter_params
from moeplan.costs.projections import mixer_shard
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import (
    Block,
    DenseMlp,
    LatentAttention,
    LinearAttention,
    ModelArchitecture,
    MoeMlp,
    SoftmaxAttention,
    StateSpace,
    counted,
)
from moeplan.spec.workload import TrainingWork
from moeplan.steps.mixers import window_tokens
from moeplan.steps.stages import active_params


def model_flop_per_token(model: ModelArchitecture, work: TrainingWork) -> float:
    """FLOP the algorithm needs per position, one multiply-add = 2.

    6 per parameter that a token meets (PaLM, arXiv:2204.02311, appendix B): active experts only, the input embedding
    not counted (a lookup), the output head counted, also when tied. Attention: 6 (head_dim + v_head_dim) n_heads per
    visible key, sequence / 2 of them under the causal mask, fewer in a window. Frozen weights under LoRA need no
    weight gradient: 4, and 6 per adapter parameter. MTP modules are counted in pretraining.
    """
    trained = work.adapter is None
    extra = model.mtp_layers if work.method == "pretrain" else ()
    heads = model.vocab_size * model.hidden_size * (1 + len(extra))
    layers = counted((*model.layers, *extra))
    active = float(model.n_final_params + heads) + sum(n * active_params(layer) for layer, n in layers)
    attention = sum(n * attention_flop_per_token(b, work.sequence_tokens) for layer, n in layers for b in layer.blocks)
    weights = (6.0 if trained else 4.0) * active
    if work.adapter is not None:
        whole = TrainingLayout()
        weights += 6.0 * _active_adapter_params(model, whole, work)
    return weights + 3.0 * attention


def _active_adapter_params(model: ModelArchitecture, whole: TrainingLayout, work: TrainingWork) -> float:
    if work.adapter is None:
        return 0.0
    found = adapter_params(model, model.layers, work.adapter, whole)
    moe = model.moe_blocks
    used = sum(b.top_k / b.n_experts for b in moe) / len(moe) if moe else 0.0
    return found.replicated_over_data + used * found.experts


def attention_flop_per_token(block: Block, sequence_tokens: int) -> float:
    """Forward FLOP of the products with keys and values, or of the recurrent state."""
    if isinstance(block, LinearAttention):
        return 4.0 * block.n_v_heads * block.k_head_dim * block.v_head_dim
    if isinstance(block, StateSpace):
        return 4.0 * block.inner_size * block.state_size
    if isinstance(block, DenseMlp | MoeMlp):
        return 0.0
    window = window_tokens(block) or float("inf")
    length = float(sequence_tokens)
    # mean of min(i, window) over i in 1..length
    visible = length / 2 if window >= length else window - window**2 / (2 * length)
    key_dim = block.head_dim if isinstance(block, SoftmaxAttention) else block.qk_nope_head_dim + block.qk_rope_head_dim
    return 2.0 * block.n_heads * (key_dim + block.v_head_dim) * visible


def recomputed_flop_per_token(model: ModelArchitecture, layout: TrainingLayout, work: TrainingWork) -> float:
    """FLOP that recomputation repeats per position: forward passes of whole layers or of the listed modules."""
    if layout.recompute == "none":
        return 0.0
    extra = model.mtp_layers if work.method == "pretrain" else ()
    layers = counted((*model.layers, *extra))
    if layout.recompute == "full":
        matrices = 2.0 * sum(n * active_params(layer) for layer, n in layers)
        return matrices + sum(
            n * attention_flop_per_token(b, work.sequence_tokens) for layer, n in layers for b in layer.blocks
        )
    return sum(n * _repeated_flop(b, model.hidden_size, layout, work) for layer, n in layers for b in layer.blocks)


def _repeated_flop(block: Block, hidden_size: int, layout: TrainingLayout, work: TrainingWork) -> float:
    modules = layout.recompute_modules
    if isinstance(block, DenseMlp):
        return 2.0 * block.n_params if "mlp" in modules else 0.0
    if isinstance(block, MoeMlp):
        idle = (block.n_experts - block.top_k) * block.n_params_per_expert
        return 2.0 * (block.n_params - idle) if "moe" in modules else 0.0
    flop = attention_flop_per_token(block, work.sequence_tokens) if "attention" in modules else 0.0
    if isinstance(block, LatentAttention) and "latent_up" in modules:
        up = (p for p in mixer_shard(block, hidden_size, 1).projections if p.name in ("q_up", "kv_up"))
        flop += 2.0 * sum(p.n_weights for p in up)
    return flop
