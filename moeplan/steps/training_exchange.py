"""What happens once a step: gradients and weights between data-parallel ranks, and the optimizer."""

from __future__ import annotations

from moeplan.costs.model_state import MASTER_BYTES, OPTIMIZER_BYTES, Params
from moeplan.costs.projections import dense_shard, mixer_shard, shared_expert_shard, split
from moeplan.spec.model import DenseMlp, MoeMlp
from moeplan.steps.operations import ACTIVATION_BYTES
from moeplan.steps.stages import Stage
from moeplan.steps.training_layer import TrainingBlocks

NEWTON_SCHULZ_STEPS = 5


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


def optimizer_s(blocks: TrainingBlocks, stage: Stage, trained: Params) -> float:
    """Every state read and written once, gradients read, weights written; Muon orthogonalises its matrices first."""
    layout, work = blocks.layout, blocks.work
    data, expert_data = (layout.dp * layout.cp, layout.edp) if layout.zero_stage >= 1 else (1, 1)
    mine = trained.replicated_over_data / data + trained.experts / expert_data
    state = OPTIMIZER_BYTES[work.optimizer] + (MASTER_BYTES if work.master_weights else ACTIVATION_BYTES)
    if work.optimizer == "muon" and work.adapter is None:
        orthogonal_s = _newton_schulz_s(blocks, stage, data, expert_data)
    else:
        orthogonal_s = 0.0
    offloaded = work.offload_optimizer_frac
    n_bytes = mine * (1.0 - offloaded) * (2 * state + work.gradient_bytes_per_param)
    stream_frac = blocks.ops.parameters("training_device", "bf16")["optimizer_stream_frac"]
    on_gpu_s = float(blocks.ops.elementwise_s(n_bytes)) / stream_frac + orthogonal_s
    if offloaded == 0.0:
        return on_gpu_s
    # the host updates its share at its own rate; gradients go there and weights come back
    host = blocks.ops.parameters("training_host", "bf16")["optimizer_params_per_s"]
    copied = mine * offloaded * (work.gradient_bytes_per_param + ACTIVATION_BYTES)
    return on_gpu_s + mine * offloaded / host + float(blocks.ops.host_copy_s(copied))


def _newton_schulz_s(blocks: TrainingBlocks, stage: Stage, data: int, expert_data: int) -> float:
    """Muon's orthogonalisation (Jordan et al., 2024; arXiv:2502.16982, section 2.2): five times X X^T, its square, and
    the product with X, of every matrix of the stage, which the ranks that share it divide among themselves."""
    layout, hidden = blocks.layout, blocks.hidden_size
    seconds = 0.0
    for layer, n in stage.counted():
        for block in layer.blocks:
            if isinstance(block, MoeMlp):
                width = split(block.expert_intermediate_size, layout.etp)
                inner = (block.n_matrices - 1) * width, width
                mine = split(block.n_experts, layout.ep) / expert_data
                routed = sum(_orthogonal_s(blocks, block.expert_hidden_size, size) for size in inner)
                shared = shared_expert_shard(block, hidden, layout.tp).projections
                seconds += n * (mine * routed + sum(_orthogonal_s(blocks, p.k, p.n) for p in shared) / data)
            else:
                shard = dense_shard if isinstance(block, DenseMlp) else mixer_shard
                matrices = shard(block, hidden, layout.tp).projections
                seconds += n * sum(_orthogonal_s(blocks, p.k, p.n) for p in matrices) / data
    return seconds


def _orthogonal_s(blocks: TrainingBlocks, k: float, n: float) -> float:
    """Newton-Schulz iterations of one matrix, in 16 bit."""
    small, large = min(k, n), max(k, n)
    gemm = blocks.ops.gemm_s
    once = gemm(small, small, large, "bf16") + gemm(small, small, small, "bf16") + gemm(small, large, small, "bf16")
    return NEWTON_SCHULZ_STEPS * float(once) / blocks.sustained_frac
