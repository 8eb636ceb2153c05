"""Which links a group of GPUs crosses, and what a network class delivers of its datasheet rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moeplan.spec.hardware import Hardware, Link

Array: TypeAlias = npt.NDArray[np.float64]
ArrayLike: TypeAlias = npt.ArrayLike


# A network nobody published figures for (TPU pods, NeuronLink): estimates between those of InfiniBand and EFA, which
# `hardware_profiles/fabrics.yaml` holds.
DEFAULTS: Mapping[str, float] = {
    # One GPU-to-GPU message through both NICs and the network: send_recv of 2 KiB between two DGX H100 takes 17 us less
    # the 5 us of one inside a node (Vidur @7d47513 network/h100_dgx).
    "hop_s": 1.2e-5,
    "stream_efficiency": 0.9,  # share of the NIC's datasheet rate in few large messages (rings, sends)
    "scatter_efficiency": 0.85,  # the same in tokens sent to many peers at once
    "message_s": 3e-8,  # what a message to the NIC costs however small it is
}


def fabric_of(hardware: Hardware) -> Mapping[str, float]:
    """What the class of the scale-out network delivers; the keys are those of `DEFAULTS`."""
    found = hardware.efficiency.parameters.get(("fabric", scale_out_of(hardware).kind, "bf16"))
    return DEFAULTS if found is None else found.values


def scale_out_of(hardware: Hardware) -> Link:
    """The link between domains. Raises ValueError where the profile states none."""
    if hardware.scale_out is None:
        raise ValueError(f"{hardware.slug}: the group spans several nodes and the profile states no scale-out link")
    return hardware.scale_out


def stream_bytes_per_s(hardware: Hardware) -> float:
    """What one GPU moves over its NIC in one direction in large messages [bytes/s]."""
    return scale_out_of(hardware).bytes_per_s * fabric_of(hardware)["stream_efficiency"]


def scatter_bytes_per_s(hardware: Hardware) -> float:
    """What one GPU moves over its NIC in one direction in tokens for many peers [bytes/s]."""
    return scale_out_of(hardware).bytes_per_s * fabric_of(hardware)["scatter_efficiency"]


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
