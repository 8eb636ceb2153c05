"""Time of all routed experts of one layer on one GPU: permute, gate/up product, activation, down product, combine."""

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
    "compute_frac": 0.55,  # share of the dense peak reached by large grouped products
    "memory_frac": 0.65,  # share of the memory bandwidth reached reading weights
    "launch_s": 2e-5,  # floor of the block: routing, alignment, two products, combine [s]
    "sharpness": 3.0,  # p of the norm that joins the ceilings
    "block_rows": 32.0,  # rows a touched expert is padded to
}


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

    Raises:
        ValueError: the device states no arithmetic rate the format could use.
    """
    n_tokens, assignments, distinct = (np.asarray(x, np.float64) for x in (n_tokens, assignments, distinct))
    hidden_size, max_load = np.asarray(hidden_size, np.float64), np.asarray(max_load, np.float64)
    weights = hidden_size * np.asarray(intermediate_size, np.float64) * np.asarray(n_matrices, np.float64)
    flop_per_s = peak_flop_per_s(fmt, device) * p["compute_frac"]
    padded_rows = np.maximum(assignments, distinct * p["block_rows"])
    width = activation_bytes_per_value(fmt, device)
    token_bytes = assignments * hidden_size * (2.0 * width + 4.0) + n_tokens * hidden_size * 4.0
    memory_s = (distinct * weights * fmt.bytes_per_value + token_bytes) / (device.memory_bytes_per_s * p["memory_frac"])
    grouped_s = joined_s(2.0 * padded_rows * weights / flop_per_s, memory_s, p["sharpness"])
    # The busiest expert's rows run on at most every SM that its share of the tiles can use.
    sms_frac = np.minimum(1.0, max_load / np.maximum(padded_rows, 1.0) * np.asarray(n_local_experts, np.float64))
    busiest_s: Array = 2.0 * max_load * weights / flop_per_s * sms_frac
    return p["launch_s"] + np.maximum(grouped_s, busiest_s)
