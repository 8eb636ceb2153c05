"""Time of one dense matrix product, m tokens times a weight of shape (k, n). Equations: ``docs/method/gemm.md``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.roofline import (
    Array,
    ArrayLike,
    activation_bytes_per_value,
    joined_s,
    memory_time_s,
    peak_flop_per_s,
)
from moeplan.spec.hardware import Device
from moeplan.spec.precision import NumberFormat

# Stated estimates, used where nothing was measured: middle of what the fits give on measured devices.
DEFAULTS: Mapping[str, float] = {
    "compute_frac": 0.75,  # share of the dense peak a large tile reaches
    "memory_frac": 0.80,  # share of the memory bandwidth reached
    "launch_s": 4e-6,  # floor of one call in a captured graph [s]
    "sharpness": 2.3,  # p of the norm that joins the ceilings
    "small_tile_frac": 0.85,  # rate of a 64 x 64 tile over that of a 128 x 128 tile
    "fill_k": 150.0,  # pipeline fill and epilogue of a tile, as extra depth k
    "split_k": 3000.0,  # least depth one SM takes when k is split for lack of tiles
    "wave_frac": 0.3,  # share of the idle part of the last wave that is really lost
    "misaligned_factor": 1.1,  # cost of a row count that is no multiple of 16, formats that quantise activations
    "quantize_frac": 0.4,  # share of the memory bandwidth the activation quantisation reaches
    "quantize_row_values": 1000.0,  # a row shorter than this costs the quantisation as much as this many values
    "l2_frac": 0.4,  # share of the L2 within which operands are served from it
    "l2_gain": 0.2,  # how much faster than memory_frac those are, as a fraction
}

_TILES = ((128.0, 128.0), (64.0, 64.0))  # rows, columns of the output one SM computes
_ALIGNED_ROWS = 16  # TMA and tensor-core fragments move multiples of 16 rows


def gemm_time_s(
    m: ArrayLike, n: ArrayLike, k: ArrayLike, *, fmt: NumberFormat, device: Device, p: Mapping[str, float]
) -> Array:
    """Time [s] of (m, k) x (k, n), quantisation of the activations included where the format's arithmetic needs it.

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
    m, n, k = (np.asarray(size, np.float64) for size in (m, n, k))
    width = activation_bytes_per_value(fmt, device)
    compute_s = _tiles_time_s(m, n, k, peak_flop_per_s(fmt, device), device.n_sms or 1, p)
    memory_s = memory_time_s(n * k * fmt.bytes_per_value + m * k * width + 2.0 * m * n, device, p)
    product_s = joined_s(compute_s, memory_s, p["sharpness"])
    if width >= 2.0:
        return p["launch_s"] + product_s
    product_s *= np.where((m > _ALIGNED_ROWS) & (np.mod(m, _ALIGNED_ROWS) != 0.0), p["misaligned_factor"], 1.0)
    quantize_bytes = m * np.maximum(k, p["quantize_row_values"]) * (2.0 + width)
    return p["launch_s"] + product_s + quantize_bytes / (device.memory_bytes_per_s * p["quantize_frac"])


def _tiles_time_s(m: Array, n: Array, k: Array, flop_per_s: float, n_sms: int, p: Mapping[str, float]) -> Array:
    """Arithmetic time [s]: tiles over SMs, by the better of two tile sizes (a library picks it by heuristics)."""
    depth = k + p["fill_k"]
    least_waves = np.minimum(p["split_k"] / k, 1.0)  # split-k cannot make a tile shorter than this
    times = []
    for (rows, columns), frac in zip(_TILES, (1.0, p["small_tile_frac"]), strict=True):
        waves = np.ceil(m / rows) * np.ceil(n / columns) / n_sms
        full = waves + p["wave_frac"] * (np.ceil(waves) - waves)
        waves = np.where(waves < 1.0, np.maximum(waves, least_waves), full)
        times.append(waves * depth * (2.0 * rows * columns * n_sms / (flop_per_s * p["compute_frac"] * frac)))
    best: Array = np.minimum(*times)
    return best
