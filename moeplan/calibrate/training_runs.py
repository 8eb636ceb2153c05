"""Predict measured training runs: one row of the table is one configuration, judged by what the planner says of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, Literal

from moeplan.calibrate.serving_runs import Answer, RowResult
from moeplan.errors import InputError
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.files.catalog.model_catalog import load_model
from moeplan.files.catalog.models.reader import read_model
from moeplan.files.runs.measured_runs import text_of
from moeplan.planner.intervals import from_log_error
from moeplan.planner.training import predict_step, situation_of
from moeplan.provenance import Tier
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.scenario import Training
from moeplan.spec.uncertainty import ModelError
from moeplan.spec.workload import UNINTERRUPTED, Adapter, TrainingWork
from moeplan.steps.memory import MemoryFit

Row = Mapping[str, Any]

BALANCED = RoutingAssumption(0.0, "headline training rows force balanced routing")
OVERLAP = 0.8  # of the traffic that a run overlaps: an estimate, as in the schema
NATURAL = RoutingAssumption(0.3, "default, an estimate")


def predict_row(row: Row, error: ModelError) -> RowResult:
    """Predictions of step time, throughput, MFU and memory where the row states them."""
    stated = stated_metrics(row)
    run_id = text_of(row, "run_id")
    try:
        model, hardware = model_of(row), hardware_of(row)
        training = training_of(row)
        found = predict_step(model, hardware, training, routing_of(row), error)
    except (InputError, ValueError) as problem:
        why = str(problem).splitlines()[0]
        return RowResult(run_id, Tier.ESTIMATE, (), tuple((metric, why) for metric in stated))
    values = {
        "step_time": found.time_s,
        "tokens_per_s": found.tokens_per_s_per_gpu,
        "mfu": found.mfu_frac,
        "memory": from_log_error(_reported_bytes(row, found.fit), error.of("training_memory", found.tier)),
    }
    answers = tuple(Answer(m, truth, values[m]) for m, truth in stated.items())
    return RowResult(run_id, found.tier, answers, (), situation_of(training.work), meant_to_be_fast(row))


def meant_to_be_fast(row: Row) -> bool:
    """False for runs whose source calls them functional, or that stop after a few steps."""
    notes = text_of(row, "notes")
    return "functional run" not in notes and "short_run" not in notes


def family_of(name: str) -> str:
    """Models that share an architecture and the code that runs it: what a name starts with, less its version."""
    return name.split("-")[0].rstrip("0123456789.")


def stated_metrics(row: Row) -> dict[str, float]:
    """Metric -> truth in SI.

    ``tflop_per_s_per_gpu`` is not judged: its FLOP convention changes between sources, as that of ``mfu`` does.
    """
    found: dict[str, float] = {}
    gib = 1e9 if text_of(row, "hardware").startswith("mi") else 2.0**30  # GB for AMD sources, GiB for NVIDIA's
    for metric, column, factor in (
        ("step_time", "step_time_s", 1.0),
        ("tokens_per_s", "tokens_per_s_per_gpu", 1.0),
        ("mfu", "mfu_pct", 0.01),
        ("memory", "memory_gb_per_gpu", gib),
    ):
        value = float(row.get(column, math.nan))
        if value > 0.0:
            found[metric] = value * factor
    return found


def training_of(row: Row) -> Training:
    """The run a row describes. Raises ValueError where the row contradicts itself."""
    work, layout = _work(row), _layout(row)
    if layout.n_gpus != int(row["n_gpus"]):
        raise ValueError(f"the layout needs {layout.n_gpus} GPUs, not the {int(row['n_gpus'])} stated")
    if (layout.tp * layout.cp * layout.dp) % (layout.ep * layout.etp):
        raise ValueError(f"ep {layout.ep} x etp {layout.etp} does not divide tp x cp x dp of the layout")
    return Training(layout, work, UNINTERRUPTED)


def routing_of(row: Row) -> RoutingAssumption:
    """Natural routing only where the row says that balance was not forced."""
    natural = "force_balance=False" in text_of(row, "overlap_notes") or "balancing=False" in text_of(row, "notes")
    return NATURAL if natural else BALANCED


# How tables name models whose catalog entry has another name.
_ALIASES = {"nemotron-340b": "Nemotron-4-340B", "nemotron-8b": "Nemotron-3-8B"}
_OMNI_PATH = re.compile(r"Omni-Path\D*?(\d+) links per node")
OMNI_PATH_BYTES_PER_S = 12.5e9  # of a link: 100 Gb/s (Intel Omni-Path Architecture 100 series)
_SHAPE = re.compile(r"hidden (\d+), layers (\d+), heads (\d+)(?:, vocab (\d+)k)?")
# Vocabulary of a GPT where the row states none: GPT-2's, padded as Megatron-LM does.
_GPT_VOCABULARY = 51_200


@cache
def _model(name: str) -> ModelArchitecture:
    plain = name.replace(" ", "-").replace("MPT-style-dense", "MPT")
    return load_model(_ALIASES.get(plain.lower(), plain))


@cache
def _stated_gpt(name: str, hidden: int, n_layers: int, n_heads: int, vocabulary: int) -> ModelArchitecture:
    """A GPT by its sizes; the sources of these rows train GPT-2's architecture (BLOOM's with its large vocabulary)."""
    shape = {"n_embd": hidden, "n_layer": n_layers, "n_head": n_heads, "vocab_size": vocabulary, "n_positions": 2048}
    return read_model({"model_type": "gpt2", **shape}, name, name)


_hardware = lru_cache(maxsize=None)(load_hardware)


def model_of(row: Row) -> ModelArchitecture:
    """From the catalog, or a plain GPT whose sizes the row's notes state. Raises InputError when there is neither."""
    name = text_of(row, "model")
    stated = _SHAPE.search(text_of(row, "notes"))
    if name.startswith("GPT dense") and stated:
        hidden, n_layers, n_heads = (int(stated.group(i)) for i in (1, 2, 3))
        vocabulary = int(stated.group(4)) * 1000 if stated.group(4) else _GPT_VOCABULARY
        return _stated_gpt(name, hidden, n_layers, n_heads, vocabulary)
    return _model(name)


