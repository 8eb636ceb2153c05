"""Recurrent token mixers: linear attention (gated delta net, KDA, lightning) and state space (Mamba, Mamba-2).

No measured tables: a roofline on bytes and FLOP with stated estimates, tier ``estimate``. Times [s] are the scan and
its short convolution, without the projections around it. Equations and validity: ``docs/method/attention.md``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.attention import ACTIVATION_BYTES, floats
from moeplan.costs.roofline import Array, ArrayLike, joined_s, peak_flop_per_s
from moeplan.spec.hardware import Device
from moeplan.spec.precision import FORMATS

STATE_BYTES = 4.0  # recurrent states are kept in fp32 by the reference kernels (flash-linear-attention, mamba_ssm)
CHUNK_TOKENS = 64.0  # chunk of the parallel form (Gated DeltaNet, arXiv:2412.06464, section 3.3); Mamba-2: to 256

BACKWARD = 2.0  # times the forward scan, an estimate: its gradient is two scans
SHARPNESS = 2.0  # how well the scan overlaps arithmetic and memory: an estimate

# Estimates: chunked scans run well below dense GEMM rates (Mamba-2, arXiv:2405.21060, figure 10), in several launches.
RECURRENT_DEFAULTS: Mapping[str, float] = {"compute_frac": 0.20, "memory_frac": 0.60, "launch_s": 15e-6}


def _roofline_s(flop: Array, n_bytes: Array, device: Device, p: Mapping[str, float]) -> Array:
    compute_s = flop / (p["compute_frac"] * peak_flop_per_s(FORMATS["bf16"], device))
    memory_s = n_bytes / (p["memory_frac"] * device.memory_bytes_per_s)
    return np.asarray(p["launch_s"] + joined_s(compute_s, memory_s, SHARPNESS))


def linear_attention_time_s(
    batch: ArrayLike,
    q_tokens: ArrayLike,
    *,
    n_k_heads: ArrayLike,
    n_v_heads: ArrayLike,
    k_head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    conv_kernel: ArrayLike,
    device: Device,
    p: Mapping[str, float],
) -> Array:
    """Time [s] of linear attention of ``q_tokens`` new tokens (1 = decode) in each of ``batch`` sequences.

    One token updates a state of ``k_head_dim x v_head_dim`` per value head and reads it once. In a chunk of C tokens
    the products are (C x C x k), (C x C x v) and two with the state (C x k x v), the delta rule's erase included.
    """
    batch, q, k_heads, v_heads = floats(batch, q_tokens, n_k_heads, n_v_heads)
    dk, dv, conv = floats(k_head_dim, v_head_dim, conv_kernel)
    chunk = np.minimum(q, CHUNK_TOKENS)
    channels = 2.0 * k_heads * dk + v_heads * dv  # queries, keys, values
    flop = batch * q * (2.0 * v_heads * (3.0 * dk * dv + chunk * (dk + dv)) + 2.0 * conv * channels)
    state_bytes = batch * v_heads * dk * dv * STATE_BYTES * 2.0  # read and written once a call
    token_bytes = batch * q * (channels * np.where(conv > 0.0, 3.0, 1.0) + v_heads * dv) * ACTIVATION_BYTES
    conv_state_bytes = batch * channels * conv * ACTIVATION_BYTES * 2.0
    return _roofline_s(flop, state_bytes + token_bytes + conv_state_bytes, device, p)


def state_space_time_s(
    batch: ArrayLike,
    q_tokens: ArrayLike,
    *,
    inner_size: ArrayLike,
    state_size: ArrayLike,
    n_groups: ArrayLike,
    conv_kernel: ArrayLike,
    device: Device,
    p: Mapping[str, float],
) -> Array:
    """Time [s] of a selective scan of ``q_tokens`` new tokens (1 = decode) in each of ``batch`` sequences.

    A state of ``inner_size x state_size`` per sequence (Mamba-2, arXiv:2405.21060, section 6): update and output cost
    ``2 x inner x state`` FLOP each per token, the chunked form adds ``chunk x (state + inner)``.
    """
    batch, q, inner, state = floats(batch, q_tokens, inner_size, state_size)
    groups, conv = floats(n_groups, conv_kernel)
    chunk = np.minimum(q, CHUNK_TOKENS)
    channels = inner + 2.0 * groups * state  # x, B, C
    flop = batch * q * (4.0 * inner * state + 2.0 * chunk * (groups * state + inner) + 2.0 * conv * channels)
    state_bytes = batch * inner * state * STATE_BYTES * 2.0
    token_bytes = batch * q * (channels * np.where(conv > 0.0, 3.0, 1.0) + 2.0 * inner) * ACTIVATION_BYTES
    conv_state_bytes = batch * channels * conv * ACTIVATION_BYTES * 2.0
    return _roofline_s(flop, state_bytes + token_bytes + conv_state_bytes, device, p)
