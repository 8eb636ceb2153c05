"""What happens once a step: gradients and weights between data-parallel ranks, and the optimizer."""

from __future__ import annotations

from moeplan.costs.model_state import MASTER_BYTES, OPTIMIZER_BYTES, Params
from moeplan.steps.operations import ACTIVATION_BYTES
from moeplan.steps.training_layer import TrainingBlocks


def gradient_exchange_s(blocks: TrainingBlocks, held: Params, trained: Params, n_micro: int) -> float:
    """Traffic of data parallelism in one step [s], hidden or not.

    ZeRO 0: all-reduce of gradients; 1 and 2: reduce-scatter, all-gather of weights; 3: weights gathered for the
    forward and the backward pass of every micro batch, gradients reduced in each (arXiv:1910.02054, section 7; FSDP,
    arXiv:2304.11277).
    """
    layout, work = blocks.layout, blocks.work
    total = 0.0
    per_domain = max(1, blocks.hardware.n_gpus_scale_up // layout.tp)
    expert_domain = max(1, blocks.hardware.n_gpus_scale_up // (layout.ep * layout.etp))
    weights = ACTIVATION_BYTES
    for n_held, n_trained, ranks, local in (
        (held.replicated_over_data, trained.replicated_over_data, layout.dp * layout.cp, per_domain),
        (held.experts, trained.experts, layout.edp, expert_domain),
    ):
        if ranks == 1:
            continue
        scatter = float(blocks.ops.all_gather_s(n_trained * work.gradient_bytes_per_param, ranks, min(ranks, local)))
        gather = float(blocks.ops.all_gather_s(n_trained * weights, ranks, min(ranks, local)))
        if layout.zero_stage == 3:
            fetch = float(blocks.ops.all_gather_s(n_held * weights, ranks, min(ranks, local)))
            total += n_micro * (2 * fetch + scatter)
        elif layout.zero_stage == 0:
            total += 2 * scatter
        else:
            total += scatter + gather
    return total


def optimizer_s(blocks: TrainingBlocks, trained: Params) -> float:
    """Every state read and written once, gradients read, weights written."""
    layout, work = blocks.layout, blocks.work
    data, expert_data = (layout.dp * layout.cp, layout.edp) if layout.zero_stage >= 1 else (1, 1)
    mine = trained.replicated_over_data / data + trained.experts / expert_data
    state = OPTIMIZER_BYTES[work.optimizer] + (MASTER_BYTES if work.master_weights else ACTIVATION_BYTES)
    offloaded = work.offload_optimizer_frac
    n_bytes = mine * (1.0 - offloaded) * (2 * state + work.gradient_bytes_per_param)
    stream_frac = blocks.ops.parameters("training_device", "bf16")["optimizer_stream_frac"]
    on_gpu_s = float(blocks.ops.elementwise_s(n_bytes)) / stream_frac
    if offloaded == 0.0:
        return on_gpu_s
    # the host updates its share at its own rate; gradients go there and weights come back
    host = blocks.ops.parameters("training_host", "bf16")["optimizer_params_per_s"]
    copied = mine * offloaded * (work.gradient_bytes_per_param + ACTIVATION_BYTES)
    return on_gpu_s + mine * offloaded / host + float(blocks.ops.host_copy_s(copied))
