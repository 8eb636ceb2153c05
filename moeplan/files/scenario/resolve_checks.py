"""Whether a layout suits the model and the machines there are. Every rule reports at the value that breaks it."""

from __future__ import annotations

from math import gcd
from pathlib import Path

from moeplan.errors import Problem
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_walk import Loc
from moeplan.files.yaml_tree import Mark, Node
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.model import (
    Block,
    DenseMlp,
    LatentAttention,
    LinearAttention,
    ModelArchitecture,
    MoeMlp,
    SoftmaxAttention,
    StateSpace,
)
from moeplan.spec.scenario import Serving, Training
from moeplan.spec.workload import TrainingWork
from moeplan.steps.stages import placement_problem


def check_serving_layout(
    rs: Resolving, loc: Loc, layout: ServingLayout, model: ModelArchitecture, hardware: Hardware, gpus: int | None
) -> None:
    """Divisibility and GPU count of one serving deployment."""
    _check_tp(rs, (*loc, "tp"), layout.tp, model)
    _check_stages(rs, (*loc, "pp"), layout.pp, model)
    _check_ep(rs, (*loc, "ep"), layout.ep, layout.tp * layout.dp, "tp x dp", model)
    if model.is_moe and (layout.tp * layout.dp) % layout.ep == 0:
        _check_expert_tp(rs, (*loc, "tp"), layout.expert_tp, model)
    _check_gpus(rs, loc, layout.n_gpus, layout.n_gpus_per_replica, hardware, gpus)


def serving_layout_problems(
    layout: ServingLayout, model: ModelArchitecture, hardware: Hardware, gpus: int | None = None
) -> tuple[Problem, ...]:
    """What `check_serving_layout` finds, for a layout that no file states."""
    rs = _nowhere()
    check_serving_layout(rs, ("serving", "layout"), layout, model, hardware, gpus)
    return tuple(rs.problems)


def training_problems(
    training: Training, model: ModelArchitecture, hardware: Hardware, gpus: int | None = None
) -> tuple[Problem, ...]:
    """What `check_training` finds, for a training run that no file states."""
    rs = _nowhere()
    check_training(rs, training, model, hardware, gpus)
    return tuple(rs.problems)


def _nowhere() -> Resolving:
    return Resolving(Node({}, Mark("", None, None)), Path())


def check_fleet(
    rs: Resolving, serving: Serving, model: ModelArchitecture, hardware: Hardware, gpus: int | None
) -> None:
    """Layout of the prefill pool, and the GPUs of both pools and of the most replicas together."""
    n_gpus = serving.fleet.most_replicas(serving.layout) * serving.layout.n_gpus_per_replica
    prefill = serving.prefill
    if prefill is not None:
        loc: Loc = ("serving", "prefill")
        check_serving_layout(rs, loc, prefill.layout, model, hardware, None)
        n_gpus += prefill.layout.n_gpus
        reach = max(hardware.n_gpus_scale_up, hardware.n_gpus_per_node)
        if hardware.scale_out is None and n_gpus > reach:
            what = f"both pools have {n_gpus} GPUs, but {hardware.slug} connects {reach} and has no network"
            rs.problem(loc, what, allowed=f"at most {reach}", hint="take hardware with a scale-out link")
        if serving.fleet.changes:
            rs.problem(
                ("serving", "fleet"), "with a prefill pool the number of replicas stays", hint="see docs/limits.md"
            )
    if gpus is not None and gpus < n_gpus and serving.layout.n_gpus <= gpus:
        what = f"prefill pool and most replicas need {n_gpus} GPUs"
        rs.problem(("serving",), what, allowed=f"at most gpus = {gpus}", hint="raise gpus")


def check_training(
    rs: Resolving, training: Training, model: ModelArchitecture, hardware: Hardware, gpus: int | None
) -> None:
    """Divisibility of layout, batch and sequence, and the GPU count, of a training run."""
    for i, (layout, work) in enumerate(training.phases):
        at: Loc = ("training",) if i == 0 else ("training", "phases", i - 1)
        _check_phase(rs, at, layout, work, model)
    own = 0 if training.rollout is None else training.rollout.n_own_gpus
    _check_gpus(rs, ("training", "layout"), training.layout.n_gpus + own, training.layout.n_gpus, hardware, gpus)


