"""Laws of the product, expert and elementwise costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gemm_cases import HOPPER
from hypothesis import given
from hypothesis import strategies as st

from moeplan.costs import elementwise, experts, gemm
from moeplan.spec.precision import FORMATS

SIZE = st.integers(1, 65536)
COST = {"device": HOPPER, "p": gemm.DEFAULTS}
EXPERT = {"n_local_experts": 128, "hidden_size": 4096, "intermediate_size": 1536, "n_matrices": 3,
          "fmt": FORMATS["bf16"], "device": HOPPER, "p": experts.DEFAULTS}  # fmt: skip


def faster(device, factor):
    rates = {name: rate * factor for name, rate in device.dense_flop_per_s.items()}
    return replace(device, memory_bytes_per_s=device.memory_bytes_per_s * factor, dense_flop_per_s=rates)


@given(m=SIZE, n=SIZE, k=SIZE, format_name=st.sampled_from(["bf16", "fp8", "int4", "nvfp4"]))
def test_no_product_beats_its_rooflines(m, n, k, format_name):
    fmt = FORMATS[format_name]
    time_s = float(gemm.gemm_time_s(m, n, k, fmt=fmt, **COST))
    peak = HOPPER.dense_flop_per_s.get(fmt.compute, HOPPER.dense_flop_per_s["bf16"])
    assert time_s >= 2.0 * m * n * k / (peak * gemm.DEFAULTS["compute_frac"])
    best = HOPPER.memory_bytes_per_s * gemm.DEFAULTS["memory_frac"] * (1.0 + gemm.DEFAULTS["l2_gain"])
    assert time_s >= n * k * fmt.bytes_per_value / best


@given(m=SIZE, n=SIZE, k=SIZE, more=st.integers(1, 4096))
def test_a_larger_product_is_never_faster(m, n, k, more):
    base = gemm.gemm_time_s(m, n, k, fmt=FORMATS["bf16"], **COST)
    slack = 1.0 - 1e-9
    assert gemm.gemm_time_s(m + more, n, k, fmt=FORMATS["bf16"], **COST) >= base * slack
    assert gemm.gemm_time_s(m, n + more, k, fmt=FORMATS["bf16"], **COST) >= base * slack


@given(m=SIZE, n=SIZE, k=SIZE, factor=st.floats(0.1, 10.0))
def test_a_device_faster_in_everything_divides_the_time_above_the_launch(m, n, k, factor):
    one = gemm.gemm_time_s(m, n, k, fmt=FORMATS["fp8"], **COST) - gemm.DEFAULTS["launch_s"]
    other = gemm.gemm_time_s(m, n, k, fmt=FORMATS["fp8"], device=faster(HOPPER, factor), p=gemm.DEFAULTS)
    assert float(other) - gemm.DEFAULTS["launch_s"] == pytest.approx(float(one) / factor, rel=1e-6, abs=1e-15)


def test_a_huge_product_reaches_the_stated_share_of_the_peak():
    n = 65536.0
    time_s = float(gemm.gemm_time_s(n, n, n, fmt=FORMATS["bf16"], **COST))
    assert 2.0 * n**3 / time_s == pytest.approx(1e15 * gemm.DEFAULTS["compute_frac"], rel=0.02)


def test_one_row_past_a_tile_costs_a_row_of_tiles():
    """129 rows need a third row of 64-row tiles that 128 rows do not."""
    values = {**gemm.DEFAULTS, "wave_frac": 1.0}
    at, past = gemm.gemm_time_s(np.array([128.0, 129.0]), 65536, 8192, fmt=FORMATS["bf16"], device=HOPPER, p=values)
    assert past > 1.1 * at


@given(tokens=st.integers(1, 8192), distinct=st.integers(1, 127), spread=st.floats(1.0, 8.0), more=st.integers(1, 1000))
def test_more_experts_or_more_pairs_never_save_time(tokens, distinct, spread, more):
    pairs = max(tokens * 8, distinct + 1)
    most = pairs / distinct * spread
    base = float(experts.expert_ffn_time_s(tokens, assignments=pairs, distinct=distinct, max_load=most, **EXPERT))
    wider = experts.expert_ffn_time_s(tokens, assignments=pairs, distinct=distinct + 1, max_load=most, **EXPERT)
    fuller = experts.expert_ffn_time_s(
        tokens, assignments=pairs + more, distinct=distinct, max_load=most + more, **EXPERT
    )
    assert float(wider) >= base * (1.0 - 1e-3)
    assert float(fuller) >= base * (1.0 - 1e-9)


def test_reading_every_expert_takes_at_least_the_memory_time():
    time_s = float(experts.expert_ffn_time_s(16, assignments=128, distinct=128, max_load=1, **EXPERT))
    weights = 128 * 3 * 4096 * 1536 * 2
    assert time_s >= weights / (HOPPER.memory_bytes_per_s * experts.DEFAULTS["memory_frac"])


def test_skew_costs_time():
    level, skewed = experts.expert_ffn_time_s(
        4096, assignments=32768, distinct=128, max_load=np.array([256.0, 4096.0]), **EXPERT
    )
    assert skewed > level


def test_distinct_experts_are_capped_by_those_the_gpu_holds():
    found = [
        float(experts.expert_ffn_time_s(64, assignments=512, distinct=d, max_load=8, **EXPERT)) for d in (128, 500)
    ]
    assert found[0] == found[1]


def test_elementwise_is_a_floor_and_a_rate():
    small, large = elementwise.elementwise_time_s(np.array([0.0, 1e12]), device=HOPPER, p=elementwise.DEFAULTS)
    assert small == elementwise.DEFAULTS["launch_s"]
    assert large == pytest.approx(1e12 / (3.35e12 * elementwise.DEFAULTS["memory_frac"]), rel=1e-3)


def test_a_format_without_arithmetic_anywhere_is_refused():
    bare = replace(HOPPER, dense_flop_per_s={"tf32": 1e14})
    with pytest.raises(ValueError, match="states no arithmetic rate"):
        gemm.gemm_time_s(1, 1, 1, fmt=FORMATS["fp8"], device=bare, p=gemm.DEFAULTS)
