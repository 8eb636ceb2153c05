"""Memory of one serving replica on its fullest GPU: does it fit?

Equations: docs/method/memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.costs.expert_exchange import exchanges_by_all_to_all, n_domains
from moeplan.costs.memory import (
    cache_bytes_per_sequence,
    layers_params,
    stages,
    vocabulary_params,
)
from moeplan.costs.model_state import Params
from moeplan.costs.projections import dense_shard, mixer_shard, split
from moeplan.costs.routing import rank_loads
from moeplan.spec.hardware import Hardware
from moeplan.spec.kv import without_windows
from moeplan.spec.layout import ServingLayout
from moeplan.spec.model import DenseMlp, Layer, ModelArchitecture, MoeMlp
from moeplan.spec.plan import MemoryResult
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.routing import BALANCED, RoutingAssumption
from moeplan.spec.workload import Engine

Array = npt.NDArray[np.float64]

# NCCL: 4 MiB per channel and direction (NCCL_BUFFSIZE default, NCCL user guide, environment variables); 24 channels on
# an NVLink machine are an estimate of what its topology search picks.
COMMUNICATOR_BYTES = 24 * 2 * 4 * 2**20
# bf16 logits, and in fp32 logits, probabilities and sampling noise: what vLLM's sampler holds at once.
LOGIT_BYTES_SERVING = 14.0


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Memory of the fullest GPU [bytes].

    ``need_bytes`` is the least that works (serving: one sequence of the longest context); ``breakdown`` is what will be
    occupied and adds up to ``per_gpu_bytes`` (serving: the KV cache takes what the engine may use).
    """

    need_bytes: float
    available_bytes: float  # what the run may use of the device
    capacity_bytes: float
    breakdown: Mapping[str, float]
    kv_capacity_tokens: float | None  # of one attention data-parallel rank
    kv_bytes_per_token: float | None  # at the mean context, on the stage that holds most
    stage: int  # the pipeline stage that is fullest

    @property
    def fits(self) -> bool:
        return self.need_bytes <= self.available_bytes

    @property
    def per_gpu_bytes(self) -> float:
        return sum(self.breakdown.values())

    def result(self, n_ranks: int = 1) -> MemoryResult:
        """For the plan; ``n_ranks`` attention data-parallel ranks of the replica hold KV cache side by side."""
        tokens = None if self.kv_capacity_tokens is None else self.kv_capacity_tokens * n_ranks
        return MemoryResult(self.per_gpu_bytes, self.capacity_bytes, dict(self.breakdown), tokens)


def serving_memory(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: ServingLayout,
    precision: Precision,
    engine: Engine,
    *,
    max_context_tokens: int,
    mean_context_tokens: float | None = None,
    routing: RoutingAssumption = BALANCED,
) -> MemoryFit:
    """Memory of one serving replica, the copies of experts that ``routing`` asks for spread over its ep GPUs.

    ``mean_context_tokens`` (default: the maximum) sets how much of windowed layers and recurrent states a token of KV
    capacity carries. Raises ValueError when there are more stages than layers.
    """
    capacity = hardware.device.memory_bytes
    available = capacity * engine.memory_utilization_frac
    candidates = []
    contexts = max_context_tokens, mean_context_tokens
    for part in _replica_stages(model, layout, precision, engine, *contexts, routing):
        fixed = dict(part.weights)
        fixed["activations"] = float(part.workspace_bytes(model, hardware, layout, engine, routing, *_limits(engine)))
        fixed["communication"] = float(_communication_bytes(model, layout, engine.max_num_batched_tokens))
        fixed["runtime_reserve"] = engine.reserve_bytes
        candidates.append((sum(fixed.values()) + part.longest_bytes, part, fixed))
    need, worst, fixed = max(candidates, key=lambda item: item[0])
    cache = max(worst.longest_bytes, available - sum(fixed.values()))
    per_token = worst.bytes_per_token
    tokens = max(0.0, available - sum(fixed.values())) / per_token if per_token > 0 else float("inf")
    return MemoryFit(
        need_bytes=need,
        available_bytes=available,
        capacity_bytes=capacity,
        breakdown={**fixed, "kv_cache": cache},
        kv_capacity_tokens=tokens if need <= available else 0.0,
        kv_bytes_per_token=per_token,
        stage=worst.stage,
    )


