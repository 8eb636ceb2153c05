"""The prefix cache of a rank: units of KV blocks under the hash of all tokens up to their end, least recently used out.

A running request uses a run of units from the start of its tokens: those it found, and those it has computed since. A
unit nobody uses is idle: its blocks count as free, it stays until they are needed, then goes to host memory if there is
a tier, else it is lost.
"""

from __future__ import annotations

import numpy as np

from moeplan.kernels import inner
from moeplan.kernels.engine_state import ABSENT, IDLE, ON_HOST


@inner
def _unlink(seats, rank, unit):
    older, newer = seats.older[rank, unit], seats.newer[rank, unit]
    seats.newer[rank, older] = newer
    seats.older[rank, newer] = older


@inner
def _append(seats, rank, unit, end):
    """Puts a unit at the newest place of the list that ends at ``end``."""
    newest = seats.older[rank, end]
    seats.newer[rank, newest] = unit
    seats.older[rank, unit] = newest
    seats.newer[rank, unit] = end
    seats.older[rank, end] = unit


@inner
def find_prefix(limits, requests, seats, rank, request):
    """Units of a waiting request that are cached on a rank from its first token on, and how many of them are in use.

    At least one token is left to compute, whose logits are needed.
    """
    n_found = np.int64(0)
    n_in_use = np.int64(0)
    if not limits.caches or requests[request].kv_tokens > 0:
        return n_found, n_in_use
    start = requests[request].hash_start
    most = (requests[request].input_tokens + requests[request].generated - 1) // limits.unit_tokens
    most = min(most, np.int64(requests[request].n_hash))
    while n_found < most:
        place = seats.place[rank, seats.hash_ids[start + n_found]]
        if place == ABSENT:
            break
        if place > IDLE:
            n_in_use += 1
        n_found += 1
    return n_found, n_in_use


@inner
def use_prefix(limits, requests, ranks, seats, rank, request, n_found):
    """A request that is admitted takes the units it found; those on the host come over the link."""
    start = requests[request].hash_start
    for i in range(n_found):
        unit = seats.hash_ids[start + i]
        place = seats.place[rank, unit]
        if place > IDLE:
            ranks[rank].saved_blocks += limits.unit_blocks
            seats.place[rank, unit] = place + 1
            continue
        _unlink(seats, rank, unit)
        ranks[rank].free_blocks -= limits.unit_blocks
        seats.place[rank, unit] = 1
        if place == IDLE:
            ranks[rank].idle_units -= 1
        else:
            ranks[rank].host_units -= 1
            ranks[rank].link_s += limits.unit_blocks * limits.block_link_s
            ranks[rank].host_hit_tokens += limits.unit_tokens
    requests[request].n_units = n_found
    tokens = n_found * limits.unit_tokens
    requests[request].hit_tokens += tokens
    ranks[rank].hit_tokens += tokens


@inner
def publish(limits, requests, ranks, seats, rank, request, tokens):
    """Units that a running request has filled, now that ``tokens`` of it are computed, can be found by others.

    A unit that somebody else has filled meanwhile is shared, and the request's own blocks are free again.
    """
    start = requests[request].hash_start
    n_full = min(np.int64(requests[request].n_hash), tokens // limits.unit_tokens)
    for i in range(requests[request].n_units, n_full):
        unit = seats.hash_ids[start + i]
        place = seats.place[rank, unit]
        if place > IDLE:
            ranks[rank].free_blocks += limits.unit_blocks
            ranks[rank].saved_blocks += limits.unit_blocks
            seats.place[rank, unit] = place + 1
            continue
        if place != ABSENT:
            _unlink(seats, rank, unit)
        if place == IDLE:
            ranks[rank].idle_units -= 1
        elif place == ON_HOST:
            ranks[rank].host_units -= 1
        seats.place[rank, unit] = 1
    requests[request].n_units = max(np.int64(requests[request].n_units), n_full)


@inner
def leave_prefix(limits, requests, ranks, seats, rank, request):
    """A request gives up its units, the last one first: of equally old units the ends of prefixes go first."""
    start = requests[request].hash_start
    end = seats.place.shape[1]
    for i in range(requests[request].n_units - 1, -1, -1):
        unit = seats.hash_ids[start + i]
        place = seats.place[rank, unit] - 1
        seats.place[rank, unit] = place
        if place > IDLE:
            ranks[rank].saved_blocks -= limits.unit_blocks
        else:
            ranks[rank].free_blocks += limits.unit_blocks
            ranks[rank].idle_units += 1
            _append(seats, rank, unit, end)
    requests[request].n_units = 0


@inner
def trim(limits, ranks, seats, rank):
    """Idle units make room for the blocks in use."""
    end = seats.place.shape[1]
    while ranks[rank].idle_units * limits.unit_blocks > ranks[rank].free_blocks:
        unit = seats.newer[rank, end]
        _unlink(seats, rank, unit)
        ranks[rank].idle_units -= 1
        if limits.host_units == 0:
            seats.place[rank, unit] = ABSENT
            continue
        seats.place[rank, unit] = ON_HOST
        _append(seats, rank, unit, end + 1)
        ranks[rank].host_units += 1
        if ranks[rank].host_units > limits.host_units:
            oldest = seats.newer[rank, end + 1]
            _unlink(seats, rank, oldest)
            seats.place[rank, oldest] = ABSENT
            ranks[rank].host_units -= 1
