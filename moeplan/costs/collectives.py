"""Seconds of communication between GPUs: collectives, expert dispatch and combine, point to point, host copies.

Every function is alpha-beta (Hockney 1994) per protocol; `docs/method/collectives.md` holds the equations. Bytes and GPU counts
broadcast against each other. A group of ``n_gpus`` ranks fills scale-up domains of ``hardware.n_gpus_scale_up`` one after
another unless ``ranks_per_domain`` says how many of its ranks share a domain (1 for a data-parallel group that strides nodes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from moeplan.spec.hardware import Hardware, Link

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Copies:
    """Expected copies of one token that leave its GPU, by the link that carries them [copies per token]."""

    scale_up: FloatArray
    scale_out: FloatArray


def all_reduce_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> FloatArray:
    """All-reduce of ``n_bytes`` on each of ``n_gpus`` [s]."""
    return _collective_time_s(n_bytes, n_gpus, 2.0, hardware, p, ranks_per_domain)


def all_gather_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> FloatArray:
    """All-gather whose *result* is ``n_bytes`` on each of ``n_gpus`` [s]."""
    return _collective_time_s(n_bytes, n_gpus, 1.0, hardware, p, ranks_per_domain)


def reduce_scatter_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> FloatArray:
    """Reduce-scatter whose *input* is ``n_bytes`` on each of ``n_gpus`` [s]."""
    return _collective_time_s(n_bytes, n_gpus, 1.0, hardware, p, ranks_per_domain)


def all_to_all_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None = None,
) -> FloatArray:
    """All-to-all where each of ``n_gpus`` holds ``n_bytes`` in equal parts for every rank, itself included [s]."""
    size, n, local = _shape(n_bytes, n_gpus, hardware, ranks_per_domain)
    return exchange_time_s(size * (local - 1) / n, size * (n - local) / n, n, hardware=hardware, p=p)


def exchange_time_s(
    scale_up_bytes: ArrayLike,
    scale_out_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
) -> FloatArray:
    """Any exchange given the bytes the busiest GPU moves in one direction over each link [s]; both links run at once."""
    up, out, n = np.broadcast_arrays(
        np.asarray(scale_up_bytes, float), np.asarray(scale_out_bytes, float), np.asarray(n_gpus, float)
    )
    efficiency = p["efficiency"]
    stream = up / (hardware.scale_up.bytes_per_s * efficiency)
    if np.any(out > 0):
        nic = _scale_out(hardware)
        stream = np.maximum(stream, out / (nic.bytes_per_s * efficiency)) + np.where(out > 0, nic.latency_s, 0.0)
    return np.where(n > 1, p["base_s"] + stream, 0.0)


def fast_all_reduce_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    *,
    hardware: Hardware,
    p: Mapping[str, float],
    custom: Mapping[str, float] | None,
    ranks_per_domain: ArrayLike | None = None,
) -> FloatArray:
    """All-reduce as an engine runs it [s]: its own kernel (parameters ``custom``) inside a domain where that is faster, else NCCL."""
    nccl = all_reduce_time_s(n_bytes, n_gpus, hardware=hardware, p=p, ranks_per_domain=ranks_per_domain)
    if custom is None:
        return nccl
    _, n, local = _shape(n_bytes, n_gpus, hardware, ranks_per_domain)
    own = custom_all_reduce_time_s(n_bytes, n_gpus, hardware=hardware, p=custom)
    return np.where(n == local, np.minimum(nccl, own), nccl)


def custom_all_reduce_time_s(
    n_bytes: ArrayLike, n_gpus: ArrayLike, *, hardware: Hardware, p: Mapping[str, float]
) -> FloatArray:
    """The engines' one-shot / two-shot all-reduce over peer memory inside one domain [s]."""
    return _collective_time_s(n_bytes, n_gpus, 2.0, hardware, p, n_gpus)


def moe_dispatch_time_s(
    n_tokens: ArrayLike,
    hidden_size: ArrayLike,
    topk: ArrayLike,
    *,
    n_experts: ArrayLike,
    ep: ArrayLike,
    bytes_per_value: ArrayLike,
    hardware: Hardware,
    p: Mapping[str, float],
    copies: Copies | None = None,
    imbalance: ArrayLike = 1.0,
) -> FloatArray:
    """Send ``n_tokens`` per GPU to the GPUs of their experts [s].

    ``bytes_per_value`` includes the scales of a quantised payload. ``copies`` replaces the uniform-routing expectation;
    ``imbalance`` is the busiest rank's received bytes over the mean.
    """
    c = uniform_copies(topk, n_experts, ep, hardware=hardware) if copies is None else copies
    token_bytes = np.asarray(n_tokens, float) * np.asarray(hidden_size, float) * bytes_per_value * imbalance
    return exchange_time_s(token_bytes * c.scale_up, token_bytes * c.scale_out, ep, hardware=hardware, p=p)


