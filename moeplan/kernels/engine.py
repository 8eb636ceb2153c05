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

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PENDING, COMPLETED, REJECTED_EMPTY, REJECTED_CONTEXT, REJECTED_KV = 0, 1, 2, 3, 4

# Entries of Pool.counters
NEXT_REQUEST, N_ENDED, N_DISPATCHED, N_USERS_READY = 0, 1, 2, 3
N_COUNTERS = 4

# State is in records: one array instead of a dozen halves the compile time, and a record is in one cache line.
REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("pause_s", "f8"),  # closed loop: from its end to its user's next request
        ("ready_s", "f8"),  # through the front end, in its rank's queue
        ("scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("finish_s", "f8"),
        ("input_tokens", "i8"),
        ("output_tokens", "i8"),
        ("generated", "i8"),  # output tokens when it last joined the decoding batch
        ("joined", "i8"),  # the rank's iteration counter then
        ("admission", "i8"),  # order of admission on its rank: the largest is the youngest
        ("next_waiting", "i8"),  # linked list of a rank's queue, -1 ends
        ("rank", "i8"),  # -1: rejected
        ("outcome", "i8"),
    ]
)

RANK = np.dtype(
    [
        ("iteration", "i8"),
        ("queue_head", "i8"),  # request, -1: empty
        ("queue_tail", "i8"),
        ("n_waiting", "i8"),
        ("n_decoding", "i8"),
        ("n_emitting", "i8"),  # sequences that get a token in this iteration: n_decoding, or 0 while prompts go first
        ("n_admitted", "i8"),  # so far, again after a preemption
        ("n_joining", "i8"),  # prompts that end in this iteration
        ("prefilling", "i8"),  # request whose prompt is partly done, or -1: there is at most one, the youngest
        ("prefilled", "i8"),  # its tokens done
        ("context_sum", "i8"),  # cached tokens of all decoding sequences
        ("free_blocks", "i8"),
        ("committed_blocks", "i8"),  # of all admitted requests once their last token is cached
        ("reserve_since", "i8"),  # iteration counter at which the share kept for outputs began to fall
        ("n_waited", "i8"),  # iterations for which prompts have been held back
        # Decode run: times of an unchanging batch, attention at the ends of the context cell it is in.
        ("linear_s", "f8"),
        ("head_s", "f8"),
        ("low_s", "f8"),
        ("high_s", "f8"),
        ("low_tokens", "f8"),
        ("high_tokens", "f8"),
        # Sums over the run
        ("prefill_tokens", "i8"),
        ("decode_tokens", "i8"),
        ("n_preemptions", "i8"),
        ("peak_blocks", "i8"),
        ("running_time_s", "f8"),
    ]
)

REPLICA = np.dtype(
    [
        ("clock_s", "f8"),  # start of the next iteration
        ("previous_s", "f8"),  # start of the last one
        ("busy_s", "f8"),
        ("n_iterations", "i8"),
        ("received_s", "f8"),  # requests ready by then have been looked at
        ("n_unreceived", "i8"),  # iterations since
        ("n_unbalanced", "i8"),  # iterations without prompts on all ranks
        # Front end: one server for requests on their way in and tokens on their way out
        ("front_s", "f8"),  # free again, the tokens of the last iteration aside
        ("posted_s", "f8"),  # end of the last iteration
        ("n_posted", "i8"),  # its tokens, while they wait for the front end
    ]
)


class Table(NamedTuple):
    """`steps.table.StepTable` as the kernel takes it."""

    token_grid: Floats
    linear_time_s: Floats
    decode_batch_grid: Floats
    decode_context_grid: Floats
    decode_attention_time_s: Floats
    prefill_query_grid: Floats
    prefill_context_grid: Floats
    prefill_attention_time_s: Floats
    head_rows_grid: Floats
    head_time_s: Floats
    step_overhead_s: float
    eager_time_s: float
    graph_max_tokens: float


