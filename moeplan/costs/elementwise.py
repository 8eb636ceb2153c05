"""Time of kernels that only move data: norms, rotary embedding, residual sums, activation quantisation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.roofline import Array, ArrayLike
from moeplan.spec.hardware import Device

# Stated estimates, used where nothing was measured.
DEFAULTS: Mapping[str, float] = {
    "memory_frac": 0.80,  # share of the memory bandwidth reached by large kernels
    "launch_s": 1.8e-6,  # floor of one kernel in a captured graph [s]
}


def elementwise_time_s(n_bytes: ArrayLike, *, device: Device, p: Mapping[str, float]) -> Array:
    """Time [s] of one kernel that reads and writes ``n_bytes`` in total."""
    return p["launch_s"] + np.asarray(n_bytes, np.float64) / (device.memory_bytes_per_s * p["memory_frac"])
