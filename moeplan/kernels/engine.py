"""The serving engine's iteration loop: continuous batching with paged KV on all replicas of a pool.

One replica is a group of ranks in lockstep (attention data-parallel ranks, and pipeline lanes); each rank has its own
waiting queue, running set and KV blocks, and an iteration lasts as long as the slowest rank's. `Limits` holds the
policies of vLLM, SGLang and TensorRT-LLM: who goes first, what is kept free for tokens still to come, when new requests
are looked at. When no KV block is left a sequence is preempted, and later recomputed or swapped in.
docs/method/serving.md states what is exact and what is approximated.

No work is done per sequence and iteration. Every decoding sequence of a rank gets as many tokens in an iteration, and
the rank's counter as much. So a sequence ends when the counter reaches a number known when it joins (a heap holds
them), needs a KV block whenever the counter passes one residue modulo the block size (counted per residue), and adds as
much to the context sum as the others. tests/reference/engine_twin.py does the same step by step.
"""

from __future__ import annotations

import numpy as np

from moeplan.kernels import compiled, inner, source_number
from moeplan.kernels.engine_cache import trim
from moeplan.kernels.engine_door import choose_rank, dispatch, expire, next_send, take_request
from moeplan.kernels.engine_grids import cell, interpolate
from moeplan.kernels.engine_iteration import (
    blocks_to_grow,
    complete,
    compose,
    fits,
    host_time_s,
    padded,
    reserve_frac,
    tokens_gained,
    unbalanced,
)
from moeplan.kernels.engine_queue import busy, post, running, sort_in, wake
from moeplan.kernels.engine_state import GAP_LOW_S, GAPS_PER_E, N_ENDED, N_GAPS, ROUND_ROBIN


