"""Watts and joules of a GPU from how much of its memory bandwidth and arithmetic it uses, and of what stands around it.

Equations and fits are in ``docs/method/energy.md``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moeplan.costs.fabrics import Array, ArrayLike
from moeplan.spec.hardware import Device, Hardware
from moeplan.spec.prices import Facility

# Shares of the device's power limit.
DEFAULTS: Mapping[str, float] = {
    "idle_frac": 0.11,  # nvidia-smi on an idle H200: 78.6 of 700 W (own measurement, 2026-11-23)
    # Least squares over decode of Llama-2-70B and BLOOM-176B on A100 80 GB at tensor parallel 2 to 8, one sequence,
    # prompts up to 1024 tokens (splitwise-sim @8f99e7d data/perf_model.csv): mean power against weights read per s.
    "active_frac": 0.31,
    "memory_frac": 0.70,
    # The same file's peak power during prompts of 256 to 1024 tokens below the limit, less the terms above, over MFU:
    # median of 6, 0.74 to 1.29.
    "compute_frac": 1.14,
}
# Where the architecture was measured itself. Hopper: see docs/method/energy.md, "clock under the limit".
OF_ARCHITECTURE: Mapping[str, Mapping[str, float]] = {"hopper": {"compute_frac": 1.29}}
# Largest error of the mean power on 16 decode runs of the same file that were not fitted (batches of 2 to 16; -4 to
# +8 %): the ends of the interval of a predicted power. Outside A100 an estimate.
POWER_SPREAD_FRAC = 0.08
_LEAST_BUDGET = 0.05  # of the limit: what is left to arithmetic when memory alone asks for all of it


def power_shares(device: Device) -> Mapping[str, float]:
    """Parameters of the power model, named as in `DEFAULTS`."""
    return {**DEFAULTS, **OF_ARCHITECTURE.get(device.architecture, {})}


def device_power_w(
    memory_frac: ArrayLike,
    compute_frac: ArrayLike,
    *,
    device: Device,
    busy_frac: ArrayLike = 1.0,
) -> Array:
    """Mean power of one GPU [W].

    ``memory_frac`` and ``compute_frac`` are the shares of datasheet bandwidth and dense peak it sustains *while busy*,
    ``busy_frac`` the share of time any kernel runs. The power limit caps the busy part.

    Raises:
        ValueError: the profile states no power limit, or a share is outside 0..1.
    """
    memory, compute, busy = (_share(x, name) for x, name in (
        (memory_frac, "memory_frac"), (compute_frac, "compute_frac"), (busy_frac, "busy_frac")
    ))  # fmt: skip
    p = power_shares(device)
    demand = p["active_frac"] + p["memory_frac"] * memory + p["compute_frac"] * compute
    return _limit_w(device) * (busy * np.minimum(demand, 1.0) + (1.0 - busy) * p["idle_frac"])


def sustained_clock_frac(memory_frac: ArrayLike, compute_frac: ArrayLike, *, device: Device) -> Array:
    """Share of the burst rate that the power limit lets long-running kernels keep.

    ``memory_frac`` and ``compute_frac`` are the shares of datasheet bandwidth and dense peak at the burst clock.
    Switching power grows with V^2 f and V with f near the top of the range, so the arithmetic's share of the budget
    scales with the cube of the clock.
    """
    memory, compute = _share(memory_frac, "memory_frac"), _share(compute_frac, "compute_frac")
    p = power_shares(device)
    budget = 1.0 - p["active_frac"] - p["memory_frac"] * memory
    wanted = np.maximum(p["compute_frac"] * compute, 1e-12)
    return np.minimum(np.cbrt(np.maximum(budget, _LEAST_BUDGET) / wanted), 1.0)


def sustained_stretch(time_s: ArrayLike, arithmetic_s: ArrayLike, memory_s: ArrayLike, *, device: Device) -> Array:
    """Factor, at least 1, on the arithmetic of a phase that takes ``time_s`` at burst clocks [s].

    ``arithmetic_s`` is what its products take at the dense peak, ``memory_s`` what its bytes take at the datasheet's
    bandwidth: their shares of ``time_s`` are its mean use, which is what the limit acts on.
    """
    whole_s = np.maximum(np.asarray(time_s, np.float64), 1e-30)
    memory, compute = (np.minimum(np.asarray(part, np.float64) / whole_s, 1.0) for part in (memory_s, arithmetic_s))
    return 1.0 / sustained_clock_frac(memory, compute, device=device)


def meter_power_w(
    device_w: ArrayLike, *, hardware: Hardware, facility: Facility, power_w: float | None = None
) -> Array:
    """Power at the meter for one GPU that draws ``device_w`` [W].

    What stands around the GPU draws the same at all loads (fans, hosts and switches hardly follow it): ``power_w``, the
    power of GPU and host at the GPU's limit, less the limit; else the node's power without its GPUs, divided among
    them; both times PUE. Else the profile's all-in power less the limit, cooling included, without a PUE unless none is
    stated. Where the profile says nothing, the GPU alone times PUE.
    """
    drawn = np.asarray(device_w, np.float64)
    match power_in(hardware, facility, power_w):
        case "stated power, PUE" if power_w is not None:
            return (drawn + _above_limit_w(power_w, hardware)) * facility.pue
        case "GPU, host, PUE" if hardware.host.power_w is not None:
            return (drawn + hardware.host.power_w / hardware.n_gpus_per_node) * facility.pue
        case "GPU, host, network, cooling" if hardware.allin_power_w_per_gpu is not None:
            return drawn + _above_limit_w(hardware.allin_power_w_per_gpu, hardware)
    return drawn * facility.pue


def power_in(hardware: Hardware, facility: Facility, power_w: float | None = None) -> str:
    """What the power at the meter holds, see `meter_power_w`."""
    if power_w is not None:
        return "stated power, PUE"
    all_in, host = hardware.allin_power_w_per_gpu, hardware.host.power_w
    if host is not None and (facility.pue_stated or all_in is None):
        return "GPU, host, PUE"
    return "GPU, PUE; no host in the profile" if all_in is None else "GPU, host, network, cooling"


def _above_limit_w(power_w: float, hardware: Hardware) -> float:
    return max(power_w - _limit_w(hardware.device), 0.0 * power_w)  # keeps a unit


def energy_j(power_w: ArrayLike, time_s: ArrayLike) -> Array:
    """Energy [J]."""
    return np.asarray(power_w, np.float64) * np.asarray(time_s, np.float64)


def _share(value: ArrayLike, name: str) -> Array:
    share = np.asarray(value, np.float64)
    if not np.all((share >= 0.0) & (share <= 1.0)):
        raise ValueError(f"{name} must lie between 0 and 1")
    return share


def _limit_w(device: Device) -> float:
    if device.tdp_w is None:
        raise ValueError(f"{device.slug}: the profile states no power limit")
    return device.tdp_w
