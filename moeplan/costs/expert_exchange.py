"""Seconds to bring tokens to the GPUs of their experts and back: DeepEP-like dispatch and combine.

Two kernels exist. *Throughput* (DeepEP "normal") sends a token once to every distinct rank it needs, and over the
network once to every distinct domain, which forwards it inside. *Low latency* sends it once per chosen expert.
Equations and papers are in ``docs/method/collectives.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from moeplan.costs.fabrics import (
    Array,
    ArrayLike,
    domain_ranks,
    fabric_of,
    inner_bytes_per_s,
    scatter_bytes_per_s,
)
from moeplan.costs.roofline import joined_s
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Engine

# Where nothing is measured: rounded medians of the fits to H100, H200, B200, B300 and GB200.
_THROUGHPUT = {
    "base_s": 4e-5,
    "token_s": 2e-8,  # one token's metadata and bookkeeping
    "efficiency": 0.8,  # of the link rate
    "local_copies": 0.6,  # local work per token, in copies of it over the link
    "sm_bytes_per_s": 1.6e10,  # what one communication SM moves
    "sharpness": 1.05,
}
_LOW_LATENCY = {
    "base_s": 1e-5,
    "expert_s": 1e-7,  # flags and counts of one local expert
    "efficiency": 0.55,
    "local_copies": 0.4,
    "expert_bytes_per_s": 3.6e9,  # what the threads that serve one expert copy
    "sharpness": 1.1,
}
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "moe_dispatch": _THROUGHPUT,
    "moe_combine": {**_THROUGHPUT, "base_s": 4.5e-5, "local_copies": 1.8, "sm_bytes_per_s": 2.4e10},
    "moe_dispatch_low_latency": _LOW_LATENCY,
    # TensorRT-LLM's own kernels over NVLink, fitted to GB200, 2 to 64 ranks; no SM limit, they use the whole GPU.
    "nvlink_prepare": {  # every rank learns how many tokens it will get
        "base_s": 1.3e-5, "token_s": 7e-9, "efficiency": 0.5, "local_copies": 1.0, "sharpness": 1.05,
    },
    "nvlink_dispatch": {
        "base_s": 1.2e-5, "token_s": 2.2e-8, "efficiency": 0.65, "local_copies": 0.12, "sharpness": 1.05,
    },
    "nvlink_combine": {
        "base_s": 1.5e-5, "token_s": 1.7e-8, "efficiency": 0.62, "local_copies": 1.35, "sharpness": 1.1,
    },
    "moe_combine_low_latency": {**_LOW_LATENCY, "expert_s": 7e-8, "expert_bytes_per_s": 2.6e10},
}  # fmt: skip
COMMUNICATION_SMS = 20  # DeepEP's default (Buffer.set_num_sms), also what vLLM runs
# Multiprocessors that carry an overlapped exchange compute nothing: 20 of 132 (DeepSeek-V3, arXiv:2412.19437, 3.2.2).
COMMUNICATION_SMS_FRAC = COMMUNICATION_SMS / 132.0
LOW_LATENCY_TOKENS = 256  # tokens per rank the low-latency buffers hold in the engines measured (vLLM, TensorRT-LLM)
# Between nodes DeepEP pairs every receiving SM with one that forwards: half of them feed the scale-up link.
_FORWARDING_SMS_FRAC = 0.5
_EXPERT_SHARPNESS = 4.0


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of one token that leave its GPU, by the link that carries them [copies per token]."""

    scale_up: ArrayLike
    scale_out: ArrayLike


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
    low_latency: bool = False,
    copies: Copies | None = None,
    imbalance: ArrayLike = 1.0,
    n_sms: ArrayLike = COMMUNICATION_SMS,
) -> Array:
    """Send ``n_tokens`` per GPU to the GPUs of their experts [s].

    ``bytes_per_value`` includes the scales of a quantised payload (fp8 with one float per 128 values: 1 + 4/128).
    ``copies`` replaces the expectation under uniform routing (group-limited, measured); ``imbalance`` is
    the busiest rank's bytes over the mean. ``n_sms`` matters for the throughput kernel only.
    """
    given = (n_tokens, hidden_size, topk, n_experts, ep, bytes_per_value, imbalance, n_sms)
    arrays = (np.asarray(x, np.float64) for x in given)
    tokens, hidden, k, experts, ranks, width, skew, sms = np.broadcast_arrays(*arrays)
    sent = copies or uniform_copies(k, experts, ranks, hardware=hardware, once=not low_latency)
    near, far = (np.asarray(x, np.float64) for x in (sent.scale_up, sent.scale_out))
    local = domain_ranks(ranks, hardware, None)
    spans = ranks > local
    link = inner_bytes_per_s(local, hardware, p) * p["efficiency"]
    n_bytes = tokens * skew * hidden * width  # of one copy of every token
    base_s = np.full(tokens.shape, p["base_s"])
    if low_latency:
        base_s = base_s + p["expert_s"] * experts / ranks
        # Threads are grouped by destination expert: few experts leave most of the GPU idle.
        copy_s = n_bytes * k / (experts * p["expert_bytes_per_s"])
        stream_s = joined_s(n_bytes * (near + p["local_copies"] * k / ranks) / link, copy_s, _EXPERT_SHARPNESS)
    else:
        sm_rate = p.get("sm_bytes_per_s", np.inf)  # absent where the table knows one SM count only
        link = np.minimum(link, sms * np.where(spans, _FORWARDING_SMS_FRAC, 1.0) * sm_rate)
        stream_s = p["token_s"] * tokens + n_bytes * (near + p["local_copies"]) / link
    if np.any(spans):
        far_s = n_bytes * far / scatter_bytes_per_s(hardware)
        if low_latency:  # a message a token, where the throughput kernel sends chunks of them
            far_s = far_s + tokens * far * skew * fabric_of(hardware)["message_s"]
        stream_s = np.where(spans, np.maximum(stream_s, far_s), stream_s)
        base_s = base_s + np.where(spans, fabric_of(hardware)["hop_s"], 0.0)
    return np.where(ranks > 1, joined_s(base_s, stream_s, p["sharpness"]), 0.0)


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
    low_latency: bool = False,
    copies: Copies | None = None,
    imbalance: ArrayLike = 1.0,
    n_sms: ArrayLike = COMMUNICATION_SMS,
) -> Array:
    """Return and sum the experts' outputs of ``n_tokens`` per GPU [s]: the dispatch's way backwards, in bf16 so far."""
    return moe_dispatch_time_s(
        n_tokens, hidden_size, topk, n_experts=n_experts, ep=ep, bytes_per_value=bytes_per_value, hardware=hardware,
        p=p, low_latency=low_latency, copies=copies, imbalance=imbalance, n_sms=n_sms,
    )  # fmt: skip


