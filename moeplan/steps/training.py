"""One optimizer step of a training job: forward, backward, pipeline, gradient exchange, optimizer.

Equations: docs/method/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.costs.host import MOST_LAUNCHED_EXPERTS, launch_time_s
from moeplan.costs.memory import layers_params, vocabulary_params
from moeplan.costs.model_state import MASTER_BYTES, OPTIMIZER_BYTES, Params
from moeplan.costs.projections import split
from moeplan.costs.roofline import peak_flop_per_s
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import (
    Block,
    Layer,
    ModelArchitecture,
    MoeMlp,
)
from moeplan.spec.precision import FORMATS
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.workload import TrainingWork
from moeplan.steps.memory import micro_batches, trained_params, training_stages
from moeplan.steps.operations import ACTIVATION_BYTES
from moeplan.steps.pipeline import pipeline_time_s
from moeplan.steps.training_flop import model_flop_per_token, recomputed_flop_per_token
from moeplan.steps.training_layer import Pass, TrainingBlocks


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimizer step.

    ``breakdown`` holds the exposed seconds of the slowest stage by part and adds up to ``step_time_s``;
    ``hidden`` is communication that runs behind computation and costs no time. ``model_flop`` counts what the
    algorithm needs, no recomputation: see `model_flop_per_token`.
    """

    step_time_s: float
    breakdown: Mapping[str, float]
    hidden: Mapping[str, float]
    n_micro_batches: int
    n_tokens: int  # positions of the global batch
    model_flop: float  # of all GPUs
    recomputed_flop: float  # on top, of all GPUs
    peak_flop_per_s: float  # dense peak of one GPU in the arithmetic of ``compute_format``
    n_gpus: int

    @property
    def flop_per_s_per_gpu(self) -> float:
        return self.model_flop / self.step_time_s / self.n_gpus

    @property
    def mfu_frac(self) -> float:
        return self.flop_per_s_per_gpu / self.peak_flop_per_s

    @property
    def hfu_frac(self) -> float:
        """Hardware FLOP utilisation: what is recomputed counts too (arXiv:2205.05198, section 6)."""
        return self.mfu_frac * (1.0 + self.recomputed_flop / self.model_flop)


def training_step(
    model: ModelArchitecture, hardware: Hardware, layout: TrainingLayout, work: TrainingWork, routing: RoutingAssumption
) -> TrainingStep:
    """Time of one optimizer step.

    Raises ValueError when the batch does not divide, there are more stages than layers, the schedule does not exist for
    the layout, or a needed link is missing.
    """
    n_micro = micro_batches(layout, work)
    blocks = TrainingBlocks(hardware, model.hidden_size, layout, work, routing)
    stages = training_stages(model, layout, work)
    kinds = {block for layer in {layer for layers in stages for layer in layers} for block in layer.blocks}
    single = {block: blocks.block(block) for block in kinds}
    passes = [
        _stage_pass(model, blocks, single, layers, first=i == 0, last=i == layout.pp - 1)
        for i, layers in enumerate(stages)
    ]
    busiest = _busiest(passes, layout)
    breakdown = {part: n_micro * seconds for part, seconds in busiest.parts().items()}
    hidden = {part: n_micro * seconds for part, seconds in busiest.hidden.items()}
    breakdown.update(_pipeline_parts(blocks, passes, n_micro, n_micro * busiest.total_s))

    held = [
        layers_params(layers, model.hidden_size, layout.tp, layout.ep, layout.etp)
        + vocabulary_params(model, layout.tp, first=i == 0, last=i == layout.pp - 1)
        for i, layers in enumerate(stages)
    ]
    fullest = max(range(layout.pp), key=lambda i: held[i].total)
    trained = trained_params(model, stages[fullest], held[fullest], layout, work)
    exchange = _gradient_exchange_s(blocks, held[fullest], trained, n_micro)
    breakdown["data_parallel"] = exchange * (1.0 - work.overlap_comm_frac)
    hidden["data_parallel"] = exchange * work.overlap_comm_frac
    breakdown["optimizer"] = _optimizer_s(blocks, trained)

    step_s = sum(breakdown.values())
    n_tokens = work.global_batch_sequences * work.sequence_tokens
    peak = peak_flop_per_s(FORMATS[work.compute_format], hardware.device)
    return TrainingStep(
        step_time_s=step_s,
        breakdown=breakdown,
        hidden=hidden,
        n_micro_batches=n_micro,
        n_tokens=n_tokens,
        model_flop=model_flop_per_token(model, work) * n_tokens,
        recomputed_flop=recomputed_flop_per_token(model, layout, work) * n_tokens,
        peak_flop_per_s=peak,
        n_gpus=layout.n_gpus,
    )


