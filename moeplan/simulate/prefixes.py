"""Hash blocks of a trace as units of an engine's prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What is found or lost as one: ``tokens`` each, a whole number of KV blocks."""

    ids: npt.NDArray[np.int32]  # units of all requests, one after the other, numbered from 0
    n_units: Ints  # (n_requests,)
    tokens: int


def prefix_units(hash_ids: Ints, n_hash: Ints, hash_tokens: int, block_tokens: int) -> Units:
    """Units of the fewest whole KV blocks that hold ``hash_tokens``.

    Where that is more than a hash block, two requests share a unit when they share the hash block it ends in: hashes
    cover all tokens before. Raises ValueError when counts and ids do not match.
    """
    if hash_tokens < 1 or hash_ids.size != n_hash.sum() or np.any(n_hash < 0) or np.any(hash_ids < 0):
        raise ValueError("hash blocks: of at least one token, as many ids as stated, none negative")
    tokens = -(-hash_tokens // block_tokens) * block_tokens
    if tokens == hash_tokens:
        return Units(np.unique(hash_ids, return_inverse=True)[1].astype(np.int32), n_hash.astype(np.int64), tokens)
    n_units = n_hash * hash_tokens // tokens
    start = np.repeat(np.cumsum(n_hash) - n_hash, n_units)
    number = np.arange(n_units.sum()) - np.repeat(np.cumsum(n_units) - n_units, n_units)
    last = -(-(number + 1) * tokens // hash_tokens) - 1  # hash block the unit ends in
    ends = hash_ids[start + last]
    pairs = np.stack([ends, number], axis=1)
    ids = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return Units(ids.astype(np.int32), n_units.astype(np.int64), tokens)
