"""Laws every attention cost obeys, whatever its parameters inside the bounds of the fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.costs.attention import (
    DECODE_DEFAULTS,
    PREFILL_DEFAULTS,
    decode_attention_time_s,
    prefill_attention_time_s,
)
from moeplan.costs.latent_attention import (
    MLA_DECODE_DEFAULTS,
    MLA_PREFILL_DEFAULTS,
    mla_decode_time_s,
    mla_prefill_time_s,
)
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.spec.precision import FORMATS

DEVICES = {name: load_hardware(name).device for name in ("h200-sxm", "b200-sxm", "l40s", "a100-sxm-80gb", "mi300x")}
SIZES = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}

devices = st.sampled_from(sorted(DEVICES))
tokens = st.integers(1, 131072)
batches = st.integers(1, 1024)
layouts = st.sampled_from([(32, 4), (64, 8), (8, 1), (16, 16), (96, 8), (1, 1), (12, 1)])
head_dims = st.sampled_from([64, 80, 128, 192, 256, 512])
formats = st.sampled_from(["bf16", "fp8"])
windows = st.sampled_from([None, 128, 1024, 8192])


def prefill(device, batch, q, cached, layout=(32, 4), head_dim=128, window=None, kv="bf16", p=PREFILL_DEFAULTS):
    return prefill_attention_time_s(
        batch, q, cached, n_heads=layout[0], n_kv_heads=layout[1], head_dim=head_dim, v_head_dim=head_dim,
        window_tokens=window, kv_fmt=FORMATS[kv], device=DEVICES[device], p=p,
    )  # fmt: skip


def decode(device, batch, context, layout=(32, 4), head_dim=128, window=None, kv="bf16", p=DECODE_DEFAULTS, warm=False):
    return decode_attention_time_s(
        batch, context, n_heads=layout[0], n_kv_heads=layout[1], head_dim=head_dim, v_head_dim=head_dim,
        window_tokens=window, kv_fmt=FORMATS[kv], device=DEVICES[device], p=p, warm_l2=warm,
    )  # fmt: skip


@given(devices, batches, st.integers(1, 32768), st.integers(0, 65536), layouts, head_dims, windows, formats)
@settings(max_examples=150, deadline=None)
def test_prefill_grows_with_everything(device, batch, q, cached, layout, head_dim, window, kv):
    common = {"layout": layout, "head_dim": head_dim, "window": window, "kv": kv}
    time_s = prefill(device, batch, q, cached, **common)
    assert np.isfinite(time_s)
    assert time_s > 0
    slack = 1.0 - 1e-12
    assert prefill(device, batch + 1, q, cached, **common) >= time_s * slack
    assert prefill(device, batch, 2 * q, cached, **common) >= time_s * slack
    assert prefill(device, batch, q, cached + 1000, **common) >= time_s * slack
    more_heads = {**common, "layout": (2 * layout[0], layout[1])}
    assert prefill(device, batch, q, cached, **more_heads) >= time_s * slack
    more_kv_heads = {**common, "layout": (2 * layout[0], 2 * layout[1])}
    assert prefill(device, batch, q, cached, **more_kv_heads) >= time_s * slack


@given(devices, batches, tokens, layouts, head_dims, windows, formats)
@settings(max_examples=150, deadline=None)
def test_decode_grows_with_context_and_heads(device, batch, context, layout, head_dim, window, kv):
    common = {"head_dim": head_dim, "window": window, "kv": kv}
    time_s = decode(device, batch, context, layout, **common)
    assert np.isfinite(time_s)
    assert time_s > 0
    slack = 1.0 - 1e-12
    assert decode(device, batch, context + 100, layout, **common) >= time_s * slack
    if layout[0] > layout[1]:  # an MHA kernel splits less, hence may be slower than the grouped one beside it
        assert decode(device, batch, context, (2 * layout[0], layout[1]), **common) >= time_s * slack


@given(devices, batches, tokens, layouts, head_dims, formats)
@settings(max_examples=150, deadline=None)
def test_decode_grows_with_batch_but_for_the_combination_of_splits(device, batch, context, layout, head_dim, kv):
    # more sequences need fewer splits: each halving of the splits saves split_s, all else grows
    saved_s = DECODE_DEFAULTS["split_s"] * np.log2((batch + 1) / batch)
    common = {"head_dim": head_dim, "kv": kv}
    smaller = decode(device, batch, context, layout, **common)
    assert decode(device, batch + 1, context, layout, **common) >= smaller * (1 - 1e-12) - saved_s


@given(devices, batches, st.integers(20000, 65536), layouts, formats)
@settings(max_examples=60, deadline=None)
def test_a_window_caps_the_cost(device, batch, context, layout, kv):
    common = {"layout": layout, "kv": kv}
    narrow = decode(device, batch, context, window=128, **common)
    assert narrow == decode(device, batch, 2 * context, window=128, **common)
    assert narrow <= decode(device, batch, context, **common)
    assert decode(device, batch, context, window=10**6, **common) == decode(device, batch, context, **common)
    assert prefill(device, batch, context, 0, window=128, **common) < prefill(device, batch, context, 0, **common)
    chunk = prefill(device, batch, 512, 4096, window=128, **common)
    assert chunk == prefill(device, batch, 512, 65536, window=128, **common)


@pytest.mark.parametrize("device", sorted(DEVICES))
@pytest.mark.parametrize("window", [None, 0])
def test_no_window_is_said_two_ways(device, window):
    assert prefill(device, 4, 4096, 0, window=window) == prefill(device, 4, 4096, 0)
    assert decode(device, 4, 4096, window=window) == decode(device, 4, 4096)


@given(devices, st.integers(1, 64), st.integers(1, 16384), formats)
@settings(max_examples=60, deadline=None)
def test_mla_grows(device, batch, context, kv):
    common = {**SIZES, "kv_fmt": FORMATS[kv], "device": DEVICES[device]}

    def mla_decode(batch, context, heads):
        return mla_decode_time_s(batch, context, n_heads=heads, **common, p=MLA_DECODE_DEFAULTS)

    def mla_prefill(batch, q, cached, heads):
        return mla_prefill_time_s(batch, q, cached, n_heads=heads, **common, p=MLA_PREFILL_DEFAULTS)

    assert mla_decode(batch, context + 64, 16) >= mla_decode(batch, context, 16) * (1 - 1e-12)
    assert mla_decode(batch, context, 32) >= mla_decode(batch, context, 16) * (1 - 1e-12)
    assert mla_prefill(batch, context + 64, 0, 16) >= mla_prefill(batch, context, 0, 16) * (1 - 1e-12)
    assert mla_prefill(batch, context, 512, 16) >= mla_prefill(batch, context, 0, 16) * (1 - 1e-12)
    assert mla_prefill(batch + 1, context, 0, 16) >= mla_prefill(batch, context, 0, 16) * (1 - 1e-12)


@given(devices, st.integers(1, 512), st.integers(1, 65536), layouts)
@settings(max_examples=60, deadline=None)
def test_a_warm_cache_is_never_slower(device, batch, context, layout):
    cold = decode(device, batch, context, layout)
    assert decode(device, batch, context, layout, warm=True) <= cold * (1 + 1e-12)


def test_nothing_to_do_takes_no_time():
    assert prefill("h200-sxm", 0, 100, 0) == 0.0
    assert prefill("h200-sxm", 1, 0, 100) == 0.0
    assert decode("h200-sxm", 0, 100) == 0.0
    assert decode("h200-sxm", 1, 0) == 0.0


def test_arrays_give_what_scalars_give():
    rng = np.random.default_rng(3)
    batch, q, cached = rng.integers(1, 64, 50), rng.integers(1, 4096, 50), rng.integers(0, 8192, 50)
    many = prefill("h200-sxm", batch, q, cached, window=1024)
    decoded = decode("h200-sxm", batch, q)
    assert many.shape == (50,)
    for i in range(50):
        assert prefill("h200-sxm", batch[i], q[i], cached[i], window=1024) == pytest.approx(many[i], rel=1e-14)
        assert decode("h200-sxm", batch[i], q[i]) == pytest.approx(decoded[i], rel=1e-14)
    grid = decode("h200-sxm", batch[:, None], q[None, :])
    assert grid.shape == (50, 50)
    assert np.array_equal(np.diag(grid), decoded)
