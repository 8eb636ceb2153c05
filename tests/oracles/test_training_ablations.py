"""Published changes of one variable: direction and size of what each is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.files.catalog.model_catalog import load_model
from moeplan.spec.layout import StagePlan, TrainingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.routing import BALANCED, RoutingAssumption
from moeplan.spec.workload import TrainingWork
from moeplan.steps.stages import rank_stages, training_stages
from moeplan.steps.training import TrainingCosts
from moeplan.steps.training_memory import training_memory

GIB = 2.0**30
H100 = load_hardware("h100-sxm")


def job(**changes: object) -> TrainingWork:
    work = TrainingWork("pretrain", 1e12, 4096, 2048, 1, "bf16", "adamw_bf16", True, 4.0, None, 1.0, 0.8)
    return replace(work, **changes)  # type: ignore[arg-type]


def activations(model: ModelArchitecture, layout: TrainingLayout, work: TrainingWork) -> float:
    return training_memory(model, H100, layout, work).breakdown["activations"] / GIB


DEEPSEEK = TrainingLayout(pp=4, dp=64, ep=64, recompute="none")
# Scalable Training of MoE Models with Megatron Core, table 3: DeepSeek-V3, bf16, 256 GPUs, pp 4, ep 64, sequence 4096.
SAVINGS = (
    (("latent_up",), 30.4),
    (("norm",), 8.2),
    # recomputing SwiGLU is published as 3.8 GiB, a third of what its output in 16 bit is: not understood, so not tested
)


def test_activations_of_deepseek_v3_as_published() -> None:
    """131 GiB without optimisations, 26 of them by the permutation that keeps the experts' outputs."""
    found = activations(load_model("DeepSeek-V3"), DEEPSEEK, job())
    assert found == pytest.approx(131.0 - 26.0, rel=0.10)


@pytest.mark.parametrize(("modules", "saved_gib"), SAVINGS)
def test_what_recomputing_a_module_saves(modules: tuple[str, ...], saved_gib: float) -> None:
    model = load_model("DeepSeek-V3")
    selective = replace(DEEPSEEK, recompute="selective", recompute_modules=modules)
    found = activations(model, DEEPSEEK, job()) - activations(model, selective, job())
    assert found == pytest.approx(saved_gib, rel=0.15)


OFFLOAD = TrainingLayout(tp=2, pp=2, dp=4, ep=4, recompute="none")


def test_offloading_the_optimizer() -> None:
    """Megatron-Bridge, CPU offloading card: Qwen3-30B-A3B on 16 H100, tp 2, pp 2, ep 4.

    47.2 GB fall to 32.0 with all of the optimizer on the host; the step of 1.0 s takes 3.2 s more, in proportion.
    """
    costs = TrainingCosts(load_model("Qwen3-30B-A3B"), H100, BALANCED)
    works = [job(global_batch_sequences=4, offload_optimizer_frac=f) for f in (0.0, 0.5, 1.0)]
    none, half, whole = (costs.memory(OFFLOAD, work).per_gpu_bytes / 1e9 for work in works)
    assert none - half == pytest.approx(half - whole)
    assert none - whole == pytest.approx(15.2, rel=0.2)
    seconds = [costs.step(OFFLOAD, work).step_time_s for work in works]
    assert seconds[2] - seconds[0] == pytest.approx(3.2, rel=0.15)
    assert seconds[1] - seconds[0] == pytest.approx((seconds[2] - seconds[0]) / 2, rel=0.02)


def test_offloading_activations_costs_time_only_where_copies_outlast_the_computation() -> None:
    costs = TrainingCosts(load_model("Qwen3-8B"), H100, BALANCED)
    layout = TrainingLayout(dp=8, recompute="none", zero_stage=3)
    plain, sent = (job(offload_activations_frac=f, method="full_finetune") for f in (0.0, 0.5))
    assert costs.memory(layout, sent).breakdown["activations"] == pytest.approx(
        costs.memory(layout, plain).breakdown["activations"] / 2
    )
    step = costs.step(layout, sent)
    assert step.hidden["offload"] > 0.0
    assert step.step_time_s >= costs.step(layout, plain).step_time_s
    assert sum(step.breakdown.values()) == pytest.approx(step.step_time_s)


def test_overlapping_the_exchange() -> None:
    """Megatron-Bridge, communication overlap: Qwen3-30B-A3B, 16 H100, ep 16: 41.25 s fall to 31.31 s, by 24 %."""
    costs = TrainingCosts(load_model("Qwen3-30B-A3B"), H100, BALANCED)
    layout = TrainingLayout(dp=16, ep=16, recompute="none")
    without, hidden = (
        costs.step(layout, job(global_batch_sequences=1024, expert_overlap_frac=f)).step_time_s for f in (0.0, 0.8)
    )
    assert 0.10 < 1.0 - hidden / without < 0.35


def test_natural_routing_costs_a_few_per_cent() -> None:
    """NVIDIA's rows with both: 4 to 20 % more than forced balance."""
    model = load_model("Qwen3-30B-A3B")
    layout = TrainingLayout(dp=16, ep=16, recompute="none")
    balanced, natural = (
        TrainingCosts(model, H100, routing).step(layout, job(global_batch_sequences=1024)).step_time_s
        for routing in (BALANCED, RoutingAssumption(0.3, "test"))
    )
    assert 1.02 < natural / balanced < 1.35


def test_plain_modules_are_slower_and_keep_more() -> None:
    costs = TrainingCosts(load_model("Qwen3-8B"), H100, BALANCED)
    layout = TrainingLayout(dp=8, recompute="none", zero_stage=3)
    fused, plain = (job(fused_kernels=fused, method="full_finetune") for fused in (True, False))
    assert costs.step(layout, plain).step_time_s > 1.05 * costs.step(layout, fused).step_time_s
    kept = [costs.memory(layout, work).breakdown["activations"] for work in (fused, plain)]
    assert 1.2 < kept[1] / kept[0] < 1.8  # a norm's fp32 copies, the gate behind its function


def test_stages_placed_by_hand() -> None:
    """Megatron-Bridge's layout of DeepSeek-V3 over pp 4 x vpp 2: the MTP module beside the loss."""
    model = load_model("DeepSeek-V3")
    counts = (8, 8, 8, 8, 8, 8, 8, 5)
    plans = tuple(StagePlan(n, embedding=i == 0, n_mtp=int(i == 7), head=i == 7) for i, n in enumerate(counts))
    placed = TrainingLayout(pp=4, vpp=2, dp=64, ep=64, stages=plans, recompute="none")
    positions = training_stages(model, placed, job())
    assert [len(stage.layers) for stage in positions] == [8, 8, 8, 8, 8, 8, 8, 6]
    assert [len(stage.layers) for stage in rank_stages(positions, placed)] == [16, 16, 16, 14]
    costs = TrainingCosts(model, H100, BALANCED)
    balanced = costs.step(replace(placed, stages=()), job(global_batch_sequences=4096))
    by_hand = costs.step(placed, job(global_batch_sequences=4096))
    assert by_hand.step_time_s == pytest.approx(balanced.step_time_s, rel=0.15)
    lopsided = (StagePlan(20, embedding=True), *(StagePlan(6) for _ in range(6)), StagePlan(5, n_mtp=1, head=True))
    slower = costs.step(replace(placed, stages=lopsided), job(global_batch_sequences=4096))
    assert slower.step_time_s > 1.3 * by_hand.step_time_s
    with pytest.raises(ValueError, match="places 60 layers"):
        training_stages(model, replace(placed, stages=(StagePlan(7, embedding=True), *plans[1:])), job())
