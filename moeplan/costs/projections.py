"""Weight matrices of a block on one GPU after tensor parallelism: the GEMM shapes and the parameter shards.

Column and row parallel as in Megatron-LM (arXiv:1909.08053, section 3); key-value heads are replicated when there are
fewer of them than ranks; the low-rank down-projections of latent attention are replicated, as every engine does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from moeplan.spec.model import DenseMlp, LatentAttention, LinearAttention, Mixer, MoeMlp, SoftmaxAttention, StateSpace

UNNAMED_FRAC = 0.02  # below this share of a block, what is not named is norms, biases and sinks


@dataclass(frozen=True, slots=True)
class Projection:
    """One weight GEMM on one GPU: (tokens, k) x (k, n)."""

    name: str
    k: int
    n: int

    @property
    def n_weights(self) -> int:
        return self.k * self.n


@dataclass(frozen=True, slots=True)
class Shard:
    """What one GPU holds of a mixer or a dense feed-forward."""

    projections: tuple[Projection, ...]
    n_other_params: int  # norms, biases, sinks, convolutions: replicated

    @property
    def n_params(self) -> int:
        return self.n_other_params + sum(p.n_weights for p in self.projections)


def split(size: int, n_ranks: int) -> int:
    """Share of the fullest rank of ``size`` things."""
    return math.ceil(size / n_ranks)


def kv_heads_per_gpu(block: SoftmaxAttention, tp: int) -> int:
    """Key-value heads one GPU keeps; at least one, so they are replicated when tp exceeds them."""
    return max(1, split(block.n_kv_heads, tp))


@lru_cache(maxsize=4096)
def mixer_shard(block: Mixer, hidden_size: int, tp: int) -> Shard:
    """Projections of a token mixer on one of ``tp`` GPUs.

    Matrices the block has beyond the ones named here (extra gates, low-rank biases) count as one more projection of the
    hidden state, so that neither their bytes nor their reading is lost.
    """
    whole = _mixer_projections(block, hidden_size, 1)
    other = max(0, block.n_params - sum(p.n_weights for p in whole))
    found = _mixer_projections(block, hidden_size, tp)
    if other > UNNAMED_FRAC * block.n_params:
        columns = other // hidden_size
        found.append(Projection("unnamed", hidden_size, split(columns, tp)))
        other -= columns * hidden_size
    return Shard(tuple(found), other)


@lru_cache(maxsize=4096)
def dense_shard(block: DenseMlp, hidden_size: int, tp: int) -> Shard:
    """Projections of a dense feed-forward on one of ``tp`` GPUs."""
    whole = mlp_projections(hidden_size, block.intermediate_size, block.n_matrices, 1)
    other = max(0, block.n_params - sum(p.n_weights for p in whole))
    return Shard(mlp_projections(hidden_size, block.intermediate_size, block.n_matrices, tp), other)


@lru_cache(maxsize=4096)
def shared_expert_shard(block: MoeMlp, hidden_size: int, tp: int) -> Shard:
    """Projections of the shared experts on one of ``tp`` GPUs, and what the block has beside experts and router."""
    whole = mlp_projections(hidden_size, block.shared_intermediate_size, block.n_matrices, 1)
    named = block.n_experts * block.n_params_per_expert + block.n_router_params + sum(p.n_weights for p in whole)
    shared = mlp_projections(hidden_size, block.shared_intermediate_size, block.n_matrices, tp)
    return Shard(shared, max(0, block.n_params - named))


def mlp_projections(hidden_size: int, intermediate_size: int, n_matrices: int, tp: int) -> tuple[Projection, ...]:
    """Up (fused with the gate when ``n_matrices`` is 3) and down projection; none for width 0."""
    width = split(intermediate_size, tp)
    if width == 0:
        return ()
    return (Projection("up", hidden_size, (n_matrices - 1) * width), Projection("down", width, hidden_size))


def _mixer_projections(block: Mixer, hidden: int, tp: int) -> list[Projection]:
    match block:
        case SoftmaxAttention():
            return _softmax(block, hidden, tp)
        case LatentAttention():
            return _latent(block, hidden, tp)
        case LinearAttention():
            return _linear(block, hidden, tp)
        case StateSpace():
            return _state_space(block, hidden, tp)


def _softmax(block: SoftmaxAttention, hidden: int, tp: int) -> list[Projection]:
    heads, kv = split(block.n_heads, tp), kv_heads_per_gpu(block, tp)
    query = heads * block.head_dim * (2 if block.gated else 1)
    return [
        Projection("qkv", hidden, query + kv * (block.head_dim + block.v_head_dim)),
        Projection("out", heads * block.v_head_dim, hidden),
    ]


def is_entry_shared(block: LatentAttention) -> bool:
    """Whether the cached entry is key and value at once, without up-projection (DeepSeek-V4)."""
    return block.v_head_dim == block.kv_lora_rank + block.qk_rope_head_dim


def _latent(block: LatentAttention, hidden: int, tp: int) -> list[Projection]:
    heads = split(block.n_heads, tp)
    latent = block.kv_lora_rank + block.qk_rope_head_dim
    query = heads * (block.qk_nope_head_dim + block.qk_rope_head_dim)
    found = []
    if block.q_lora_rank:
        found.append(Projection("qkv_down", hidden, block.q_lora_rank + latent))
        found.append(Projection("q_up", block.q_lora_rank, query))
    else:
        found.append(Projection("q", hidden, query))
        found.append(Projection("kv_down", hidden, latent))
    if block.index_n_heads:
        index = block.index_n_heads * block.index_head_dim
        found.append(Projection("index_q", block.q_lora_rank or hidden, index))
        found.append(Projection("index_k", hidden, block.index_head_dim + block.index_n_heads))
    if is_entry_shared(block):
        # Its output goes through a grouped low rank whose sizes the architecture does not carry: the weights that are
        # left.
        whole = block.n_heads * block.v_head_dim
        rest = block.n_params - sum(p.n_weights for p in (found if tp == 1 else _latent(block, hidden, 1)[:-1]))
        return [*found, Projection("out", heads * block.v_head_dim, max(1, rest // whole))]
    found.append(Projection("kv_up", block.kv_lora_rank, heads * (block.qk_nope_head_dim + block.v_head_dim)))
    return [*found, Projection("out", heads * block.v_head_dim, hidden)]


def _linear(block: LinearAttention, hidden: int, tp: int) -> list[Projection]:
    keys, values = split(block.n_k_heads, tp) * block.k_head_dim, split(block.n_v_heads, tp) * block.v_head_dim
    found = [Projection("qkv", hidden, 2 * keys + values), Projection("out", values, hidden)]
    match block.variant:
        case "gated_delta":  # output gate z, and two scalars a value head (Gated DeltaNet, arXiv:2412.06464)
            found.append(Projection("gate", hidden, values + 2 * split(block.n_v_heads, tp)))
        case "kda":  # decay and output gate through a low rank of one head; beta (Kimi Linear, arXiv:2510.26692)
            found.append(Projection("gate_down", hidden, 2 * block.v_head_dim + split(block.n_v_heads, tp)))
            found.append(Projection("gate_up", block.v_head_dim, keys + values))
        case "lightning":  # sigmoid output gate (MiniMax-01, arXiv:2501.08313)
            found.append(Projection("gate", hidden, values))
    return found


def _state_space(block: StateSpace, hidden: int, tp: int) -> list[Projection]:
    inner = split(block.inner_size, tp)
    out = Projection("out", inner, hidden)
    if block.variant == 2:  # Mamba-2, arXiv:2405.21060, section 7: one fused input projection z, x, B, C, dt
        groups = max(1, split(block.n_groups, tp)) * block.state_size
        return [Projection("in", hidden, 2 * inner + 2 * groups + split(block.n_heads, tp)), out]
    return [
        Projection("in", hidden, 2 * inner),
        Projection("x", inner, block.dt_rank + 2 * block.state_size),
        Projection("dt", block.dt_rank, inner),
        out,
    ]
