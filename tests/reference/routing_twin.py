"""Routing in plain numpy: Gumbel top-k over all experts, one matrix for all tokens; what the kernel must agree with."""

from __future__ import annotations

import numpy as np


def gumbel_top_k(weights, n_tokens, top_k, rng):
    """Chosen experts (n_tokens, top_k), best first."""
    keys = np.log(weights) + rng.gumbel(size=(n_tokens, len(weights)))
    return np.argsort(-keys, axis=1)[:, :top_k]


def grouped_top_k(weights, n_tokens, top_k, n_group, topk_group, scale, n_best, rng):
    """Top-k inside the ``topk_group`` groups whose ``n_best`` best sigmoid scores have the largest sum."""
    keys = np.log(weights / weights.sum()) + rng.gumbel(size=(n_tokens, len(weights)))
    score = 1.0 / (1.0 + np.exp(-keys) / scale)
    by_group = np.sort(score.reshape(n_tokens, n_group, -1), axis=2)[:, :, -n_best:].sum(axis=2)
    best = np.argsort(-by_group, axis=1)[:, :topk_group]
    is_open = np.zeros((n_tokens, n_group), bool)
    np.put_along_axis(is_open, best, True, axis=1)
    keys[~np.repeat(is_open, len(weights) // n_group, axis=1)] = -np.inf
    return np.argsort(-keys, axis=1)[:, :top_k]


def copies(chosen, rank_of_expert, node_of_rank):
    """Mean number of distinct ranks and of distinct nodes of a token."""
    ranks = rank_of_expert[chosen]
    per_token = [(len(set(row)), len(set(node_of_rank[row]))) for row in ranks]
    return np.mean(per_token, axis=0)


def kept_in_order(chosen, n_experts, capacity):
    """(n_experts,) pairs kept when each expert takes the first ``capacity`` that come."""
    taken = np.zeros(n_experts, int)
    for row in chosen:
        for e in row:
            taken[e] += taken[e] < capacity
    return taken
