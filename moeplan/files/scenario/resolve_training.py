"""The training part of a scenario file to ``spec.scenario.Training``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from moeplan.costs.model_state import checkpoint_bytes
from moeplan.costs.schedule import Schedule, schedule_problem
from moeplan.files.scenario.resolve_reliability import resolve_reliability
from moeplan.files.scenario.resolve_rollout import resolve_rollout
from moeplan.files.scenario.resolve_serving import check_runs
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_training import LoraFile, TrainingFile, TrainingLayoutFile
from moeplan.files.scenario.schema_walk import Loc
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import FORMATS
from moeplan.spec.scenario import Training
from moeplan.spec.workload import Adapter, TrainingWork

_GRADIENT_BYTES = {"fp32": 4.0, "bf16": 2.0}
_LAYOUT: Loc = ("training", "layout")


def resolve_training(rs: Resolving, file: TrainingFile, model: ModelArchitecture, hardware: Hardware) -> Training:
    """A training run; ``hardware`` is where it trains."""
    compute = FORMATS[file.precision].compute
    if compute not in hardware.device.dense_flop_per_s:
        runs = [name for name in ("bf16", "fp16", "fp8", "fp32") if name in hardware.device.dense_flop_per_s]
        what = f"{hardware.device.name} has no {compute} arithmetic"
        rs.problem(("training", "precision"), what, file.precision, ", ".join(runs))
    if (file.lora is None) == (file.method == "lora"):
        what = "method lora needs a `lora` section" if file.lora is None else "`lora` needs method lora"
        rs.problem(("training", "method"), what, file.method)
    if (file.rollout is None) == (file.method == "rl"):
        what = "method rl needs a `rollout` section" if file.rollout is None else "`rollout` needs method rl"
        rs.problem(("training", "method"), what, file.method)
    layout, work = _layout(rs, file, file.layout, _LAYOUT), _work(rs, file, model, hardware)
    rollout = None
    if file.rollout is not None:
        rollout = resolve_rollout(rs, file.rollout, model, hardware, layout.n_gpus, work.global_batch_sequences)
    saved = checkpoint_bytes(model, work)
    n_gpus = layout.n_gpus + (0 if rollout is None else rollout.n_own_gpus)
    reliability = resolve_reliability(rs, file.reliability, hardware, n_gpus, saved)
    later = tuple(_phase(rs, file, i, layout, work) for i in range(len(file.phases)))
    return Training(layout, work, reliability, rollout, later)


def _phase(
    rs: Resolving, file: TrainingFile, i: int, layout: TrainingLayout, work: TrainingWork
) -> tuple[TrainingLayout, TrainingWork]:
    """Phase ``i`` of the later ones: the first with what it changes."""
    phase, loc = file.phases[i], ("training", "phases", i)
    for key in ("tokens", "sequence_length", "global_batch", "micro_batch"):
        rs.note(f"training.phases.{i}.{key}", (*loc, key))
    own = layout if phase.layout is None else _layout(rs, file, phase.layout, (*loc, "layout"))
    if own.n_gpus != layout.n_gpus:
        what = f"this phase is laid out on {own.n_gpus} GPUs, the first on {layout.n_gpus}"
        rs.problem((*loc, "layout"), what, hint="a run keeps its GPUs")
    changed = replace(
        work,
        n_tokens=phase.tokens,
        sequence_tokens=phase.sequence_length or work.sequence_tokens,
        global_batch_sequences=phase.global_batch or work.global_batch_sequences,
        micro_batch_sequences=phase.micro_batch or work.micro_batch_sequences,
    )
    return own, changed


def _layout(rs: Resolving, file: TrainingFile, own: TrainingLayoutFile, loc: Loc) -> TrainingLayout:
    target = ".".join(map(str, loc))
    for key in ("tp", "pp", "vpp", "cp", "dp", "ep", "etp", "sequence_parallel", "schedule", "stages"):
        rs.note(f"{target}.{key}", (*loc, key))
    rs.note(f"{target}.zero_stage", (*loc, "zero"))
    rs.note(f"{target}.recompute", ("training", "recompute"))
    rs.note(f"{target}.recompute_modules", ("training", "recompute_modules"))
    schedule = cast(Schedule, own.schedule)
    per_step = own.dp * file.micro_batch
    if file.global_batch % per_step == 0 and schedule != "1f1b":
        problem = schedule_problem(schedule, own.pp, own.vpp, file.global_batch // per_step)
        if problem:
            rs.problem((*loc, "schedule"), problem, own.schedule)
    return TrainingLayout(
        tp=own.tp,
        pp=own.pp,
        vpp=own.vpp,
        cp=own.cp,
        dp=own.dp,
        ep=own.ep,
        etp=own.etp,
        sequence_parallel=own.sequence_parallel,
        zero_stage=cast(Literal[0, 1, 2, 3], own.zero),
        recompute=cast(Literal["none", "selective", "full"], file.recompute),
        recompute_modules=tuple(file.recompute_modules),
        schedule=schedule,
        stages=own.stages or (),
    )


def _work(rs: Resolving, file: TrainingFile, model: ModelArchitecture, hardware: Hardware) -> TrainingWork:
    for field, key in (
        ("method", "method"),
        ("n_tokens", "tokens"),
        ("sequence_tokens", "sequence_length"),
        ("global_batch_sequences", "global_batch"),
        ("micro_batch_sequences", "micro_batch"),
        ("compute_format", "precision"),
        ("optimizer", "optimizer"),
        ("master_weights", "master_weights"),
        ("gradient_bytes_per_param", "gradients"),
        ("packing_frac", "packing"),
        ("overlap_comm_frac", "overlap"),
        ("expert_overlap_frac", "expert_overlap"),
        ("cuda_graphs", "cuda_graphs"),
        ("fused_kernels", "fused_kernels"),
        ("flash_attention", "flash_attention"),
        ("fp8_activation_inputs", "fp8_activation_inputs"),
        ("offload_optimizer_frac", "offload_optimizer"),
        ("offload_activations_frac", "offload_activations"),
    ):
        rs.note(f"training.work.{field}", ("training", key))
    return TrainingWork(
        method=cast(Literal["pretrain", "full_finetune", "lora", "rl"], file.method),
        n_tokens=file.tokens,
        sequence_tokens=file.sequence_length,
        global_batch_sequences=file.global_batch,
        micro_batch_sequences=file.micro_batch,
        compute_format=file.precision,
        optimizer=cast(Literal["adamw", "adamw_bf16", "adamw_8bit", "muon"], file.optimizer),
        master_weights=file.master_weights,
        gradient_bytes_per_param=_GRADIENT_BYTES[file.gradients],
        adapter=None if file.lora is None else _adapter(rs, file.lora, model, hardware),
        packing_frac=file.packing,
        overlap_comm_frac=file.overlap,
        expert_overlap_frac=file.expert_overlap,
        cuda_graphs=file.cuda_graphs,
        fused_kernels=file.fused_kernels,
        flash_attention=file.flash_attention,
        fp8_activation_inputs=file.fp8_activation_inputs,
        offload_optimizer_frac=file.offload_optimizer,
        offload_activations_frac=file.offload_activations,
    )


def _adapter(rs: Resolving, file: LoraFile, model: ModelArchitecture, hardware: Hardware) -> Adapter:
    loc: Loc = ("training", "lora")
    for field, key in (("rank", "rank"), ("targets", "targets"), ("base_format", "base_precision")):
        rs.note(f"training.work.adapter.{field}", (*loc, key))
    base = model.checkpoint.experts if file.base_precision == "native" else file.base_precision
    check_runs(rs, (*loc, "base_precision"), base, hardware.device)
    if file.rank > model.hidden_size:
        rs.problem((*loc, "rank"), "rank above the model's hidden size", file.rank, f"at most {model.hidden_size}")
    return Adapter(file.rank, cast(Literal["attention", "all_linear"], file.targets), base)
