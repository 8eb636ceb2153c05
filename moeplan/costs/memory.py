"""Bytes one GPU holds: weights, KV cache and recurrent state, saved activations, optimizer.

Equations: docs/method/memory.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from moeplan.costs.model_state import Params
from moeplan.costs.projections import (
    dense_shard,
    kv_heads_per_gpu,
    mixer_shard,
    shared_expert_shard,
    split,
)
from moeplan.costs.recurrent import STATE_BYTES
from moeplan.spec.kv import INDEX_BYTES, cache_growth, state_values
from moeplan.spec.model import (
    Block,
    DenseMlp,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixer,
    ModelArchitecture,
    MoeMlp,
    SoftmaxAttention,
    StateSpace,
    counted,
)
from moeplan.spec.precision import NumberFormat

CONV_BYTES = 2.0  # convolution tails are kept in 16 bit


@lru_cache(maxsize=4096)
def block_params(block: Block, hidden_size: int, tp: int, ep: int, expert_tp: int) -> Params:
    """Parameters of one block on the fullest GPU."""
    if isinstance(block, MoeMlp):
        experts = split(block.n_experts, ep) * block.n_params_per_expert / expert_tp
        shared = shared_expert_shard(block, hidden_size, tp)
        return Params(dense=shared.n_params, experts=experts, embedding=block.n_router_params)
    if isinstance(block, DenseMlp):
        return Params(dense=dense_shard(block, hidden_size, tp).n_params)
    return Params(attention=mixer_shard(block, hidden_size, tp).n_params)


def layers_params(layers: Iterable[Layer], hidden_size: int, tp: int, ep: int, expert_tp: int) -> Params:
    """Parameters of consecutive layers on the fullest GPU."""
    total = Params()
    for layer, count in counted(layers):
        parts = (block_params(block, hidden_size, tp, ep, expert_tp) for block in layer.blocks)
        total += sum(parts, Params(embedding=layer.n_norm_params)).times(count)
    return total


def vocabulary_params(model: ModelArchitecture, tp: int, *, first: bool, last: bool) -> Params:
    """Embedding (first stage) and output head (last stage; once where tied on one stage), split over the vocabulary."""
    tables = int(first) + int(last and not (first and model.tie_embeddings))
    return Params(
        embedding=tables * split(model.vocab_size, tp) * model.hidden_size + (model.n_final_params if last else 0)
    )


def stages(model: ModelArchitecture, pp: int) -> list[tuple[Layer, ...]]:
    """Consecutive layers of each pipeline stage; spare layers go to the stages without vocabulary tables first.

    Raises ValueError when there are more stages than layers.
    """
    if pp > model.n_layers:
        raise ValueError(f"pp {pp} exceeds the {model.n_layers} layers of {model.name}")
    base, extra = divmod(model.n_layers, pp)
    order = sorted(range(pp), key=lambda stage: (stage == 0) + 2 * (stage == pp - 1))
    sizes = [base] * pp
    for stage in order[:extra]:
        sizes[stage] += 1
    found, start = [], 0
    for size in sizes:
        found.append(model.layers[start : start + size])
        start += size
    return found


def cache_bytes_per_sequence(layers: Iterable[Layer], context_tokens: float, kv_fmt: NumberFormat, tp: int) -> float:
    """KV cache and recurrent state of one sequence on one GPU [bytes], windows applied."""
    total = 0.0
    for layer, count in counted(layers):
        mixers = (block for block in layer.blocks if not isinstance(block, DenseMlp | MoeMlp))
        total += count * sum(_mixer_cache_bytes(block, context_tokens, kv_fmt, tp) for block in mixers)
    return total


def _mixer_cache_bytes(block: Mixer, context_tokens: float, kv_fmt: NumberFormat, tp: int) -> float:
    """One rank keeps its key-value heads and its share of a state; a latent serves all heads, so all ranks keep it."""
    growth = cache_growth(block)
    values = growth.per_token * context_tokens + growth.per_window_token * min(context_tokens, growth.window_tokens)
    if isinstance(block, SoftmaxAttention):
        values *= kv_heads_per_gpu(block, tp) / block.n_kv_heads
    state, tail = state_values(block)
    state_bytes = state * STATE_BYTES + tail * CONV_BYTES
    if isinstance(block, LinearAttention):
        state_bytes *= split(block.n_v_heads, tp) / block.n_v_heads
    elif isinstance(block, StateSpace):
        state_bytes *= split(block.inner_size, tp) / block.inner_size
    return values * kv_fmt.bytes_per_value + growth.index_per_token * context_tokens * INDEX_BYTES + state_bytes


@dataclass(frozen=True, slots=True)
class ActivationRule:
    """How a training step keeps tensors for its backward pass."""

    tp: int
    sequence_parallel: bool
    expert_tp: int
    linear_input_bytes: float  # 2 in bf16, 1 where the GEMM inputs are kept in fp8
    repeated: frozenset[str] = frozenset()  # keys of `spec.layout.RECOMPUTE_MODULES`
    score_tokens: int = 0  # length of the sequence whose attention scores are kept; 0: none, as FlashAttention
    fused: bool = True  # one kernel for a norm, an activation function: nothing kept in between
    activation_input_bytes: float = 2.0  # of what an activation function reads, kept for its gradient
    expert_load: float = 1.0  # token-expert pairs of this GPU over the mean

    @property
    def token_split(self) -> int:
        """Ranks the tensors outside the tensor-parallel regions are divided over (Korthikanti, section 4.2.2)."""
        return self.tp if self.sequence_parallel else 1


@lru_cache(maxsize=4096)
def block_activation_bytes_per_token(block: Block, hidden_size: int, rule: ActivationRule) -> float:
    """Bytes one token leaves behind in one block [bytes per token and GPU], normalisation and residual included.

    Korthikanti et al. (arXiv:2205.05198, section 4), item by item for a gated feed-forward, no dropout and a fused
    attention kernel that keeps its output and one statistic per head; less what ``rule.repeated`` computes again, as
    Megatron-Core's modules of the same meaning do.
    """
    ends = 2.0 * hidden_size / rule.token_split  # the block's input, kept for the norm and the residual
    norm = 0.0 if "norm" in rule.repeated else rule.linear_input_bytes * hidden_size / rule.token_split
    if not rule.fused:
        norm += 4.0 * hidden_size / rule.token_split  # a plain RMS norm squares and scales in fp32
    match block:
        case DenseMlp():
            if "mlp" in rule.repeated:
                return ends + norm
            return ends + norm + _mlp_bytes(split(block.intermediate_size, rule.tp), block.n_matrices, rule)
        case MoeMlp():
            if "moe" in rule.repeated:
                return ends + norm
            shared = _mlp_bytes(split(block.shared_intermediate_size, rule.tp), block.n_matrices, rule)
            scores = 2 * 4.0 * block.n_experts / rule.token_split
            # A rank computes the copies its own tokens caused times its load; with expert tp every rank sees all of
            # the group's.
            copies = block.top_k / rule.token_split * rule.expert_tp * rule.expert_load
            routed = _mlp_bytes(block.expert_intermediate_size / rule.expert_tp, block.n_matrices, rule)
            permuted = rule.linear_input_bytes * block.expert_hidden_size
            # The weighted sum keeps the experts' outputs unless the weights go in with the activation function, as in
            # Megatron-Core ("memory-efficient permutation").
            returned = 0.0 if rule.fused else 2.0 * block.expert_hidden_size
            return ends + norm + shared + scores + copies * (routed + permuted + returned)
        case _:
            return ends + norm + _mixer_bytes(block, rule)


def _mlp_bytes(width: float, n_matrices: int, rule: ActivationRule) -> float:
    kept = rule.activation_input_bytes * (n_matrices - 1) * width
    if not rule.fused and n_matrices == 3:
        kept += 2.0 * width  # the gate behind its function, apart from the product
    return kept + (0.0 if "activation" in rule.repeated else rule.linear_input_bytes * width)


def _mixer_bytes(block: Mixer, rule: ActivationRule) -> float:
    # the softmax's output in 16 bit (5 a s^2 b of Korthikanti, section 4.1, less dropout), or one statistic per head
    statistic = 0.0 if "attention" in rule.repeated else 2.0 * rule.score_tokens or 4.0
    match block:
        case SoftmaxAttention():
            heads, kv = split(block.n_heads, rule.tp), kv_heads_per_gpu(block, rule.tp)
            qkv = heads * block.head_dim * (2 if block.gated else 1) + kv * (block.head_dim + block.v_head_dim)
            return 2.0 * qkv + heads * (2.0 * block.v_head_dim + statistic)
        case LatentAttention():
            heads = split(block.n_heads, rule.tp)
            latents = (block.q_lora_rank or 0) + block.kv_lora_rank + block.qk_rope_head_dim
            expanded = heads * (2 * (block.qk_nope_head_dim + block.qk_rope_head_dim) + block.v_head_dim)
            up = 0.0 if "latent_up" in rule.repeated else 2.0 * expanded
            return 2 * 2.0 * latents + up + heads * (2.0 * block.v_head_dim + statistic)
        case LinearAttention():
            keys = split(block.n_k_heads, rule.tp) * block.k_head_dim
            values = split(block.n_v_heads, rule.tp) * block.v_head_dim
            chunk_state = (
                values * block.k_head_dim * 2.0 / 64.0
            )  # one state a chunk of 64 tokens (arXiv:2412.06464, section 3.3)
            return 2.0 * (2 * (2 * keys + values) + 3 * values) + chunk_state
        case StateSpace():
            inner = split(block.inner_size, rule.tp)
            return 2.0 * (5 * inner + 4 * block.n_groups * block.state_size) + inner * block.state_size * 2.0 / 256.0


def checkpoint_bytes_per_token(hidden_size: int, rule: ActivationRule) -> float:
    """What full recomputation keeps of one layer: its input (arXiv:2205.05198, section 5)."""
    return 2.0 * hidden_size / rule.token_split
