"""The kinds of step a scenario routes: decode and prefill in service, a micro-batch in training."""

from __future__ import annotations

from moeplan.costs.roofline import activation_bytes_per_value
from moeplan.simulate.routing import RoutingStep
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import FORMATS
from moeplan.spec.scenario import Scenario, Serving, Training
from moeplan.steps.operations import ACTIVATION_BYTES


def serving_step(
    model: ModelArchitecture, hardware: Hardware, serving: Serving, name: str, n_tokens: float
) -> RoutingStep:
    """A step in which every attention data-parallel rank brings ``n_tokens`` tokens; they meet in the experts."""
    layout = serving.layout
    return RoutingStep(
        name=name,
        in_runs=name != "decode",
        blocks=model.moe_blocks,
        tokens_per_gpu=max(1, round(n_tokens * layout.dp / layout.ep)),
        n_ranks=layout.ep,
        n_nodes=_nodes(layout.ep, hardware),
        dispatch_bytes_per_value=activation_bytes_per_value(FORMATS[serving.precision.experts], hardware.device),
        combine_bytes_per_value=ACTIVATION_BYTES,
    )


def training_step(model: ModelArchitecture, hardware: Hardware, training: Training) -> RoutingStep:
    """One micro-batch on one expert-parallel group, forward."""
    layout, work = training.layout, training.work
    own = work.micro_batch_sequences * work.sequence_tokens * layout.etp // (layout.tp * layout.cp)
    narrow = FORMATS[work.compute_format].bits < 16.0
    return RoutingStep(
        name="training micro-batch",
        blocks=model.moe_blocks,
        tokens_per_gpu=max(1, own),
        n_ranks=layout.ep,
        n_nodes=_nodes(layout.ep, hardware),
        dispatch_bytes_per_value=1.0 if narrow else ACTIVATION_BYTES,
        combine_bytes_per_value=ACTIVATION_BYTES,
    )


def decode_batch(serving: Serving) -> int:
    """Sequences one data-parallel rank decodes when full: the engine's limit, or the users there are."""
    users = serving.traffic.arrivals.n_users
    most = serving.engine.max_num_seqs
    return most if users is None else max(1, min(most, users // (serving.layout.replicas * serving.layout.dp)))


def scenario_steps(scenario: Scenario, batch: int | None = None) -> tuple[RoutingStep, ...]:
    """Every kind of step of a scenario; ``batch``: decoding sequences of a rank (default: ``decode_batch``)."""
    found = []
    if scenario.serving is not None:
        s = scenario.serving
        found.append(serving_step(scenario.model, scenario.hardware, s, "decode", batch or decode_batch(s)))
        found.append(
            serving_step(scenario.model, scenario.hardware, s, "prefill", float(s.engine.max_num_batched_tokens))
        )
    if scenario.training is not None:
        hardware = scenario.training_hardware or scenario.hardware
        found.append(training_step(scenario.model, hardware, scenario.training))
    return tuple(found)


def _nodes(ep: int, hardware: Hardware) -> int:
    """Scale-up domains that ``ep`` GPUs fill; 1 where they do not fill a whole number."""
    reach = hardware.n_gpus_scale_up
    return ep // reach if ep > reach and ep % reach == 0 else 1
