"""State of the serving engine's kernel as records and tuples, and the grids and heaps it computes with."""

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
    host_step_s: float
    host_row_s: float


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
def cell(grid, x):
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
def interpolate(grid, values, x):
    i, fraction = cell(grid, x)
    return values[i] + fraction * (values[i + 1] - values[i])


@njit
def interpolate2(grid0, grid1, values, x0, x1):
    i, f0 = cell(grid0, x0)
    j, f1 = cell(grid1, x1)
    low = values[i, j] + f0 * (values[i + 1, j] - values[i, j])
    high = values[i, j + 1] + f0 * (values[i + 1, j + 1] - values[i, j + 1])
    return low + f1 * (high - low)


@njit
def heap_push(keys, items, size, key, item):
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
def heap_remove(keys, items, size, position):
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
