"""Model architecture as a sequence of layers, each a sequence of blocks.

A block is either a token mixer (attention, linear attention, state space) or a feed-forward (dense or MoE). Sizes are
per full model (not per GPU). Parameter counts are exact sums over the block's weight matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class SoftmaxAttention:
    """Multi-head, grouped-query or multi-query attention, optionally over a window or chunk."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    n_params: int  # all weights of the block with norms, sinks, gates, biases
    pattern: Literal["full", "sliding", "chunked"] = "full"
    window_tokens: int | None = None  # for sliding / chunked
    gated: bool = False  # output gate: a second query-sized projection
    sparse_top_k_tokens: int | None = None  # block/token-sparse softmax attention: keys attended at most
    index_head_dim: int = 0  # size of the key that the selection of blocks adds to the cache
    qk_norm: bool = False  # queries and keys are normalised before the rotary embedding


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), optionally with a DSA indexer."""

    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_params: int
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_top_k_tokens: int | None = None
    pattern: Literal["full", "sliding"] = "full"
    window_tokens: int | None = None  # for sliding
    kv_compression_ratio: float = 1.0  # tokens folded into one cache entry
    raw_window_tokens: int = 0  # latest tokens attended and cached uncompressed beside the compressed entries
    index_pool_tokens: int = 1  # tokens folded into one index key


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Recurrent linear attention: gated delta net, KDA, lightning attention. State size does not grow with context."""

    variant: Literal["gated_delta", "kda", "lightning"]
    n_k_heads: int
    n_v_heads: int
    k_head_dim: int
    v_head_dim: int
    conv_kernel: int  # 0: no short convolution
    n_params: int


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Mamba (variant 1) or Mamba-2 (variant 2) selective state-space block."""

    variant: Literal[1, 2]
    inner_size: int
    state_size: int
    n_heads: int
    n_groups: int
    conv_kernel: int
    dt_rank: int
    n_params: int


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """Dense feed-forward; ``n_matrices`` 3 = gated (SwiGLU), 2 = plain."""

    intermediate_size: int
    n_matrices: int
    n_params: int


@dataclass(frozen=True, slots=True)
class MoeMlp:
    """Routed experts with optional always-on shared experts."""

    n_experts: int
    top_k: int
    expert_intermediate_size: int
    n_matrices: int
    n_shared_experts: int
    shared_intermediate_size: int  # of all shared experts together
    n_params: int
    n_params_per_expert: int
    n_router_params: int
    expert_hidden_size: int  # differs from the model's hidden size in latent MoE
    scoring: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    n_group: int = 1
    topk_group: int = 1
    n_zero_experts: int = 0  # identity experts (LongCat): selected at no cost

    @property
    def biased_experts(self) -> bool:
        """Whether an expert holds more than its matrices."""
        return self.n_params_per_expert > self.n_matrices * self.expert_hidden_size * self.expert_intermediate_size


Mixer: TypeAlias = SoftmaxAttention | LatentAttention | LinearAttention | StateSpace
FeedForward: TypeAlias = DenseMlp | MoeMlp
Block: TypeAlias = Mixer | FeedForward


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer: blocks in execution order (usually a mixer, then a feed-forward)."""

    blocks: tuple[Block, ...]
    n_norm_params: int  # norms and whatever else lies outside the blocks, e.g. the input projection of an MTP module

    @property
    def n_params(self) -> int:
        return self.n_norm_params + sum(b.n_params for b in self.blocks)


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """Number formats the published weights come in, by component (keys of ``precision.FORMATS``)."""

    experts: str = "bf16"
    attention: str = "bf16"
    dense: str = "bf16"
    embedding: str = "bf16"


@dataclass(frozen=True, slots=True)
class ModelArchitecture:
    """Everything the cost model needs to know of a model. Pure sizes; no weights."""

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    layers: tuple[Layer, ...]
    mtp_layers: tuple[Layer, ...]  # multi-token-prediction modules, not part of ``n_params_total``
    tie_embeddings: bool
    n_final_params: int  # final norm and whatever else is neither embedding nor layer
    checkpoint: CheckpointFormat = field(default_factory=CheckpointFormat)
    notes: tuple[str, ...] = ()  # what the reader should know: text part only, approximations, ...

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_embedding_params(self) -> int:
        """Input embedding plus output head (once when tied)."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    @property
    def n_params_total(self) -> int:
        """All parameters without the MTP modules."""
        return self.n_embedding_params + self.n_final_params + sum(layer.n_params for layer in self.layers)

    @property
    def n_params_mtp(self) -> int:
        return sum(layer.n_params for layer in self.mtp_layers)

    @property
    def n_params_active(self) -> int:
        """Parameters one token touches: all of them less the routed experts it does not select."""
        idle = sum(
            (block.n_experts - block.top_k) * block.n_params_per_expert
            for layer in self.layers
            for block in layer.blocks
            if isinstance(block, MoeMlp)
        )
        return self.n_params_total - idle

    @property
    def moe_blocks(self) -> tuple[MoeMlp, ...]:
        return tuple(b for layer in self.layers for b in layer.blocks if isinstance(b, MoeMlp))

    @property
    def is_moe(self) -> bool:
        return bool(self.moe_blocks)

    def unique_layers(self) -> tuple[tuple[Layer, int], ...]:
        """Distinct layers with how often each occurs, in order of first appearance."""
        return counted(self.layers)


def counted(layers: Iterable[Layer]) -> tuple[tuple[Layer, int], ...]:
    """Distinct layers with how often each occurs, in order of first appearance.

    By identity first: to hash a layer costs more than to look at all of a model's, which share equal ones.
    """
    by_id: dict[int, list[Any]] = {}
    for layer in layers:
        by_id.setdefault(id(layer), [layer, 0])[1] += 1
    counts: dict[Layer, int] = {}
    for layer, count in by_id.values():
        counts[layer] = counts.get(layer, 0) + count
    return tuple(counts.items())
