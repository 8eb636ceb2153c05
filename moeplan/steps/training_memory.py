"""Memory of one training job at the peak of a step on its fullest GPU.

Equations: docs/method/memory.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from moeplan.costs.expert_exchange import n_domains
from moeplan.costs.memory import (
    ActivationRule,
    block_activation_bytes_per_token,
    checkpoint_bytes_per_token,
    layers_params,
    vocabulary_params,
)
from moeplan.costs.model_state import MASTER_BYTES, OPTIMIZER_BYTES, Params, adapter_params
from moeplan.costs.projections import split
from moeplan.costs.routing import rank_loads
from moeplan.costs.schedule import micro_batches_in_flight
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import Layer, ModelArchitecture, MoeMlp, counted
from moeplan.spec.precision import FORMATS
from moeplan.spec.routing import BALANCED, RoutingAssumption
from moeplan.spec.workload import TrainingWork
from moeplan.steps.memory import COMMUNICATOR_BYTES, MemoryFit
from moeplan.steps.stages import Stage, joined, rank_stages, training_stages

# Of a plain PyTorch loss: bf16 logits and their gradient, fp32 logits and their softmax. 12.0 explains what an H200
# holds per token and vocabulary entry beyond its layers (hardware_profiles/h200-sxm, training steps) within 3 %.
LOGIT_BYTES = 12.0
# A fused loss overwrites bf16 logits with their gradient (Transformer Engine's cross entropy works in place); one more
# copy while it runs is an estimate.
FUSED_LOGIT_BYTES, FUSED_LOGIT_WORKSPACE_BYTES = 2.0, 2.0
CONTEXT_BYTES = 1.0 * 2**30  # estimate: CUDA context, cuBLAS and cuDNN workspaces
# What PyTorch's allocator reserves beyond what is allocated, over activations: median of 23 steps on an H200.
FRAGMENTATION_FRAC = 0.08


def training_memory(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: TrainingLayout,
    work: TrainingWork,
    routing: RoutingAssumption = BALANCED,
    positions: list[Stage] | None = None,
) -> MemoryFit:
    """Memory of one training job at the peak of a step; ``positions`` are its `training_stages` where known.

    The GPU to which most tokens come keeps most activations.

    Raises ValueError when the global batch does not divide into micro batches or there are more stages than layers.
    """
    n_micro = micro_batches(layout, work)
    rule = activation_rule(layout, work)
    ranks = rank_stages(positions or training_stages(model, layout, work), layout)
    worst: dict[str, float] = {}
    fullest, need = 0, 0.0
    most: dict[object, float] = {}
    loads = _expert_loads(model, hardware, layout, work, routing)
    for rank, own in enumerate(ranks):
        held = own if layout.schedule != "dualpipe" else joined((own, ranks[-1 - rank]))
        in_flight = micro_batches_in_flight(layout.schedule, rank, layout.pp, layout.vpp, n_micro)
        if most.get(held.key, 0.0) >= in_flight:  # a rank that holds the same has been fuller
            continue
        most[held.key] = in_flight
        parts = _peak(_rank_bytes(model, held, own, layout, work, rule, in_flight, loads), layout, n_micro)
        if sum(parts.values()) > need:
            worst, fullest, need = parts, rank, sum(parts.values())
    capacity = hardware.device.memory_bytes
    return MemoryFit(need, capacity, capacity, worst, None, None, fullest)


def micro_batches(layout: TrainingLayout, work: TrainingWork) -> int:
    """Micro batches each data-parallel rank runs in a step."""
    per_rank, rest = divmod(work.global_batch_sequences, layout.dp * work.micro_batch_sequences)
    if rest or per_rank == 0:
        raise ValueError(
            f"a global batch of {work.global_batch_sequences} sequences does not divide into "
            f"{layout.dp} data-parallel ranks of micro batches of {work.micro_batch_sequences}"
        )
    return per_rank


def activation_rule(layout: TrainingLayout, work: TrainingWork) -> ActivationRule:
    """What a layer keeps for its backward pass; whole-layer recomputation is not its business."""
    repeated = frozenset(layout.recompute_modules) if layout.recompute == "selective" else frozenset()
    return ActivationRule(
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        expert_tp=layout.etp,
        linear_input_bytes=min(2.0, FORMATS[work.compute_format].bytes_per_value),
        repeated=repeated,
        score_tokens=0 if work.flash_attention else work.sequence_tokens,
        fused=work.fused_kernels,
        activation_input_bytes=1.0 if work.fp8_activation_inputs else 2.0,
    )


def held_params(model: ModelArchitecture, stage: Stage, layout: TrainingLayout) -> Params:
    """Parameters of one rank."""
    layers = layers_params(stage.layers, model.hidden_size, layout.tp, layout.ep, layout.etp)
    return layers + vocabulary_params(model, layout.tp, first=stage.embedding, last=stage.head)


def trained_params(
    model: ModelArchitecture, layers: tuple[Layer, ...], whole: Params, layout: TrainingLayout, work: TrainingWork
) -> Params:
    """Parameters on one GPU that get gradients."""
    return whole if work.adapter is None else adapter_params(model, layers, work.adapter, layout)


def _rank_bytes(
    model: ModelArchitecture,
    held: Stage,
    own: Stage,
    layout: TrainingLayout,
    work: TrainingWork,
    rule: ActivationRule,
    in_flight: float,
    loads: Mapping[int, float],
) -> dict[str, float]:
    """Everything on one rank; under DualPipe it ``held`` two stages (arXiv:2412.19437, table 2)."""
    parts = _model_state_bytes(held_params(model, held, layout), model, held.layers, layout, work)
    parts.update(_activation_bytes(model, own, layout, work, rule, in_flight, loads))
    parts["communication"] = COMMUNICATOR_BYTES * sum(
        size > 1 for size in (layout.tp, layout.pp, layout.cp, layout.dp, layout.ep)
    )
    parts["runtime_reserve"] = CONTEXT_BYTES
    return parts


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
    resident = 1.0 - work.offload_optimizer_frac
    parts = {
        "weights": weights,
        "gradients": work.gradient_bytes_per_param * spread(trained, layout.zero_stage >= 2),
        "optimizer": resident * OPTIMIZER_BYTES[work.optimizer] * spread(trained, layout.zero_stage >= 1),
        "master_weights": resident * MASTER_BYTES * spread(trained, layout.zero_stage >= 1)
        if work.master_weights
        else 0.0,
    }
    if layout.zero_stage == 3 and data > 1:  # the running layer and the one fetched ahead, gathered
        fullest = max(
            layers_params((layer,), model.hidden_size, layout.tp, layout.ep, layout.etp).total for layer in set(layers)
        )
        parts["gathered_weights"] = 2 * stored * fullest
    return parts


def _activation_bytes(
    model: ModelArchitecture,
    stage: Stage,
    layout: TrainingLayout,
    work: TrainingWork,
    rule: ActivationRule,
    in_flight: float,
    loads: Mapping[int, float],
) -> dict[str, float]:
    """``loads``: pairs of a layer's busiest GPU over the mean, by the identity of its block.

    Layers have popularities of their own, so that what one GPU has too much of over all of them is less: by the root of
    their number.
    """
    of_layers = [loads[id(b)] for layer in stage.layers for b in layer.blocks if id(b) in loads]
    busiest = sum(of_layers) / len(of_layers) if of_layers else 1.0
    rule = replace(rule, expert_load=1.0 + (busiest - 1.0) / math.sqrt(max(len(of_layers), 1)))
    tokens = work.micro_batch_sequences * work.sequence_tokens / layout.cp
    hidden, full = model.hidden_size, layout.recompute == "full"
    whole = replace(rule, repeated=frozenset(), expert_load=busiest)
    each, kept = _kept_bytes_per_token(stage, hidden, layout, rule)
    parts = {"activations": tokens * kept * in_flight * (1.0 - work.offload_activations_frac)}
    if layout.recompute != "none":  # the layer being recomputed has all its tensors once
        parts["recomputed_layer"] = tokens * max(
            _layer_bytes(kind, hidden, whole) - (0.0 if full else size)
            for size, (kind, _) in zip(each, stage.counted(), strict=True)
        )
    if layout.tp > 1 and layout.sequence_parallel:  # a block's gathered input, and its gradient
        parts["recomputed_layer"] = parts.get("recomputed_layer", 0.0) + 2 * 2.0 * tokens * hidden
    if stage.head:
        logits = tokens * split(model.vocab_size, layout.tp)
        fused = FUSED_LOGIT_BYTES * stage.n_heads + FUSED_LOGIT_WORKSPACE_BYTES
        parts["logits"] = logits * (fused if work.fused_kernels else LOGIT_BYTES * stage.n_heads)
    return parts


def _expert_loads(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: TrainingLayout,
    work: TrainingWork,
    routing: RoutingAssumption,
) -> dict[int, float]:
    """Pairs of the busiest GPU over the mean, by the identity of a block of routed experts."""
    if layout.ep == 1:
        return {}
    own = work.micro_batch_sequences * work.sequence_tokens / (layout.tp * layout.cp)
    nodes = n_domains(layout.ep, hardware)
    found: dict[int, float] = {}
    same: dict[MoeMlp, float] = {}
    for layer, _ in counted((*model.layers, *model.mtp_layers)):
        for block in layer.blocks:
            if not isinstance(block, MoeMlp) or id(block) in found:
                continue
            if block not in same:
                loads = rank_loads(block, own * layout.ep * layout.etp, layout.ep, routing, n_nodes=nodes)
                same[block] = float(loads.assignments / loads.mean_assignments)
            found[id(block)] = same[block]
    return found


def _kept_bytes_per_token(
    stage: Stage, hidden_size: int, layout: TrainingLayout, rule: ActivationRule
) -> tuple[list[float], float]:
    """What a token leaves behind in each kind of layer, and in the stage."""
    counted = stage.counted()
    if layout.recompute == "full":
        each = [checkpoint_bytes_per_token(hidden_size, rule)] * len(counted)
    else:
        each = [_layer_bytes(kind, hidden_size, rule) for kind, _ in counted]
    return each, sum(size * n for size, (_, n) in zip(each, counted, strict=True))


def kept_bytes(model: ModelArchitecture, stage: Stage, layout: TrainingLayout, work: TrainingWork) -> float:
    """Activations that one micro batch leaves behind in a stage [bytes per GPU]."""
    tokens = work.micro_batch_sequences * work.sequence_tokens / layout.cp
    _, per_token = _kept_bytes_per_token(stage, model.hidden_size, layout, activation_rule(layout, work))
    return tokens * per_token


def _layer_bytes(layer: Layer, hidden_size: int, rule: ActivationRule) -> float:
    return sum(block_activation_bytes_per_token(block, hidden_size, rule) for block in layer.blocks)


def _peak(parts: dict[str, float], layout: TrainingLayout, n_micro: int) -> dict[str, float]:
    """Drop what is not alive together.

    Without data parallelism or accumulation gradients are created during the only backward pass, while activations
    and logits go away: the peak is the end of the forward pass or the end of the backward pass, whichever is higher.
    """
    transient = ("activations", "recomputed_layer", "logits", "fragmentation")
    parts["fragmentation"] = FRAGMENTATION_FRAC * sum(parts.get(name, 0.0) for name in transient)
    if layout.n_gpus > 1 or n_micro > 1:
        return parts
    if parts["gradients"] > sum(parts.get(name, 0.0) for name in transient):
        return {name: size for name, size in parts.items() if name not in transient}
    return {name: size for name, size in parts.items() if name != "gradients"}
