"""Time of one dense matrix product, m tokens times a weight of shape (k, n)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.roofline import (
    Array,
    ArrayLike,
    activation_bytes_per_value,
    joined_s,
    peak_flop_per_s,
)
from moeplan.spec.hardware import Device
from moeplan.spec.precision import NumberFormat

# Stated estimates, used where nothing was measured.
DEFAULTS: Mapping[str, float] = {
    "compute_frac": 0.75,  # share of the dense peak reached by large products
    "memory_frac": 0.75,  # share of the memory bandwidth reached
    "launch_s": 4e-6,  # floor of one call in a captured graph [s]
    "sharpness": 3.0,  # p of the norm that joins the ceilings
}


def gemm_time_s(
    m: ArrayLike, n: ArrayLike, k: ArrayLike, *, fmt: NumberFormat, device: Device, p: Mapping[str, float]
) -> Array:
    """Time [s] of (m, k) x (k, n).

    Args:
        m: rows, i.e. tokens.
        n: output features.
        k: input features.
        fmt: format of the weights.
        device: datasheet rates.
        p: values named as in `DEFAULTS`.

    Raises:
        ValueError: the device states no arithmetic rate the format could use.
    """
    m, n, k = np.broadcast_arrays(np.asarray(m, np.float64), np.asarray(n, np.float64), np.asarray(k, np.float64))
    compute_s = 2.0 * m * n * k / (peak_flop_per_s(fmt, device) * p["compute_frac"])
    n_bytes = n * k * fmt.bytes_per_value + m * k * activation_bytes_per_value(fmt, device) + 2.0 * m * n
    memory_s = n_bytes / (device.memory_bytes_per_s * p["memory_frac"])
    return p["launch_s"] + joined_s(compute_s, memory_s, p["sharpness"])
