"""How the parameters of one device become those of another: what scales with its datasheet, and what moves as it is.

Shares of datasheet rates move unchanged: that is why costs are written with them. Three kinds of parameters do not.
Equations, and how well it works on devices that were measured: ``docs/method/calibration.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean

from moeplan.spec.hardware import Device

# ln(measured / predicted) where nothing comparable was measured: a factor of two each way. An estimate.
ESTIMATE_LOG_RESIDUAL = (-0.7, 0.0, 0.7)

# Starts of kernels and of blocks, and NCCL's, run a fixed number of instructions: with the SM clock.
_PER_CLOCK = frozenset({"launch_s", "block_s", "split_s", "align_s"})
_NCCL = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})
# The engines' own traffic: its starts belong to the link, which two devices do not tell better than the nearest.
_EXCHANGE = {f"{kind}_{phase}" for kind in ("moe", "nvlink") for phase in ("prepare", "dispatch", "combine")}
_ENGINE_TRAFFIC = frozenset({
    "custom_allreduce", *_EXCHANGE, "moe_dispatch_low_latency", "moe_combine_low_latency",
})  # fmt: skip
# Exponents and switches that may be zero.
_LINEAR = frozenset({"mha_split_frac", "group_exponent", "pack_frac", "split_frac", "kv_reread_frac"})
# Blocks an SM needs to draw its share of the bandwidth: by Little's law bytes in flight are rate times latency, and
# the latency of memory in seconds is much the same on all devices.
_PER_SM_RATE = frozenset({"saturating_blocks_per_sm"})
_PER_SM_RATE_INVERSE = frozenset({"stream_tiles"})
# What a tile spends beside its products (loads, epilogue, pipeline fill) takes the same clocks whatever the rate of the
# tensor cores: the slower they are, the nearer a kernel comes to their peak (H20: a quarter of the H100's rate an SM).
_PEAK_SHARES = frozenset({"compute_frac", "small_tile_frac"})
_DEPTHS = frozenset({"fill_k", "split_k", "prologue_tokens"})
# Arithmetic units of an SM: 128 multiply-adds a clock, 64 on V100 and A100.
_FLOP_PER_CLOCK = 256.0
_ALIKE = 1.5
_LEAST_CLOCK_PER_S = 1e9  # slower, and the SM has half the units: no device of a profile boosts below it


@dataclass(frozen=True, slots=True)
class Scale:
    """Ratios of two devices, borrower over lender."""

    clock: float
    sm_memory_rate: float  # memory bandwidth per SM
    memory_over_l2: float  # memory bandwidth over that of the L2
    tensor_rate: float  # dense 16-bit products of an SM

    @property
    def alike(self) -> bool:
        """Whether loans between kin as different as this have been measured (H200 to H100: 1.43)."""
        return all(1.0 / _ALIKE < ratio < _ALIKE for ratio in (self.sm_memory_rate, self.tensor_rate))

    @classmethod
    def between(cls, lender: Device, borrower: Device) -> Scale:
        """Ratios the datasheets state; 1 where one of the two does not state what is needed.

        Devices of one architecture count as equally clocked: their fp32 rates are rounded and disputed (B200, B300).
        """
        same = lender.architecture == borrower.architecture
        clock = 1.0 if same else _ratio(sm_clock_per_s(lender), sm_clock_per_s(borrower))
        rate = _ratio(_sm_memory_rate(lender), _sm_memory_rate(borrower))
        # Only kin run the same program; a kernel of another architecture has another overhead.
        tensor = _ratio(_sm_tensor_rate(lender), _sm_tensor_rate(borrower)) if same else 1.0
        return cls(clock, rate, rate / clock, tensor)  # an SM reads so many bytes of the L2 a clock


def sm_clock_per_s(device: Device) -> float | None:
    """Boost clock [1/s] that the fp32 rate and the number of SMs state; None where they are not of a GPU."""
    fp32 = device.flop_per_s("fp32")
    if fp32 is None or not device.n_sms:
        return None
    clock = fp32 / device.n_sms / _FLOP_PER_CLOCK
    clock = clock if clock >= _LEAST_CLOCK_PER_S else 2.0 * clock
    return clock if _LEAST_CLOCK_PER_S <= clock <= 4.0 * _LEAST_CLOCK_PER_S else None


def n_lenders(op: str) -> int:
    """How many devices of other architectures are asked for one operation, nearest first."""
    return 1 if op in _ENGINE_TRAFFIC else 2


def scaled(op: str, values: Mapping[str, float], scale: Scale) -> dict[str, float]:
    """Parameters of the lender as the borrower has them."""
    return {name: _scaled(op, name, value, values, scale) for name, value in values.items()}


def mean(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of several lenders' parameters, geometric but for those that may be zero; the first says which there are."""
    found = {}
    for name in several[0]:
        values = [one[name] for one in several if name in one]
        found[name] = fmean(values) if name in _LINEAR or min(values) <= 0.0 else geometric_mean(values)
    return found


def _scaled(op: str, name: str, value: float, values: Mapping[str, float], scale: Scale) -> float:
    if name in _PER_CLOCK or (name == "base_s" and op in _NCCL):
        return value / scale.clock
    if name in _PER_SM_RATE:
        return value * scale.sm_memory_rate
    if name in _PER_SM_RATE_INVERSE:
        return value / scale.sm_memory_rate
    if name in _PEAK_SHARES or name in _DEPTHS:
        return _overhead(name, value, scale)
    if name == "l2_gain":  # time without it over time with it, less one
        return max((1.0 + value) / scale.memory_over_l2 - 1.0, 0.0)
    if name == "l2_frac" and "l2_gain" not in values:  # time out of the L2 over time out of memory
        return min(value * scale.memory_over_l2, 1.0)
    return value


def _overhead(name: str, value: float, scale: Scale) -> float:
    """A share 1 / (1 + overhead over products), or an overhead in units of products, at the borrower's tensor rate."""
    if name in _DEPTHS:
        return value * scale.tensor_rate
    return value if value >= 1.0 else 1.0 / (1.0 + (1.0 / value - 1.0) * scale.tensor_rate)


def _sm_tensor_rate(device: Device) -> float | None:
    peak = device.flop_per_s("bf16") or device.flop_per_s("fp16")
    return peak / device.n_sms if peak and device.n_sms else None


def _sm_memory_rate(device: Device) -> float | None:
    return device.memory_bytes_per_s / device.n_sms if device.n_sms else None


def _ratio(lender: float | None, borrower: float | None) -> float:
    return borrower / lender if lender and borrower else 1.0
