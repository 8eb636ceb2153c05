"""One optimizer step of a training job: forward, backward, pipeline, gradient exchange, optimizer.

Equations: docs/method/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.costs.host import MOST_LAUNCHED_EXPERTS, launch_time_s
from moeplan.costs.projections import split
from moeplan.costs.roofline import peak_flop_per_s
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import (
    Layer,
    ModelArchitecture,
    MoeMlp,
)
from moeplan.spec.precision import FORMATS
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.workload import TrainingWork
from moeplan.steps.memory import MemoryFit
from moeplan.steps.operations import ACTIVATION_BYTES
from moeplan.steps.pipeline import pipeline_time_s
from moeplan.steps.stages import Stage, rank_stages, training_stages
from moeplan.steps.training_exchange import gradient_exchange_s, optimizer_s
from moeplan.steps.training_flop import model_flop_per_token, recomputed_flop_per_token
from moeplan.steps.training_layer import Pass, TrainingBlocks
from moeplan.steps.training_memory import held_params, kept_bytes, micro_batches, trained_params, training_memory


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
    forward_s: float  # of a step that only computes log probabilities

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


class TrainingCosts:
    """Steps of one model on one machine under any layout; remembers the blocks that layouts have in common."""

    def __init__(self, model: ModelArchitecture, hardware: Hardware, routing: RoutingAssumption) -> None:
        self.model, self.hardware, self.routing = model, hardware, routing
        self._blocks: dict[object, dict[int, Pass]] = {}
        self._stages: dict[object, list[Stage]] = {}

    def memory(self, layout: TrainingLayout, work: TrainingWork) -> MemoryFit:
        """Memory of the fullest GPU, see `training_memory`."""
        return training_memory(self.model, self.hardware, layout, work, self.routing, self._positions(layout, work))

    def _positions(self, layout: TrainingLayout, work: TrainingWork) -> list[Stage]:
        key = (layout.pp, layout.vpp, layout.stages, work.method, work.compute_format)
        if key not in self._stages:
            self._stages[key] = training_stages(self.model, layout, work)
        return self._stages[key]

    def step(self, layout: TrainingLayout, work: TrainingWork) -> TrainingStep:
        """Time of one optimizer step.

        Raises ValueError when the batch does not divide, there are more stages than layers, the schedule does not exist
        for the layout, or a needed link is missing.
        """
        model = self.model
        n_micro = micro_batches(layout, work)
        blocks = TrainingBlocks(self.hardware, model.hidden_size, layout, work, self.routing)
        positions = self._positions(layout, work)
        passes = self._passes(blocks, positions)
        busiest = _busiest(passes, layout)
        breakdown = {part: n_micro * seconds for part, seconds in busiest.parts().items()}
        hidden = {part: n_micro * seconds for part, seconds in busiest.hidden.items()}
        breakdown.update(_pipeline_parts(blocks, passes, n_micro, n_micro * busiest.total_s))
        pipeline_s = sum(breakdown.values())

        ranks = rank_stages(positions, layout)
        held = [held_params(model, stage, layout) for stage in ranks]
        fullest = max(range(layout.pp), key=lambda i: held[i].total)
        trained = trained_params(model, ranks[fullest].layers, held[fullest], layout, work)
        exchange = gradient_exchange_s(blocks, held[fullest], trained, n_micro)
        breakdown["data_parallel"] = exchange * (1.0 - work.overlap_comm_frac)
        hidden["data_parallel"] = exchange * work.overlap_comm_frac
        breakdown["optimizer"] = optimizer_s(blocks, ranks[fullest], trained)
        n_tokens = work.global_batch_sequences * work.sequence_tokens
        return TrainingStep(
            step_time_s=sum(breakdown.values()),
            breakdown=breakdown,
            hidden=hidden,
            n_micro_batches=n_micro,
            n_tokens=n_tokens,
            model_flop=model_flop_per_token(model, work) * n_tokens,
            recomputed_flop=recomputed_flop_per_token(model, layout, work) * n_tokens,
            peak_flop_per_s=peak_flop_per_s(FORMATS[work.compute_format], self.hardware.device),
            n_gpus=layout.n_gpus,
            forward_s=busiest.forward_s / busiest.total_s * pipeline_s,
        )

    def _passes(self, blocks: TrainingBlocks, positions: list[Stage]) -> list[Pass]:
        """One micro batch through each stage; stages that hold the same are timed once."""
        single = self._blocks.setdefault(blocks.key, {})
        same: dict[object, Pass] = {}
        found = []
        for stage in positions:
            if stage.key not in same:
                same[stage.key] = self._stage_pass(blocks, single, stage, stage.counted())
            found.append(same[stage.key])
        return found

    def _stage_pass(
        self, blocks: TrainingBlocks, single: dict[int, Pass], stage: Stage, counted: tuple[tuple[Layer, int], ...]
    ) -> Pass:
        found, model = Pass(), self.model
        for layer, n in counted:
            for block in layer.blocks:
                if id(block) not in single:
                    single[id(block)] = blocks.block(block)
                found.merge(single[id(block)], n)
        if stage.head:
            found.merge(blocks.head(model.vocab_size), stage.n_heads)
        if stage.embedding:
            lookup = float(blocks.ops.elementwise_s(blocks.own_tokens * model.hidden_size * 2 * ACTIVATION_BYTES))
            found.add("elementwise", lookup, lookup)
        if blocks.work.offload_activations_frac > 0.0:
            self._offload(found, blocks, stage)
        if not blocks.work.cuda_graphs:
            _wait_for_launches(found, _launch_s(blocks, counted), trained=blocks.work.adapter is None)
        return found

    def _offload(self, found: Pass, blocks: TrainingBlocks, stage: Stage) -> None:
        """Saved activations travel to host memory and back, behind the computation as far as it lasts."""
        layout, work = blocks.layout, blocks.work
        sent = work.offload_activations_frac * kept_bytes(self.model, stage, layout, work)
        copy_s = float(blocks.ops.host_copy_s(sent))
        forward_s, backward_s = found.forward_s, found.total_s - found.forward_s
        exposed = max(0.0, copy_s - forward_s), max(0.0, copy_s - backward_s)
        found.add("offload", *exposed)
        found.hidden["offload"] = 2 * copy_s - sum(exposed)


def training_step(
    model: ModelArchitecture, hardware: Hardware, layout: TrainingLayout, work: TrainingWork, routing: RoutingAssumption
) -> TrainingStep:
    """Time of one optimizer step, see `TrainingCosts.step`."""
    return TrainingCosts(model, hardware, routing).step(layout, work)


def _ranked(passes: list[Pass], pp: int) -> list[Pass]:
    """One micro batch on each rank: all of its virtual stages."""
    if len(passes) == pp:
        return passes
    found = []
    for rank in range(pp):
        whole = Pass()
        for part in passes[rank::pp]:
            whole.merge(part)
        found.append(whole)
    return found


def _busiest(passes: list[Pass], layout: TrainingLayout) -> Pass:
    """One micro batch on the busiest rank: its stage, under DualPipe the mean of the two stages it shares."""
    if layout.schedule != "dualpipe":
        return max(_ranked(passes, layout.pp), key=lambda found: found.total_s)
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
        pipeline_time_s(layout.schedule, forward, inputs, weights, n_micro, pp=layout.pp, vpp=layout.vpp, send_s=send_s)
        for send_s in (float(blocks.ops.send_s(n_bytes, same_domain=same)), 0.0)
    )
    return {"bubble": max(0.0, together - busy_s), "pipeline_send": max(0.0, apart - max(together, busy_s))}


def _wait_for_launches(found: Pass, launch_s: float, *, trained: bool) -> None:
    """What a stage waits for its host, whose launches are spread evenly over the passes (weight gradients are one).

    The wait falls to the passes whose computation is shorter than their launches, so that a stage that only waits has
    the passes of its host, however fast its GPU.
    """
    sync_s = found.forward.get("host", 0.0)  # nothing is launched while the host waits; as much again backward
    busy_s = [found.forward_s - sync_s, found.input_gradient_s - sync_s, found.weight_gradient][: 3 if trained else 2]
    idle_s = max(0.0, launch_s - sum(busy_s))
    short_s = [max(0.0, launch_s / len(busy_s) - busy) for busy in busy_s]
    share = idle_s / sum(short_s) if idle_s else 0.0
    forward_s, *backward_s = (share * short for short in short_s)
    found.add("host", forward_s, sum(backward_s))
    found.weight_gradient += backward_s[-1] if trained else 0.0


def _launch_s(blocks: TrainingBlocks, counted: tuple[tuple[Layer, int], ...]) -> float:
    """Host time of one micro batch in a stage."""
    launched = sum(
        n * min(split(b.n_experts, blocks.layout.ep), MOST_LAUNCHED_EXPERTS)
        for layer, n in counted
        for b in layer.blocks
        if isinstance(b, MoeMlp)
    )
    return launch_time_s(sum(n for _, n in counted), launched, p=blocks.ops.parameters("training_host", "bf16"))
