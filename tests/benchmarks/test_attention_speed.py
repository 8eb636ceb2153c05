"""Speed of the attention costs: at least 2 million evaluations a second on one core (issue: operator cost model)."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.costs.attention import (
    DECODE_DEFAULTS,
    PREFILL_DEFAULTS,
    decode_attention_time_s,
    prefill_attention_time_s,
)
from moeplan.costs.latent_attention import MLA_DECODE_DEFAULTS, mla_decode_time_s
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.spec.precision import FORMATS

N = 20_000  # shapes a call: arrays that stay in cache
EVALUATIONS_PER_S = 2e6
DEVICE = load_hardware("h200-sxm").device
SOFTMAX = {
    "n_heads": 32, "n_kv_heads": 4, "head_dim": 128, "v_head_dim": 128, "window_tokens": None,
    "kv_fmt": FORMATS["bf16"], "device": DEVICE,
}  # fmt: skip
LATENT = {
    "n_heads": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "kv_fmt": FORMATS["bf16"], "device": DEVICE,
}  # fmt: skip


def shapes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, N).astype(float), rng.integers(1, 32768, N).astype(float)


@pytest.mark.parametrize("op", ["prefill", "decode", "mla_decode"])
def test_two_million_evaluations_a_second(benchmark, op):
    batch, tokens = shapes()
    calls = {
        "prefill": lambda: prefill_attention_time_s(batch, tokens, 0.0, **SOFTMAX, p=PREFILL_DEFAULTS),
        "decode": lambda: decode_attention_time_s(batch, tokens, **SOFTMAX, p=DECODE_DEFAULTS),
        "mla_decode": lambda: mla_decode_time_s(batch, tokens, **LATENT, p=MLA_DECODE_DEFAULTS),
    }
    result = benchmark(calls[op])
    assert result.shape == (N,)
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert N / benchmark.stats.stats.min > EVALUATIONS_PER_S
