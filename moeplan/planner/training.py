"""Plan of a training run: fit, one step, the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moeplan.planner.intervals import from_log_error, operations_used, worst_tier
from moeplan.planner.money.rollout import generate, with_rollout
from moeplan.planner.routing import routing_result
from moeplan.planner.training_run import plan_run
from moeplan.provenance import Tier
from moeplan.simulate.routing_steps import training_step as routing_step
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import LatentAttention, ModelArchitecture
from moeplan.spec.plan import PhaseResult, Q, RoutingResult, TrainingResult, TrainingRun
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.scenario import Training
from moeplan.spec.uncertainty import ANY, ModelError, situation
from moeplan.spec.workload import TrainingWork
from moeplan.steps.memory import MemoryFit
from moeplan.steps.training import TrainingCosts, TrainingStep
from moeplan.steps.training_layer import KERNELS
from moeplan.steps.training_memory import training_memory
from moeplan.steps.use import Use, training_use


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """A training plan before money."""

    fit: MemoryFit
    result: TrainingResult | None  # None when it does not fit
    routing: RoutingResult | None
    time_breakdown: Mapping[str, float]
    tier: Tier
    wall_samples_s: np.ndarray  # equally likely wall times of the run, sorted; empty when it does not fit
    use: Use | None = None  # of a GPU while it trains
    model_flop: float = 0.0  # of the run


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """One optimizer step with its intervals."""

    fit: MemoryFit
    step: TrainingStep
    time_s: Q
    peak_bytes: Q
    tier: Tier

    @property
    def tokens_per_s_per_gpu(self) -> Q:
        return self.time_s.inverse().scaled(self.step.n_tokens / self.step.n_gpus)

    @property
    def mfu_frac(self) -> Q:
        return self.time_s.inverse().scaled(self.step.mfu_frac * self.step.step_time_s)


def predict_step(
    model: ModelArchitecture,
    hardware: Hardware,
    training: Training,
    routing: RoutingAssumption,
    error: ModelError,
) -> StepPrediction:
    """Memory and time of one step, also where the memory model says that it does not fit: for runs that happened."""
    costs, tier = TrainingCosts(model, hardware, routing), training_tier(model, hardware, training)
    error = error.where(situation_of(training.work))
    fit = costs.memory(training.layout, training.work)
    step = costs.step(training.layout, training.work)
    return StepPrediction(
        fit=fit,
        step=step,
        time_s=from_log_error(step.step_time_s, error.of("training_step", tier)),
        peak_bytes=from_log_error(fit.per_gpu_bytes, error.of("training_memory", tier)),
        tier=tier,
    )


def situation_of(work: TrainingWork) -> str:
    """The class of predictions this one belongs to: fine-tuning runs small batches in less tuned frameworks."""
    return situation("pretrain" if work.method == "pretrain" else "tune", ANY)


def plan_training(
    model: ModelArchitecture,
    hardware: Hardware,
    training: Training,
    routing: RoutingAssumption,
    error: ModelError,
    *,
    deadline_s: float | None = None,
    seed: int = 0,
    brief: bool = False,
) -> TrainingOutcome:
    """One step from the operation costs, and the run of all steps with its failures.

    ``brief``: no sample of the routing, as a search does without.
    """
    error = error.where(situation_of(training.work))
    fit, generation = _fullest(model, hardware, training, routing), None
    if fit.fits and training.rollout is not None:
        generation = generate(model, hardware, training.rollout, routing, seed)
        fit = fit if generation.fit.fits else generation.fit
    if not fit.fits:
        return TrainingOutcome(fit, None, None, {}, training_tier(model, hardware, training), np.empty(0))
    found = [
        predict_step(model, hardware, replace(training, layout=layout, work=work), routing, error)
        for layout, work in training.phases
    ]
    if training.rollout is not None and generation is not None:
        changed = with_rollout(found[0].step, training.rollout, generation, model, hardware, training.work)
        time_s = from_log_error(changed.step_time_s, error.of("training_step", found[0].tier))
        found[0] = replace(found[0], step=changed, time_s=time_s)
    phases = tuple(_phase(one, work) for one, (_, work) in zip(found, training.phases, strict=True))
    first, work_s = found[0], sum(phase.work_s.value for phase in phases)
    log_error = error.of("training_step", first.tier)
    run, walls = plan_run(work_s, training.n_gpus, hardware, training.reliability, log_error, deadline_s, seed)
    return TrainingOutcome(
        fit=fit,
        result=_result(first, phases, run),
        routing=None if brief else _routing(model, hardware, training, routing),
        time_breakdown=first.step.breakdown,
        tier=first.tier,
        wall_samples_s=walls,
        use=training_use(first.step, model, hardware, training.layout, training.work),
        model_flop=sum(
            one.step.model_flop / one.step.n_tokens * work.n_tokens
            for one, (_, work) in zip(found, training.phases, strict=True)
        ),
    )


def _fullest(model: ModelArchitecture, hardware: Hardware, training: Training, routing: RoutingAssumption) -> MemoryFit:
    """Memory of the phase that needs most."""
    fits = [training_memory(model, hardware, layout, work, routing) for layout, work in training.phases]
    return max(fits, key=lambda fit: fit.need_bytes)


def _phase(found: StepPrediction, work: TrainingWork) -> PhaseResult:
    n_steps = math.ceil(work.n_tokens / found.step.n_tokens)
    return PhaseResult(
        n_tokens=work.n_tokens,
        sequence_tokens=work.sequence_tokens,
        global_batch_sequences=work.global_batch_sequences,
        n_steps=n_steps,
        step_time_s=found.time_s,
        tokens_per_s_per_gpu=found.tokens_per_s_per_gpu,
        mfu_frac=found.mfu_frac,
        work_s=found.time_s.scaled(n_steps),
    )


def _routing(
    model: ModelArchitecture, hardware: Hardware, training: Training, routing: RoutingAssumption
) -> RoutingResult | None:
    """Routing of one micro-batch."""
    if not model.is_moe:
        return None
    step = routing_step(model, hardware, training)
    return routing_result(step, routing, exchanges=training.layout.ep > 1, decoding=False)


def training_tier(model: ModelArchitecture, hardware: Hardware, training: Training) -> Tier:
    """The worst tier among the operations that fill a step. Training frameworks share no engine's kernels exactly."""
    fmt = training.work.compute_format
    latent = any(isinstance(b, LatentAttention) for layer in model.layers for b in layer.blocks)
    used = [("gemm", fmt), ("mla_prefill" if latent else "attention_prefill", "bf16"), ("training_device", "bf16")]
    if model.is_moe and not training.work.cuda_graphs:
        used.append(("training_host", "bf16"))
    return worst_tier(operations_used(hardware, KERNELS, used))