class Limits(NamedTuple):
    """What a rank may do, and how requests reach it."""

    max_num_seqs: int
    max_num_batched_tokens: int  # >= max_num_seqs
    chunked_prefill: bool
    block_tokens: int
    n_blocks: int
    max_context_tokens: int
    ranks_per_replica: int
    lookahead: bool  # an iteration is composed when the one before it starts (asynchronous scheduling)
    least_loaded: bool  # else round robin over replicas, then over their ranks
    closed_loop: bool
    request_overhead_s: float  # between front end and queue
    front_request_s: float  # work of the front end for a request ...
    front_token_s: float  # ... and for a token
    prefill_first: bool  # an iteration with prompts has no decoding sequences
    reserves_output: bool  # a request is admitted with the blocks of its whole output, and a share of the others'
    reserve_start_frac: float  # that share after a start or a preemption
    reserve_end_frac: float
    reserve_steps: float  # iterations over which it falls from the one to the other, linearly
    receive_iterations: int  # new requests are looked at every so many decode iterations, after prompts, and when idle
    wait_iterations: int  # prompts are held back for so many iterations while others decode ...
    wait_tokens: float  # ... unless the iteration has so many tokens
    balance_iterations: int  # ranks start prompts together, or after so many iterations; 0: each on its own


class Seats(NamedTuple):
    """The running sequences of each rank."""

    joining: Ints  # (n_ranks, max_num_seqs) requests whose prompt ends in this iteration
    end_iteration: Floats  # (n_ranks, max_num_seqs) heap of iteration counters at which sequences end
    end_request: Ints
    block_residue: Ints  # (n_ranks, block_tokens) sequences that need a block at counters of this residue


class Pool(NamedTuple):
    """Replicas and the front door."""

    replicas: npt.NDArray[np.void]  # (n_replicas,) REPLICA
    user_ready_s: Floats  # heap of times at which a closed-loop user sends again
    user_last: Ints  # the request that user sent last
    counters: Ints


@njit
def _cell(grid, x):
    """Index and fraction of x between two grid points; clamped below the grid, extrapolated above it."""
    if x <= grid[0]:
        return 0, 0.0
    low = 0
    high = grid.size - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if grid[middle] <= x:
            low = middle
        else:
            high = middle
    return low, (x - grid[low]) / (grid[low + 1] - grid[low])


@njit
def _interpolate(grid, values, x):
    i, fraction = _cell(grid, x)
    return values[i] + fraction * (values[i + 1] - values[i])


@njit
def _interpolate2(grid0, grid1, values, x0, x1):
    i, f0 = _cell(grid0, x0)
    j, f1 = _cell(grid1, x1)
    low = values[i, j] + f0 * (values[i + 1, j] - values[i, j])
    high = values[i, j + 1] + f0 * (values[i + 1, j + 1] - values[i, j + 1])
    return low + f1 * (high - low)


@njit
def _heap_push(keys, items, size, key, item):
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        if keys[parent] <= key:
            break
        keys[child] = keys[parent]
        items[child] = items[parent]
        child = parent
    keys[child] = key
    items[child] = item


@njit
def _heap_remove(keys, items, size, position):
    """Takes out one entry of a heap of ``size`` entries; position 0 is the smallest."""
    key = keys[size - 1]
    item = items[size - 1]
    while position > 0 and keys[(position - 1) >> 1] > key:
        parent = (position - 1) >> 1
        keys[position] = keys[parent]
        items[position] = items[parent]
        position = parent
    child = 2 * position + 1
    while child < size - 1:
        if child + 1 < size - 1 and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[position] = keys[child]
        items[position] = items[child]
        position = child
        child = 2 * position + 1
    keys[position] = key
    items[position] = item


@njit
def _blocks(tokens, block_tokens):
    return (tokens + block_tokens - 1) // block_tokens


@njit
def _cached_tokens(requests, ranks, rank, request):
    """KV tokens a decoding request holds."""
    decoded = ranks[rank].iteration - requests[request].joined
    return requests[request].input_tokens + requests[request].generated - 1 + decoded


@njit
def _preempt_youngest(limits, requests, ranks, seats, rank):
    """Puts the youngest running sequence back at the head of the queue; its KV is lost, its output tokens are kept."""
    request = ranks[rank].prefilling
    if request >= 0:
        ranks[rank].prefilling = -1
        held = requests[request].input_tokens + requests[request].generated
    else:
        keys = seats.end_iteration[rank]
        items = seats.end_request[rank]
        size = ranks[rank].n_decoding
        youngest = 0
        for i in range(1, size):
            if requests[items[i]].admission > requests[items[youngest]].admission:
                youngest = i
        request = items[youngest]
        _heap_remove(keys, items, size, youngest)
        held = _cached_tokens(requests, ranks, rank, request)
        _leave_batch(limits, ranks, seats, rank, held)
        requests[request].generated += ranks[rank].iteration - requests[request].joined
    _give_back(limits, requests, ranks, rank, request, held)
    ranks[rank].reserve_since = ranks[rank].iteration
    ranks[rank].n_preemptions += 1
    requests[request].next_waiting = ranks[rank].queue_head
    if ranks[rank].queue_head < 0:
        ranks[rank].queue_tail = request
    ranks[rank].queue_head = request
    ranks[rank].n_waiting += 1


