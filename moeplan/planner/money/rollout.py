"""A step of reinforcement learning: sequences from the serving model, log probabilities, then the update.

Equations: docs/method/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moeplan.simulate.deployment import Deployment
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.scenario import Rollout
from moeplan.spec.workload import TrainingWork
from moeplan.steps.memory import MemoryFit
from moeplan.steps.operations import ACTIVATION_BYTES, Operations
from moeplan.steps.training import TrainingStep
from moeplan.steps.training_layer import KERNELS


@dataclass(frozen=True, slots=True)
class Generation:
    """The sequences of one step."""

    fit: MemoryFit
    time_s: float  # until the last answer ends; 0 where it does not fit
    generated_tokens: int


def generate(
    model: ModelArchitecture, hardware: Hardware, rollout: Rollout, routing: RoutingAssumption, seed: int
) -> Generation:
    """All prompts at once through the serving simulation."""
    deployment = Deployment(model, hardware, rollout.serving, routing, seed)
    fit = deployment.fit()
    if not fit.fits:
        return Generation(fit, 0.0, 0)
    log = deployment.run(deployment.table(), fit)
    return Generation(fit, float(np.nanmax(log.finish_s)), int(log.output_tokens[log.completed].sum()))


def with_rollout(
    step: TrainingStep,
    rollout: Rollout,
    generation: Generation,
    model: ModelArchitecture,
    hardware: Hardware,
    work: TrainingWork,
) -> TrainingStep:
    """An optimizer step with its share of generation, log probabilities and the transfer of new weights.

    Log probabilities of the policy before the update, and of a reference model, are forward passes over the same
    sequences. New weights are gathered to the engine once a step of reinforcement learning. On GPUs of its own the
    engine works one step ahead, and only what it takes longer than the update is waited for.
    """
    n_updates = rollout.n_sequences / work.global_batch_sequences
    forwards_s = (2 if rollout.reference else 1) * step.forward_s
    ops = Operations(hardware, KERNELS)
    layout = rollout.serving.layout
    held_bytes = model.n_params_total * ACTIVATION_BYTES / (layout.tp * layout.pp * layout.dp)
    sync_s = float(ops.all_gather_s(held_bytes, max(2, step.n_gpus))) / n_updates
    learning_s = step.step_time_s + forwards_s
    generation_s = generation.time_s / n_updates
    waited_s = generation_s if rollout.colocated else max(0.0, generation_s - learning_s)
    parts: Mapping[str, float] = {"rollout": waited_s, "log_probabilities": forwards_s, "weight_transfer": sync_s}
    return replace(
        step,
        step_time_s=learning_s + waited_s + sync_s,
        breakdown={**step.breakdown, **parts},
        hidden={**step.hidden, "rollout": generation_s - waited_s},
        n_gpus=step.n_gpus + rollout.n_own_gpus,
    )
