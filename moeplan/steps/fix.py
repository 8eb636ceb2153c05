"""The smallest change that makes a misfit fit, found by trying changes in the order of what they cost the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from moeplan.costs.model_state import OPTIMIZER_BYTES
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.model import DenseMlp, LatentAttention, LinearAttention, ModelArchitecture, MoeMlp, SoftmaxAttention
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.routing import BALANCED, RoutingAssumption
from moeplan.spec.scenario import Serving, Training
from moeplan.spec.workload import Engine, TrainingWork
from moeplan.steps.memory import MemoryFit, serving_memory
from moeplan.steps.training_memory import training_memory

LEAST_CONTEXT_FRAC = 0.25  # a shorter context than this is another product, not a fix
MOST_GPUS = 4096

# What a user gives up with each change, to order them: speed, a redistribution, the optimizer's exactness.
_TROUBLE = {
    "training.micro_batch": 1,
    "training.recompute": 2,
    "training.layout.zero": 2,
    "training.layout.ep": 3,
    "training.layout.tp": 3,
    "training.layout.pp": 3,
    "training.optimizer": 5,
}


@dataclass(frozen=True, slots=True)
class Fix:
    """Values to change, by scenario path, and the memory that results [bytes]."""

    changes: Mapping[str, float | int | str]
    need_bytes: float
    n_gpus: int
    text: str

    def __str__(self) -> str:
        return self.text


def smallest_serving_fix(
    model: ModelArchitecture, hardware: Hardware, serving: Serving, routing: RoutingAssumption = BALANCED
) -> Fix | None:
    """First change that fits, None when nothing tried does.

    In this order: iteration size, cache format, context; more GPUs; fewer bits; fewer bits on more GPUs.
    """
    layout = serving.layout
    for new_layout, new_precision, new_engine, context, changes in _serving_changes(
        model, hardware, layout, serving.precision, serving.engine, serving.max_context_tokens
    ):
        fit = serving_memory(
            model,
            hardware,
            new_layout,
            new_precision,
            new_engine,
            max_context_tokens=context,
            routing=routing,
        )
        if fit.fits:
            return _fix(changes, fit, new_layout.n_gpus, layout.n_gpus)
    return None


def smallest_training_fix(
    model: ModelArchitecture, hardware: Hardware, training: Training, routing: RoutingAssumption = BALANCED
) -> Fix | None:
    """First change that fits: one change on the same GPUs, then several, then the same on twice the GPUs, and so on."""
    layout, work = training.layout, training.work
    factor = 1
    while factor == 1 or layout.n_gpus * factor <= MOST_GPUS:
        wider = replace(layout, dp=layout.dp * factor)
        candidates = list(_training_changes(model, hardware, wider, work))
        for new_layout, new_work, changes in sorted(candidates, key=lambda item: _trouble(item[2])):
            fit = _training_fit(model, hardware, new_layout, new_work, routing)
            if fit is not None and fit.fits:
                if new_layout.dp != layout.dp:
                    changes = {"training.layout.dp": new_layout.dp, **changes}
                return _fix(changes, fit, new_layout.n_gpus, layout.n_gpus)
        factor *= 2
    return None


def _trouble(changes: Mapping[str, float | int | str]) -> tuple[int, int]:
    """Fewest changes first, then the least troublesome."""
    return len(changes), sum(_TROUBLE[path] for path in changes)


def _fix(changes: Mapping[str, float | int | str], fit: MemoryFit, n_gpus: int, n_gpus_before: int) -> Fix:
    listed = ", ".join(f"{path} = {value}" for path, value in changes.items())
    more = f" on {n_gpus} GPUs instead of {n_gpus_before}" if n_gpus != n_gpus_before else ""
    text = f"{listed}{more} ({fit.need_bytes / 1e9:.1f} GB per GPU)"
    return Fix(dict(changes), fit.need_bytes, n_gpus, text)


_Serving = tuple[ServingLayout, Precision, Engine, int, dict[str, float | int | str]]


def _serving_changes(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: ServingLayout,
    precision: Precision,
    engine: Engine,
    context: int,
) -> Iterator[_Serving]:
    for tokens in (4096, 2048, 1024):
        if tokens < engine.max_num_batched_tokens:
            smaller = replace(engine, max_num_batched_tokens=tokens)
            yield layout, precision, smaller, context, {"serving.engine.max_num_batched_tokens": tokens}
    if FORMATS[precision.kv_cache].bits > 8.0:
        yield layout, replace(precision, kv_cache="fp8"), engine, context, {"serving.precision.kv_cache": "fp8"}
    shorter = context // 2
    while shorter >= LEAST_CONTEXT_FRAC * context and shorter > 0:
        yield layout, precision, engine, shorter, {"serving.engine.max_model_len": shorter}
        shorter //= 2
    larger = list(_larger_serving_layouts(model, hardware, layout))
    for wide, changes in larger:
        yield wide, precision, engine, context, changes
    for narrow, bits in _narrower(precision, hardware):
        yield layout, narrow, engine, context, bits
    for (narrow, bits), (wide, changes) in product(_narrower(precision, hardware), larger):
        yield wide, narrow, engine, context, {**bits, **changes}


def _larger_serving_layouts(
    model: ModelArchitecture, hardware: Hardware, layout: ServingLayout
) -> Iterator[tuple[ServingLayout, dict[str, float | int | str]]]:
    """More tensor parallelism inside a domain and more stages where there is a link to them; fewest GPUs first."""
    most = hardware.n_gpus_scale_up if hardware.scale_out is None else MOST_GPUS
    found: list[tuple[ServingLayout, dict[str, float | int | str]]] = []
    for tp_factor, pp_factor in product(_powers(hardware.n_gpus_scale_up), _powers(model.n_layers)):
        tp, pp, ep = layout.tp * tp_factor, layout.pp * pp_factor, layout.ep * (tp_factor if layout.ep > 1 else 1)
        inside = layout.dp * tp <= hardware.n_gpus_scale_up and layout.dp * tp * pp <= most and pp <= model.n_layers
        whole = _tp_divides(model, tp) and all(b.n_experts % ep == 0 for b in model.moe_blocks)
        if tp_factor * pp_factor == 1 or not (inside and whole):
            continue
        changes: dict[str, float | int | str] = {}
        for name, new, old in (("tp", tp, layout.tp), ("pp", pp, layout.pp), ("ep", ep, layout.ep)):
            if new != old:
                changes[f"serving.layout.{name}"] = new
        found.append((replace(layout, tp=tp, pp=pp, ep=ep), changes))
    yield from sorted(found, key=lambda item: (item[0].n_gpus_per_replica, item[0].pp))


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return [1 << i for i in range(most.bit_length())]


def _narrower(precision: Precision, hardware: Hardware) -> Iterator[tuple[Precision, dict[str, float | int | str]]]:
    """Weights in 8, then 4 bits, in formats the device computes in or unpacks."""
    eight = "fp8" if hardware.device.flop_per_s("fp8") is not None else "int8_wo"
    for name in (eight, "int4"):
        fewer = {
            part: name
            for part in ("experts", "attention", "dense")
            if FORMATS[getattr(precision, part)].bits > FORMATS[name].bits
        }
        if fewer:
            yield replace(precision, **fewer), {f"serving.precision.{part}": name for part in fewer}


def _tp_divides(model: ModelArchitecture, tp: int) -> bool:
    """Whether heads and feed-forward widths split evenly, and key-value heads split or replicate evenly."""
    for layer, _ in model.unique_layers():
        for block in layer.blocks:
            if isinstance(block, SoftmaxAttention):
                ok = block.n_heads % tp == 0 and (block.n_kv_heads % tp == 0 or tp % block.n_kv_heads == 0)
            elif isinstance(block, LatentAttention):
                ok = block.n_heads % tp == 0
            elif isinstance(block, LinearAttention):
                ok = block.n_k_heads % tp == 0 and block.n_v_heads % tp == 0
            elif isinstance(block, DenseMlp):
                ok = block.intermediate_size % tp == 0
            elif isinstance(block, MoeMlp):
                ok = block.expert_intermediate_size % tp == 0
            else:
                ok = block.inner_size % tp == 0
            if not ok:
                return False
    return True


_Training = tuple[TrainingLayout, TrainingWork, dict[str, float | int | str]]


def _training_changes(
    model: ModelArchitecture, hardware: Hardware, layout: TrainingLayout, work: TrainingWork
) -> Iterator[_Training]:
    """Combinations on the same number of GPUs; each states what differs."""
    recomputes = ["none", "selective", "full"]
    for recompute, zero, micro, (shape, reshaped), optimizer in product(
        recomputes[recomputes.index(layout.recompute) :],
        [z for z in (0, 1, 2, 3) if z >= layout.zero_stage and (layout.pp == 1 or z < 2 or z == layout.zero_stage)],
        sorted({work.micro_batch_sequences, 1}, reverse=True),
        list(_shapes(model, hardware, layout)),
        sorted({work.optimizer, "adamw_8bit"}, key=lambda name: -OPTIMIZER_BYTES[name]),
    ):
        changes: dict[str, float | int | str] = {}
        if recompute != layout.recompute:
            changes["training.recompute"] = recompute
        if zero != layout.zero_stage:
            changes["training.layout.zero"] = zero
        if micro != work.micro_batch_sequences:
            changes["training.micro_batch"] = micro
        changes.update(reshaped)
        if optimizer != work.optimizer:
            changes["training.optimizer"] = optimizer
        new_layout = replace(shape, recompute=recompute, zero_stage=zero)  # type: ignore[arg-type]
        yield new_layout, replace(work, micro_batch_sequences=micro, optimizer=optimizer), changes


def _shapes(
    model: ModelArchitecture, hardware: Hardware, layout: TrainingLayout
) -> Iterator[tuple[TrainingLayout, dict[str, float | int | str]]]:
    """Layouts of as many GPUs with more of one of ep, tp, pp."""
    yield layout, {}
    ep = layout.ep * 2
    while model.is_moe and layout.edp % (ep // layout.ep) == 0 and all(b.n_experts % ep == 0 for b in model.moe_blocks):
        yield replace(layout, ep=ep), {"training.layout.ep": ep}
        ep *= 2
    factor = 2
    while layout.dp % factor == 0:
        tp, pp, dp = layout.tp * factor, layout.pp * factor, layout.dp // factor
        if tp * layout.cp <= hardware.n_gpus_scale_up and _tp_divides(model, tp):
            yield replace(layout, tp=tp, dp=dp), {"training.layout.tp": tp}
        if pp <= model.n_layers and (layout.tp * layout.cp * dp) % (layout.ep * layout.etp) == 0:
            yield replace(layout, pp=pp, dp=dp), {"training.layout.pp": pp}
        factor *= 2


def _training_fit(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: TrainingLayout,
    work: TrainingWork,
    routing: RoutingAssumption,
) -> MemoryFit | None:
    """None where the batch does not divide into this layout."""
    if work.global_batch_sequences % (layout.dp * work.micro_batch_sequences):
        return None
    return training_memory(model, hardware, layout, work, routing)