def _check_phase(rs: Resolving, at: Loc, layout: TrainingLayout, work: TrainingWork, model: ModelArchitecture) -> None:
    loc: Loc = (*at, "layout")
    _check_tp(rs, (*loc, "tp"), layout.tp, model)
    if layout.stages:
        _check_placement(rs, (*loc, "stages"), layout, work, model)
    else:
        _check_stages(rs, (*loc, "pp"), layout.pp * layout.vpp, model)
    if layout.vpp > 1 and layout.pp == 1:
        rs.problem((*loc, "vpp"), "virtual stages need a pipeline", layout.vpp, "1, or pp above 1")
    group = layout.tp * layout.cp * layout.dp
    _check_ep(rs, (*loc, "ep"), layout.ep * layout.etp, group, "tp x cp x dp (ep x etp must)", model, layout.ep)
    if model.is_moe:
        _check_expert_tp(rs, (*loc, "etp"), layout.etp, model)
    per_step = layout.dp * work.micro_batch_sequences
    if work.global_batch_sequences % per_step:
        what = f"not a multiple of dp x micro_batch = {per_step}"
        rs.problem(
            (*at, "global_batch"),
            what,
            work.global_batch_sequences,
            _multiples(per_step, work.global_batch_sequences),
        )
    elif layout.vpp > 1 and (work.global_batch_sequences // per_step) % layout.pp:
        what = f"the interleaved schedule needs micro-batches per step to be a multiple of pp = {layout.pp}"
        rs.problem((*loc, "vpp"), what, work.global_batch_sequences // per_step)
    slices = 2 * layout.cp if layout.cp > 1 else 1
    if work.sequence_tokens % slices:
        what = f"context parallelism cuts a sequence into 2 x cp = {slices} parts"
        rs.problem((*at, "sequence_length"), what, work.sequence_tokens, _multiples(slices, work.sequence_tokens))
    if layout.sequence_parallel and work.sequence_tokens % (layout.tp * layout.cp):
        what = f"sequence parallelism cuts a sequence into tp x cp = {layout.tp * layout.cp} parts"
        rs.problem((*at, "sequence_length"), what, work.sequence_tokens)
    if work.sequence_tokens > model.max_context_tokens:
        what = f"longer than {model.name} was made for"
        rs.problem((*at, "sequence_length"), what, work.sequence_tokens, f"at most {model.max_context_tokens}")
    if work.n_tokens < work.sequence_tokens * work.global_batch_sequences:
        what = "fewer tokens than one optimizer step"
        least = work.sequence_tokens * work.global_batch_sequences
        rs.problem((*at, "tokens"), what, f"{work.n_tokens:g}", f"at least {least} (sequence_length x global_batch)")


def _check_placement(
    rs: Resolving, loc: Loc, layout: TrainingLayout, work: TrainingWork, model: ModelArchitecture
) -> None:
    """The stages placed by hand hold the model exactly once."""
    problem = placement_problem(model, layout, len(model.mtp_layers) if work.method == "pretrain" else 0)
    if problem:
        rs.problem(loc, problem, rs.text(loc))
    if layout.schedule != "1f1b" and layout.vpp > 1:
        rs.problem(loc, f"the {layout.schedule} schedule has no virtual stages", layout.vpp)


def _check_tp(rs: Resolving, loc: Loc, tp: int, model: ModelArchitecture) -> None:
    blocks = {block for layer, _ in model.unique_layers() for block in layer.blocks}
    sizes = {size for block in blocks for size in _tp_sizes(block)}
    for name, size in sorted(sizes):
        if size % tp:
            rs.problem(loc, f"tp does not divide the {name} of {model.name} ({size})", tp, _divisors(size))
    for block in blocks:
        if isinstance(block, SoftmaxAttention) and block.n_kv_heads % tp and tp % block.n_kv_heads:
            what = f"KV heads of {model.name} ({block.n_kv_heads}) can be neither divided nor replicated over tp"
            rs.problem(loc, what, tp)


def _tp_sizes(block: Block) -> list[tuple[str, int]]:
    """Sizes that tensor parallelism cuts into equal parts."""
    match block:
        case SoftmaxAttention() | LatentAttention():
            return [("attention heads", block.n_heads)]
        case LinearAttention():
            return [
                ("key heads of linear attention", block.n_k_heads),
                ("value heads of linear attention", block.n_v_heads),
            ]
        case StateSpace():
            return [("state-space inner size", block.inner_size)]
        case DenseMlp():
            return [("dense intermediate size", block.intermediate_size)]
        case MoeMlp():
            return (
                [("shared-expert intermediate size", block.shared_intermediate_size)] if block.n_shared_experts else []
            )


def _check_expert_tp(rs: Resolving, loc: Loc, expert_tp: int, model: ModelArchitecture) -> None:
    for size in sorted({block.expert_intermediate_size for block in model.moe_blocks}):
        if size % expert_tp:
            what = f"an expert's intermediate size ({size}) is not divisible over {expert_tp} GPUs"
            rs.problem(loc, what, expert_tp, hint="spread experts whole: raise ep")


def _check_stages(rs: Resolving, loc: Loc, stages: int, model: ModelArchitecture) -> None:
    if stages > model.n_layers:
        rs.problem(loc, f"more pipeline stages than layers of {model.name}", stages, f"at most {model.n_layers}")


def _check_ep(
    rs: Resolving, loc: Loc, spread: int, group: int, group_name: str, model: ModelArchitecture, ep: int | None = None
) -> None:
    degree = spread if ep is None else ep
    if degree > 1 and not model.is_moe:
        rs.problem(loc, f"{model.name} is dense: it has no experts to spread", degree, "1")
        return
    if group % spread:
        rs.problem(loc, f"does not divide {group_name} = {group}", spread, _divisors(group))
    for n_experts in sorted({block.n_experts for block in model.moe_blocks}):
        if n_experts % degree:
            rs.problem(
                loc, f"ep does not divide the experts of {model.name} ({n_experts})", degree, _divisors(n_experts)
            )


def _check_gpus(rs: Resolving, loc: Loc, n_gpus: int, n_connected: int, hardware: Hardware, gpus: int | None) -> None:
    if gpus is not None and n_gpus > gpus:
        rs.problem(
            loc,
            f"the layout needs {n_gpus} GPUs",
            allowed=f"at most gpus = {gpus}",
            hint="lower a degree, or raise gpus",
        )
    reach = max(hardware.n_gpus_scale_up, hardware.n_gpus_per_node)
    if hardware.scale_out is None and n_connected > reach:
        what = f"{n_connected} GPUs must work together, but {hardware.slug} connects {reach} and has no network"
        rs.problem(loc, what, allowed=f"at most {reach}", hint="take hardware with a scale-out link")


def _divisors(n: int) -> str:
    """Divisors up to 1024, to choose from."""
    return ", ".join(str(d) for d in range(1, min(n, 1024) + 1) if gcd(n, d) == d)


def _multiples(step: int, near: int) -> str:
    below = near // step * step
    return ", ".join(str(n) for n in (below, below + step) if n)
