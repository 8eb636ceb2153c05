"""Memory of one serving replica or one training job on its fullest GPU: does it fit?

Equations: docs/method/memory.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from moeplan.costs.expert_exchange import exchanges_by_all_to_all, n_domains
from moeplan.costs.memory import (
    ActivationRule,
    block_activation_bytes_per_token,
    cache_bytes_per_sequence,
    checkpoint_bytes_per_token,
    layers_params,
    stages,
    vocabulary_params,
)
from moeplan.costs.model_state import MASTER_BYTES, OPTIMIZER_BYTES, Params, adapter_params
from moeplan.costs.projections import dense_shard, mixer_shard, split
from moeplan.costs.routing import rank_loads
from moeplan.costs.schedule import micro_batches_in_flight
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.model import DenseMlp, Layer, ModelArchitecture, MoeMlp
from moeplan.spec.plan import MemoryResult
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.routing import BALANCED, RoutingAssumption
from moeplan.spec.workload import Engine, TrainingWork

Array = npt.NDArray[np.float64]

# NCCL: 4 MiB per channel and direction (NCCL_BUFFSIZE default, NCCL user guide, environment variables); 24 channels on
# an NVLink machine are an estimate of what its topology search picks.
COMMUNICATOR_BYTES = 24 * 2 * 4 * 2**20
# bf16 logits, and in fp32 logits, probabilities and sampling noise: what vLLM's sampler holds at once.
LOGIT_BYTES_SERVING = 14.0
LOGIT_BYTES_TRAINING = 12.0  # bf16 logits and their gradient, fp32 logits and their softmax
TRAINING_CONTEXT_BYTES = 1.0 * 2**30  # estimate: CUDA context, cuBLAS and cuDNN workspaces


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
        weights = {f"weights_{name}": size for name, size in params.stored_bytes(precision).items()}
        longest = cache_bytes_per_sequence(layers, _in_blocks(max_context_tokens, engine), fmt, layout.tp)
        usual = cache_bytes_per_sequence(layers, _in_blocks(mean_context, engine), fmt, layout.tp)
        found.append(_Stage(stage, layers, last, weights, longest, usual / mean_context))
    return found


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


def training_memory(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: TrainingLayout,
    work: TrainingWork,
    routing: RoutingAssumption = BALANCED,
) -> MemoryFit:
    """Memory of one training job at the peak of a step (one-forward-one-backward pipeline schedule).

    The GPU to which most tokens come keeps most activations.

    Raises ValueError when the global batch does not divide into micro batches or there are more stages than layers.
    """
    n_micro = micro_batches(layout, work)
    rule = ActivationRule(
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        expert_tp=layout.etp,
        linear_input_bytes=min(2.0, FORMATS[work.compute_format].bytes_per_value),
        recompute=layout.recompute,
    )
    candidates = []
    stages_of = training_stages(model, layout, work)
    for stage, layers in enumerate(stages_of):
        first, last = stage == 0, stage == layout.pp - 1
        params = layers_params(layers, model.hidden_size, layout.tp, layout.ep, layout.etp)
        params += vocabulary_params(model, layout.tp, first=first, last=last)
        if layout.schedule == "dualpipe":  # a rank holds the weights of two stages (arXiv:2412.19437, table 2)
            mirror = stages_of[layout.pp - 1 - stage]
            params += layers_params(mirror, model.hidden_size, layout.tp, layout.ep, layout.etp)
            params += vocabulary_params(model, layout.tp, first=last, last=first)
        parts = _model_state_bytes(params, model, layers, layout, work)
        in_flight = micro_batches_in_flight(layout.schedule, stage, layout.pp, layout.vpp, n_micro)
        busiest = _expert_load(layers, hardware, layout, work, routing)
        parts.update(_activation_bytes(model, layers, layout, work, rule, in_flight, busiest, last=last))
        parts["communication"] = COMMUNICATOR_BYTES * sum(
            size > 1 for size in (layout.tp, layout.pp, layout.cp, layout.dp, layout.ep)
        )
        parts["runtime_reserve"] = TRAINING_CONTEXT_BYTES
        candidates.append((_peak(parts, layout, n_micro), stage))
    worst, stage = max(candidates, key=lambda item: sum(item[0].values()))
    need = sum(worst.values())
    capacity = hardware.device.memory_bytes
    return MemoryFit(need, capacity, capacity, worst, None, None, stage)


def _expert_load(
    layers: tuple[Layer, ...],
    hardware: Hardware,
    layout: TrainingLayout,
    work: TrainingWork,
    routing: RoutingAssumption,
) -> float:
    """Pairs of the busiest GPU over the mean, mean over the MoE layers."""
    blocks = [b for layer in layers for b in layer.blocks if isinstance(b, MoeMlp)]
    if layout.ep == 1 or not blocks:
        return 1.0
    own = work.micro_batch_sequences * work.sequence_tokens / (layout.tp * layout.cp)
    nodes = n_domains(layout.ep, hardware)
    of_block = {}
    for block in set(blocks):
        loads = rank_loads(block, own * layout.ep * layout.etp, layout.ep, routing, n_nodes=nodes)
        of_block[block] = float(loads.assignments / loads.mean_assignments)
    return sum(of_block[block] for block in blocks) / len(blocks)


def micro_batches(layout: TrainingLayout, work: TrainingWork) -> int:
    """Micro batches each data-parallel rank runs in a step."""
    per_rank, rest = divmod(work.global_batch_sequences, layout.dp * work.micro_batch_sequences)
    if rest or per_rank == 0:
        raise ValueError(
            f"a global batch of {work.global_batch_sequences} sequences does not divide into "
            f"{layout.dp} data-parallel ranks of micro batches of {work.micro_batch_sequences}"
        )
    return per_rank


def training_stages(model: ModelArchitecture, layout: TrainingLayout, work: TrainingWork) -> list[tuple[Layer, ...]]:
    """Consecutive layers of each pipeline stage, balanced by arithmetic with the output head counted on the last.

    Pretraining runs the multi-token-prediction modules, and the head once more for each, on the last stage. Real runs
    balance by hand (DeepSeek-V3, arXiv:2412.19437, section 3.2; Megatron's pipeline layouts), so an even count would be
    the exception. Raises ValueError when there are more stages than layers.
    """
    if layout.pp > model.n_layers:
        raise ValueError(f"pp {layout.pp} exceeds the {model.n_layers} layers of {model.name}")
    extra = model.mtp_layers if work.method == "pretrain" else ()
    layers = (*model.layers, *extra)
    weight = [active_params(layer) for layer in layers]
    # the head stays in 16 bit, where a parameter takes longer than in 8
    slower = max(1.0, 16.0 / FORMATS[work.compute_format].bits)
    tail = slower * (1 + len(extra)) * model.vocab_size * model.hidden_size
    low, high = max(weight), sum(weight) + tail
    for _ in range(40):  # bisection on the heaviest stage's load
        middle = (low + high) / 2
        low, high = (low, middle) if _fill(weight, tail, layout.pp, middle) else (middle, high)
    ends = _fill(weight, tail, layout.pp, high)
    if ends is None:
        raise ValueError(f"{model.name} cannot be cut into {layout.pp} stages")
    return [layers[start:end] for start, end in pairwise((0, *ends))]


def _fill(weight: list[float], tail: float, pp: int, most: float) -> list[int] | None:
    """Ends of ``pp`` non-empty runs of at most ``most`` each, the last with ``tail`` on top; None if impossible.

    Filled from the last stage backwards. One layer is the least a stage takes, so the last may exceed ``most`` by that.
    """
    ends, end = [], len(weight)
    for stage in reversed(range(pp)):
        load, start = (tail if stage == pp - 1 else 0.0), end
        while start > stage and (start == end or load + weight[start - 1] <= most):
            start -= 1
            load += weight[start]
        ends.append(end)
        end = start
    return ends[::-1] if end == 0 else None


def active_params(layer: Layer) -> float:
    """Parameters of a layer one token meets."""
    idle = sum((b.n_experts - b.top_k) * b.n_params_per_expert for b in layer.blocks if isinstance(b, MoeMlp))
    return layer.n_params - idle


def trained_params(
    model: ModelArchitecture, layers: tuple[Layer, ...], whole: Params, layout: TrainingLayout, work: TrainingWork
) -> Params:
    """Parameters on one GPU that get gradients."""
    return whole if work.adapter is None else adapter_params(model, layers, work.adapter, layout)


def _model_state_bytes(
    params: Params, model: ModelArchitecture, layers: tuple[Layer, ...], layout: TrainingLayout, work: TrainingWork
) -> dict[str, float]:
    """Weights, gradients, optimizer states and master weights under ZeRO (arXiv:1910.02054, section 5)."""
    trained = trained_params(model, layers, params, layout, work)
    data, expert_data = layout.dp * layout.cp, layout.edp

    def spread(what: Params, sharded: bool) -> float:
        return (
            what.replicated_over_data / data + what.experts / expert_data
            if sharded
            else what.replicated_over_data + what.experts
        )

    stored = 2.0 if work.adapter is None else FORMATS[work.adapter.base_format].bytes_per_value
    weights = stored * spread(params, layout.zero_stage == 3)
    if work.adapter is not None:
        weights += 2.0 * spread(trained, layout.zero_stage == 3)
    elif FORMATS[work.compute_format].bits < 16.0:
        # the quantised copy of the matrices kept beside the 16-bit weights (Transformer Engine)
        weights += FORMATS[work.compute_format].bytes_per_value * spread(params, layout.zero_stage == 3)
    parts = {
        "weights": weights,
        "gradients": work.gradient_bytes_per_param * spread(trained, layout.zero_stage >= 2),
        "optimizer": OPTIMIZER_BYTES[work.optimizer] * spread(trained, layout.zero_stage >= 1),
        "master_weights": MASTER_BYTES * spread(trained, layout.zero_stage >= 1) if work.master_weights else 0.0,
    }
    if layout.zero_stage == 3 and data > 1:  # the running layer and the one fetched ahead, gathered
        fullest = max(
            layers_params((layer,), model.hidden_size, layout.tp, layout.ep, layout.etp).total for layer in set(layers)
        )
        parts["gathered_weights"] = 2 * stored * fullest
    return parts


def _activation_bytes(
    model: ModelArchitecture,
    layers: tuple[Layer, ...],
    layout: TrainingLayout,
    work: TrainingWork,
    rule: ActivationRule,
    in_flight: float,
    busiest: float,
    *,
    last: bool,
) -> dict[str, float]:
    """``busiest``: token-expert pairs of the busiest GPU of a layer over the mean.

    Layers have popularities of their own, so that what one GPU has too much of over all of them is less: by the root of
    their number.
    """
    n_moe = sum(isinstance(block, MoeMlp) for layer in layers for block in layer.blocks)
    rule = replace(rule, expert_load=1.0 + (busiest - 1.0) / math.sqrt(max(n_moe, 1)))
    tokens = work.micro_batch_sequences * work.sequence_tokens / layout.cp
    nothing_saved = replace(rule, recompute="none", expert_load=busiest)

    def per_token(layer: Layer, use: ActivationRule) -> float:
        return sum(block_activation_bytes_per_token(block, model.hidden_size, use) for block in layer.blocks)

    known = {layer: per_token(layer, rule) for layer in set(layers)}
    if rule.recompute == "full":
        kept = sum(checkpoint_bytes_per_token(model.hidden_size, rule) for _ in layers)
    else:
        kept = sum(known[layer] for layer in layers)
    parts = {"activations": tokens * kept * in_flight}
    if rule.recompute != "none":  # the layer being recomputed has all its tensors once
        parts["recomputed_layer"] = tokens * max(
            per_token(layer, nothing_saved) - known[layer] for layer in set(layers)
        )
    if last:
        parts["logits"] = tokens * split(model.vocab_size, layout.tp) * LOGIT_BYTES_TRAINING
    return parts


def _peak(parts: dict[str, float], layout: TrainingLayout, n_micro: int) -> dict[str, float]:
    """Drop what is not alive together.

    Without data parallelism or accumulation gradients are created during the only backward pass, while activations
    and logits go away: the peak is the end of the forward pass or the end of the backward pass, whichever is higher.
    """
    if layout.n_gpus > 1 or n_micro > 1:
        return parts
    transient = ("activations", "recomputed_layer", "logits")
    if parts["gradients"] > sum(parts.get(name, 0.0) for name in transient):
        return {name: size for name, size in parts.items() if name not in transient}
    return {name: size for name, size in parts.items() if name != "gradients"}
