"""Laws of the operation costs with the parameters that ship, on every device of the catalog, measured or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.costs import attention, collectives, expert_exchange, experts, gemm, latent_attention
from moeplan.costs.parameters import ESTIMATES, lookup
from moeplan.files.catalog.hardware_catalog import hardware_names, load_hardware
from moeplan.provenance import Tier
from moeplan.spec.precision import FORMATS

NAMES = hardware_names()
MACHINES = {name: load_hardware(name) for name in NAMES}
SIZES = np.unique(np.append(np.arange(1.0, 300.0), np.geomspace(300, 1e7, 100).round()))
N_BYTES = np.geomspace(1.0, 1e12, 200)
# What a cost may fall by where a size grows: a kernel that splits its depth pays the start of the pipeline once less,
# and one more sequence makes one split less to combine.
SPLITTING = 0.055  # 5.2 % for one fp8 head on Arc, every other device and layout below 1.3 %
RINGS = {
    "all_reduce": collectives.all_reduce_time_s, "all_gather": collectives.all_gather_time_s,
    "reduce_scatter": collectives.reduce_scatter_time_s, "all_to_all": collectives.all_to_all_time_s,
}  # fmt: skip
EXCHANGES = ("moe_dispatch", "moe_combine", "moe_dispatch_low_latency", "moe_combine_low_latency")

names = st.sampled_from(NAMES)
engines = st.sampled_from(["vllm", "sglang", "trtllm", "llama-cpp"])
formats = st.sampled_from(["bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4", "q4_k_m"])
widths = st.integers(1, 20_000)


def grows(time_s, slack=1e-6):
    """Finite, above zero, and no size takes less time than a smaller one."""
    time_s = np.asarray(time_s)
    longest = np.maximum.accumulate(time_s)
    return bool(np.all(np.isfinite(time_s)) and np.all(time_s > 0.0) and np.all(time_s >= longest * (1.0 - slack)))


@given(names, engines, formats, widths, widths)
@settings(max_examples=100, deadline=None)
def test_products(name, engine, kind, n, k):
    """In rows of whole fragments: others pay `misaligned_factor` where the format's arithmetic is narrow."""
    machine, fmt = MACHINES[name], FORMATS[kind]
    cost = {"fmt": fmt, "device": machine.device, "p": lookup(machine, "gemm", engine, kind).values}
    assert grows(gemm.gemm_time_s(np.ceil(SIZES / 16.0) * 16.0, n, k, **cost))
    assert grows(gemm.gemm_time_s(n, SIZES, k, **cost))
    assert grows(gemm.gemm_time_s(n, k, SIZES, **cost), SPLITTING)


@given(names, engines, formats, st.integers(1, 512), st.integers(1, 16), widths, widths)
@settings(max_examples=100, deadline=None)
def test_experts(name, engine, kind, n_experts, top_k, hidden, inner):
    """One expert, every expert of many, one token to ten million: evenly spread, and to fewer or fuller experts."""
    machine, k = MACHINES[name], float(min(top_k, n_experts))
    p = lookup(machine, "moe", engine, kind).values
    cost = {"n_local_experts": n_experts, "n_matrices": 3, "fmt": FORMATS[kind], "device": machine.device, "p": p}

    def time_s(tokens, hidden=hidden, inner=inner, distinct=None, max_load=None):
        pairs = tokens * k
        touched = n_experts * -np.expm1(tokens * np.log1p(-min(k / n_experts, 1.0 - 1e-12)))
        return experts.expert_ffn_time_s(
            tokens, assignments=pairs, distinct=touched if distinct is None else distinct,
            max_load=np.maximum(pairs / n_experts, 1.0) if max_load is None else max_load, hidden_size=hidden,
            intermediate_size=inner, **cost,
        )  # fmt: skip

    assert grows(time_s(SIZES))
    assert grows(time_s(64.0, hidden=SIZES))
    assert grows(time_s(64.0, inner=SIZES))
    even = max(64.0 * k / n_experts, 1.0)
    assert grows(time_s(64.0, distinct=min(n_experts, 64.0 * k), max_load=np.linspace(even, 64.0, 50)))
    assert grows(time_s(512.0, distinct=np.arange(1.0, n_experts + 1), max_load=512.0), 1e-3)


