"""Made-up measured tables: the GEMM cost itself with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from moeplan.costs import gemm
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.spec.precision import FORMATS

TRUTH = {**gemm.DEFAULTS, "compute_frac": 0.62, "memory_frac": 0.71, "launch_s": 7e-6, "fill_k": 300.0}


def gemm_frame(hardware: str = "h100-sxm", n: int = 1500, noise: float = 0.03, seed: int = 0) -> pd.DataFrame:
    """Shapes over the usual range with log-normal noise on the time."""
    rng = np.random.default_rng(seed)
    sizes = {name: np.floor(2.0 ** rng.uniform(low, 14, n)).astype(int) for name, low in (("m", 0), ("n", 6), ("k", 6))}
    device = load_hardware(hardware).device
    time_s = gemm.gemm_time_s(*sizes.values(), fmt=FORMATS["bf16"], device=device, p=TRUTH)
    noisy_s = time_s * np.exp(rng.normal(0.0, noise, n))
    return pd.DataFrame(
        {**sizes, "gemm_dtype": "bfloat16", "version": "1", "kernel_source": "made up", "latency_ms": noisy_s * 1e3}
    )


def write_table(root: Path, frame: pd.DataFrame, hardware: str = "h100-sxm", name: str = "gemm.vllm.parquet") -> Path:
    path = root / hardware / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)
    return path