@njit
def _leave_batch(limits, ranks, seats, rank, held):
    ranks[rank].n_decoding -= 1
    ranks[rank].context_sum -= held
    residue = (ranks[rank].iteration - held) % limits.block_tokens
    seats.block_residue[rank, residue] -= 1


@njit
def _give_back(limits, requests, ranks, rank, request, held):
    ranks[rank].free_blocks += _blocks(held, limits.block_tokens)
    ranks[rank].committed_blocks -= _final_blocks(limits, requests, request)


@njit
def _final_blocks(limits, requests, request):
    """Blocks of a request before its last token."""
    return _blocks(requests[request].input_tokens + requests[request].output_tokens - 1, limits.block_tokens)


@njit
def _fits(limits, requests, ranks, rank, request, fresh_blocks):
    """Whether a request may be admitted. ``fresh_blocks``: for outputs of those admitted in this iteration."""
    free = ranks[rank].free_blocks
    if not limits.reserves_output:
        tokens = requests[request].input_tokens + requests[request].generated
        return _blocks(tokens, limits.block_tokens) <= free
    to_come = ranks[rank].committed_blocks - (limits.n_blocks - free)
    share = _reserve_frac(limits, ranks, rank)
    kept = share * (to_come - fresh_blocks) + fresh_blocks
    return _final_blocks(limits, requests, request) <= free - kept


@njit
def _reserve_frac(limits, ranks, rank):
    fallen = (ranks[rank].iteration - ranks[rank].reserve_since) / limits.reserve_steps
    start = limits.reserve_start_frac
    return start + min(fallen, 1.0) * (limits.reserve_end_frac - start)


@njit
def _compose(table, limits, requests, ranks, seats, rank, now_s, cutoff_s, admits):
    """Composes a rank's next iteration, with requests ready by ``cutoff_s`` if it ``admits`` any. Returns its time [s],
    0 when idle."""
    prefill_tokens = 0
    attention_s = 0.0
    if limits.prefill_first:
        budget = limits.max_num_batched_tokens
        prefill_tokens, attention_s = _take_prompts(
            table, limits, requests, ranks, seats, rank, now_s, cutoff_s, budget, admits
        )
    preempted = False
    ranks[rank].n_emitting = 0
    if prefill_tokens == 0:
        residue = ranks[rank].iteration % limits.block_tokens
        while seats.block_residue[rank, residue] > ranks[rank].free_blocks:
            _preempt_youngest(limits, requests, ranks, seats, rank)
            preempted = True
        ranks[rank].free_blocks -= seats.block_residue[rank, residue]
        ranks[rank].n_emitting = ranks[rank].n_decoding
    n_emitting = ranks[rank].n_emitting
    if not limits.prefill_first:
        admits = admits and not preempted and not _holds_back(limits, requests, ranks, rank, cutoff_s)
        budget = limits.max_num_batched_tokens - n_emitting
        prefill_tokens, attention_s = _take_prompts(
            table, limits, requests, ranks, seats, rank, now_s, cutoff_s, budget, admits
        )
    ranks[rank].prefill_tokens += prefill_tokens
    used = limits.n_blocks - ranks[rank].free_blocks
    ranks[rank].peak_blocks = max(ranks[rank].peak_blocks, used)
    if n_emitting > 0:
        attention_s += _interpolate2(
            table.decode_batch_grid,
            table.decode_context_grid,
            table.decode_attention_time_s,
            float(n_emitting),
            ranks[rank].context_sum / n_emitting,
        )
    n_tokens = n_emitting + prefill_tokens
    if n_tokens == 0:
        return 0.0
    return _iteration_time_s(table, n_tokens, n_emitting + ranks[rank].n_joining, attention_s)


@njit
def _ready(limits, requests, request, cutoff_s):
    return request >= 0 and requests[request].ready_s <= cutoff_s


