"""A decode step of a 61-layer mixture of experts from its compiled table: under 20 microseconds, and the right time."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from step_cases import BF16, engine, hardware

from moeplan.files.catalog.model_catalog import load_model
from moeplan.kernels.engine_grids import interpolate, interpolate2
from moeplan.kernels.engine_iteration import host_time_s
from moeplan.simulate.pool import kernel_table
from moeplan.spec.layout import ServingLayout
from moeplan.spec.routing import RoutingAssumption
from moeplan.steps.compiled import compile_step_table, step_parts_s
from moeplan.steps.serving import Iteration, ServingStep

MODEL = load_model("DeepSeek-V3")
PARTS = (MODEL, hardware("h200-sxm"), ServingLayout(tp=8, ep=8), BF16, engine(), RoutingAssumption(0.5, "test"))
N = 10_000
STEP_S = 20e-6


@njit
def decode_steps(table, batch, context, out):
    """As `kernels.engine_iteration.compose` times an iteration that only decodes."""
    for i in range(batch.size):
        gpu_s = interpolate(table.token_grid, table.linear_time_s, batch[i])
        gpu_s += interpolate2(
            table.decode_batch_grid, table.decode_context_grid, table.decode_attention_time_s, batch[i], context[i]
        )
        gpu_s += interpolate(table.head_rows_grid, table.head_time_s, batch[i])
        out[i] = max(gpu_s, host_time_s(table, batch[i], batch[i])) + table.step_overhead_s


def test_decode_step_of_61_layers(benchmark):
    assert MODEL.n_layers == 61
    table = kernel_table(compile_step_table(*PARTS))
    rng = np.random.default_rng(0)
    batch, context = rng.integers(1, 256, N).astype(float), rng.integers(1, 32768, N).astype(float)
    found = np.empty(N)
    decode_steps(table, batch, context, found)  # compiles
    benchmark(decode_steps, table, batch, context, found)
    some = zip(batch[:20], context[:20], strict=True)
    whole = [sum(step_parts_s(ServingStep(*PARTS), Iteration(b, c)).values()) for b, c in some]
    assert found[:20] == pytest.approx(whole, rel=0.03)  # between grid points
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert benchmark.stats.stats.min / N < STEP_S


def test_compiling_the_table(benchmark):
    """Once a layout; a search compiles one for each of thousands."""
    benchmark(compile_step_table, *PARTS)
    if benchmark.stats is not None:
        assert benchmark.stats.stats.min < 0.05
