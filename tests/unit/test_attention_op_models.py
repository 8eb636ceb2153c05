"""The op models of attention: which rows are fitted, how rows become arguments, and that a known law is recovered."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moeplan.calibrate.fit import fit_rows
from moeplan.calibrate.op_model import Place, usable
from moeplan.calibrate.ops import OP_MODELS, attention, mla, mla_module
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.steps.operations import Operations

H200 = load_hardware("h200-sxm")


def table(n: int, seed: int = 0, **columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    heads = rng.choice([8, 16, 32, 64], n)
    return pd.DataFrame(
        {
            "batch_size": 2 ** rng.integers(0, 9, n),
            "isl": rng.choice([16, 128, 512, 1024, 3072, 8192], n),
            "step": 0,
            "num_heads": heads,
            "num_key_value_heads": heads // 4,
            "head_dim": rng.choice([64, 128, 256], n),
            "window_size": rng.choice([0, 128], n),
            "attn_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16",
            "kernel_source": "fa3",
            **columns,
        }
    )


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (attention.PREFILL, Place("h200-sxm", "attention_prefill", "vllm")),
        (attention.DECODE, Place("h200-sxm", "attention_decode", "vllm")),
        (mla.PREFILL, Place("h200-sxm", "mla_prefill", "trtllm")),
        (mla.DECODE, Place("h200-sxm", "mla_decode", "trtllm")),
    ],
)
def test_the_fit_recovers_times_the_model_made(model, place):
    frame = table(500)
    if model.op.endswith("decode"):
        frame = frame.assign(step=frame["isl"] - 1, isl=1)
    truth = {p.name: p.start for p in model.parameters}
    truth.update(compute_frac=0.45, memory_frac=0.7, launch_s=1.3e-5)
    inputs = model.inputs(frame, H200, "bf16")
    noise = np.random.default_rng(1).normal(0.0, 0.02, len(frame))
    frame["measured_s"] = model.time_s(inputs, H200, "bf16", truth) * np.exp(noise)
    fit = fit_rows(model, frame, place, H200, "bf16", seed=0)
    assert fit.heldout.mdape_frac < 0.03
    assert fit.heldout.median_width_frac < 0.15  # the noise is 2 %: a 90 % interval is 6.6 % wide
    assert fit.values["launch_s"] == pytest.approx(1.3e-5, rel=0.15)


def test_an_fp8_cache_read_by_16_bit_arithmetic_is_its_own_format_only_beside_fp8_arithmetic():
    place = Place("h200-sxm", "attention_prefill", "trtllm")
    mixed = table(3, attn_dtype=["bfloat16", "bfloat16", "fp8"], kv_cache_dtype=["bfloat16", "fp8", "fp8"])
    assert list(attention.arithmetic_format(mixed, place)) == ["bf16", "fp8_kv", "fp8"]
    alone = table(2, kv_cache_dtype=["bfloat16", "fp8"])
    assert list(attention.arithmetic_format(alone, place)) == ["bf16", "fp8"]


def test_an_unknown_type_has_no_format():
    frame = table(1, kv_cache_dtype="posit8")
    assert list(attention.cache_format(frame, Place("h200-sxm", "attention_decode", "vllm"))) == [""]


def test_every_row_is_answered_and_other_kernels_are_stored_apart():
    frame = table(100, isl=[1] * 10 + [512] * 90, kernel_source=["triton"] * 30 + ["fa3"] * 70, head_dim=128)
    frame["measured_s"] = 1e-3
    place = Place("h200-sxm", "attention_prefill", "sglang")
    keep, taken = usable(attention.PREFILL, frame, place)
    assert keep.all()
    assert not taken
    assert attention.PREFILL.engine_of(frame, place).value_counts().to_dict() == {"sglang": 70, "sglang/triton": 30}


def test_large_groups_of_tensorrt_llm_are_a_kernel_of_their_own():
    frame = table(2, num_heads=128, num_key_value_heads=[2, 4], head_dim=128)
    for engine, names in (("trtllm", ["trtllm/unshared", "trtllm"]), ("vllm", ["vllm", "vllm"])):
        assert list(attention.DECODE.engine_of(frame, Place("h200-sxm", "attention_decode", engine))) == names


def test_a100_rows_above_the_bandwidth_are_left_out_there_only():
    frame = table(2, batch_size=64, isl=1, step=8191, num_heads=32, num_key_value_heads=32, head_dim=128)
    n_bytes = 64 * 32 * 8192 * 128 * 4.0
    frame["measured_s"] = [n_bytes / 3e12, n_bytes / 1.5e12]
    keep, _ = usable(attention.DECODE, frame, Place("a100-sxm-80gb", "attention_decode", "trtllm"))
    assert list(keep) == [False, True]
    keep, _ = usable(attention.DECODE, frame, Place("h200-sxm", "attention_decode", "trtllm"))
    assert list(keep) == [True, True]


def test_mla_rows_that_are_fp8_in_name_only_count_as_16_bit():
    frame = table(2, kv_cache_dtype=["bfloat16", "fp8"])
    for model in (mla.PREFILL, mla.DECODE):
        for hardware, formats in (("l40s", ["bf16", "bf16"]), ("h200-sxm", ["bf16", "fp8"])):
            assert list(model.format_of(frame, Place(hardware, model.op, "trtllm"))) == formats


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_module_is_its_parts_and_what_lies_between(phase):
    """One rank of two heads has the whole down-projection, so halving the heads saves less than half."""
    (model,) = (m for m in mla_module.MODELS if m.op == f"mla_{phase}_module")
    rows = table(3, isl=64 if phase == "prefill" else 1, step=0 if phase == "prefill" else 4095).assign(
        num_heads=[128, 64, 64], kv_cache_dtype="bfloat16", gemm_type="bfloat16", engine="trtllm", batch_size=32
    )
    inputs = model.inputs(rows, H200, "bf16")
    whole, half, again = model.time_s(inputs, H200, "bf16", {"launch_s": 1e-5, "passes": 2.0})
    assert half == again
    assert half < whole < 2.0 * half
    assert inputs["parts_s"][0] < whole
    ops = Operations(H200, "trtllm")
    tokens = np.asarray(32.0 * (64 if phase == "prefill" else 1))
    assert inputs["parts_s"][0] > ops.gemm_s(tokens, 7168, 128 * 128, "bf16")  # the output projection alone


def test_absorbed_prefill_rows_are_compared_with_the_absorbed_form():
    frame = table(2, kernel_source=["flash_attention", "default"], num_heads=16)
    inputs = mla.PREFILL.inputs(frame, H200, "bf16")
    assert list(inputs["n_kv_heads"]) == [1.0, 16.0]
    assert list(inputs["head_dim"] + inputs["v_head_dim"]) == [1088.0, 320.0]


@pytest.mark.parametrize(
    "model", [attention.PREFILL, attention.DECODE, mla.PREFILL, mla.DECODE, mla.ABSORB], ids=lambda m: m.op
)
def test_every_parameter_moves_some_prediction(model):
    frame = table(600, step=1000 if model.op.endswith("decode") else 0).assign(
        op_name="mla_gen_pre", num_tokens=lambda f: f["isl"], head_dim=lambda f: f["isl"] % 3 * 64 + f["head_dim"]
    )
    frame.loc[::7, "num_key_value_heads"] = frame["num_heads"]
    frame.loc[::11, "head_dim"] = 512
    frame.loc[::5, "num_heads"] = 128
    inputs = model.inputs(frame, H200, "bf16")
    start = {p.name: p.start for p in model.parameters}
    usual = model.time_s(inputs, H200, "bf16", start)
    for parameter in model.parameters:
        moved = {**start, parameter.name: 0.7 * parameter.start}
        assert not np.allclose(model.time_s(inputs, H200, "bf16", moved), usual, rtol=1e-6), parameter.name


def test_a_table_without_windows_or_kv_heads_is_full_mha():
    frame = table(5, num_key_value_heads=0).drop(columns="window_size")
    inputs = attention.PREFILL.inputs(frame, H200, "bf16")
    assert np.array_equal(inputs["n_kv_heads"], inputs["n_heads"])
    assert not inputs["window_tokens"].any()


def test_every_regime_and_format_has_a_name():
    frame = table(200)
    for model in OP_MODELS:
        if model.op.startswith("attention"):
            regimes = model.regime_of(frame, Place("h200-sxm", model.op, "vllm"))
            assert set(regimes) <= {f"{w} {k}" for w in ("tiny", "small", "large") for k in ("full", "window")}


def test_start_values_lie_inside_their_bounds():
    for model in (attention.PREFILL, attention.DECODE, mla.PREFILL, mla.DECODE, mla.ABSORB):
        for parameter in model.parameters:
            assert parameter.lower < parameter.start < parameter.upper or parameter.lower == 0.0 < parameter.upper
