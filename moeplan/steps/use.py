"""How much of a GPU's bandwidth and arithmetic a step uses while it runs: what its power depends on.

Equations: docs/method/energy.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import FORMATS
from moeplan.spec.workload import TrainingWork
from moeplan.steps.memory import MemoryFit
from moeplan.steps.power import Arithmetic, Traffic
from moeplan.steps.serving import Iteration, ServingStep
from moeplan.steps.stages import rank_stages, training_stages
from moeplan.steps.training import TrainingStep
from moeplan.steps.training_memory import held_params, trained_params

# forward, gradient of the inputs, gradient of the weights: each reads the weights of the stage once a micro batch
_WEIGHT_PASSES = 3.0


@dataclass(frozen=True, slots=True)
class Use:
    """Shares of datasheet bandwidth and dense peak that one GPU sustains while a step runs."""

    memory_frac: float
    compute_frac: float


def serving_use(step: ServingStep, fit: MemoryFit, iteration: Iteration, iteration_s: float) -> Use:
    """Products and bytes of the iteration's composition (`steps.power`), and the KV cache read by decoding.

    ``iteration_s`` is the time of the whole pipeline: a GPU's own stage takes its share of both.
    """
    arithmetic_s, memory_s = (float(part) for part in step.used_s(np.asarray(iteration.n_tokens, np.float64)))
    rows = np.asarray(iteration.decode_batch + len(iteration.prompts))
    arithmetic_s += float(replace(step, operations=Arithmetic).head_s(rows))
    memory_s += float(replace(step, operations=Traffic).head_s(rows))
    cache_bytes = iteration.decode_batch * iteration.decode_context_tokens * (fit.kv_bytes_per_token or 0.0)
    memory_s += cache_bytes * step.layout.pp / step.hardware.device.memory_bytes_per_s
    return Use(_share(memory_s / iteration_s), _share(arithmetic_s / iteration_s))


def training_use(
    step: TrainingStep, model: ModelArchitecture, hardware: Hardware, layout: TrainingLayout, work: TrainingWork
) -> Use:
    """Arithmetic with what is recomputed; bytes of weights and gradients on the fullest rank.

    Activations are left out: a lower bound of the bandwidth.
    """
    ranks = rank_stages(training_stages(model, layout, work), layout)
    held, stage = max(((held_params(model, rank, layout), rank) for rank in ranks), key=lambda pair: pair[0].total)
    trained = trained_params(model, stage.layers, held, layout, work)
    weight_bytes = FORMATS[work.compute_format].bytes_per_value
    moved_bytes = step.n_micro_batches * (
        _WEIGHT_PASSES * held.total * weight_bytes + 2.0 * trained.total * work.gradient_bytes_per_param
    )
    return Use(_share(moved_bytes / step.step_time_s / hardware.device.memory_bytes_per_s), _share(step.hfu_frac))


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
