"""The serving engine's iteration loop: continuous batching with paged KV on all replicas of a pool.

One replica is a group of ranks in lockstep (attention data-parallel ranks, and pipeline lanes); each rank has its own
waiting queue, running set and KV blocks, and an iteration lasts as long as the slowest rank's. `Limits` holds the
policies of vLLM, SGLang and TensorRT-LLM: who goes first, what is kept free for tokens still to come, when new requests
are looked at. When no KV block is left the youngest sequence is preempted and later recomputed. docs/method/serving.md
states what is exact and what is approximated.

No work is done per sequence and iteration. A decoding sequence ends when its rank's iteration counter reaches a number
known when it joins (a heap holds them), needs a KV block whenever the counter has one residue modulo the block size
(counted per residue), and adds one token per iteration to the context sum. tests/reference/engine_twin.py does the same
step by step.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moeplan.kernels import compiled
from moeplan.kernels.engine_iteration import (
    blocks_of,
    complete,
    compose,
    end_request,
    fits,
    reserve_frac,
    unbalanced,
    wall_time_s,
)
from moeplan.kernels.engine_state import (
    COMPLETED,
    N_COUNTERS,
    N_DISPATCHED,
    N_ENDED,
    N_USERS_READY,
    NEXT_REQUEST,
    PENDING,
    RANK,
    REJECTED_CONTEXT,
    REJECTED_EMPTY,
    REJECTED_KV,
    REPLICA,
    REQUEST,
    Limits,
    Pool,
    Seats,
    Table,
    cell,
    heap_remove,
    interpolate,
)

__all__ = [
    "COMPLETED",
    "N_COUNTERS",
    "N_ENDED",
    "N_USERS_READY",
    "PENDING",
    "RANK",
    "REJECTED_CONTEXT",
    "REJECTED_EMPTY",
    "REJECTED_KV",
    "REPLICA",
    "REQUEST",
    "Limits",
    "Pool",
    "Seats",
    "Table",
    "run",
]


@njit
def _only_decodes(limits, requests, ranks, seats, first, last):
    """Iterations for which the batch of these ranks certainly keeps its composition (KV aside), 0 if unknown."""
    steps = np.int64(2**62)
    for rank in range(first, last):
        if ranks[rank].prefilling >= 0:
            return 0
        n_decoding = ranks[rank].n_decoding
        head = ranks[rank].queue_head
        if head >= 0 and n_decoding < limits.max_num_seqs:
            # While nobody ends free blocks shrink, and no faster what is kept of them: a prompt that does not fit now
            # will not fit later, unless the share kept still falls.
            if fits(limits, requests, ranks, rank, head, np.int64(0)):
                return 0
            if limits.reserves_output and reserve_frac(limits, ranks, rank) > limits.reserve_end_frac:
                return 0
        if n_decoding > 0:
            steps = min(steps, np.int64(seats.end_iteration[rank, 0]) - ranks[rank].iteration)
    return steps


@njit
def _decode_run(table, limits, ranks, seats, pool, replica, steps, limit_s):
    """Runs up to ``steps`` iterations of an unchanging decode batch while they start before ``limit_s``.

    The last iteration before a sequence ends is left to `compose` and `complete`.
    """
    first = replica * limits.ranks_per_replica
    last = first + limits.ranks_per_replica
    for rank in range(first, last):
        ranks[rank].low_tokens = -1.0  # no context cell yet
        ranks[rank].high_tokens = -1.0
    n_tokens = np.int64(0)
    all_decode = True
    for rank in range(first, last):
        n_tokens += ranks[rank].n_decoding
        all_decode = all_decode and ranks[rank].n_decoding > 0
    clock_s = pool.replicas[replica].clock_s
    start_s = pool.replicas[replica].previous_s
    begin_s = clock_s
    done = 0
    while done < steps and clock_s < limit_s:
        step_s = 0.0
        for rank in range(first, last):
            residue = ranks[rank].iteration % limits.block_tokens
            if seats.block_residue[rank, residue] > ranks[rank].free_blocks:
                steps = done  # somebody must be preempted
        if steps == done:
            break
        for rank in range(first, last):
            n = ranks[rank].n_decoding
            if n == 0:
                continue
            context = ranks[rank].context_sum / n
            if context >= ranks[rank].high_tokens:
                _enter_cell(table, ranks, rank, n, context)
            low_s = ranks[rank].low_s
            fraction = (context - ranks[rank].low_tokens) / (ranks[rank].high_tokens - ranks[rank].low_tokens)
            gpu_s = ranks[rank].linear_s + (low_s + max(fraction, 0.0) * (ranks[rank].high_s - low_s))
            gpu_s += ranks[rank].head_s
            step_s = max(step_s, wall_time_s(table, gpu_s, n, n))
        for rank in range(first, last):
            ranks[rank].free_blocks -= seats.block_residue[rank, ranks[rank].iteration % limits.block_tokens]
            ranks[rank].context_sum += ranks[rank].n_decoding
            ranks[rank].iteration += 1
        if limits.receive_iterations > 1:
            _receive(limits, pool, replica, start_s if limits.lookahead else clock_s)
            pool.replicas[replica].n_unreceived += 1
        start_s = clock_s
        clock_s += step_s
        _post(limits, pool, replica, clock_s, n_tokens)
        done += 1
    for rank in range(first, last):
        n = ranks[rank].n_decoding
        ranks[rank].decode_tokens += n * done
        ranks[rank].running_time_s += n * (clock_s - begin_s)
        used = limits.n_blocks - ranks[rank].free_blocks
        ranks[rank].peak_blocks = max(ranks[rank].peak_blocks, used)
    if limits.balance_iterations > 0 and done > 0:
        n_unbalanced = pool.replicas[replica].n_unbalanced + done
        pool.replicas[replica].n_unbalanced = n_unbalanced % limits.balance_iterations if all_decode else 0
    pool.replicas[replica].busy_s += clock_s - begin_s
    pool.replicas[replica].n_iterations += done
    pool.replicas[replica].clock_s = clock_s
    pool.replicas[replica].previous_s = start_s


@njit
def _enter_cell(table, ranks, rank, n, context):
    """Fixes a rank's batch size and context cell, so that an iteration costs one linear interpolation."""
    grid = table.decode_context_grid
    values = table.decode_attention_time_s
    i, fraction = cell(table.decode_batch_grid, float(n))
    j, _ = cell(grid, context)
    ranks[rank].linear_s = interpolate(table.token_grid, table.linear_time_s, float(n))
    ranks[rank].head_s = interpolate(table.head_rows_grid, table.head_time_s, float(n))
    ranks[rank].low_s = values[i, j] + fraction * (values[i + 1, j] - values[i, j])
    ranks[rank].high_s = values[i, j + 1] + fraction * (values[i + 1, j + 1] - values[i, j + 1])
    ranks[rank].low_tokens = grid[j]
    ranks[rank].high_tokens = grid[j + 1]


