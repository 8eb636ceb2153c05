"""One call of the routing kernel with defaults, and popularity laws, for the tests of routing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.kernels import routing


@dataclass
class Routed:
    counts: np.ndarray
    slot_counts: np.ndarray
    traffic: np.ndarray
    node_traffic: np.ndarray
    sums: np.ndarray


def zipf(n, s, seed=0):
    weights = np.random.default_rng(seed).permutation(np.arange(1, n + 1.0) ** -s)
    return weights / weights.sum()


def route(
    weights, n_tokens, top_k, *, seed=1, step=0, layer=0, method=routing.PLAIN, burst=1, rule=routing.GROUP_TOP_TWO,
    n_group=1, topk_group=1, scale=8.0, hashed=None, n_real=None, capacity=0, by_priority=False, n_sources=1, n_ranks=1,
    n_nodes=1, slot_expert=None,
):  # fmt: skip
    """Contiguous placement unless ``slot_expert`` (n_slots,) says which expert each slot holds, sorted by expert."""
    weights = np.atleast_2d(weights)
    n_real = n_real or weights.shape[1]
    slots = np.arange(n_real) if slot_expert is None else np.asarray(slot_expert)
    first = np.searchsorted(slots, np.arange(n_real + 1))
    out = Routed(
        np.zeros(max(weights.shape[1] if method != routing.HASH else n_real, n_real), np.int64),
        np.zeros(len(slots), np.int64),
        np.zeros((n_sources, n_ranks), np.int64),
        np.zeros((n_sources, n_nodes), np.int64),
        np.zeros(routing.N_SUMS, np.int64),
    )
    routing.route(
        seed, step, layer, n_tokens, top_k, method, np.stack([routing.alias_table(w) for w in weights]), weights, burst,
        rule, n_group, topk_group, scale, np.zeros((1, top_k), np.int64) if hashed is None else hashed, n_real,
        capacity, by_priority, first, np.arange(len(slots)) * n_ranks // len(slots),
        np.arange(n_ranks) * n_nodes // n_ranks, out.counts, out.slot_counts, out.traffic, out.node_traffic, out.sums,
    )  # fmt: skip
    return out