def hardware_of(row: Row) -> Hardware:
    """From the catalog, with the network the row states. Raises InputError when the catalog does not have it."""
    hardware = _hardware(text_of(row, "hardware"))
    stated = _OMNI_PATH.search(text_of(row, "overlap_notes"))
    if stated is None or hardware.scale_out is None:
        return hardware
    rate = int(stated.group(1)) * OMNI_PATH_BYTES_PER_S / hardware.n_gpus_per_node
    return replace(hardware, scale_out=replace(hardware.scale_out, name="Omni-Path", bytes_per_s=rate))


def _layout(row: Row) -> TrainingLayout:
    tp, pp, vpp, ep, etp, cp = (_degree(row, key) for key in ("tp", "pp", "vpp", "ep", "etp", "cp"))
    stated = _degree(row, "dp", 0)
    dp = stated or int(row["n_gpus"]) // (tp * pp * cp)
    sharded = "fsdp" in text_of(row, "distributed_optimizer").lower()
    return TrainingLayout(
        tp=tp, pp=pp, vpp=vpp, cp=cp, dp=dp, ep=ep, etp=etp, zero_stage=3 if sharded else 1,
        sequence_parallel=text_of(row, "framework") != "Megatron-DeepSpeed",  # forked before Megatron had it
        recompute=_recompute(row), recompute_modules=_recompute_modules(row),
    )  # fmt: skip


_MODULES = {  # as frameworks name them
    r"norm": "norm",
    r"act\b": "activation",
    r"up_proj": "latent_up",
    r"core_attn": "attention",
    r"\bmlp\b": "mlp",
    r"\bmoe\b": "moe",
}


def _recompute_modules(row: Row) -> tuple[str, ...]:
    """The modules listed, else what `TrainingLayout` repeats by default."""
    text = re.sub(r"\(.*", "", text_of(row, "recompute").lower())
    found = tuple(module for pattern, module in _MODULES.items() if re.search(pattern, text))
    return found or TrainingLayout().recompute_modules