def moe_combine_time_s(
    n_tokens: ArrayLike,
    hidden_size: ArrayLike,
    topk: ArrayLike,
    *,
    n_experts: ArrayLike,
    ep: ArrayLike,
    bytes_per_value: ArrayLike,
    hardware: Hardware,
    p: Mapping[str, float],
    copies: Copies | None = None,
    imbalance: ArrayLike = 1.0,
) -> FloatArray:
    """Return and sum the experts' outputs of ``n_tokens`` per GPU [s]: the dispatch backwards, usually in bf16."""
    return moe_dispatch_time_s(
        n_tokens, hidden_size, topk, n_experts=n_experts, ep=ep, bytes_per_value=bytes_per_value,
        hardware=hardware, p=p, copies=copies, imbalance=imbalance,
    )  # fmt: skip


def send_time_s(
    n_bytes: ArrayLike, *, hardware: Hardware, p: Mapping[str, float], same_domain: bool = True
) -> FloatArray:
    """Send ``n_bytes`` from one GPU to another [s], over the scale-up link or, if not ``same_domain``, the NIC."""
    link = hardware.scale_up if same_domain else _scale_out(hardware)
    return np.asarray(p["base_s"] + link.latency_s + np.asarray(n_bytes, float) / (link.bytes_per_s * p["efficiency"]))


def host_copy_time_s(n_bytes: ArrayLike, *, hardware: Hardware, p: Mapping[str, float]) -> FloatArray:
    """Copy between GPU and pinned host memory [s]. Raises ValueError where the profile states no host link."""
    link = hardware.host.pcie
    if link is None:
        raise ValueError(f"{hardware.slug}: the profile states no link between host and GPU")
    return np.asarray(p["base_s"] + link.latency_s + np.asarray(n_bytes, float) / (link.bytes_per_s * p["efficiency"]))


def distinct_groups(topk: ArrayLike, n_experts: ArrayLike, n_groups: ArrayLike) -> FloatArray:
    """Expected number of the ``n_groups`` equal groups of experts that ``topk`` distinct, uniformly drawn experts hit.

    G (1 - C(E - E/G, k) / C(E, k)): a group is missed when all k draws without replacement fall outside it.
    """
    k, e, g = (np.asarray(x, float) for x in (topk, n_experts, n_groups))
    rest = e - e / g
    possible = rest >= k  # otherwise k draws cannot avoid the group
    room = np.where(possible, rest, k)
    log_miss = gammaln(room + 1) - gammaln(room - k + 1) - gammaln(e + 1) + gammaln(e - k + 1)
    return np.asarray(g * (1.0 - np.where(possible, np.exp(log_miss), 0.0)))


def uniform_copies(topk: ArrayLike, n_experts: ArrayLike, ep: ArrayLike, *, hardware: Hardware) -> Copies:
    """Copies per token under uniform routing: one per distinct remote rank in the domain, one per distinct remote domain."""
    ranks = np.asarray(ep, float)
    domains = np.ceil(ranks / hardware.n_gpus_scale_up)
    per_rank = distinct_groups(topk, n_experts, ranks) / ranks
    per_domain = distinct_groups(topk, n_experts, domains) / domains
    # Copies that arrive from other domains are forwarded inside this one: over all domains a rank still gets each token once.
    local = ranks / domains
    return Copies(scale_up=per_rank * (local - 1) * domains, scale_out=per_domain * (domains - 1))


def _scale_out(hardware: Hardware) -> Link:
    if hardware.scale_out is None:
        raise ValueError(f"{hardware.slug}: the group is larger than one scale-up domain and the profile has no scale-out link")
    return hardware.scale_out


def _shape(
    n_bytes: ArrayLike, n_gpus: ArrayLike, hardware: Hardware, ranks_per_domain: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    n = np.asarray(n_gpus, float)
    local = np.minimum(n, hardware.n_gpus_scale_up if ranks_per_domain is None else np.asarray(ranks_per_domain, float))
    size, n, local = np.broadcast_arrays(np.asarray(n_bytes, float), n, local)
    return size, n, local


def _collective_time_s(
    n_bytes: ArrayLike,
    n_gpus: ArrayLike,
    passes: float,
    hardware: Hardware,
    p: Mapping[str, float],
    ranks_per_domain: ArrayLike | None,
) -> FloatArray:
    size, n, local = _shape(n_bytes, n_gpus, hardware, ranks_per_domain)
    bus_bytes = passes * (n - 1) / n * size  # bytes every ring edge carries
    stream = bus_bytes / (hardware.scale_up.bytes_per_s * p["efficiency"])
    latency = p["base_s"] + p["hop_s"] * passes * (n - 1)
    if np.any(n > local):
        nic = _scale_out(hardware)
        # The ring leaves a domain over the NICs of all its ranks at once.
        out = bus_bytes / (local * nic.bytes_per_s * p["efficiency"])
        stream = np.where(n > local, np.maximum(np.where(local > 1, stream, 0.0), out), stream)
        latency = latency + np.where(n > local, passes * (n / local - 1) * nic.latency_s, 0.0)
    return np.where(n > 1, latency + stream, 0.0)