@given(names, engines, st.sampled_from(["bf16", "fp8"]), st.sampled_from([(32, 4), (8, 8), (1, 1)]),
       st.sampled_from([None, 1024]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_attention(name, engine, kind, heads, window):
    machine = MACHINES[name]
    cost = {
        "n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": 128, "v_head_dim": 128, "window_tokens": window,
        "kv_fmt": FORMATS[kind], "device": machine.device,
    }  # fmt: skip
    prefill = {**cost, "p": lookup(machine, "attention_prefill", engine, kind).values}
    decode = {**cost, "p": lookup(machine, "attention_decode", engine, kind).values}
    assert grows(attention.prefill_attention_time_s(1, SIZES, 0, **prefill))
    assert grows(attention.prefill_attention_time_s(1, 512, SIZES, **prefill))
    assert grows(attention.prefill_attention_time_s(SIZES, 512, 0, **prefill))
    assert grows(attention.decode_attention_time_s(8, SIZES, **decode))
    assert grows(attention.decode_attention_time_s(SIZES, 2048, **decode), SPLITTING)


@given(names, engines, st.sampled_from(["bf16", "fp8"]), st.sampled_from([128, 16, 1]))
@settings(max_examples=60, deadline=None)
def test_latent_attention(name, engine, kind, n_heads):
    machine = MACHINES[name]
    cost = {
        "n_heads": n_heads, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "kv_fmt": FORMATS[kind], "device": machine.device,
    }  # fmt: skip
    p = lookup(machine, "mla_prefill", engine, kind).values
    assert grows(latent_attention.mla_prefill_time_s(1, SIZES, 0, p=p, **cost))
    p = lookup(machine, "mla_decode", engine, kind).values
    assert grows(latent_attention.mla_decode_time_s(8, SIZES, p=p, **cost))
    assert grows(latent_attention.mla_decode_time_s(SIZES, 2048, p=p, **cost), SPLITTING)


@pytest.mark.parametrize("name", NAMES)
def test_traffic(name):
    """Two GPUs to 4096, of one node or many; a machine without a network says so."""
    machine = MACHINES[name]

    def check(n):
        for op, time_s in RINGS.items():
            assert grows(time_s(N_BYTES, n, hardware=machine, p=lookup(machine, op, "vllm", "bf16").values))
        for op in EXCHANGES:
            cost = {
                "n_experts": max(n, 256), "ep": n, "bytes_per_value": 2.0, "hardware": machine,
                "p": lookup(machine, op, "vllm", "bf16").values, "low_latency": op.endswith("low_latency"),
            }  # fmt: skip
            assert grows(expert_exchange.moe_dispatch_time_s(SIZES, 7168, 8, **cost))
            assert grows(expert_exchange.moe_dispatch_time_s(64, SIZES, 8, **cost))

    for n in (2, 8, 512, 4096):
        if n > machine.n_gpus_scale_up and machine.scale_out is None:
            with pytest.raises(ValueError, match="no scale-out link"):
                check(n)
        else:
            check(n)


def test_borrowed_intervals_are_wider():
    """No loan is narrower than the narrowest fit it could be of, and loans of an operation are wider than its fits.

    The host's share of training is fitted to all devices at once and has one interval.
    """
    fits, borrowed = {}, {}
    for name, machine in MACHINES.items():
        for key, found in machine.efficiency.parameters.items():
            if key[0] == "training_host":
                continue
            low, _, high = found.log_residual
            (borrowed if found.tier is Tier.TRANSFERRED else fits).setdefault(key, {})[name] = high - low
    for key, widths in borrowed.items():
        assert min(widths.values()) >= min(fits[key].values()) - 1e-9, key
    for op in {op for op, *_ in borrowed}:
        fitted, lent = (
            [w for key, ws in all_.items() if key[0] == op for w in ws.values()] for all_ in (fits, borrowed)
        )
        assert np.median(lent) > np.median(fitted), op


def test_every_operation_has_an_answer_on_every_device():
    for name, machine in MACHINES.items():
        for op in ESTIMATES:
            found = lookup(machine, op, "vllm", "bf16")
            assert all(np.isfinite(value) for value in found.values.values()), (name, op)
            assert found.log_residual[0] < found.log_residual[2]
