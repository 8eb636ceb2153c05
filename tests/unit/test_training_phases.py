"""Runs of several phases, reinforcement learning, and the run in a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

import moeplan
from moeplan.errors import InputError
from moeplan.spec.plan import Plan

BASE = """
name: t
model: OLMoE-1B-7B
hardware: h100-sxm
training:
  method: {method}
  tokens: 10B
  sequence_length: 4096
  global_batch: 256
  layout: {{dp: 8, ep: 8, zero: 1}}
{more}
price: {{per_gpu_hour: 2 USD/h, date: 2026-01-01}}
budget: {{limit: 100000 USD, deadline: {deadline}}}
"""
ROLLOUT = """
  rollout:
    prompts: 64
    samples: 8
    prompt_length: 128
    response_length: {{uniform: {{low: 200, high: 1000}}}}
    layout: {{replicas: {replicas}}}
    placement: {placement}
    reference_model: {reference}
"""


def plan(folder: Path, more: str = "", method: str = "pretrain", deadline: str = "300 d") -> Plan:
    path = folder / "s.yaml"
    path.write_text(BASE.format(method=method, more=more, deadline=deadline))
    return moeplan.simulate(moeplan.load(path))


def training(found: Plan):
    assert found.training is not None
    return found.training


def test_phases_add_up(tmp_path: Path) -> None:
    calm = "  reliability: {failures_per_gpu_day: 0}"
    alone = training(plan(tmp_path, calm))
    both = training(plan(tmp_path, "  phases: [{tokens: 2B, global_batch: 512}]\n" + calm))
    assert len(alone.phases) == 1
    assert both.phases[0] == alone.phases[0]
    assert both.n_steps == sum(p.n_steps for p in both.phases)
    work = sum(p.work_s.value for p in both.phases)
    assert both.wall_time_s.value == pytest.approx(work / both.goodput_frac.value)
    assert both.run.time_s["work"] == pytest.approx(work)
    # twice the batch: half the steps, each nearly twice as long
    assert both.phases[1].step_time_s.value == pytest.approx(2 * alone.step_time_s.value, rel=0.1)


def test_the_fullest_phase_decides_memory(tmp_path: Path) -> None:
    phase = "  phases: [{tokens: 2B, micro_batch: 4}]"
    assert training(plan(tmp_path, phase)).phases[0].step_time_s.value > 0.0
    assert plan(tmp_path, phase).memory.per_gpu_bytes > plan(tmp_path).memory.per_gpu_bytes


@pytest.mark.parametrize("reference", ["true", "false"])
def test_a_step_of_reinforcement_learning(tmp_path: Path, reference: str) -> None:
    update = training(plan(tmp_path, method="full_finetune"))
    rollout = ROLLOUT.format(replicas=8, placement="colocated", reference=reference)
    found = plan(tmp_path, rollout, method="rl")
    parts = dict(found.time_breakdown)
    forwards = parts.pop("log_probabilities")
    generated, transfer = parts.pop("rollout"), parts.pop("weight_transfer")
    assert sum(parts.values()) == pytest.approx(update.step_time_s.value)
    assert training(found).step_time_s.value == pytest.approx(sum(found.time_breakdown.values()))
    n_forwards = 2 if reference == "true" else 1
    assert 0.2 < forwards / n_forwards / update.step_time_s.value < 0.5  # a forward pass is a third of an update
    assert generated > 0.0
    assert transfer < 0.1 * generated


def test_generation_on_gpus_of_its_own_hides_behind_the_update(tmp_path: Path) -> None:
    together, apart = (
        plan(tmp_path, ROLLOUT.format(replicas=8, placement=placement, reference="true"), method="rl")
        for placement in ("colocated", "separate")
    )
    assert apart.time_breakdown["rollout"] < together.time_breakdown["rollout"]
    assert training(apart).step_time_s.value < training(together).step_time_s.value
    assert training(apart).run.n_gpus_held == 16
    assert training(together).run.n_gpus_held == 8


@pytest.mark.parametrize(
    ("more", "method", "words"),
    [
        ("", "rl", "method rl needs a `rollout` section"),
        (ROLLOUT.format(replicas=8, placement="colocated", reference="true"), "pretrain", "`rollout` needs method rl"),
        (ROLLOUT.format(replicas=16, placement="colocated", reference="true"), "rl", "more than the 8 that train"),
        (
            ROLLOUT.format(replicas=8, placement="colocated", reference="true").replace("samples: 8", "samples: 7"),
            "rl",
            "not a whole number of optimizer steps",
        ),
        ("  phases: [{tokens: 2B, layout: {dp: 4, ep: 4}}]", "pretrain", "laid out on 4 GPUs, the first on 8"),
        ("  phases: [{tokens: 2B, global_batch: 100}]", "pretrain", "training.phases[0].global_batch: not a multiple"),
        ("  phases: [{tokens: 2B, sequence_length: 1M}]", "pretrain", "longer than OLMoE"),
    ],
)
def test_what_does_not_go_together_is_located(tmp_path: Path, more: str, method: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(tmp_path, more, method)
    assert words in str(caught.value)
    assert "s.yaml:" in str(caught.value)


def test_the_run_of_a_plan(tmp_path: Path) -> None:
    result = training(plan(tmp_path, "  reliability: {failures_per_gpu_day: 0.5, checkpoint_interval: 1 h}"))
    run = result.run
    assert run.n_failures.value > 1.0
    assert sum(run.time_s.values()) == pytest.approx(result.wall_time_s.value, rel=1e-6)
    assert run.goodput_frac.value == pytest.approx(run.time_s["work"] / sum(run.time_s.values()), rel=1e-6)
    quantiles = list(run.wall_time_s.values())
    assert quantiles == sorted(quantiles)
    assert run.deadline_probability == 1.0
    assert run.optimal_interval_s is not None
    assert run.optimal_interval_s < run.checkpoint_interval_s


def test_a_deadline_near_the_median_is_a_coin_toss(tmp_path: Path) -> None:
    median = training(plan(tmp_path)).run.wall_time_s["p50"]
    found = plan(tmp_path, deadline=f"{median:.0f} s")
    probability = training(found).run.deadline_probability
    assert probability is not None
    assert 0.4 < probability < 0.6
    assert "Probability to finish in time" in next(v.text for v in found.verdicts if v.check == "deadline")


def test_an_interval_longer_than_the_run_is_said(tmp_path: Path) -> None:
    found = plan(tmp_path, "  reliability: {failures_per_gpu_day: 0.001, checkpoint_interval: 300 d}")
    assert any("longer than the run" in v.text for v in found.verdicts if v.check == "checkpoint")
