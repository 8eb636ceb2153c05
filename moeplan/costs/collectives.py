"""Seconds of communication between GPUs: NCCL collectives, the engines' own all-reduce, point to point, host copies.

Latency and bandwidth (Hockney 1994; Thakur, Rabenseifner and Gropp 2005) per protocol, with the library's switch
between protocols; equations, parameters and papers are in ``docs/method/collectives.md``. Bytes and GPU counts
broadcast. A group fills domains (NVLink, PCIe node, rack) one after another unless ``ranks_per_domain`` says how many
of its ranks share one: 1 for a data-parallel group that strides the nodes. Dispatch and combine of experts are in
`expert_exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from moeplan.costs.expert_exchange import Copies, moe_combine_time_s, moe_dispatch_time_s
from moeplan.costs.fabrics import (
    Array,
    ArrayLike,
    domain_ranks,
    fabric_of,
    inner_bytes_per_s,
    meshed_frac,
    multicasts,
    stream_bytes_per_s,
)
from moeplan.costs.roofline import joined_s
from moeplan.spec.hardware import Hardware

__all__ = [
    "DEFAULTS",
    "Copies",
    "all_gather_time_s",
    "all_reduce_time_s",
    "all_to_all_time_s",
    "custom_all_reduce_time_s",
    "fast_all_reduce_time_s",
    "host_copy_time_s",
    "moe_combine_time_s",
    "moe_dispatch_time_s",
    "reduce_scatter_time_s",
    "send_time_s",
]

# Where nothing is measured: rounded medians of the fits to A100, H100, H200, B200, B300 and GB200.
_RING = {
    "base_s": 7e-6,  # launch and first synchronisation
    "hop_s": 1.1e-6,  # one step of the low-latency protocols (LL, LL128)
    "wide_step": 0.15,  # by which start and steps grow when LL (8-byte flags) gives way to LL128
    "low_latency_efficiency": 0.42,  # of the link rate, in those protocols
    "switch_bytes": 1e6,  # bytes per rank at which the library takes the bulk protocol (Simple)
    "bulk_hop_s": 1.2e-5,  # one step of the bulk protocol
    "efficiency": 0.77,  # of the link rate, in the bulk protocol
    "local_chunks": 0.65,  # time of a rank's own chunk, in steps of the ring
    "sharpness": 1.4,  # overlap of steps and streaming, 1 = none
    # Of the PCIe rate when more than two cards share the host. A matter of the host: two published machines of L40S and
    # of A100 PCIe serve Llama-3.1-70B and Mixtral on 4 and 8 cards as with 0.6 to 0.75 (TensorRT-LLM perf overview);
    # the L40S machine of the NCCL tables gives 0.23, its 8 cards 0.8 GB/s.
    "host_path": 0.65,
}
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "all_reduce": {
        **_RING, "low_latency_efficiency": 0.49, "bulk_hop_s": 5e-6, "efficiency": 0.82, "sharpness": 1.05,
        "multicast_efficiency": 0.55,  # of the link rate, reduction in the switch (NVLS)
    },
    "all_gather": _RING,
    "reduce_scatter": _RING,
    "all_to_all": {
        "base_s": 8.6e-6, "hop_s": 4e-7, "low_latency_efficiency": 0.1, "switch_bytes": 2e4, "bulk_hop_s": 6e-6,
        "efficiency": 0.69, "local_chunks": 0.56, "sharpness": 1.05, "host_path": 0.65,
    },
    "custom_allreduce": {
        "base_s": 4e-6, "hop_s": 1e-7, "one_shot_efficiency": 0.57, "two_shot_s": 7e-6, "two_shot_efficiency": 0.74,
        "limit_bytes": 1.3e7, "bulk_hop_s": 4.5e-6, "efficiency": 0.78, "local_chunks": 0.48,
        "multicast_efficiency": 0.55, "host_path": 0.65,
    },
    # NCCL send/recv inside an A100 and an H100 node, Vidur @7d47513: 17 us up to 1 MB, then 240 and 370 GB/s.
    # Over PCIe: 0.6 of the rate between two L40S (nccl table), 0.28 V100 (apex_plus @8769096), 0.13 A40 (Vidur).
    "send": {"base_s": 8e-6, "efficiency": 0.8, "host_path": 0.35},
    # Own measurement on an H200 (2026-11-23), pinned memory, PCIe 5.0 x16: 4 us for 64 KiB, 55 GB/s at 1 GiB.
    "host_copy": {"base_s": 3e-6, "efficiency": 0.861},
}  # fmt: skip

_WIDE_BYTES = 4096.0  # per rank, where every measured table steps up
_SWITCH_STEEPNESS = 4.0  # width of the protocol switch: 10 to 90 % of the way within a factor of 3
_LIMIT_STEEPNESS = 6.0


def all_reduce_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> Array:
    """All-reduce of ``n_bytes`` on each of ``n_gpus`` [s]: ring, or switch multicast where that is faster."""
    return _ring_time_s(n_bytes, n_gpus, 2, hardware, p, ranks_per_domain)


def all_gather_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> Array:
    """All-gather whose *result* is ``n_bytes`` on each of ``n_gpus`` [s]."""
    return _ring_time_s(n_bytes, n_gpus, 1, hardware, p, ranks_per_domain)


def reduce_scatter_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> Array:
    """Reduce-scatter whose *input* is ``n_bytes`` on each of ``n_gpus`` [s]."""
    return _ring_time_s(n_bytes, n_gpus, 1, hardware, p, ranks_per_domain)


def all_to_all_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> Array:
    """All-to-all where each of ``n_gpus`` holds ``n_bytes`` in equal parts for every rank, itself included [s]."""
    size, n, local = _group(n_bytes, n_gpus, hardware, ranks_per_domain)
    rate = inner_bytes_per_s(local, hardware, p)
    base_s = p["base_s"] + p["hop_s"] * (n - 1)
    low_slope = (local - 1) / n / (rate * p["low_latency_efficiency"])
    slope = (local - 1 + p["local_chunks"]) / n / (rate * p["efficiency"])
    if np.any(n > local):
        crossing = (n - local) / n / stream_bytes_per_s(hardware)
        low_slope, slope = np.maximum(low_slope, crossing), np.maximum(slope, crossing)
        base_s = base_s + np.where(n > local, fabric_of(hardware)["hop_s"], 0.0)
    bulk_s = base_s + joined_s(np.full_like(size, p["bulk_hop_s"]), slope * size, p["sharpness"])
    time_s = _switched_s(lambda x: base_s + low_slope * x, bulk_s, size, n * p["switch_bytes"], _SWITCH_STEEPNESS)
    return np.where(n > 1, time_s, 0.0)


def custom_all_reduce_time_s(
    n_bytes: ArrayLike, n_gpus: ArrayLike, *, hardware: Hardware, p: Mapping[str, float]
) -> Array:
    """All-reduce of a serving engine inside one domain, in a CUDA graph [s].

    Up to ``limit_bytes`` the better of one-shot (every rank reads all others) and two-shot (scatter and gather by
    direct reads) over peer memory; above it the engine hands over to NCCL's bulk ring or multicast.
    """
    size, n, _ = _group(n_bytes, n_gpus, hardware, n_gpus)
    rate = inner_bytes_per_s(n, hardware, p)
    start_s = p["base_s"] + p["hop_s"] * (n - 1)

    def peer_s(x: Array) -> Array:
        one_shot_s = start_s + (n - 1) * x / (rate * p["one_shot_efficiency"])
        two_shot_s = start_s + p["two_shot_s"] + 2 * (n - 1) / n * x / (rate * p["two_shot_efficiency"])
        return np.minimum(one_shot_s, two_shot_s)

    bulk_s = p["base_s"] + p["bulk_hop_s"] * 2 * (n - 1) + _bulk_slope(n, 2, rate, hardware, p) * size
    time_s = _switched_s(peer_s, bulk_s, size, np.full_like(size, p["limit_bytes"]), _LIMIT_STEEPNESS)
    return np.where(n > 1, time_s, 0.0)


def fast_all_reduce_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    custom: Mapping[str, float] | None,
    ranks_per_domain: ArrayLike | None = None,
) -> Array:
    """All-reduce as an engine runs it [s]: its own (parameters ``custom``) inside a domain where faster, else NCCL."""
    nccl_s = all_reduce_time_s(n_bytes, n_gpus, hardware=hardware, p=p, ranks_per_domain=ranks_per_domain)
    if custom is None:
        return nccl_s
    _, n, local = _group(n_bytes, n_gpus, hardware, ranks_per_domain)
    custom_s = custom_all_reduce_time_s(n_bytes, n_gpus, hardware=hardware, p=custom)
    return np.where(n == local, np.minimum(nccl_s, custom_s), nccl_s)


def send_time_s(n_bytes: ArrayLike, *, hardware: Hardware, p: Mapping[str, float], same_domain: bool = True) -> Array:
    """Send ``n_bytes`` from one GPU to another [s], over the scale-up link or, if not ``same_domain``, one NIC."""
    size = np.asarray(n_bytes, np.float64)
    if same_domain:
        # Any two cards of a PCIe machine: seldom the pair under one switch. A mesh has one link between two GPUs.
        path = p["host_path"] if hardware.scale_up.kind == "pcie" else float(meshed_frac(2, hardware))
        rate = hardware.scale_up.bytes_per_s * path
        return p["base_s"] + size / (rate * p["efficiency"])
    hop_s = fabric_of(hardware)["hop_s"]
    return p["base_s"] + hop_s + size / stream_bytes_per_s(hardware)


def host_copy_time_s(n_bytes: ArrayLike, *, hardware: Hardware, p: Mapping[str, float]) -> Array:
    """Copy between GPU and pinned host memory, one direction [s]; nothing where both are one memory.

    Raises:
        ValueError: the profile states no link between host and GPU.
    """
    size = np.asarray(n_bytes, np.float64)
    if hardware.device.unified_memory:
        return np.zeros_like(size)
    if hardware.host.pcie is None:
        raise ValueError(f"{hardware.slug}: the profile states no link between host and GPU")
    return p["base_s"] + size / (hardware.host.pcie.bytes_per_s * p["efficiency"])


def _group(
    n_bytes: ArrayLike, n_gpus: ArrayLike, hardware: Hardware, ranks_per_domain: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Bytes, ranks and ranks per domain, broadcast to one shape."""
    n = np.asarray(n_gpus, np.float64)
    local = domain_ranks(n, hardware, ranks_per_domain)
    size, n, local = np.broadcast_arrays(np.asarray(n_bytes, np.float64), n, local)
    return size, n, local


