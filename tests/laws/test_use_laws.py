"""What a step uses of the device, against bytes and FLOP counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeplan.files.load import load
from moeplan.simulate.deployment import Deployment
from moeplan.steps.compiled import step_parts_s
from moeplan.steps.serving import Iteration
from moeplan.steps.training import training_step
from moeplan.steps.use import serving_use, training_use

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def deployment(*overrides: str) -> Deployment:
    s = load(SCENARIOS / "quickstart.yaml", overrides)
    assert s.serving is not None
    return Deployment(s.model, s.hardware, s.serving, s.routing, s.seed)


def use_of(d: Deployment, iteration: Iteration):
    return serving_use(d.step, d.fit(), iteration, sum(step_parts_s(d.step, iteration).values()))


def test_decoding_alone_reads_the_weights_once() -> None:
    """Llama-3.1-8B, one sequence: 2 bytes of every weight but the input embedding, over bandwidth and time."""
    d = deployment("model=Llama-3.1-8B")
    one = Iteration(1.0, 500.0)
    time_s = sum(step_parts_s(d.step, one).values())
    weight_bytes = 2.0 * (d.model.n_params_total - d.model.vocab_size * d.model.hidden_size)
    expected = weight_bytes / time_s / d.hardware.device.memory_bytes_per_s
    assert use_of(d, one).memory_frac == pytest.approx(expected, rel=0.05)
    assert use_of(d, one).compute_frac < 0.02


def test_a_full_prompt_uses_the_arithmetic() -> None:
    """8,192 tokens: 2 FLOP per weight of the layers and token, over peak and time."""
    d = deployment("model=Llama-3.1-8B")
    prompt = Iteration(prompts=((8192.0, 0.0),))
    time_s = sum(step_parts_s(d.step, prompt).values())
    layers = d.model.n_params_total - 2 * d.model.vocab_size * d.model.hidden_size
    expected = 2.0 * layers * 8192 / time_s / d.hardware.device.dense_flop_per_s["bf16"]
    assert use_of(d, prompt).compute_frac == pytest.approx(expected, rel=0.02)


def test_more_sequences_touch_more_experts_and_never_exceed_the_device() -> None:
    d = deployment()
    uses = [use_of(d, Iteration(float(n), 500.0)) for n in (1, 4, 16, 64, 256)]
    assert all(0.0 <= u.memory_frac <= 1.0 and 0.0 <= u.compute_frac <= 1.0 for u in uses)
    assert list(np.diff([u.compute_frac for u in uses]) > 0.0) == [True] * 4
    assert uses[2].memory_frac > uses[0].memory_frac


def test_training_uses_what_it_reports() -> None:
    s = load(SCENARIOS / "own-moe-60k.yaml")
    assert s.training is not None
    layout, work = s.training.layout, s.training.work
    step = training_step(s.model, s.hardware, layout, work, s.training_routing)
    use = training_use(step, s.model, s.hardware, layout, work)
    assert use.compute_frac >= step.mfu_frac
    assert 0.0 < use.memory_frac < 1.0