@njit
def _holds_back(limits, requests, ranks, rank, cutoff_s):
    """Whether prompts wait for company (TensorRT-LLM's batch waiting); counts the iterations they do."""
    request = ranks[rank].queue_head
    n_seqs = ranks[rank].n_decoding
    if limits.wait_iterations == 0 or n_seqs == 0 or ranks[rank].prefilling >= 0:
        return False
    if not _ready(limits, requests, request, cutoff_s) or not _fits(limits, requests, ranks, rank, request, np.int64(0)):
        return False
    n_tokens = n_seqs
    while _ready(limits, requests, request, cutoff_s) and n_seqs < limits.max_num_seqs:
        n_tokens += requests[request].input_tokens + requests[request].generated
        n_seqs += 1
        request = requests[request].next_waiting
    if n_tokens >= limits.wait_tokens or ranks[rank].n_waited >= limits.wait_iterations:
        ranks[rank].n_waited = 0
        return False
    ranks[rank].n_waited += 1
    return True


@njit
def _unbalanced(limits, requests, ranks, pool, replica, cutoff_s):
    """Whether prompts wait until all ranks have some (TensorRT-LLM's attention data-parallel balance)."""
    all_prompts = True
    all_decode = True
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        head = ranks[rank].queue_head
        has_prompt = ranks[rank].prefilling >= 0
        if not has_prompt and _ready(limits, requests, head, cutoff_s):
            has_seat = ranks[rank].n_decoding < limits.max_num_seqs
            has_prompt = has_seat and _fits(limits, requests, ranks, rank, head, np.int64(0))
        all_prompts = all_prompts and has_prompt
        all_decode = all_decode and ranks[rank].n_decoding > 0
    pool.replicas[replica].n_unbalanced += 1
    late = pool.replicas[replica].n_unbalanced >= limits.balance_iterations
    if all_prompts or late or not all_decode:
        pool.replicas[replica].n_unbalanced = 0
        return False
    return True


@njit
def _take_prompts(table, limits, requests, ranks, seats, rank, now_s, cutoff_s, budget, admits):
    """Spends a token budget on prompts in order. Returns their tokens and attention time [s]."""
    full_budget = limits.max_num_batched_tokens
    prefill_tokens = 0
    attention_s = 0.0
    n_joining = 0
    fresh_blocks = np.int64(0)
    while budget > 0:
        request = ranks[rank].prefilling
        done = ranks[rank].prefilled
        if request < 0:
            request = ranks[rank].queue_head
            done = 0
            if not admits or ranks[rank].n_decoding + n_joining >= limits.max_num_seqs:
                break
            if not _ready(limits, requests, request, cutoff_s):
                break
        tokens = requests[request].input_tokens + requests[request].generated
        chunk = min(tokens - done, budget)
        if ranks[rank].prefilling < 0:
            if not _fits(limits, requests, ranks, rank, request, fresh_blocks):
                break
            if not limits.chunked_prefill and chunk < tokens:
                # A prompt longer than the whole budget can never fit: it goes alone.
                if prefill_tokens > 0 or tokens <= full_budget:
                    break
                chunk = tokens
            blocks = _blocks(tokens, limits.block_tokens)
            fresh_blocks += _final_blocks(limits, requests, request) - blocks
            _admit(limits, requests, ranks, rank, request, blocks, now_s)
        attention_s += _interpolate2(
            table.prefill_query_grid,
            table.prefill_context_grid,
            table.prefill_attention_time_s,
            float(chunk),
            float(done),
        )
        budget -= chunk
        prefill_tokens += chunk
        if done + chunk < tokens:
            ranks[rank].prefilling = request
            ranks[rank].prefilled = done + chunk
        else:
            ranks[rank].prefilling = -1
            seats.joining[rank, n_joining] = request
            n_joining += 1
    ranks[rank].n_joining = n_joining
    return prefill_tokens, attention_s


@njit
def _admit(limits, requests, ranks, rank, request, blocks, now_s):
    """Takes the head of the queue."""
    ranks[rank].free_blocks -= blocks
    ranks[rank].committed_blocks += _final_blocks(limits, requests, request)
    ranks[rank].queue_head = requests[request].next_waiting
    ranks[rank].n_waiting -= 1
    requests[request].admission = ranks[rank].n_admitted
    ranks[rank].n_admitted += 1
    if np.isnan(requests[request].scheduled_s):
        requests[request].scheduled_s = now_s


@njit
def _iteration_time_s(table, n_tokens, n_rows, attention_s):
    gpu_s = _interpolate(table.token_grid, table.linear_time_s, float(n_tokens)) + attention_s
    if n_rows > 0:
        gpu_s += _interpolate(table.head_rows_grid, table.head_time_s, float(n_rows))
    if n_tokens > table.graph_max_tokens:
        gpu_s = max(gpu_s, table.eager_time_s)
    return gpu_s + table.step_overhead_s


