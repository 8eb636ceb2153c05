"""What a device without tables of its own borrows, against kernels measured on it: H20 and H800 (InferSim @f2293da),
A800 (Frontier @a4b22df).

The bound is the target of leave-one-device-out fits.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeplan.costs.attention import decode_attention_time_s
from moeplan.costs.experts import expert_ffn_time_s
from moeplan.costs.gemm import gemm_time_s
from moeplan.costs.latent_attention import mla_decode_time_s
from moeplan.costs.parameters import lookup
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.provenance import Tier
from moeplan.spec.precision import FORMATS

SHARED = Path(os.environ.get("MOEPLAN_SHARED", Path(__file__).parents[2].parent / "shared"))
TABLES = SHARED / "measured" / "other" / "infersim" / "bench_data"
IMBALANCED = SHARED / "measured" / "other" / "frontier" / "a800" / "qwen3-a3b-30b-moe" / "moe.csv.gz"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not TABLES.is_dir(), reason="measured runs are not here")]


COLUMNS = ["dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu"]


def borrowed(name: str, op: str, fmt: str, engine: str = "sglang"):
    machine = load_hardware(name)
    found = lookup(machine, op, engine, fmt)
    assert found.tier is Tier.TRANSFERRED
    return machine.device, found


def errors(predicted_s: np.ndarray, measured_us: pd.Series) -> np.ndarray:
    return predicted_s * 1e6 / measured_us.to_numpy() - 1.0


def covered(predicted_s: np.ndarray, measured_us: pd.Series, found) -> float:
    log_ratio = np.log(measured_us.to_numpy() / (predicted_s * 1e6))
    return float(np.mean((log_ratio >= found.log_residual[0]) & (log_ratio <= found.log_residual[2])))


def gemm(name: str):
    rows = pd.read_csv(TABLES / "gemm" / name / "data.csv")
    device, found = borrowed(name, "gemm", "fp8_block")
    # the kernel alone: the quantisation of its input is timed apart
    p = {**found.values, "quantize_frac": np.inf}
    seconds = gemm_time_s(rows.m, rows.n, rows.k, fmt=FORMATS["fp8_block"], device=device, p=p)
    return seconds, rows.latency_us, found


def grouped(name: str, phase: str):
    rows = pd.read_csv(TABLES / "grouped_gemm" / phase / name / "data.csv")
    rows = rows[(rows.tokens_per_expert >= 1) & (rows.up_proj_us > 0)]
    device, found = borrowed(name, "moe", "fp8_block", "vllm")  # DeepGEMM, which was measured
    p = {**found.values, "permute_frac": np.inf, "align_s": 0.0, "launch_s": 0.0}
    tokens = (rows.tokens_per_expert * rows.num_local_experts).to_numpy(float)
    seconds = expert_ffn_time_s(
        tokens, assignments=tokens, distinct=rows.num_local_experts, max_load=rows.tokens_per_expert,
        n_local_experts=rows.num_local_experts, hidden_size=rows.hidden_size, intermediate_size=rows.intermediate_size,
        n_matrices=3, fmt=FORMATS["fp8_block"], device=device, p=p,
    )  # fmt: skip
    return seconds, rows.up_proj_us + rows.down_proj_us, found


def mla_decode(name: str):
    rows = pd.read_csv(TABLES / "mla" / "decode" / name / "128-512-64.csv")
    rows = rows[(rows.dtype == "bf16") & (rows.kv_dtype == "bf16")]
    device, found = borrowed(name, "mla_decode", "bf16")
    seconds = mla_decode_time_s(
        rows.batch_size, rows.kv_len, n_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, kv_fmt=FORMATS["bf16"], device=device, p=found.values,
    )  # fmt: skip
    return seconds, rows.latency_us, found


def mha_decode(name: str):
    parts, measured = [], []
    for path in sorted((TABLES / "mha" / "decode" / name).glob("*.csv")):
        heads, kv_heads, head_dim = map(int, path.stem.split("-"))
        rows = pd.read_csv(path)
        if list(rows) != COLUMNS:  # one file lacks its header
            continue
        rows = rows[(rows.dtype == "bf16") & (rows.kv_dtype == "bf16")]
        device, found = borrowed(name, "attention_decode", "bf16")
        parts.append(decode_attention_time_s(
            rows.batch_size, rows.kv_len, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, v_head_dim=head_dim,
            window_tokens=None, kv_fmt=FORMATS["bf16"], device=device, p=found.values,
        ))  # fmt: skip
        measured.append(rows.latency_us)
    return np.concatenate(parts), pd.concat(measured), found


def imbalanced(name: str):
    """Grouped products under measured loads: how many experts have tokens, and how many tokens the busiest."""
    rows = pd.read_csv(IMBALANCED)
    time_ms = rows["time_stats.moe_grouped_gemm.median"]
    rows, time_ms = rows[time_ms > 0], time_ms[time_ms > 0]
    device, found = borrowed(name, "moe", "bf16")
    experts, pairs = rows.num_experts_per_device, rows.total_routed_tokens
    seconds = expert_ffn_time_s(
        rows.num_tokens, assignments=pairs, distinct=np.maximum(experts * rows.expert_utilization, 1.0),
        max_load=pairs / experts * rows.max_load_ratio, n_local_experts=experts, hidden_size=rows.hidden_dim,
        intermediate_size=rows.expert_hidden_dim / rows.num_tensor_parallel_workers, n_matrices=3,
        fmt=FORMATS["bf16"], device=device, p={**found.values, "permute_frac": np.inf, "align_s": 0.0},
    )  # fmt: skip
    return seconds, time_ms * 1e3, found


CASES = {
    "imbalanced experts a800": (imbalanced, (), "a800-80gb"),
} | {
    f"{kind} {name}": (call, arguments, name)
    for name in ("h800", "h20")
    for kind, call, arguments in (
        ("gemm", gemm, ()),
        ("experts prefill", grouped, ("prefill",)),
        ("experts decode", grouped, ("decode",)),
        ("mla decode", mla_decode, ()),
        ("attention decode", mha_decode, ()),
    )
}


@pytest.mark.parametrize("case", CASES)
def test_borrowed_parameters(case):
    call, arguments, name = CASES[case]
    seconds, measured_us, found = call(name, *arguments)
    error = errors(np.asarray(seconds), measured_us)
    assert len(error) >= 20
    assert np.median(np.abs(error)) < 0.25
    assert covered(np.asarray(seconds), measured_us, found) > 0.5