def _recompute(row: Row) -> Literal["none", "selective", "full"]:
    """An empty cell means the recipe does not set it: frameworks then recompute nothing."""
    text = text_of(row, "recompute").lower()
    if text.startswith("full"):
        return "full"
    if not text or text.startswith("none") or text == "selective:[]":
        return "none"
    return "selective"


def _work(row: Row) -> TrainingWork:
    sequence, batch = int(row["sequence_length"]), int(row["global_batch"])
    kind, notes = text_of(row, "kind"), f"{text_of(row, 'notes')} {text_of(row, 'overlap_notes')}".lower()
    tuned = "fine-tune" in kind
    adapter = None
    if tuned and re.search(r"\b(lora|peft)\b", notes):
        adapter = Adapter(16, "all_linear", "bf16")
    optimizer = text_of(row, "distributed_optimizer").lower()
    framework = text_of(row, "framework")
    # The fork of 2021 and 2022: before FlashAttention, sequence parallelism, and overlap of the gradient exchange.
    old = framework == "Megatron-DeepSpeed"
    narrow = "moments=torch.bfloat16" in optimizer or "bf16 optimizer states" in optimizer
    if not optimizer and framework.startswith("Megatron-Bridge") and kind == "MoE":
        narrow = True  # "precision-aware optimizer with bf16 moments" in its recipes of expert models
    return TrainingWork(
        method="lora" if adapter else "full_finetune" if tuned else "pretrain",
        n_tokens=float(sequence * batch),
        sequence_tokens=sequence,
        global_batch_sequences=batch,
        micro_batch_sequences=_degree(row, "micro_batch"),
        compute_format=_format(text_of(row, "precision")),
        optimizer="adamw_bf16" if narrow else "adamw",
        master_weights=True,
        # DeepSpeed's BF16 optimizer keeps 16-bit gradients beside the fp32 sums
        gradient_bytes_per_param=6.0 if "fp32 grad accumulation" in text_of(row, "precision") else 4.0,
        adapter=adapter,
        packing_frac=1.0,
        overlap_comm_frac=0.0 if old else _data_overlap(notes),
        expert_overlap_frac=OVERLAP if re.search(r"ep(_a2a)?_overlap=true|ep overlap on|a2a_overlap=1", notes) else 0.0,
        cuda_graphs="cuda_graph=full_iteration" in notes,
        flash_attention=not old,
        fused_kernels=not framework.startswith(_PLAIN_MODULES),
    )


# Frameworks that train the plain PyTorch modules of the models' own code, without compiling them.
_PLAIN_MODULES = ("NeMo AutoModel",)
# What a published peak does not include: PyTorch counts what it allocates, where a framework prints that figure.
_OUTSIDE_ALLOCATOR = ("runtime_reserve", "communication", "fragmentation")


def _reported_bytes(row: Row, fit: MemoryFit) -> float:
    """The predicted peak as the framework reports it: Megatron prints allocated bytes, others all that is taken."""
    if not text_of(row, "framework").startswith(("Megatron-Bridge", "Megatron-Core")):
        return fit.per_gpu_bytes
    return sum(size for name, size in fit.breakdown.items() if name not in _OUTSIDE_ALLOCATOR)


def _data_overlap(notes: str) -> float:
    """``dp_overlap=gradients/parameters``; frameworks overlap both where nothing is said."""
    stated = re.search(r"dp_overlap=(true|false)/(true|false)", notes)
    return OVERLAP * (stated.groups().count("true") / 2 if stated else 1.0)


def _format(text: str) -> str:
    """An empty cell is read as 16 bit, the default of every framework in the table."""
    name = text.lower().removeprefix("amp_")
    if not name or name.startswith("bf16"):
        return "bf16"
    if "nvfp4" in name:
        return "nvfp4"
    if "mx" in name:
        return "mxfp8"
    if "blk" in name or "block" in name:
        return "fp8_block"
    if name.startswith("fp8"):
        return "fp8"
    raise ValueError(f"precision {text!r} is not known")


def _degree(row: Row, key: str, default: int = 1) -> int:
    value = float(row.get(key, math.nan))
    return int(value) if value >= 1 else default