@inner
def _only_decodes(limits, requests, ranks, seats, first, last):
    """Iterations that certainly leave the batch of these ranks as it is (KV aside), 0 if unknown."""
    steps = np.int64(2**62)
    for rank in range(first, last):
        if ranks[rank].prefilling >= 0:
            return 0
        n_decoding = ranks[rank].n_decoding
        head = ranks[rank].queue_head
        if limits.by_priority and ranks[rank].incoming_head >= 0 and n_decoding < limits.max_num_seqs:
            return 0
        if head >= 0 and n_decoding < limits.max_num_seqs:
            # While nobody ends free blocks shrink, and no faster what is kept of them: a prompt that does not fit now
            # will not fit later, unless the share kept still falls.
            if fits(limits, requests, ranks, seats, rank, head, np.int64(0)):
                return 0
            if limits.reserves_output and reserve_frac(limits, ranks, rank) > limits.reserve_end_frac:
                return 0
        if n_decoding > 0:
            left = np.int64(seats.end_iteration[rank, 0]) - ranks[rank].iteration
            steps = min(steps, (left - 1) // limits.verify_tokens)
    return steps


@inner
def _decode_run(table, limits, ranks, seats, pool, replica, steps, limit_s):
    """Runs up to ``steps`` iterations of an unchanging decode batch while they start before ``limit_s``."""
    first = replica * limits.ranks_per_replica
    last = first + limits.ranks_per_replica
    all_decode = True
    for rank in range(first, last):
        ranks[rank].low_tokens = -1.0  # no context cell yet
        ranks[rank].high_tokens = -1.0
        all_decode = all_decode and ranks[rank].n_decoding > 0
    clock_s = pool.replicas[replica].clock_s
    start_s = pool.replicas[replica].previous_s
    begin_s = clock_s
    done = 0
    while done < steps and clock_s < limit_s:
        for rank in range(first, last):
            gained = tokens_gained(pool.accepted, ranks[rank].iteration, rank)
            n_blocks = blocks_to_grow(seats.block_residue, limits.block_tokens, rank, ranks[rank].iteration, gained)
            if n_blocks > ranks[rank].free_blocks:
                steps = done  # somebody must be preempted
        if steps == done:
            break
        step_s = 0.0
        n_tokens = np.int64(0)
        for rank in range(first, last):
            n = ranks[rank].n_decoding
            if n > 0:
                context = ranks[rank].context_sum / n
                if context >= ranks[rank].high_tokens:
                    _enter_cell(table, limits, ranks, rank, n, context)
                low_s = ranks[rank].low_s
                fraction = (context - ranks[rank].low_tokens) / (ranks[rank].high_tokens - ranks[rank].low_tokens)
                gpu_s = ranks[rank].linear_s + (low_s + max(fraction, 0.0) * (ranks[rank].high_s - low_s))
                gpu_s += ranks[rank].head_s
                gpu_s = max(gpu_s, ranks[rank].host_s)
                step_s = max(step_s, gpu_s + table.step_overhead_s)
            gained = tokens_gained(pool.accepted, ranks[rank].iteration, rank)
            n_blocks = blocks_to_grow(seats.block_residue, limits.block_tokens, rank, ranks[rank].iteration, gained)
            ranks[rank].free_blocks -= n_blocks
            if limits.caches:
                trim(limits, ranks, seats, rank)
            ranks[rank].context_sum += n * gained
            ranks[rank].decode_tokens += n * gained
            ranks[rank].iteration += gained
            n_tokens += n * gained
        if limits.receive_iterations > 1:
            _receive(limits, pool, replica, start_s if limits.lookahead else clock_s)
            pool.replicas[replica].n_unreceived += 1
        start_s = clock_s
        clock_s += step_s
        for rank in range(first, last):
            _count_gaps(ranks, pool, rank, ranks[rank].n_decoding, clock_s)
        post(limits, pool, replica, clock_s, n_tokens)
        done += 1
    for rank in range(first, last):
        _count_time(ranks, pool, rank, ranks[rank].n_decoding, clock_s - begin_s)
        used = limits.n_blocks - ranks[rank].free_blocks
        ranks[rank].peak_blocks = max(ranks[rank].peak_blocks, used)
    if limits.balance_iterations > 0 and done > 0:
        n_unbalanced = pool.replicas[replica].n_unbalanced + done
        pool.replicas[replica].n_unbalanced = n_unbalanced % limits.balance_iterations if all_decode else 0
    pool.replicas[replica].busy_s += clock_s - begin_s
    pool.replicas[replica].n_iterations += done
    pool.replicas[replica].clock_s = clock_s
    pool.replicas[replica].previous_s = start_s


@inner
def _count_time(ranks, pool, rank, n_running, time_s):
    ranks[rank].running_time_s += n_running * time_s
    pool.batch_time_s[n_running] += time_s


@inner
def _count_gaps(ranks, pool, rank, n_emitting, end_s):
    """Time since the last tokens of a rank's decoding sequences, for those that get another at ``end_s``.

    A sequence that begins to decode while others pause counts with their pause.
    """
    if n_emitting > 0:
        gap_s = end_s - ranks[rank].emitted_s
        place = np.int64(GAPS_PER_E * np.log(max(gap_s, GAP_LOW_S) / GAP_LOW_S))
        pool.gap_tokens[min(place, N_GAPS - 1)] += n_emitting
    if n_emitting > 0 or ranks[rank].n_decoding == 0:
        ranks[rank].emitted_s = end_s


@inner
def _enter_cell(table, limits, ranks, rank, n, context):
    """Fixes a rank's batch size and context cell, so that an iteration costs one linear interpolation."""
    grid = table.decode_context_grid
    values = table.decode_attention_time_s
    i, fraction = cell(table.decode_batch_grid, float(n))
    j, _ = cell(grid, context)
    verified = n * limits.verify_tokens
    ranks[rank].host_s = host_time_s(table, verified, n)
    ranks[rank].linear_s = interpolate(table.token_grid, table.linear_time_s, padded(table, verified))
    ranks[rank].head_s = interpolate(table.head_rows_grid, table.head_time_s, float(verified))
    ranks[rank].low_s = values[i, j] + fraction * (values[i + 1, j] - values[i, j])
    ranks[rank].high_s = values[i, j + 1] + fraction * (values[i + 1, j + 1] - values[i, j + 1])
    if limits.verify_tokens > 1:
        ranks[rank].head_s += interpolate(table.decode_batch_grid, table.draft_time_s, float(n))
    ranks[rank].low_tokens = grid[j]
    ranks[rank].high_tokens = grid[j + 1]


@inner
def _receive(limits, pool, replica, cutoff_s):
    """Looks at new requests when it is time to. Returns the time by which those that may be scheduled were ready."""
    if pool.replicas[replica].n_unreceived >= limits.receive_iterations:
        pool.replicas[replica].received_s = cutoff_s
        pool.replicas[replica].n_unreceived = 0
    return pool.replicas[replica].received_s


@inner
def _advance(table, limits, requests, ranks, seats, pool, replica, limit_s):
    """Runs a replica's iterations that start before ``limit_s``; where an end sends a request, only until one ends."""
    first = replica * limits.ranks_per_replica
    last = first + limits.ranks_per_replica
    n_ended = pool.counters[N_ENDED]
    while busy(limits, ranks, replica):
        is_running = running(limits, ranks, replica)
        if not is_running:
            wake(limits, requests, ranks, pool, replica)
        if pool.replicas[replica].clock_s >= limit_s:
            return
        steps = _only_decodes(limits, requests, ranks, seats, first, last)
        if steps > 0:
            stop_s = limit_s
            if limits.has_timeouts:
                for rank in range(first, last):
                    stop_s = min(stop_s, ranks[rank].deadline_s)
            _decode_run(table, limits, ranks, seats, pool, replica, steps, stop_s)
            if pool.replicas[replica].clock_s >= limit_s:
                return
        n_before = pool.counters[N_ENDED]
        if limits.has_timeouts:
            for rank in range(first, last):
                expire(limits, requests, ranks, seats, pool, rank, pool.replicas[replica].clock_s)
        if pool.counters[N_ENDED] == n_before:
            _iterate(table, limits, requests, ranks, seats, pool, replica, is_running)
        if (limits.closed_loop or limits.chained) and pool.counters[N_ENDED] > n_ended:
            return


@inner
def _iterate(table, limits, requests, ranks, seats, pool, replica, is_running):
    """Runs one iteration of a replica."""
    first = replica * limits.ranks_per_replica
    last = first + limits.ranks_per_replica
    start_s = pool.replicas[replica].clock_s
    cutoff_s = start_s
    if limits.lookahead and is_running:
        cutoff_s = pool.replicas[replica].previous_s
    if limits.receive_iterations > 1:
        if not is_running:
            pool.replicas[replica].n_unreceived = limits.receive_iterations
        cutoff_s = _receive(limits, pool, replica, cutoff_s)
    if limits.by_priority:
        for rank in range(first, last):
            sort_in(limits, requests, ranks, rank, cutoff_s)
    admits = limits.balance_iterations == 0 or not unbalanced(limits, requests, ranks, seats, pool, replica, cutoff_s)
    step_s = 0.0
    has_prompts = False
    for rank in range(first, last):
        step_s = max(step_s, compose(table, limits, requests, ranks, seats, pool, rank, start_s, cutoff_s, admits))
        has_prompts = has_prompts or ranks[rank].n_joining > 0 or ranks[rank].prefilling >= 0
    pool.replicas[replica].n_unreceived += limits.receive_iterations if has_prompts else 1
    end_s = start_s + step_s
    n_out = np.int64(0)
    for rank in range(first, last):
        n_out += (
            ranks[rank].n_emitting * tokens_gained(pool.accepted, ranks[rank].iteration, rank) + ranks[rank].n_joining
        )
    seen_s = post(limits, pool, replica, end_s, n_out)
    for rank in range(first, last):
        n_running = ranks[rank].n_decoding + ranks[rank].n_joining + (ranks[rank].prefilling >= 0)
        _count_time(ranks, pool, rank, n_running, step_s)
        _count_gaps(ranks, pool, rank, ranks[rank].n_emitting, end_s)
        complete(limits, requests, ranks, seats, pool, rank, seen_s)
    pool.replicas[replica].busy_s += step_s
    pool.replicas[replica].n_iterations += 1
    pool.replicas[replica].previous_s = start_s
    pool.replicas[replica].clock_s = end_s


@inner
def _furthest_behind(limits, ranks, pool, limit_s):
    """The busy replica whose next iteration starts first, -1 for none before ``limit_s``; and when the second does."""
    behind = np.int64(-1)  # a plain -1 would be a literal type, and compile everything below twice
    second_s = limit_s
    for replica in range(pool.replicas.size):
        if busy(limits, ranks, replica) and pool.replicas[replica].clock_s < limit_s:
            if behind < 0 or pool.replicas[replica].clock_s < pool.replicas[behind].clock_s:
                if behind >= 0:
                    second_s = min(second_s, pool.replicas[behind].clock_s)
                behind = np.int64(replica)
            else:
                second_s = min(second_s, pool.replicas[replica].clock_s)
    return behind, second_s


@inner
def _run(table, limits, requests, ranks, seats, pool, until_s):
    """`run`."""
    while True:
        request, sent_s = next_send(limits, requests, pool)
        limit_s = min(sent_s, until_s)
        if limits.closed_loop or limits.chained:
            # Any request that ends may send another, which any replica may get: the one furthest behind goes first.
            behind, second_s = _furthest_behind(limits, ranks, pool, limit_s)
            if behind >= 0:
                # Of replicas at the same instant any may run one iteration: what it ends, it ends later.
                second_s = max(second_s, np.nextafter(pool.replicas[behind].clock_s, np.inf))
                _advance(table, limits, requests, ranks, seats, pool, behind, second_s)
                continue
        if sent_s >= until_s or limits.dispatch != ROUND_ROBIN:
            for replica in range(pool.replicas.size):
                _advance(table, limits, requests, ranks, seats, pool, replica, limit_s)
        if sent_s >= until_s:
            pool.door_s[0] = max(pool.door_s[0], until_s)
            return pool.counters[N_ENDED]
        rank = choose_rank(limits, requests, ranks, seats, pool, request)
        _advance(table, limits, requests, ranks, seats, pool, rank // limits.ranks_per_replica, limit_s)
        take_request(limits, requests, pool, request)
        dispatch(limits, requests, ranks, pool, rank, request, sent_s)


def _kernel(sources: int):
    """numba keeps machine code under what a function encloses, too: an edit of any kernel's file gives a new one."""

    def run(table, limits, requests, ranks, seats, pool, until_s):
        """Advances the pool: all arrivals, and all iterations that start, before ``until_s`` [s].

        State lives in the arrays: a run cut into any windows gives the same events. Returns how many requests ended.
        """
        return _run(table, limits, requests, ranks, seats, pool, until_s) if sources else 0

    return compiled(run, _nrt=False)


run = _kernel(source_number())
