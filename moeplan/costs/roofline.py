"""Pieces that several operation costs share: the arithmetic a format runs on, and a roofline with a smooth knee.

The roofline (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785) bounds a kernel by its arithmetic and
its memory traffic. Real kernels overlap the two imperfectly, so the ceilings are joined by a p-norm: p -> infinity is
perfect overlap (the maximum), p = 1 is none (the sum).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moeplan.spec.hardware import Device
from moeplan.spec.precision import ComputeType, NumberFormat

Array: TypeAlias = npt.NDArray[np.float64]
ArrayLike: TypeAlias = npt.ArrayLike

_ACTIVATION_BYTES: dict[ComputeType, float] = {
    "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5,
}  # fmt: skip


def joined_s(compute_s: Array, memory_s: Array, sharpness: float) -> Array:
    """p-norm of two times [s] that overlap; ``sharpness`` p >= 1."""
    longer = np.maximum(compute_s, memory_s)
    shorter = np.minimum(compute_s, memory_s)
    # factored so that neither power overflows
    ratio = np.divide(shorter, longer, out=np.zeros_like(longer), where=longer > 0.0)
    return longer * (1.0 + ratio**sharpness) ** (1.0 / sharpness)


def memory_time_s(n_bytes: Array, device: Device, p: Mapping[str, float]) -> Array:
    """Time [s] to move ``n_bytes``; what fits in a part of the L2 moves faster (memory_frac, l2_frac, l2_gain)."""
    time_s: Array = n_bytes / (device.memory_bytes_per_s * p["memory_frac"])
    if device.l2_bytes is None:
        return time_s
    return time_s / (1.0 + p["l2_gain"] / (1.0 + np.square(n_bytes / (device.l2_bytes * p["l2_frac"]))))


def compute_type(fmt: NumberFormat, device: Device) -> ComputeType:
    """The arithmetic a format runs on: its own, else its fallback, else the device's best 16- or 32-bit arithmetic.

    Raises:
        ValueError: the device states no rate for any of them.
    """
    candidates: tuple[ComputeType | None, ...] = (fmt.compute, fmt.fallback, "bf16", "fp16", "fp32")
    for candidate in candidates:
        if candidate is not None and device.flop_per_s(candidate) is not None:
            return candidate
    raise ValueError(f"{device.slug} states no arithmetic rate for format {fmt.name} ({fmt.compute})")


def peak_flop_per_s(fmt: NumberFormat, device: Device) -> float:
    """Dense peak [FLOP/s] of the arithmetic ``fmt`` runs on, see `compute_type`."""
    return device.dense_flop_per_s[compute_type(fmt, device)]


def activation_bytes_per_value(fmt: NumberFormat, device: Device) -> float:
    """Bytes of one activation value the kernel reads: as wide as the arithmetic, 2 for weight-only formats."""
    return _ACTIVATION_BYTES[compute_type(fmt, device)]