@njit
def _running(limits, ranks, replica):
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        if ranks[rank].n_decoding > 0 or ranks[rank].prefilling >= 0:
            return True
    return False


@njit
def _busy(limits, ranks, replica):
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        if ranks[rank].queue_head >= 0:
            return True
    return _running(limits, ranks, replica)


@njit
def _post(limits, pool, replica, end_s, n_tokens):
    """Hands the tokens of an iteration that ends to the front end. Returns when the users have them [s]."""
    _settle(limits, pool, replica)
    pool.replicas[replica].posted_s = end_s
    pool.replicas[replica].n_posted = n_tokens
    return max(pool.replicas[replica].front_s, end_s) + n_tokens * limits.front_token_s


@njit
def _settle(limits, pool, replica):
    """The front end takes on the tokens that wait for it."""
    n_posted = pool.replicas[replica].n_posted
    if n_posted > 0:
        begin_s = max(pool.replicas[replica].front_s, pool.replicas[replica].posted_s)
        pool.replicas[replica].front_s = begin_s + n_posted * limits.front_token_s
        pool.replicas[replica].n_posted = 0


@njit
def _enter_front(limits, pool, replica, sent_s):
    """A request passes the front end behind what is there already. Returns when it is through [s]."""
    if pool.replicas[replica].posted_s <= sent_s:
        _settle(limits, pool, replica)
    through_s = max(pool.replicas[replica].front_s, sent_s) + limits.front_request_s
    pool.replicas[replica].front_s = through_s
    return through_s


