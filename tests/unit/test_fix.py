"""The smallest change that makes a misfit fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from step_cases import BF16, engine, hardware, work

from moeplan.files.catalog.model_catalog import load_model
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.workload import TrainingWork
from moeplan.steps.fix import smallest_serving_fix, smallest_training_fix
from moeplan.steps.memory import serving_memory
from moeplan.steps.training_memory import training_memory


@dataclass(frozen=True)
class Job:
    """The fields of a `spec.scenario.Serving` that memory depends on."""

    layout: ServingLayout
    precision: object
    engine: object
    max_context_tokens: int


@dataclass(frozen=True)
class Run:
    layout: TrainingLayout
    work: TrainingWork


def serving(context=8192, layout=None):
    return Job(layout or ServingLayout(), BF16, engine(), context)


def test_seventy_billion_needs_a_second_gpu():
    m, h100 = load_model("Llama-3.1-70B"), hardware("h100-sxm")
    fix = smallest_serving_fix(m, h100, serving())
    assert fix.changes == {"serving.layout.tp": 2}
    assert fix.n_gpus == 2
    assert "tp = 2" in str(fix)
    assert (
        serving_memory(m, h100, ServingLayout(tp=2), BF16, engine(), max_context_tokens=8192).need_bytes
        == fix.need_bytes
    )


def test_a_long_context_is_fixed_without_hardware():
    fix = smallest_serving_fix(load_model("Qwen3-30B-A3B"), hardware("h100-sxm"), serving(262_144))
    assert fix.n_gpus == 1
    assert set(fix.changes) <= {
        "serving.precision.kv_cache",
        "serving.engine.max_model_len",
        "serving.engine.max_num_batched_tokens",
    }


def test_a_lone_card_falls_back_to_fewer_bits():
    """No second card and no network: only the format is left."""
    lone = replace(hardware("rtx-4090"), n_gpus_scale_up=1, scale_out=None)
    m = load_model("gpt-oss-20b")
    assert not serving_memory(m, lone, ServingLayout(), BF16, engine(), max_context_tokens=8192).fits
    fix = smallest_serving_fix(m, lone, serving())
    assert fix.n_gpus == 1
    assert set(fix.changes) == {f"serving.precision.{part}" for part in ("experts", "attention", "dense")}


def test_nothing_helps():
    lone = replace(hardware("rtx-4090"), n_gpus_scale_up=1, scale_out=None)
    assert smallest_serving_fix(load_model("DeepSeek-R1"), lone, serving()) is None


def test_training_prefers_one_change_on_the_same_gpus():
    m, h100 = load_model("Qwen3-30B-A3B"), hardware("h100-sxm")
    run = Run(TrainingLayout(dp=8, ep=8, recompute="none"), work())
    assert not training_memory(m, h100, run.layout, run.work).fits
    fix = smallest_training_fix(m, h100, run)
    assert fix.n_gpus == 8
    assert len(fix.changes) <= 2
    assert fix.need_bytes <= h100.device.memory_bytes


def test_training_grows_when_it_must():
    fix = smallest_training_fix(
        load_model("DeepSeek-V3"),
        hardware("h100-sxm"),
        Run(TrainingLayout(dp=8, ep=8), work(global_batch_sequences=4096)),
    )
    assert fix.n_gpus > 8
    assert "instead of 8" in fix.text


@pytest.mark.parametrize("layout", [TrainingLayout(), TrainingLayout(dp=4, ep=4)])
def test_a_fix_really_fits(layout):
    m, card = load_model("OLMoE-1B-7B"), hardware("rtx-5090")
    fix = smallest_training_fix(m, card, Run(layout, work()))
    assert fix is None or fix.need_bytes <= card.device.memory_bytes