def _result(found: StepPrediction, phases: tuple[PhaseResult, ...], run: TrainingRun) -> TrainingResult:
    step, per_s = found.step, found.time_s.inverse()
    expected_s = sum(phase.work_s.value for phase in phases) / run.goodput_frac.value
    low_s, high_s = run.wall_time_s["p5"], run.wall_time_s["p95"]
    wall = Q(expected_s, min(low_s, expected_s), max(high_s, expected_s))
    return TrainingResult(
        step_time_s=found.time_s,
        tokens_per_s=per_s.scaled(step.n_tokens),
        tokens_per_s_per_gpu=found.tokens_per_s_per_gpu,
        tflop_per_s_per_gpu=per_s.scaled(step.model_flop / step.n_gpus * 1e-12),
        mfu_frac=found.mfu_frac,
        wall_time_s=wall,
        gpu_hours=wall.scaled(run.n_gpus_held / 3600.0),
        goodput_frac=run.goodput_frac,
        n_steps=sum(phase.n_steps for phase in phases),
        peak_memory_bytes=found.peak_bytes,
        hidden_s={part: seconds for part, seconds in step.hidden.items() if seconds > 0.0},
        hfu_frac=per_s.scaled(step.hfu_frac * step.step_time_s),
        phases=phases,
        run=run,
    )