@njit
def _wake(limits, requests, ranks, pool, replica):
    """Moves an idle replica's clock to the first request in its queues that is ready."""
    first = replica * limits.ranks_per_replica
    ready_s = np.inf
    for rank in range(first, first + limits.ranks_per_replica):
        if ranks[rank].queue_head >= 0:
            ready_s = min(ready_s, requests[ranks[rank].queue_head].ready_s)
    if ready_s > pool.replicas[replica].clock_s:
        pool.replicas[replica].clock_s = ready_s
        pool.replicas[replica].previous_s = ready_s


@njit
def _receive(limits, pool, replica, cutoff_s):
    """Looks at new requests when it is time to. Returns the time by which those that may be scheduled were ready."""
    if pool.replicas[replica].n_unreceived >= limits.receive_iterations:
        pool.replicas[replica].received_s = cutoff_s
        pool.replicas[replica].n_unreceived = 0
    return pool.replicas[replica].received_s


@njit
def _advance(table, limits, requests, ranks, seats, pool, replica, limit_s):
    """Runs a replica's iterations that start before ``limit_s``; with closed-loop users, only until a request ends."""
    first = replica * limits.ranks_per_replica
    last = first + limits.ranks_per_replica
    n_ended = pool.counters[N_ENDED]
    while _busy(limits, ranks, replica):
        running = _running(limits, ranks, replica)
        if not running:
            _wake(limits, requests, ranks, pool, replica)
        if pool.replicas[replica].clock_s >= limit_s:
            return
        steps = _only_decodes(limits, requests, ranks, seats, first, last)
        if steps > 1:
            _decode_run(table, limits, ranks, seats, pool, replica, steps - 1, limit_s)
            if pool.replicas[replica].clock_s >= limit_s:
                return
        start_s = pool.replicas[replica].clock_s
        cutoff_s = start_s
        if limits.lookahead and running:
            cutoff_s = pool.replicas[replica].previous_s
        if limits.receive_iterations > 1:
            if not running:
                pool.replicas[replica].n_unreceived = limits.receive_iterations
            cutoff_s = _receive(limits, pool, replica, cutoff_s)
        admits = limits.balance_iterations == 0 or not unbalanced(limits, requests, ranks, pool, replica, cutoff_s)
        step_s = 0.0
        has_prompts = False
        for rank in range(first, last):
            step_s = max(step_s, compose(table, limits, requests, ranks, seats, rank, start_s, cutoff_s, admits))
            has_prompts = has_prompts or ranks[rank].n_joining > 0 or ranks[rank].prefilling >= 0
        pool.replicas[replica].n_unreceived += limits.receive_iterations if has_prompts else 1
        end_s = start_s + step_s
        n_out = np.int64(0)
        for rank in range(first, last):
            n_out += ranks[rank].n_emitting + ranks[rank].n_joining
        seen_s = _post(limits, pool, replica, end_s, n_out)
        for rank in range(first, last):
            n_running = ranks[rank].n_decoding + ranks[rank].n_joining + (ranks[rank].prefilling >= 0)
            ranks[rank].running_time_s += n_running * step_s
            complete(limits, requests, ranks, seats, pool, rank, seen_s)
        pool.replicas[replica].busy_s += step_s
        pool.replicas[replica].n_iterations += 1
        pool.replicas[replica].previous_s = start_s
        pool.replicas[replica].clock_s = end_s
        if limits.closed_loop and pool.counters[N_ENDED] > n_ended:
            return


