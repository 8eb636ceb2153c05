"""What a report draws beside the plan: operations on the roofline, loads of experts, how well operations are known.

Nothing here enters a plan. Equations: docs/method/energy.md (arithmetic and traffic of a step), routing.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moeplan.costs import routing as expert_routing
from moeplan.costs.parameters import lookup
from moeplan.costs.roofline import peak_flop_per_s
from moeplan.files.catalog.fitted import newest, read_document
from moeplan.files.locate import data_folder
from moeplan.simulate.deployment import Deployment
from moeplan.simulate.routing import sample_counts
from moeplan.simulate.routing_steps import scenario_steps
from moeplan.spec.hardware import OpParameters
from moeplan.spec.plan import Plan
from moeplan.spec.precision import FORMATS
from moeplan.spec.scenario import Scenario, Serving
from moeplan.steps.compiled import step_parts_s
from moeplan.steps.power import prefill_attention_arithmetic_s
from moeplan.steps.serving import Iteration, ServingStep
from moeplan.steps.training_layer import KERNELS

_MAP_LAYERS, _MAP_EXPERTS = 64, 256  # rows and columns a reader can tell apart


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """One part of a step: what it computes and moves, all layers, and how fast."""

    part: str
    phase: str
    fmt: str
    flop_per_byte: float
    flop_per_s: float
    share_frac: float  # of the step's time


@dataclass(frozen=True, slots=True)
class Roof:
    """A ceiling of the device for one number format."""

    fmt: str
    peak_flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ExpertLoads:
    """Token-expert pairs over the mean expert, one step of each layer. ``loads`` shape (n_layers, n_columns).

    A column is a run of ``experts_per_column`` neighbouring experts.
    """

    step: str
    n_tokens: int
    layers: tuple[int, ...]
    experts_per_column: int
    loads: tuple[tuple[float, ...], ...]
    assumption: str


@dataclass(frozen=True, slots=True)
class OperationAccuracy:
    """How far predictions of one operation were from kernels measured on the device and kept out of its fit."""

    op: str
    engine: str
    dtype: str
    tier: str
    source: str
    used: bool  # by this plan
    residual_low: float  # 5 %, 50 % and 95 % quantile of ln(measured / predicted), outside the fit
    residual_mid: float
    residual_high: float
    n_held_out: int | None  # None where nothing was measured here
    mdape_frac: float | None
    bias_frac: float | None
    coverage_frac: float | None


@dataclass(frozen=True, slots=True)
class Exhibits:
    roofs: tuple[Roof, ...]
    roofline: tuple[RooflinePoint, ...]
    expert_loads: ExpertLoads | None
    operations: tuple[OperationAccuracy, ...]


def exhibits(scenario: Scenario, plan: Plan) -> Exhibits:
    """Everything a report shows of ``scenario`` that its plan does not hold."""
    points = tuple(_roofline(scenario, plan))
    device = scenario.hardware.device
    formats = dict.fromkeys(point.fmt for point in points)
    return Exhibits(
        roofs=tuple(Roof(f, peak_flop_per_s(FORMATS[f], device), device.memory_bytes_per_s) for f in formats),
        roofline=points,
        expert_loads=_expert_loads(scenario, plan),
        operations=operation_accuracy(scenario),
    )


def mean_iteration(plan: Plan, serving: Serving) -> Iteration | None:
    """The decode step of the plan: sequences by Little's law from tokens/s and the time of a token, their context."""
    result, traffic = plan.serving, plan.provenance.get("traffic")
    if result is None or result.tpot_s is None or not isinstance(traffic, Mapping):
        return None
    running = result.output_tokens_per_s.value * result.tpot_s.mean.value
    context = traffic["input_tokens"] + traffic["output_tokens"] / 2.0
    return Iteration(max(1.0, running / (serving.layout.replicas * serving.layout.dp)), context)


def _roofline(scenario: Scenario, plan: Plan) -> Iterator[RooflinePoint]:
    serving = scenario.serving
    decode = None if serving is None else mean_iteration(plan, serving)
    if serving is None or decode is None:
        return
    deployment = Deployment(scenario.model, scenario.hardware, serving, scenario.routing, scenario.seed)
    prompt = float(plan.provenance["traffic"]["input_tokens"])
    prefill = Iteration(prompts=((max(1.0, min(prompt, float(serving.engine.max_num_batched_tokens))), 0.0),))
    for phase, iteration in (("decode", decode), ("prefill", prefill)):
        yield from _phase(deployment.step, serving, phase, iteration, deployment.fit().kv_bytes_per_token or 0.0)


def _phase(
    step: ServingStep, serving: Serving, phase: str, iteration: Iteration, kv_bytes_per_token: float
) -> Iterator[RooflinePoint]:
    device, n = step.hardware.device, np.array([iteration.n_tokens])
    at_peak, at_bandwidth = ({name: float(t[0]) for name, t in parts.items()} for parts in step.used_parts_s(n))
    taken = step_parts_s(step, iteration)
    total = sum(taken.values())
    at_peak["attention"] = _attention_arithmetic_s(step, serving, iteration)
    context = iteration.decode_batch * iteration.decode_context_tokens
    cached = context + sum(new + old for new, old in iteration.prompts)
    at_bandwidth["attention"] = cached * kv_bytes_per_token * step.layout.pp / device.memory_bytes_per_s
    precision = serving.precision
    formats = {"experts": precision.experts, "attention": precision.kv_cache}
    for part, compute_s in at_peak.items():
        moved_s, time_s = at_bandwidth.get(part, 0.0), taken.get(part, 0.0)
        if compute_s <= 0.0 or moved_s <= 0.0 or time_s <= 0.0:
            continue
        fmt = formats.get(part, precision.attention)
        peak = peak_flop_per_s(FORMATS[fmt], device)
        flop, moved_bytes = compute_s * peak, moved_s * device.memory_bytes_per_s
        yield RooflinePoint(part, phase, fmt, flop / moved_bytes, flop / time_s, time_s / total)


