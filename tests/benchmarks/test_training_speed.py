"""Speed of training: a layout whose blocks are known takes about a millisecond, a run of months under a second."""

from __future__ import annotations

import numpy as np
from step_cases import UNIFORM, hardware, work

from moeplan.files.catalog.model_catalog import load_model
from moeplan.simulate.training_run import simulate_runs
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.workload import Reliability
from moeplan.steps.pipeline import pipeline_time_s
from moeplan.steps.training import TrainingCosts, training_step

COLD_S, WARM_S = 30e-3, 2e-3  # the aim of a warm one is 1 ms on an idle core
PIPELINE_S = 1e-3
RUN_S = 1.0


def test_layout(benchmark):
    model, machine = load_model("DeepSeek-V3"), hardware("h100-sxm")
    layout = TrainingLayout(tp=2, pp=8, vpp=4, dp=64, ep=64)
    job = work(method="pretrain", global_batch_sequences=8192)
    found = benchmark(training_step, model, machine, layout, job, UNIFORM)
    assert found.step_time_s > 0.0
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < COLD_S


def test_warm_layout(benchmark):
    """Memory and time of a layout that shares its blocks with others, as in a search over pp, dp and schedules."""
    costs = TrainingCosts(load_model("DeepSeek-V3"), hardware("h100-sxm"), UNIFORM)
    layout = TrainingLayout(tp=2, pp=8, dp=64, ep=64)
    job = work(method="pretrain", global_batch_sequences=8192)

    def evaluate():
        return costs.memory(layout, job).need_bytes, costs.step(layout, job).step_time_s

    evaluate()
    need, seconds = benchmark(evaluate)
    assert need > 0.0
    assert seconds > 0.0
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < WARM_S


def test_pipeline(benchmark):
    """16 stages, 8 virtual stages each, 384 micro batches: 98,304 operations."""
    parts = [np.linspace(0.9, 1.1, 16) for _ in range(3)]
    found = benchmark(pipeline_time_s, "1f1b", *parts, 384, vpp=8, send_s=0.01)
    assert found > 384 * 3.3
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < PIPELINE_S


def test_ninety_days_of_16384_gpus(benchmark):
    """All repetitions of the run behind a plan, at the failure rates of arXiv:2407.21783."""
    day_s = 86400.0
    rates = (3.03e-4 / day_s, 4.34e-4 / day_s, 5.5e-5 / day_s, 6.1e-5 / day_s)
    reliability = Reliability(*rates, 660.0, 3600.0, 40.0, 40.0)
    found = benchmark.pedantic(simulate_runs, (80 * day_s, 16384, 8, reliability, 1), rounds=2)
    assert found.n_failures.mean() > 500
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < RUN_S