@njit
def _choose_rank(limits, ranks, pool, n_replicas):
    """Rank for the next request: fewest requests waiting or running (ties in turn), or plain round robin."""
    turn = pool.counters[N_DISPATCHED]
    n_ranks = n_replicas * limits.ranks_per_replica
    replica = turn % n_replicas
    best = replica * limits.ranks_per_replica + (turn // n_replicas) % limits.ranks_per_replica
    if limits.least_loaded:
        fewest = np.int64(2**62)
        start = best
        for i in range(n_ranks):
            rank = (start + i) % n_ranks
            load = ranks[rank].n_waiting + ranks[rank].n_decoding + (ranks[rank].prefilling >= 0)
            if load < fewest:
                fewest = load
                best = rank
    return best


@njit
def _dispatch(limits, requests, ranks, pool, rank, request, sent_s):
    """Sends a request through the front end to a rank's queue, or rejects it when it can never be served."""
    replica = rank // limits.ranks_per_replica
    ready_s = _enter_front(limits, pool, replica, sent_s) + limits.request_overhead_s
    requests[request].ready_s = ready_s
    n_in = requests[request].input_tokens
    n_out = requests[request].output_tokens
    outcome = np.int64(PENDING)
    if n_in < 1 or n_out < 1:
        outcome = np.int64(REJECTED_EMPTY)
    elif n_in + n_out > limits.max_context_tokens:
        outcome = np.int64(REJECTED_CONTEXT)
    elif blocks_of(n_in + n_out - 1, limits.block_tokens) > limits.n_blocks:
        outcome = np.int64(REJECTED_KV)
    if outcome != PENDING:
        end_request(limits, requests, pool, request, outcome, ready_s)
        return
    if not _busy(limits, ranks, replica):
        pool.replicas[replica].clock_s = max(pool.replicas[replica].clock_s, ready_s)
        pool.replicas[replica].previous_s = pool.replicas[replica].clock_s
        for i in range(replica * limits.ranks_per_replica, (replica + 1) * limits.ranks_per_replica):
            ranks[i].reserve_since = ranks[i].iteration
    pool.counters[N_DISPATCHED] += 1
    requests[request].rank = rank
    requests[request].next_waiting = -1
    if ranks[rank].queue_head < 0:
        ranks[rank].queue_head = request
    else:
        requests[ranks[rank].queue_tail].next_waiting = request
    ranks[rank].queue_tail = request
    ranks[rank].n_waiting += 1


@compiled
def run(table, limits, requests, ranks, seats, pool, until_s):
    """Advances the pool: all arrivals, and all iterations that start, before ``until_s`` [s].

    State lives in the arrays: a run cut into any windows gives the same events. Returns how many requests have ended.
    """
    n_requests = requests.size
    n_replicas = pool.replicas.size
    counters = pool.counters
    while True:
        request = counters[NEXT_REQUEST]
        sent_s = np.inf
        if request < n_requests:
            if not limits.closed_loop:
                sent_s = requests[request].arrival_s
            elif counters[N_USERS_READY] > 0:
                sent_s = pool.user_ready_s[0]
        limit_s = min(sent_s, until_s)
        if limits.closed_loop:
            # Any request that ends sends another, which any replica may get: the one furthest behind goes first.
            behind = np.int64(-1)  # a plain -1 would be a literal type, and compile everything below twice
            second_s = limit_s
            for replica in range(n_replicas):
                if _busy(limits, ranks, replica) and pool.replicas[replica].clock_s < limit_s:
                    if behind < 0 or pool.replicas[replica].clock_s < pool.replicas[behind].clock_s:
                        if behind >= 0:
                            second_s = min(second_s, pool.replicas[behind].clock_s)
                        behind = replica
                    else:
                        second_s = min(second_s, pool.replicas[replica].clock_s)
            if behind >= 0:
                # Of replicas at the same instant any may run one iteration: what it ends, it ends later.
                second_s = max(second_s, np.nextafter(pool.replicas[behind].clock_s, np.inf))
                _advance(table, limits, requests, ranks, seats, pool, behind, second_s)
                continue
        if sent_s >= until_s or limits.least_loaded:
            for replica in range(n_replicas):
                _advance(table, limits, requests, ranks, seats, pool, replica, limit_s)
        if sent_s >= until_s:
            return counters[N_ENDED]
        rank = _choose_rank(limits, ranks, pool, n_replicas)
        _advance(table, limits, requests, ranks, seats, pool, rank // limits.ranks_per_replica, limit_s)
        if limits.closed_loop:
            heap_remove(pool.user_ready_s, pool.user_last, counters[N_USERS_READY], np.int64(0))
            counters[N_USERS_READY] -= 1
            requests[request].arrival_s = sent_s
        counters[NEXT_REQUEST] += 1
        _dispatch(limits, requests, ranks, pool, rank, request, sent_s)
