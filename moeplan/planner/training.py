"""Plan of a training run: fit, one step, the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.costs.reliability import goodput_frac
from moeplan.planner.intervals import exact, from_log_error, operations_used, worst_tier
from moeplan.planner.routing import routing_result
from moeplan.provenance import Tier
from moeplan.simulate.routing_steps import training_step as routing_step
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import LatentAttention, ModelArchitecture
from moeplan.spec.plan import Q, RoutingResult, TrainingResult
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.scenario import Training
from moeplan.spec.uncertainty import ModelError
from moeplan.steps.memory import MemoryFit, training_memory
from moeplan.steps.training import TrainingStep, training_step
from moeplan.steps.training_layer import KERNELS
from moeplan.steps.use import Use, training_use


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """A training plan before money."""

    fit: MemoryFit
    result: TrainingResult | None  # None when it does not fit
    routing: RoutingResult | None
    time_breakdown: Mapping[str, float]
    tier: Tier
    use: Use | None = None  # of a GPU while it trains
    model_flop: float = 0.0  # of the run


def plan_training(
    model: ModelArchitecture,
    hardware: Hardware,
    training: Training,
    routing: RoutingAssumption,
    error: ModelError,
    *,
    require_fit: bool = True,
) -> TrainingOutcome:
    """One step from the operation costs, times the number of steps, over the share of time that is progress.

    ``require_fit`` false times the step also where the memory model says that it does not fit: for runs that happened.
    """
    tier = training_tier(model, hardware, training)
    fit = training_memory(model, hardware, training.layout, training.work)
    if require_fit and not fit.fits:
        return TrainingOutcome(fit, None, None, {}, tier)
    step = training_step(model, hardware, training.layout, training.work, routing)
    return TrainingOutcome(
        fit=fit,
        result=_result(step, training, from_log_error(step.step_time_s, error.of("training_step", tier))),
        routing=_routing(model, hardware, training, routing),
        time_breakdown=step.breakdown,
        tier=tier,
        use=training_use(step, model, hardware, training.layout, training.work),
        model_flop=step.model_flop / step.n_tokens * training.work.n_tokens,
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
    used = [("gemm", fmt), ("mla_prefill" if latent else "attention_prefill", "bf16")]
    return worst_tier(operations_used(hardware, KERNELS, used))


def _result(step: TrainingStep, training: Training, time_s: Q) -> TrainingResult:
    work, n_gpus = training.work, training.layout.n_gpus
    n_steps = math.ceil(work.n_tokens / step.n_tokens)
    per_s = time_s.inverse()
    goodput = goodput_frac(n_gpus, training.reliability)
    wall = time_s.scaled(n_steps / goodput) if goodput > 0.0 else Q(math.inf, math.inf, math.inf)
    flop_per_s = per_s.scaled(step.model_flop / n_gpus)
    tokens_per_s = per_s.scaled(step.n_tokens)
    return TrainingResult(
        step_time_s=time_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s.scaled(1.0 / n_gpus),
        tflop_per_s_per_gpu=flop_per_s.scaled(1e-12),
        mfu_frac=per_s.scaled(step.mfu_frac * step.step_time_s),
        wall_time_s=wall,
        gpu_hours=wall.scaled(n_gpus / 3600.0),
        goodput_frac=exact(goodput),
        n_steps=n_steps,
    )