def _attention_arithmetic_s(step: ServingStep, serving: Serving, iteration: Iteration) -> float:
    rows = [(iteration.decode_batch, 1.0, iteration.decode_context_tokens)] if iteration.decode_batch else []
    rows += [(1.0, new, cached) for new, cached in iteration.prompts]
    found = 0.0
    for block, count in step.mixers():
        for batch, query, cached in rows:
            found += count * float(
                prefill_attention_arithmetic_s(
                    block, batch, query, cached, tp=step.layout.tp, kv=serving.precision.kv_cache, ops=step.ops
                )
            )
    return found


def _expert_loads(scenario: Scenario, plan: Plan) -> ExpertLoads | None:
    if not scenario.model.is_moe:
        return None
    iteration = None if scenario.serving is None else mean_iteration(plan, scenario.serving)
    step = scenario_steps(scenario, None if iteration is None else max(1, round(iteration.decode_batch)))[0]
    law = scenario.training_routing if scenario.serving is None else scenario.routing
    law = law if step.in_runs else law.one_by_one()
    blocks = step.blocks
    layers = tuple(int(i) for i in np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), _MAP_LAYERS)).round()))
    per_column = -(-blocks[0].n_experts // _MAP_EXPERTS)
    rows = []
    for layer in layers:
        block = blocks[layer]
        choices = expert_routing.layer_choices(block, law, layer)
        rng, topics = (np.random.default_rng((9, law.seed, part)) for part in (layer, -layer % 2**32))
        burst = law.correlation.burst_tokens
        counts = sample_counts(step.n_tokens, choices.selected, burst, rng, topics).astype(float)
        columns = np.add.reduceat(counts, np.arange(0, counts.size, per_column))
        widths = np.diff([*range(0, counts.size, per_column), counts.size])
        rows.append(tuple((columns / widths / max(counts.mean(), 1e-12)).tolist()))
    return ExpertLoads(step.name, step.n_tokens, layers, per_column, tuple(rows), law.note)


def operation_accuracy(scenario: Scenario) -> tuple[OperationAccuracy, ...]:
    """What the plan's operations rest on, then the device's other fits."""
    used = {(p.op, p.engine, p.dtype): p for p in parameters_used(scenario)}
    held_out: dict[tuple[str, str, str], Mapping[str, float]] = {}
    hardware = scenario.hardware if scenario.training is None else scenario.training_hardware or scenario.hardware
    file = newest(data_folder("hardware_profiles") / hardware.device.slug)
    if file is not None:
        for fit in read_document(file)["fits"]:
            held_out[fit["op"], fit["engine"], fit["dtype"]] = fit.get("heldout", {})
    known = hardware.efficiency.parameters
    others = [known[key] for key in sorted(held_out) if key in known and key not in used]
    return tuple(
        _accuracy(p, held_out.get((p.op, p.engine, p.dtype), {}), used=i < len(used))
        for i, p in enumerate([*used.values(), *others])
    )


def parameters_used(scenario: Scenario) -> tuple[OpParameters, ...]:
    """Parameters of the operations that fill a step of the plan."""
    if scenario.serving is not None:
        s = scenario.serving
        operations = Deployment(scenario.model, scenario.hardware, s, scenario.routing, scenario.seed).operations()
        found = [lookup(scenario.hardware, op, s.engine.name, fmt) for op, fmt in operations]
    elif scenario.training is not None:
        hardware = scenario.training_hardware or scenario.hardware
        fmt = scenario.training.work.compute_format
        latent = any(type(b).__name__ == "LatentAttention" for layer in scenario.model.layers for b in layer.blocks)
        pairs = [("gemm", fmt), ("mla_prefill" if latent else "attention_prefill", "bf16")]
        if scenario.model.is_moe:
            pairs.append(("moe", fmt))
        found = [lookup(hardware, op, KERNELS, fmt) for op, fmt in pairs]
    else:
        found = []
    return tuple({(p.op, p.engine, p.dtype): p for p in found}.values())


def _accuracy(p: OpParameters, held_out: Mapping[str, float], *, used: bool) -> OperationAccuracy:
    here = bool(held_out) and p.tier.value == "fitted"
    return OperationAccuracy(
        op=p.op,
        engine=p.engine,
        dtype=p.dtype,
        tier=p.tier.value,
        source=p.source,
        used=used,
        residual_low=p.log_residual[0],
        residual_mid=p.log_residual[1],
        residual_high=p.log_residual[2],
        n_held_out=int(held_out["n"]) if here else None,
        mdape_frac=held_out["mdape"] if here else None,
        bias_frac=held_out["bias"] if here else None,
        coverage_frac=held_out["coverage"] if here else None,
    )
