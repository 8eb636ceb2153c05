"""Speed of the product and expert costs: at least 2 million evaluations a second on one core."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_cases import HOPPER

from moeplan.costs import experts, gemm
from moeplan.spec.precision import FORMATS

N = 8192  # shapes a call: arrays that stay in cache
EVALUATIONS_PER_S = 2e6


@pytest.mark.parametrize("op", ["gemm bf16", "gemm fp8", "experts"])
def test_two_million_evaluations_a_second(benchmark, op):
    rng = np.random.default_rng(0)
    m, n, k = (2.0 ** rng.uniform(0, 14, N) for _ in range(3))
    loads = {"assignments": 8 * m, "distinct": np.minimum(8 * m, 128), "max_load": m, "n_local_experts": 128}
    sizes = {"hidden_size": 4096, "intermediate_size": 1536, "n_matrices": 3}
    calls = {
        "gemm bf16": lambda: gemm.gemm_time_s(m, n, k, fmt=FORMATS["bf16"], device=HOPPER, p=gemm.DEFAULTS),
        "gemm fp8": lambda: gemm.gemm_time_s(m, n, k, fmt=FORMATS["fp8"], device=HOPPER, p=gemm.DEFAULTS),
        "experts": lambda: experts.expert_ffn_time_s(
            m, **loads, **sizes, fmt=FORMATS["bf16"], device=HOPPER, p=experts.DEFAULTS
        ),
    }
    result = benchmark(calls[op])
    assert result.shape == (N,)
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert N / benchmark.stats.stats.min > EVALUATIONS_PER_S
