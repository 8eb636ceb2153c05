"""The vectorised product and expert costs against plain loops over the documented terms."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_cases import HOPPER, experts_twin, gemm_twin

from moeplan.costs import experts, gemm
from moeplan.spec.precision import FORMATS


@pytest.mark.parametrize(("name", "width", "rate"), [("bf16", 2.0, 1e15), ("fp8", 1.0, 2e15), ("int4", 2.0, 1e15)])
def test_gemm_equals_its_twin(name, width, rate):
    rng = np.random.default_rng(1)
    m, n, k = (np.floor(2.0 ** rng.uniform(0, 15, 500)) for _ in range(3))
    found = gemm.gemm_time_s(m, n, k, fmt=FORMATS[name], device=HOPPER, p=gemm.DEFAULTS)
    per_value = FORMATS[name].bytes_per_value
    twin = [gemm_twin(a, b, c, per_value, width, rate, HOPPER, gemm.DEFAULTS) for a, b, c in zip(m, n, k, strict=True)]
    np.testing.assert_allclose(found, twin, rtol=1e-12)


def test_experts_equal_their_twin():
    rng = np.random.default_rng(2)
    tokens = np.floor(2.0 ** rng.uniform(0, 13, 300))
    routed = tokens * 8
    pairs = np.maximum(np.floor(routed * rng.uniform(0.05, 1.0, 300)), 1.0)
    distinct = np.minimum(np.ceil(pairs * rng.uniform(0.1, 1.0, 300)), 128.0)
    most = np.ceil(pairs / distinct * rng.uniform(1.0, 5.0, 300))
    sizes = {"hidden_size": 4096, "intermediate_size": 1500, "n_matrices": 3}
    found = experts.expert_ffn_time_s(
        tokens, assignments=pairs, distinct=distinct, max_load=most, n_local_experts=64, **sizes,
        fmt=FORMATS["bf16"], device=HOPPER, p=experts.DEFAULTS, routed_pairs=routed,
    )  # fmt: skip
    twin = [
        experts_twin(t, a, d, x, 64, 4096, 1500, 3, 2.0, 1e15, HOPPER, experts.DEFAULTS, r)
        for t, a, d, x, r in zip(tokens, pairs, distinct, most, routed, strict=True)
    ]
    np.testing.assert_allclose(found, twin, rtol=1e-12)