def serving_memory_by_limits(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: ServingLayout,
    precision: Precision,
    engine: Engine,
    *,
    max_num_batched_tokens: Array,
    max_num_seqs: Array,
    max_context_tokens: int,
    mean_context_tokens: float,
    routing: RoutingAssumption = BALANCED,
) -> tuple[Array, Array]:
    """``need_bytes`` and ``kv_capacity_tokens`` of `serving_memory` for many batch limits at once.

    The limits broadcast; both results have their shape. KV capacity is zero where a replica does not fit.
    """
    available = hardware.device.memory_bytes * engine.memory_utilization_frac
    limits = np.asarray(max_num_batched_tokens, np.float64), np.asarray(max_num_seqs, np.float64)
    parts = _replica_stages(model, layout, precision, engine, max_context_tokens, mean_context_tokens, routing)
    shared = _communication_bytes(model, layout, limits[0]) + engine.reserve_bytes
    shape = np.broadcast(*limits).shape
    workspaces = [part.workspace_bytes(model, hardware, layout, engine, routing, *limits) + shared for part in parts]
    fixed = np.stack(
        [sum(p.weights.values()) + np.broadcast_to(w, shape) for p, w in zip(parts, workspaces, strict=True)]
    )
    longest = np.array([part.longest_bytes for part in parts]).reshape(-1, *(1,) * len(shape))
    worst = np.argmax(fixed + longest, axis=0)[None]
    need = np.take_along_axis(fixed + longest, worst, 0)[0]
    per_token = np.array([part.bytes_per_token for part in parts])[worst[0]]
    left = np.maximum(available - np.take_along_axis(fixed, worst, 0)[0], 0.0)
    tokens = np.divide(left, per_token, out=np.full(shape, np.inf), where=per_token > 0)
    return need, np.where(need <= available, tokens, 0.0)


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one pipeline stage of a serving replica holds on a GPU, whatever the batch limits."""

    stage: int
    layers: tuple[Layer, ...]
    last: bool
    weights: Mapping[str, float]
    longest_bytes: float  # cache of one sequence of the longest context
    bytes_per_token: float  # of cache, at the mean context

    def workspace_bytes(
        self,
        model: ModelArchitecture,
        hardware: Hardware,
        layout: ServingLayout,
        engine: Engine,
        routing: RoutingAssumption,
        tokens: Array,
        seqs: Array,
    ) -> Array:
        """Largest set of tensors alive at once in an iteration of ``tokens`` for ``seqs``: a block's or the head's."""
        hidden, widest = model.hidden_size, np.zeros_like(tokens)
        for block in {id(block): block for layer in self.layers for block in layer.blocks}.values():
            if isinstance(block, MoeMlp):
                found = _experts_workspace_bytes(block, hidden, hardware, layout, engine, routing, tokens)
            elif isinstance(block, DenseMlp):
                found = 2.0 * tokens * sum(p.n for p in dense_shard(block, hidden, layout.tp).projections[:1]) * 1.5
            else:
                found = 2.0 * tokens * sum(p.n for p in mixer_shard(block, hidden, layout.tp).projections)
            widest = np.maximum(widest, found)
        sampler = np.minimum(seqs, tokens) * (model.vocab_size * LOGIT_BYTES_SERVING if self.last else 0.0)
        return np.asarray(2 * 2.0 * tokens * hidden + np.maximum(widest, sampler))


def _replica_stages(
    model: ModelArchitecture,
    layout: ServingLayout,
    precision: Precision,
    engine: Engine,
    max_context_tokens: int,
    mean_context_tokens: float | None,
    routing: RoutingAssumption,
) -> list[_Stage]:
    fmt = FORMATS[precision.kv_cache]
    mean_context = max(1.0, min(mean_context_tokens or max_context_tokens, max_context_tokens))
    found = []
    for stage, layers in enumerate(stages(model, layout.pp)):
        first, last = stage == 0, stage == layout.pp - 1
        params = layers_params(layers, model.hidden_size, layout.tp, layout.ep, layout.expert_tp)
        params += vocabulary_params(model, layout.tp, first=first, last=last)
        if routing.n_redundant_experts and layout.ep > 1:
            copies = split(routing.n_redundant_experts, layout.ep) / layout.expert_tp
            moe = (b for layer in layers for b in layer.blocks if isinstance(b, MoeMlp))
            params += Params(experts=copies * sum(block.n_params_per_expert for block in moe))
        if last and engine.draft_tokens > 0 and engine.drafts == "mtp":
            params += layers_params(model.mtp_layers[:1], model.hidden_size, layout.tp, layout.ep, layout.expert_tp)
        on_gpu = {
            "attention": 1.0 - engine.weight_offload_frac,
            "dense": 1.0 - engine.weight_offload_frac,
            "experts": 1.0 - engine.expert_offload_frac,
        }
        stored = params.stored_bytes(precision)
        weights = {f"weights_{name}": size * on_gpu.get(name, 1.0) for name, size in stored.items()}
        cached = without_windows(layers) if engine.window_cache == "whole" else layers
        longest = cache_bytes_per_sequence(cached, _in_blocks(max_context_tokens, engine), fmt, layout.tp)
        usual = cache_bytes_per_sequence(cached, _in_blocks(mean_context, engine), fmt, layout.tp)
        found.append(_Stage(stage, layers, last, weights, longest, usual / mean_context))
    return found


def stage_weight_bytes(model: ModelArchitecture, layout: ServingLayout, precision: Precision) -> dict[str, float]:
    """Weights of the fullest pipeline stage on one GPU, wherever they are kept, by component [bytes]."""
    found = [
        layers_params(layers, model.hidden_size, layout.tp, layout.ep, layout.expert_tp).stored_bytes(precision)
        for layers in stages(model, layout.pp)
    ]
    return max(found, key=lambda weights: sum(weights.values()))


def _limits(engine: Engine) -> tuple[Array, Array]:
    return np.asarray(float(engine.max_num_batched_tokens)), np.asarray(float(engine.max_num_seqs))


def _in_blocks(tokens: float, engine: Engine) -> float:
    """Tokens of context rounded up to whole KV blocks (PagedAttention, arXiv:2309.06180, section 4.1)."""
    return -(-tokens // engine.kv_block_tokens) * engine.kv_block_tokens


def _experts_workspace_bytes(
    block: MoeMlp,
    hidden: int,
    hardware: Hardware,
    layout: ServingLayout,
    engine: Engine,
    routing: RoutingAssumption,
    tokens: Array,
) -> Array:
    """Rows of the routed experts on the GPU that holds most.

    Where ranks gather all tokens, every one holds rows for all pairs; where tokens are sent to their experts, the
    busiest rank holds those that come to it.
    """
    rows, pairs = tokens * layout.dp, tokens * layout.dp * block.top_k
    if exchanges_by_all_to_all(layout, engine, hardware):
        pairs = rank_loads(block, rows, layout.ep, routing, n_nodes=n_domains(layout.ep, hardware)).assignments
        rows = np.minimum(rows, pairs)
    width = block.expert_intermediate_size / layout.expert_tp
    # gate-up outputs and the expert outputs share a buffer; the activation's output has its own
    shared_buffer = max((block.n_matrices - 1) * width, block.expert_hidden_size)
    return np.asarray(2.0 * pairs * (shared_buffer + width) + 2.0 * rows * hidden)


def _communication_bytes(model: ModelArchitecture, layout: ServingLayout, tokens: npt.ArrayLike) -> Array:
    """NCCL buffers of each group this GPU is in, and the engine's all-reduce and gather buffers."""
    groups = sum(size > 1 for size in (layout.tp, layout.pp, layout.dp, layout.ep))
    gathered = 2.0 * np.asarray(tokens, np.float64) * model.hidden_size * (layout.dp if layout.dp > 1 else 0)
    return groups * COMMUNICATOR_BYTES + gathered
