"""Attention costs against closed forms: pair counts by enumeration, ceilings of the roofline at large shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.costs.attention import (
    DECODE_DEFAULTS,
    PREFILL_DEFAULTS,
    causal_pairs,
    decode_attention_time_s,
    prefill_attention_time_s,
)
from moeplan.costs.latent_attention import (
    MLA_ABSORB_DEFAULTS,
    MLA_DECODE_DEFAULTS,
    mla_absorb_time_s,
    mla_decode_time_s,
)
from moeplan.costs.recurrent import RECURRENT_DEFAULTS, linear_attention_time_s, state_space_time_s
from moeplan.spec.hardware import Device
from moeplan.spec.precision import FORMATS

DEVICE = Device("d", "d", "NVIDIA", "hopper", 141e9, 4.8e12, {"bf16": 989e12, "fp8": 1979e12}, 132, 50e6, 700.0, False)
BF16, FP8 = FORMATS["bf16"], FORMATS["fp8"]

# A kernel without any loss but the roofline's own: the parameters' ideal values.
IDEAL_PREFILL = {
    **PREFILL_DEFAULTS, "compute_frac": 1.0, "memory_frac": 1.0, "prologue_tokens": 0.0, "kv_reads": 1.0,
    "l2_frac": 1.0, "launch_s": 0.0, "sharpness": 60.0, "split_frac": 1.0, "window_frac": 1.0,
}  # fmt: skip
IDEAL_DECODE = {
    **DECODE_DEFAULTS, "compute_frac": 1.0, "memory_frac": 1.0, "head_64_frac": 1.0, "tile_rows": 1.0,
    "window_pad_tokens": 0.0, "block_s": 0.0, "split_s": 0.0, "launch_s": 0.0,
}  # fmt: skip


def prefill(batch, q, cached, p, *, heads=32, kv_heads=4, dim=128, window=None, fmt=BF16):
    return prefill_attention_time_s(
        batch, q, cached, n_heads=heads, n_kv_heads=kv_heads, head_dim=dim, v_head_dim=dim, window_tokens=window,
        kv_fmt=fmt, device=DEVICE, p=p,
    )  # fmt: skip


def decode(batch, context, p, *, heads=32, kv_heads=4, dim=128, window=None, fmt=BF16):
    return decode_attention_time_s(
        batch, context, n_heads=heads, n_kv_heads=kv_heads, head_dim=dim, v_head_dim=dim, window_tokens=window,
        kv_fmt=fmt, device=DEVICE, p=p,
    )  # fmt: skip


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([None, 0, 1, 7, 40, 200]))
def test_pairs_are_those_of_the_mask(q, cached, window):
    limit = window or 10**9
    counted = sum(min(cached + i, limit) for i in range(1, q + 1))
    assert causal_pairs(q, cached, window) == counted


def test_long_prefill_reaches_the_arithmetic_ceiling():
    q = 262144
    flop = 2.0 * 32 * (q * (q + 1) / 2) * 256
    assert prefill(1, q, 0, IDEAL_PREFILL) == pytest.approx(flop / 989e12, rel=0.01)
    # the default efficiency divides it
    assert prefill(1, q, 0, PREFILL_DEFAULTS) == pytest.approx(flop / 989e12 / 0.6, rel=0.02)


def test_prefill_behind_a_long_cache_costs_the_rectangle():
    q, cached = 4096, 131072
    flop = 2.0 * 32 * (q * cached + q * (q + 1) / 2) * 256
    assert prefill(1, q, cached, IDEAL_PREFILL) == pytest.approx(flop / 989e12, rel=0.05)


def test_windowed_prefill_is_linear_in_the_tokens():
    one, two = prefill(1, 65536, 0, IDEAL_PREFILL, window=1024), prefill(1, 131072, 0, IDEAL_PREFILL, window=1024)
    assert two / one == pytest.approx(2.0, rel=0.01)


def test_large_decode_reaches_the_bandwidth():
    batch, context = 256, 16384
    n_bytes = batch * 4 * 256 * context * 2.0 + batch * 32 * 256 * 2.0
    assert decode(batch, context, IDEAL_DECODE) == pytest.approx(n_bytes / 4.8e12, rel=0.01)
    half = (n_bytes - batch * 32 * 256 * 2.0) / 2 + batch * 32 * 256 * 2.0
    assert decode(batch, context, IDEAL_DECODE, fmt=FP8) == pytest.approx(half / 4.8e12, rel=0.01)


@given(
    st.integers(1, 512), st.integers(1, 65536), st.sampled_from([(32, 4), (8, 8), (64, 1)]), st.sampled_from([64, 128])
)
@settings(max_examples=100, deadline=None)
def test_no_kernel_beats_the_roofline(batch, tokens, layout, dim):
    heads, kv_heads = layout
    pairs = tokens * (tokens + 1) / 2
    flop_s = 4.0 * batch * heads * pairs * dim / 989e12
    io_s = batch * tokens * 2 * dim * 2.0 * (heads + kv_heads) / 4.8e12
    ideal = {**IDEAL_PREFILL, **{f"head_{d}_frac": 1.0 for d in (64, 192, 256, 512)}}
    assert prefill(batch, tokens, 0, ideal, heads=heads, kv_heads=kv_heads, dim=dim) >= max(flop_s, io_s) * (1 - 1e-9)
    kv_s = batch * kv_heads * tokens * 2 * dim * 2.0 / 4.8e12
    decode_flop_s = 4.0 * batch * heads * tokens * dim / 989e12
    floor_s = max(kv_s, decode_flop_s)
    assert decode(batch, tokens, IDEAL_DECODE, heads=heads, kv_heads=kv_heads, dim=dim) >= floor_s * (1 - 1e-9)


def test_one_sequence_does_not_fill_the_gpu_unless_its_keys_are_split():
    unsplit = {**DECODE_DEFAULTS, "split_tokens": 1e9}
    assert decode(1, 65536, unsplit) > 5 * decode(1, 65536, DECODE_DEFAULTS)
    # with enough sequences there is nothing to split
    assert decode(2048, 4096, unsplit) == decode(2048, 4096, DECODE_DEFAULTS)


def test_mla_decode_reads_one_latent_for_all_heads_and_turns_compute_bound():
    sizes = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    p = {
        **MLA_DECODE_DEFAULTS, "compute_frac": 1.0, "memory_frac": 1.0, "tile_rows": 1.0, "kv_reread_frac": 0.0,
        "block_s": 0.0, "split_s": 0.0, "launch_s": 0.0,
    }  # fmt: skip

    def time_s(heads, batch=512, context=8192):
        return mla_decode_time_s(batch, context, n_heads=heads, **sizes, kv_fmt=BF16, device=DEVICE, p=p)

    latent_s = 512 * 8192 * 576 * 2.0 / 4.8e12
    assert time_s(8) == pytest.approx(latent_s, rel=0.02)
    # 128 heads: 2 x 128 x (576 + 512) FLOP for 1152 bytes a token, 242 FLOP/byte, above the device's 206
    flop_s = 2.0 * 512 * 8192 * 128 * (576 + 512) / 989e12
    assert flop_s < time_s(128) < 1.35 * flop_s
    # p-norm 3 of the two ceilings
    queries_s = 512 * 128 * 1088 * 2.0 / 4.8e12
    assert time_s(128) == pytest.approx((flop_s**3 + (latent_s + queries_s) ** 3) ** (1 / 3), rel=1e-6)


def test_absorbed_products_read_their_weights():
    p = {**MLA_ABSORB_DEFAULTS, "launch_s": 0.0, "memory_frac": 1.0}
    time_s = mla_absorb_time_s(1, n_heads=128, kv_lora_rank=512, inner_head_dim=128, fmt=BF16, device=DEVICE, p=p)
    assert time_s == pytest.approx(128 * 512 * 128 * 2 / 4.8e12, rel=0.03)


def test_linear_attention_decode_moves_its_state_twice():
    p = {**RECURRENT_DEFAULTS, "launch_s": 0.0, "memory_frac": 1.0}
    time_s = linear_attention_time_s(
        256, 1, n_k_heads=16, n_v_heads=32, k_head_dim=128, v_head_dim=128, conv_kernel=4, device=DEVICE, p=p
    )
    state_s = 256 * 32 * 128 * 128 * 4.0 * 2.0 / 4.8e12
    assert state_s < time_s < 1.1 * state_s


@pytest.mark.parametrize("q", [2048, 32768])
def test_recurrent_prefill_is_linear_in_the_tokens(q):
    p = {**RECURRENT_DEFAULTS, "launch_s": 0.0}

    def gated_delta(n):
        return linear_attention_time_s(
            64, n, n_k_heads=16, n_v_heads=32, k_head_dim=128, v_head_dim=128, conv_kernel=4, device=DEVICE, p=p
        )

    def mamba(n):
        return state_space_time_s(64, n, inner_size=8192, state_size=128, n_groups=8, conv_kernel=4, device=DEVICE, p=p)

    for time_s in (gated_delta, mamba):
        assert time_s(2 * q) / time_s(q) == pytest.approx(2.0, rel=0.05)
        # the state moves once a call, hence a little less than twice
        assert time_s(2 * q) <= 2 * time_s(q)


def test_mamba_decode_moves_its_state_twice():
    p = {**RECURRENT_DEFAULTS, "launch_s": 0.0, "memory_frac": 1.0}
    time_s = state_space_time_s(256, 1, inner_size=8192, state_size=128, n_groups=8, conv_kernel=4, device=DEVICE, p=p)
    state_s = 256 * 8192 * 128 * 4.0 * 2.0 / 4.8e12
    assert state_s < time_s < 1.2 * state_s


def test_a_device_without_bf16_falls_back_and_one_without_l2_has_no_warm_cache():
    volta = Device("v", "v", "NVIDIA", "volta", 32e9, 900e9, {"fp16": 125e12}, None, None, 300.0, False)
    common = {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "v_head_dim": 128, "window_tokens": None, "kv_fmt": BF16}
    cold, warm = (
        decode_attention_time_s(8, 1024, **common, device=volta, p=DECODE_DEFAULTS, warm_l2=w) for w in (False, True)
    )
    assert np.isfinite(cold)
    assert cold == warm