def _ring_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    passes: int,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None,
) -> Array:
    """``passes`` times around a ring of n ranks [s]: reduce-scatter or all-gather once, all-reduce twice."""
    size, n, local = _group(n_bytes, n_gpus, hardware, ranks_per_domain)
    rate = inner_bytes_per_s(local, hardware, p)
    steps = passes * (n - 1)
    # All-reduce of small messages: NCCL chains the GPUs of a node and joins nodes and racks as binary trees.
    node = np.minimum(local, hardware.n_gpus_per_node)
    hops = 2 * (node - 1 + np.ceil(np.log2(local / node))) if passes == 2 else steps
    low_slope = steps / n / (rate * p["low_latency_efficiency"])  # seconds per byte
    slope = _bulk_slope(n, passes, rate, hardware, p)
    far_s = np.zeros_like(size)
    if np.any(n > local):
        domains = n / local
        # Every rank of a domain drives its own NIC. Two domains all-reduce as a tree: each sends its sum once.
        crossed = np.where((passes == 2) & (domains == 2), 1.0, steps / n) / local
        crossing = np.where(n > local, crossed / stream_bytes_per_s(hardware), 0.0)
        low_slope = np.maximum(np.where(local > 1, low_slope, 0.0), crossing)
        slope = np.maximum(np.where(local > 1, slope, 0.0), crossing)
        # All-reduce climbs and descends the tree of domains, the others walk the whole ring.
        far_steps = 2 * np.ceil(np.log2(domains)) if passes == 2 else domains - 1
        far_s = np.where(n > local, far_steps * fabric_of(hardware)["hop_s"], 0.0)
        hops = hops if passes == 2 else n - domains
    start_s = p["base_s"] + p["hop_s"] * hops

    def low_s(x: Array) -> Array:
        return start_s * (1.0 + p["wide_step"] * _past(x, n * _WIDE_BYTES, _SWITCH_STEEPNESS)) + far_s + low_slope * x

    bulk_s = p["base_s"] + joined_s(p["bulk_hop_s"] * hops + far_s, slope * size, p["sharpness"])
    time_s = _switched_s(low_s, bulk_s, size, n * p["switch_bytes"], _SWITCH_STEEPNESS)
    return np.where(n > 1, time_s, 0.0)


