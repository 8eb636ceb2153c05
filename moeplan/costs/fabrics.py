"""Which links a group of GPUs crosses, and what a network class delivers of its datasheet rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moeplan.spec.hardware import Hardware, Link

Array: TypeAlias = npt.NDArray[np.float64]
ArrayLike: TypeAlias = npt.ArrayLike


@dataclass(frozen=True, slots=True)
class Fabric:
    """A network class.

    ``hop_s`` is the latency of one GPU-to-GPU message through both NICs and the network [s]. The two efficiencies are
    shares of the NIC's datasheet rate: ``stream`` for few large messages (rings, sends), ``scatter`` for tokens sent to
    many peers at once.
    """

    hop_s: float
    stream_efficiency: float
    scatter_efficiency: float
    source: str


_INFINIBAND = Fabric(
    hop_s=12e-6,
    stream_efficiency=0.95,
    scatter_efficiency=0.87,
    source="hop: Vidur @7d47513 network/h100_dgx send_recv of 2 KiB, 17 us between nodes less 5 us inside one; "
    "stream: CoreWeave nccl-tests README, all-reduce of 2 to 8 GiB on 64 H100, 381 to 387 GB/s of 8 x 50; "
    "scatter: DeepEP docs/legacy.md @dd758ca, low latency EP16 to EP256 on CX7 400 Gb/s",
)
_ETHERNET = Fabric(
    hop_s=15e-6,
    stream_efficiency=0.9,
    scatter_efficiency=0.85,
    source="estimate: MORI-EP README (2026) on Pollara stays within 0.8 to 1.1 of the same library on CX7 InfiniBand",
)
_EFA = Fabric(
    hop_s=26e-6,
    stream_efficiency=0.95,
    scatter_efficiency=0.86,
    source="hop: awsome-distributed-training nccl-tests README, all-reduce of 8 B on 16 H100 (69 us) less NVLink hops; "
    "stream: ML Engineering (Bekman), all-reduce of 2 to 16 GiB on 32 B200, 372 to 382 GB/s of 8 x 50; "
    "scatter: UCCL-EP README, throughput dispatch EP32 on H200 and B200 (2022 and 2072 us)",
)
FABRICS: Mapping[str, Fabric] = {
    "infiniband": _INFINIBAND, "rdma": _ETHERNET, "ethernet": _ETHERNET, "efa": _EFA,
}  # fmt: skip


def fabric_of(link: Link) -> Fabric:
    """The class of a scale-out link; Ethernet for kinds nobody published figures for (TPU pods, NeuronLink)."""
    return FABRICS.get(link.kind, _ETHERNET)


def scale_out_of(hardware: Hardware) -> Link:
    """The link between domains. Raises ValueError where the profile states none."""
    if hardware.scale_out is None:
        raise ValueError(f"{hardware.slug}: the group spans several nodes and the profile states no scale-out link")
    return hardware.scale_out


def stream_bytes_per_s(hardware: Hardware) -> float:
    """What one GPU moves over its NIC in one direction in large messages [bytes/s]."""
    link = scale_out_of(hardware)
    return link.bytes_per_s * fabric_of(link).stream_efficiency


def scatter_bytes_per_s(hardware: Hardware) -> float:
    """What one GPU moves over its NIC in one direction in tokens for many peers [bytes/s]."""
    link = scale_out_of(hardware)
    return link.bytes_per_s * fabric_of(link).scatter_efficiency


def domain_ranks(n_gpus: Array, hardware: Hardware, ranks_per_domain: ArrayLike | None) -> Array:
    """Ranks of a group of ``n_gpus`` that reach each other without the scale-out network."""
    full = max(hardware.n_gpus_scale_up, hardware.n_gpus_per_node)
    asked = full if ranks_per_domain is None else np.asarray(ranks_per_domain, np.float64)
    return np.minimum(n_gpus, asked)


def meshed_frac(local: ArrayLike, hardware: Hardware) -> Array:
    """Share of a GPU's links that a group of ``local`` can use: the domain is a full mesh of pairs, or a switch (1).

    Infinity Fabric (MI300X: 7 links of 64 GB/s, one to each peer, AMD data sheet) and Gaudi's Ethernet are meshes.
    """
    ranks = np.asarray(local, np.float64)
    peers = hardware.n_gpus_scale_up - 1
    if hardware.scale_up.kind not in ("xgmi", "ethernet") or peers < 1:
        return np.ones_like(ranks)
    return np.clip((ranks - 1) / peers, 1 / peers, 1.0)


def multicasts(hardware: Hardware) -> bool:
    """Whether the switch can add and multicast (NVLS): third-generation NVSwitch, from Hopper on."""
    return hardware.scale_up.kind == "nvlink" and hardware.device.architecture not in ("volta", "ampere")


def inner_bytes_per_s(local: Array, hardware: Hardware, p: Mapping[str, float]) -> Array:
    """Datasheet rate per GPU and direction inside a domain of ``local`` ranks, after the PCIe host path [bytes/s].

    Where every pair has links of its own a smaller group leaves the links to the others idle. More GPUs than a bridge
    joins fall back to PCIe. Two PCIe cards talk through one switch or root port; more than two
    share the path through the host, which leaves each the fraction ``host_path``.
    """
    pcie = hardware.host.pcie
    bridged = hardware.scale_up.bytes_per_s * meshed_frac(local, hardware)
    if hardware.scale_up.kind == "pcie":
        host_rate, is_host = hardware.scale_up.bytes_per_s, local > 2
    elif pcie is not None:
        host_rate, is_host = pcie.bytes_per_s, local > hardware.n_gpus_scale_up
    else:
        return bridged
    return np.where(is_host, host_rate * p.get("host_path", 1.0), bridged)