def _busiest(passes: list[Pass], layout: TrainingLayout) -> Pass:
    """One micro batch on the busiest rank: its stage, under DualPipe the mean of the two stages it shares."""
    if layout.schedule != "dualpipe":
        return max(passes, key=lambda found: found.total_s)
    ranks = []
    for own, other in zip(passes, reversed(passes), strict=True):
        both = Pass()
        both.merge(own, 0.5)
        both.merge(other, 0.5)
        ranks.append(both)
    return max(ranks, key=lambda found: found.total_s)


def _pipeline_parts(blocks: TrainingBlocks, passes: list[Pass], n_micro: int, busy_s: float) -> dict[str, float]:
    """What the schedule adds to the busiest rank [s]: waiting for other stages, and for activations to arrive."""
    layout = blocks.layout
    if layout.pp == 1:
        return {"bubble": 0.0}
    same = layout.n_gpus <= blocks.hardware.n_gpus_scale_up
    n_bytes = blocks.own_tokens * blocks.hidden_size * ACTIVATION_BYTES
    forward = [found.forward_s for found in passes]
    inputs = [found.input_gradient_s for found in passes]
    weights = [found.weight_gradient for found in passes]
    apart, together = (
        pipeline_time_s(layout.schedule, forward, inputs, weights, n_micro, vpp=layout.vpp, send_s=send_s)
        for send_s in (float(blocks.ops.send_s(n_bytes, same_domain=same)), 0.0)
    )
    return {"bubble": max(0.0, together - busy_s), "pipeline_send": max(0.0, apart - max(together, busy_s))}


def _stage_pass(
    model: ModelArchitecture,
    blocks: TrainingBlocks,
    single: Mapping[Block, Pass],
    layers: tuple[Layer, ...],
    *,
    first: bool,
    last: bool,
) -> Pass:
    """One micro batch through one pipeline stage; ``single`` holds it through each kind of block."""
    found, work = Pass(), blocks.work
    counts: dict[Block, int] = {}
    for layer in layers:
        for block in layer.blocks:
            counts[block] = counts.get(block, 0) + 1
    for block, count in counts.items():
        found.merge(single[block], count)
    if last:
        heads = 1 + (len(model.mtp_layers) if work.method == "pretrain" else 0)
        found.merge(blocks.head(model.vocab_size), heads)
    if first:
        lookup = float(blocks.ops.elementwise_s(blocks.own_tokens * model.hidden_size * 2 * ACTIVATION_BYTES))
        found.add("elementwise", lookup, lookup)
    if not work.cuda_graphs:
        busy_s = found.total_s - 2 * found.forward.get("host", 0.0)  # nothing is launched while the host waits
        idle_s = max(0.0, _launch_s(blocks, layers) - busy_s)
        found.add("host", idle_s / 2, idle_s / 2)
    return found


def _gradient_exchange_s(blocks: TrainingBlocks, held: Params, trained: Params, n_micro: int) -> float:
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


def _optimizer_s(blocks: TrainingBlocks, trained: Params) -> float:
    """Every state read and written once, gradients read, weights written."""
    layout, work = blocks.layout, blocks.work
    data, expert_data = (layout.dp * layout.cp, layout.edp) if layout.zero_stage >= 1 else (1, 1)
    mine = trained.replicated_over_data / data + trained.experts / expert_data
    state = OPTIMIZER_BYTES[work.optimizer] + (MASTER_BYTES if work.master_weights else ACTIVATION_BYTES)
    n_bytes = mine * (2 * state + work.gradient_bytes_per_param)
    stream_frac = blocks.ops.parameters("training_device", "bf16")["optimizer_stream_frac"]
    return float(blocks.ops.elementwise_s(n_bytes)) / stream_frac


def _launch_s(blocks: TrainingBlocks, layers: tuple[Layer, ...]) -> float:
    """Host time of one micro batch in a stage."""
    experts = (b.n_experts for layer in layers for b in layer.blocks if isinstance(b, MoeMlp))
    launched = sum(min(split(n, blocks.layout.ep), MOST_LAUNCHED_EXPERTS) for n in experts)
    return launch_time_s(len(layers), launched, p=blocks.ops.parameters("training_host", "bf16"))
