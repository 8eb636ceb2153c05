"""The training part of a scenario file to ``spec.scenario.Training``."""

from __future__ import annotations

from typing import Literal, cast

from moeplan.costs.model_state import checkpoint_bytes
from moeplan.costs.schedule import Schedule, schedule_problem
from moeplan.files.resolve_reliability import resolve_reliability
from moeplan.files.resolve_serving import check_runs
from moeplan.files.resolving import Resolving
from moeplan.files.schema_training import LoraFile, TrainingFile
from moeplan.files.schema_walk import Loc
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
    layout, work = _layout(rs, file), _work(rs, file, model, hardware)
    saved = checkpoint_bytes(model, work)
    return Training(layout, work, resolve_reliability(rs, file.reliability, hardware, layout.n_gpus, saved))


def _layout(rs: Resolving, file: TrainingFile) -> TrainingLayout:
    own = file.layout
    for key in ("tp", "pp", "vpp", "cp", "dp", "ep", "etp", "sequence_parallel", "schedule", "stages"):
        rs.note(f"training.layout.{key}", (*_LAYOUT, key))
    rs.note("training.layout.zero_stage", (*_LAYOUT, "zero"))
    rs.note("training.layout.recompute", ("training", "recompute"))
    rs.note("training.layout.recompute_modules", ("training", "recompute_modules"))
    schedule = cast(Schedule, own.schedule)
    per_step = own.dp * file.micro_batch
    if file.global_batch % per_step == 0 and schedule != "1f1b":
        problem = schedule_problem(schedule, own.pp, own.vpp, file.global_batch // per_step)
        if problem:
            rs.problem((*_LAYOUT, "schedule"), problem, own.schedule)
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
        method=cast(Literal["pretrain", "full_finetune", "lora"], file.method),
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
