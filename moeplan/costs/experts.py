"""Time of all routed experts of one layer on one GPU: permute, gate/up product, activation, down product, combine.

Equations: ``docs/method/experts.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moeplan.costs.roofline import Array, ArrayLike, joined_s, peak_flop_per_s
from moeplan.spec.hardware import Device
from moeplan.spec.precision import NumberFormat

# Stated estimates, used where nothing was measured: middle of what the fits give on measured devices.
DEFAULTS: Mapping[str, float] = {
    "compute_frac": 0.5,  # share of the dense peak a 128-row tile reaches
    "memory_frac": 0.8,  # share of the memory bandwidth reached reading weights
    "launch_s": 2e-5,  # floor of the block: routing, alignment, two products, combine [s]
    "sharpness": 3.0,  # p of the norm that joins the ceilings
    "small_tile_frac": 0.4,  # rate of a 16-row tile over that of a 128-row tile
    "fill_k": 200.0,  # pipeline fill and epilogue of a tile, as extra depth
    "stream_tiles": 1.6,  # weight columns of 64 in flight per SM that would halve the memory rate
    "permute_frac": 0.5,  # share of the memory bandwidth the permutation, activation and combine reach
    "local_frac": 0.3,  # share of that traffic that only pairs of local experts cause
    "align_s": 5e-7,  # sorting and alignment, per square root of the tokens (up to 1024 tokens) [s]
    "skew_frac": 0.05,  # extra arithmetic time when one expert holds all tokens
}

_TILES = (128.0, 16.0)  # rows of a block; every touched expert is padded to it
_TILE_COLUMNS = 128.0
_STREAM_COLUMNS = 64.0
_ALIGN_TOKENS = 1024.0


@dataclass(frozen=True, slots=True)
class _Load:
    assignments: Array
    distinct: Array
    skew: Array  # 0 balanced .. 1 everything on one of many experts


def expert_ffn_time_s(
    n_tokens: ArrayLike,
    *,
    assignments: ArrayLike,
    distinct: ArrayLike,
    max_load: ArrayLike,
    n_local_experts: ArrayLike,
    hidden_size: ArrayLike,
    intermediate_size: ArrayLike,
    n_matrices: ArrayLike,
    fmt: NumberFormat,
    device: Device,
    p: Mapping[str, float],
    routed_pairs: ArrayLike | None = None,
) -> Array:
    """Time [s] of the routed experts of one layer on one GPU.

    Args:
        n_tokens: tokens that enter the layer on this GPU.
        assignments: token-expert pairs computed on this GPU.
        distinct: experts of this GPU with at least one token (their weights are read).
        max_load: tokens of the busiest expert of this GPU.
        n_local_experts: experts held by this GPU.
        hidden_size: model width seen by the experts.
        intermediate_size: width of one expert on this GPU.
        n_matrices: 3 for gated experts, 2 for plain ones.
        fmt: format of the expert weights.
        device: datasheet rates.
        p: values named as in `DEFAULTS`.
        routed_pairs: pairs of the entering tokens with experts anywhere, n_tokens x top_k; engines that mask remote
            experts allocate and combine rows for all of them. ``assignments`` when None.

    Raises:
        ValueError: the device states no arithmetic rate the format could use.
    """
    tokens, pairs, hidden = (np.asarray(x, np.float64) for x in (n_tokens, assignments, hidden_size))
    inner, matrices = np.asarray(intermediate_size, np.float64), np.asarray(n_matrices, np.float64)
    touched = np.minimum(np.maximum(distinct, 1e-9), n_local_experts)
    skew = 1.0 - np.minimum(pairs / (touched * np.maximum(max_load, 1e-9)), 1.0)
    load = _Load(pairs, touched, skew)
    products_s = _grouped_time_s(load, (matrices - 1.0) * inner, hidden, fmt, device, p)
    products_s = products_s + _grouped_time_s(load, hidden, inner, fmt, device, p)
    all_pairs = pairs if routed_pairs is None else np.asarray(routed_pairs, np.float64)
    rows = all_pairs * (1.0 - p["local_frac"]) + pairs * p["local_frac"]
    # In and out of the permutation at 16 bit, and the activation between the products.
    permute_bytes = rows * (4.0 * hidden + 2.0 * matrices * inner)
    permute_s = permute_bytes / (device.memory_bytes_per_s * p["permute_frac"])
    align_s = p["align_s"] * np.sqrt(np.minimum(tokens, _ALIGN_TOKENS))
    return p["launch_s"] + products_s + permute_s + align_s


def _grouped_time_s(
    load: _Load, n: Array, k: Array, fmt: NumberFormat, device: Device, p: Mapping[str, float]
) -> Array:
    """One grouped product [s]: every touched expert multiplies its rows with a weight of shape (k, n)."""
    n_sms = float(device.n_sms or 1)
    flop_per_s = peak_flop_per_s(fmt, device) * p["compute_frac"]
    columns = np.ceil(n / _TILE_COLUMNS) * _TILE_COLUMNS
    times = []
    for tile_rows, frac in zip(_TILES, (1.0, p["small_tile_frac"]), strict=True):
        # Padding adds half a block to an expert on average, and an expert with one token is a whole block.
        padded_rows = np.maximum(load.distinct * tile_rows, load.assignments + 0.5 * tile_rows * load.distinct)
        times.append(2.0 * padded_rows * columns * (k + p["fill_k"]) / (flop_per_s * frac))
    compute_s = np.minimum(*times) * (1.0 + p["skew_frac"] * load.skew)
    memory_s = load.distinct * n * k * fmt.bytes_per_value / (device.memory_bytes_per_s * p["memory_frac"])
    # Few weight columns occupy few SMs, and a few SMs cannot draw the full memory bandwidth.
    columns_per_sm = load.distinct * n / (_STREAM_COLUMNS * n_sms)
    memory_s = memory_s * (1.0 + 1.0 / (p["stream_tiles"] * columns_per_sm))
    return joined_s(compute_s, memory_s, p["sharpness"])