@njit
def _end_request(limits, requests, pool, request, outcome, end_s):
    requests[request].finish_s = end_s
    requests[request].outcome = outcome
    pool.counters[N_ENDED] += 1
    if limits.closed_loop:
        ready_s = end_s + requests[request].pause_s
        _heap_push(pool.user_ready_s, pool.user_last, pool.counters[N_USERS_READY], ready_s, request)
        pool.counters[N_USERS_READY] += 1


@njit
def _complete(limits, requests, ranks, seats, pool, rank, seen_s):
    """Ends a rank's iteration: every decoding sequence has one more token, finished ones leave, prompts done join."""
    n_emitting = ranks[rank].n_emitting
    ranks[rank].decode_tokens += n_emitting
    ranks[rank].context_sum += n_emitting
    if n_emitting == ranks[rank].n_decoding:  # else decoding pauses, and so does its counter
        ranks[rank].iteration += 1
    now = ranks[rank].iteration
    keys = seats.end_iteration[rank]
    items = seats.end_request[rank]
    while ranks[rank].n_decoding > 0 and keys[0] == now:
        request = items[0]
        _heap_remove(keys, items, ranks[rank].n_decoding, np.int64(0))
        held = _cached_tokens(requests, ranks, rank, request)
        _leave_batch(limits, ranks, seats, rank, held)
        _give_back(limits, requests, ranks, rank, request, held)
        _end_request(limits, requests, pool, request, np.int64(COMPLETED), seen_s)
    for i in range(ranks[rank].n_joining):
        request = seats.joining[rank, i]
        held = requests[request].input_tokens + requests[request].generated
        requests[request].generated += 1
        if np.isnan(requests[request].first_token_s):
            requests[request].first_token_s = seen_s
        left = requests[request].output_tokens - requests[request].generated
        if left == 0:
            _give_back(limits, requests, ranks, rank, request, held)
            _end_request(limits, requests, pool, request, np.int64(COMPLETED), seen_s)
        else:
            requests[request].joined = now
            _heap_push(keys, items, ranks[rank].n_decoding, float(now + left), request)
            ranks[rank].n_decoding += 1
            ranks[rank].context_sum += held
            seats.block_residue[rank, (now - held) % limits.block_tokens] += 1
    ranks[rank].n_joining = 0


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
            if _fits(limits, requests, ranks, rank, head, np.int64(0)):
                return 0
            if limits.reserves_output and _reserve_frac(limits, ranks, rank) > limits.reserve_end_frac:
                return 0
        if n_decoding > 0:
            steps = min(steps, np.int64(seats.end_iteration[rank, 0]) - ranks[rank].iteration)
    return steps


@njit
def _decode_run(table, limits, ranks, seats, pool, replica, steps, limit_s):
    """Runs up to ``steps`` iterations of an unchanging decode batch while they start before ``limit_s``.

    The last iteration before a sequence ends is left to `_compose` and `_complete`.
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
            if n > table.graph_max_tokens:
                gpu_s = max(gpu_s, table.eager_time_s)
            step_s = max(step_s, gpu_s + table.step_overhead_s)
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
    i, fraction = _cell(table.decode_batch_grid, float(n))
    j, _ = _cell(grid, context)
    ranks[rank].linear_s = _interpolate(table.token_grid, table.linear_time_s, float(n))
    ranks[rank].head_s = _interpolate(table.head_rows_grid, table.head_time_s, float(n))
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
        admits = limits.balance_iterations == 0 or not _unbalanced(limits, requests, ranks, pool, replica, cutoff_s)
        step_s = 0.0
        has_prompts = False
        for rank in range(first, last):
            step_s = max(step_s, _compose(table, limits, requests, ranks, seats, rank, start_s, cutoff_s, admits))
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
            _complete(limits, requests, ranks, seats, pool, rank, seen_s)
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
    elif _blocks(n_in + n_out - 1, limits.block_tokens) > limits.n_blocks:
        outcome = np.int64(REJECTED_KV)
    if outcome != PENDING:
        _end_request(limits, requests, pool, request, outcome, ready_s)
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


@njit(cache=True)
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
            _heap_remove(pool.user_ready_s, pool.user_last, counters[N_USERS_READY], np.int64(0))
            counters[N_USERS_READY] -= 1
            requests[request].arrival_s = sent_s
        counters[NEXT_REQUEST] += 1
        _dispatch(limits, requests, ranks, pool, rank, request, sent_s)
