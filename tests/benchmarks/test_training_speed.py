"""Speed of a training step: a layout takes about 10 ms of one core (the aim is 1 ms), its pipeline well under one."""

from __future__ import annotations

import numpy as np
from step_cases import UNIFORM, hardware, work

from moeplan.files.model_catalog import load_model
from moeplan.spec.layout import TrainingLayout
from moeplan.steps.pipeline import pipeline_time_s
from moeplan.steps.training import training_step

STEP_S = 30e-3
PIPELINE_S = 1e-3


def test_layout(benchmark):
    model, machine = load_model("DeepSeek-V3"), hardware("h100-sxm")
    layout = TrainingLayout(tp=2, pp=8, vpp=4, dp=64, ep=64)
    job = work(method="pretrain", global_batch_sequences=8192)
    found = benchmark(training_step, model, machine, layout, job, UNIFORM)
    assert found.step_time_s > 0.0
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < STEP_S


def test_pipeline(benchmark):
    """16 stages, 8 virtual stages each, 384 micro batches: 98,304 operations."""
    parts = [np.linspace(0.9, 1.1, 16) for _ in range(3)]
    found = benchmark(pipeline_time_s, "1f1b", *parts, 384, vpp=8, send_s=0.01)
    assert found > 384 * 3.3
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < PIPELINE_S
