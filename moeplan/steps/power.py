"""How hard a phase of a step uses the device, and how far its power limit then slows it down.

Kernel times are measured in bursts. A serving iteration with many prompt tokens lasts long enough for the clock to fall
(`costs.energy`, ``docs/method/energy.md``); what it uses is counted here by the same composition that times it, with
the operations at their datasheet rates instead of their costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moeplan.costs.attention import causal_pairs
from moeplan.costs.projections import split
from moeplan.costs.roofline import activation_bytes_per_value, peak_flop_per_s
from moeplan.spec.model import LatentAttention, Mixer, SoftmaxAttention
from moeplan.spec.precision import FORMATS
from moeplan.steps.mixers import window_tokens
from moeplan.steps.operations import ACTIVATION_BYTES, Operations

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _NoTraffic(Operations):
    """Operations whose communication takes no time: it uses neither arithmetic nor memory to speak of."""

    def all_reduce_s(self, n_bytes: npt.ArrayLike, n_gpus: int, ranks_per_domain: int | None = None) -> Array:
        return np.zeros_like(np.asarray(n_bytes, np.float64))

    def all_gather_s(self, n_bytes: npt.ArrayLike, n_gpus: int, ranks_per_domain: int | None = None) -> Array:
        return np.zeros_like(np.asarray(n_bytes, np.float64))

    def send_s(self, n_bytes: npt.ArrayLike, *, same_domain: bool) -> Array:
        return np.zeros_like(np.asarray(n_bytes, np.float64))

    def expert_exchange_s(self, n_tokens: npt.ArrayLike, **_: Any) -> Array:
        return np.zeros_like(np.asarray(n_tokens, np.float64))


@dataclass(frozen=True, slots=True)
class Arithmetic(_NoTraffic):
    """Seconds of the products at the dense peak, nothing else."""

    def gemm_s(self, tokens: npt.ArrayLike, n: int | float, k: int | float, fmt: str) -> Array:
        return np.asarray(2.0 * np.asarray(tokens, np.float64) * n * k / self._peak(fmt))

    def experts_s(self, n_tokens: npt.ArrayLike, *, assignments: npt.ArrayLike, hidden_size: int,
                  intermediate_size: float, n_matrices: int, fmt: str, **_: Any) -> Array:  # fmt: skip
        flop = 2.0 * np.asarray(assignments, np.float64) * n_matrices * hidden_size * intermediate_size
        return np.asarray(flop / self._peak(fmt))

    def elementwise_s(self, n_bytes: npt.ArrayLike) -> Array:
        return np.zeros_like(np.asarray(n_bytes, np.float64))

    def _peak(self, fmt: str) -> float:
        return peak_flop_per_s(FORMATS[fmt], self.hardware.device)


@dataclass(frozen=True, slots=True)
class Traffic(_NoTraffic):
    """Seconds of the memory traffic at the datasheet's bandwidth, nothing else."""

    def gemm_s(self, tokens: npt.ArrayLike, n: int | float, k: int | float, fmt: str) -> Array:
        width = activation_bytes_per_value(FORMATS[fmt], self.hardware.device)
        m = np.asarray(tokens, np.float64)
        return self.elementwise_s(n * k * FORMATS[fmt].bytes_per_value + m * (k * width + n * ACTIVATION_BYTES))

    def experts_s(self, n_tokens: npt.ArrayLike, *, assignments: npt.ArrayLike, distinct: npt.ArrayLike,
                  hidden_size: int, intermediate_size: float, n_matrices: int, fmt: str, **_: Any
    ) -> Array:  # fmt: skip
        weights = np.asarray(distinct, np.float64) * n_matrices * hidden_size * intermediate_size
        rows = np.asarray(assignments, np.float64) * (4.0 * hidden_size + 2.0 * n_matrices * intermediate_size)
        return self.elementwise_s(weights * FORMATS[fmt].bytes_per_value + rows)

    def elementwise_s(self, n_bytes: npt.ArrayLike) -> Array:
        return np.asarray(np.asarray(n_bytes, np.float64) / self.hardware.device.memory_bytes_per_s)


def prefill_attention_arithmetic_s(
    block: Mixer, batch: npt.ArrayLike, query: npt.ArrayLike, cached: npt.ArrayLike, *, tp: int, kv: str,
    ops: Operations,
) -> Array:  # fmt: skip
    """The two products with keys and values of a prompt, causal, at the dense peak [s]; recurrences: nothing."""
    if not isinstance(block, SoftmaxAttention | LatentAttention):
        return np.zeros(np.broadcast(batch, query, cached).shape)
    key_dim = block.head_dim if isinstance(block, SoftmaxAttention) else block.qk_nope_head_dim + block.qk_rope_head_dim
    pairs = causal_pairs(query, cached, window_tokens(block))
    flop = 2.0 * np.asarray(batch) * split(block.n_heads, tp) * pairs * (key_dim + block.v_head_dim)
    return np.asarray(flop / peak_flop_per_s(FORMATS[kv], ops.hardware.device))
