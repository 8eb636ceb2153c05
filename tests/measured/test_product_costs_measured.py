"""Fitted costs against kernels no fit has seen: the H200 timings of this project (cold weights, Zipf skew)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeplan.costs.experts import expert_ffn_time_s
from moeplan.costs.gemm import gemm_time_s
from moeplan.costs.parameters import lookup
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.spec.precision import FORMATS

SHARED = Path(os.environ.get("MOEPLAN_SHARED", Path(__file__).parents[3] / "shared"))
MICRO = SHARED / "measured" / "h200_vllm" / "micro"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not MICRO.is_dir(), reason="measured runs are not beside this checkout"),
]
H200 = load_hardware("h200-sxm")


def errors(measured_us: pd.Series, predicted_s: np.ndarray) -> np.ndarray:
    return predicted_s * 1e6 / measured_us.to_numpy() - 1.0


def test_dense_products():
    rows = pd.read_csv(MICRO / "gemm.csv").query("mode == 'graph' and dtype == 'bf16'")
    p = lookup(H200, "gemm", "vllm", "bf16").values
    found = errors(
        rows["us"], gemm_time_s(rows["M"], rows["N"], rows["K"], fmt=FORMATS["bf16"], device=H200.device, p=p)
    )
    assert len(rows) > 50
    assert np.median(np.abs(found)) < 0.12
    assert abs(np.median(found)) < 0.10


MODELS = {  # hidden size, expert width: of the public configurations named in the table
    "qwen3-30b-a3b": (2048, 768),
    "deepseek-v2-lite": (2048, 1408),
    "olmoe-1b-7b": (2048, 1024),
    "mixtral-8x7b": (4096, 14336),
}


def test_experts_under_measured_skew():
    rows = pd.read_csv(MICRO / "fused_moe.csv").query("mode == 'graph' and dtype == 'bf16'")
    rows = rows[rows["model"].isin(MODELS)]
    assert len(rows) > 50
    hidden, inner = (np.array([MODELS[m][i] for m in rows["model"]], float) for i in (0, 1))
    p = lookup(H200, "moe", "vllm", "bf16").values
    predicted = expert_ffn_time_s(
        rows["T"], assignments=rows["T"] * rows["topk"], distinct=rows["active_experts"], max_load=rows["max_load"],
        n_local_experts=rows["E"], hidden_size=hidden, intermediate_size=inner, n_matrices=3,
        fmt=FORMATS["bf16"], device=H200.device, p=p,
    )  # fmt: skip
    found = errors(rows["us"], predicted)
    assert np.median(np.abs(found)) < 0.15
    for _, part in rows.assign(error=found).groupby("zipf"):
        assert np.median(np.abs(part["error"])) < 0.20
