"""Hardware in SI units: one device, the links around it, the node it sits in, its efficiency parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeplan.provenance import Tier
from moeplan.spec.precision import ComputeType


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between GPUs, per GPU and per direction."""

    name: str
    bytes_per_s: float
    latency_s: float
    n_gpus: int  # GPUs that reach each other over this link (domain size)
    kind: str  # "nvlink", "xgmi", "pcie", "ici", "ethernet", "infiniband", ...


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. Rates are dense peaks."""

    slug: str
    name: str
    vendor: str
    architecture: str  # "ampere", "ada", "hopper", "blackwell", "cdna3", "tpu-v5", "apple-m", ...
    memory_bytes: float  # as the driver reports it usable, see the profile's note
    memory_bytes_per_s: float
    dense_flop_per_s: Mapping[ComputeType, float]
    n_sms: int | None  # SMs, CUs, cores: the unit of wave quantisation
    l2_bytes: float | None
    tdp_w: float | None
    unified_memory: bool  # CPU and GPU share the memory

    def flop_per_s(self, compute: ComputeType) -> float | None:
        """Dense peak [FLOP/s] or None when the device has no such arithmetic."""
        return self.dense_flop_per_s.get(compute)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine around the GPUs, per node."""

    memory_bytes: float | None
    memory_bytes_per_s: float | None
    power_w: float | None  # node power at full load without the GPUs
    pcie: Link | None


@dataclass(frozen=True, slots=True)
class OpParameters:
    """Parameters of one operation's cost model on one device, engine and number format.

    ``values`` are named in the cost module of the operation. ``log_residual`` holds the 5 %, 50 % and 95 % quantile of
    ln(measured / predicted) on rows not fitted, or the stated guess of the tier; ``regimes`` the same by regime.
    """

    op: str
    engine: str
    dtype: str
    values: Mapping[str, float]
    tier: Tier
    log_residual: tuple[float, float, float]
    source: str
    regimes: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """All operation parameters known for a device, by (op, engine, dtype)."""

    parameters: Mapping[tuple[str, str, str], OpParameters]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a scenario runs on: a device, its node and the links, innermost first."""

    slug: str
    device: Device
    n_gpus_per_node: int
    n_gpus_scale_up: int  # GPUs in one NVLink / xGMI / ICI domain
    scale_up: Link  # fastest link inside the domain (PCIe where there is no other)
    scale_out: Link | None  # NIC, None for a box that stands alone
    host: Host
    allin_power_w_per_gpu: float | None  # host, network and cooling share included
    efficiency: Efficiency
