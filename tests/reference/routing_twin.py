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


def kept_under_capacity(weights, n_tokens, top_k, capacity, by_priority, rng):
    """(n_tokens, n_experts) pairs kept when every expert takes ``capacity``: the first to come, or the best scores."""
    keys = np.log(weights) + rng.gumbel(size=(n_tokens, len(weights)))
    chosen = np.zeros(keys.shape, bool)
    np.put_along_axis(chosen, np.argsort(-keys, axis=1)[:, :top_k], True, axis=1)
    order = -keys if by_priority else np.arange(n_tokens)[:, None]
    place = np.argsort(np.where(chosen, order, np.inf), axis=0, kind="stable")
    first = np.zeros(keys.shape, bool)
    np.put_along_axis(first, place[:capacity], True, axis=0)
    return chosen & first


def chosen_by_experts(n_tokens, n_experts, capacity, rng):
    """(n_tokens, n_experts) pairs when every expert takes the ``capacity`` tokens it scores best."""
    taken = np.zeros((n_tokens, n_experts), bool)
    np.put_along_axis(taken, np.argsort(rng.random((n_tokens, n_experts)), axis=0)[:capacity], True, axis=0)
    return taken