def distinct_groups(topk: ArrayLike, n_experts: ArrayLike, n_groups: ArrayLike) -> Array:
    """Expected number of the ``n_groups`` equal groups of experts that ``topk`` distinct, uniformly drawn experts hit.

    G (1 - C(E - E/G, k) / C(E, k)): a group is missed when all k draws without replacement fall outside it.
    """
    k, e, g = (np.asarray(x, np.float64) for x in (topk, n_experts, n_groups))
    rest = e - e / g
    can_miss = rest >= k
    room = np.where(can_miss, rest, k)
    log_miss = gammaln(room + 1) - gammaln(room - k + 1) - gammaln(e + 1) + gammaln(e - k + 1)
    return np.asarray(g * (1.0 - np.where(can_miss, np.exp(np.minimum(log_miss, 0.0)), 0.0)))


def uniform_copies(
    topk: ArrayLike, n_experts: ArrayLike, ep: ArrayLike, *, hardware: Hardware, once: bool = True
) -> Copies:
    """Copies per token under uniform routing: ``once`` per distinct rank and domain, else one per chosen expert."""
    ranks = np.asarray(ep, np.float64)
    local = domain_ranks(ranks, hardware, None)
    if not once:
        per_rank = np.asarray(topk, np.float64) / ranks
        return Copies(scale_up=per_rank * (local - 1), scale_out=per_rank * (ranks - local))
    return copies_by_link(
        distinct_groups(topk, n_experts, ranks), distinct_groups(topk, n_experts, ranks / local), ep, hardware=hardware
    )


def copies_by_link(ranks_hit: ArrayLike, domains_hit: ArrayLike, ep: ArrayLike, *, hardware: Hardware) -> Copies:
    """Copies of a token whose experts lie on so many distinct ranks and domains, its own counted; one copy to each."""
    ranks = np.asarray(ep, np.float64)
    local = domain_ranks(ranks, hardware, None)
    domains = ranks / local
    hit, domain_hit = np.asarray(ranks_hit) / ranks, np.asarray(domains_hit) / domains
    # A GPU also forwards what arrives for its domain's other ranks: summed over the domains, hit * (local - 1) each.
    return Copies(scale_up=hit * (local - 1) * domains, scale_out=domain_hit * (domains - 1))


def n_domains(ep: int, hardware: Hardware) -> int:
    """Whole scale-up domains (or nodes without one) that ``ep`` ranks fill."""
    return max(1, int(ep // domain_ranks(np.asarray(float(ep)), hardware, None)))


def exchanges_by_all_to_all(layout: ServingLayout, engine: Engine, hardware: Hardware) -> bool:
    """Whether dp ranks send tokens to experts one by one instead of gathering all of them everywhere.

    Inside a node that is the engine's default; beyond one, also inside a domain of many nodes (NVL72), only all-to-all
    (DeepEP) is usual: gathering costs every rank the tokens of all.
    """
    if layout.dp == 1 or layout.ep == 1:
        return False
    return engine.expert_exchange == "all_to_all" or layout.tp * layout.dp > hardware.n_gpus_per_node