def _bulk_slope(n: Array, passes: int, rate: Array, hardware: Hardware, p: Mapping[str, float]) -> Array:
    """Bulk transfer [s/byte]: ring with the rank's own chunk, or an all-reduce by the switch's multicast if faster."""
    ring = (passes * (n - 1) + p["local_chunks"]) / n / (rate * p["efficiency"])
    if passes == 1 or "multicast_efficiency" not in p or not multicasts(hardware):
        return ring
    # In-switch reduction: a rank sends its data up once, and its reduced chunk once to be multicast.
    multicast = (n + 1) / n / (rate * p["multicast_efficiency"])
    return np.where(n > 2, np.minimum(ring, multicast), ring)


def _switched_s(low_s: Callable[[Array], Array], bulk_s: Array, size: Array, switch: Array, steepness: float) -> Array:
    """Geometric blend from ``low_s(size)`` to ``bulk_s`` around ``switch`` bytes [s], never falling with size.

    A library does not leave a protocol for one that would take less time than at the switch: past it, the time at the
    switch is a floor.
    """
    weight = _past(size, switch, steepness)
    bulk_s = np.maximum(bulk_s, low_s(switch))
    return low_s(np.minimum(size, switch)) ** (1.0 - weight) * bulk_s**weight


def _past(size: Array, switch: Array, steepness: float) -> Array:
    """How far ``size`` is past ``switch``: 0 well below, 1/2 there, 1 well above."""
    return np.asarray(1.0 / (1.0 + np.maximum(size / switch, 1e-30) ** -steepness))
