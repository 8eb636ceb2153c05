"""Time of kernels that only move data: norms, rotary embedding, residual sums, activation quantisation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.roofline import Array, ArrayLike, memory_time_s
from moeplan.spec.hardware import Device

# Estimates for every device, from 56 timings of vLLM's norms, sums and activations in a CUDA graph on one H200
# (measured for this project, 2026-11-23), which they meet within 8 % (median) and -39 % to +33 % (5 % and 95 %).
DEFAULTS: Mapping[str, float] = {
    "memory_frac": 0.80,  # share of the memory bandwidth reached by large kernels
    "launch_s": 1.95e-6,  # floor of one kernel in a captured graph [s]
    "l2_frac": 0.25,  # share of the L2 within which data just written is found
    "l2_gain": 1.15,  # how much faster than memory_frac that is, as a fraction
}


def elementwise_time_s(n_bytes: ArrayLike, *, device: Device, p: Mapping[str, float]) -> Array:
    """Time [s] of one kernel that reads and writes ``n_bytes`` in total; ``p`` is named as in `DEFAULTS`."""
    return p["launch_s"] + memory_time_s(np.asarray(n_bytes, np.float64), device, p)
