"""State of the serving engine's kernel as records and tuples."""

from __future__ import annotations

from typing import NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SmallInts = npt.NDArray[np.int32]

# Outcomes of a request
PENDING, COMPLETED, REJECTED_EMPTY, REJECTED_CONTEXT, REJECTED_KV = 0, 1, 2, 3, 4
TIMED_OUT_WAITING, TIMED_OUT_RUNNING, LOST, UNSERVED = 5, 6, 7, 8

# How a request finds its rank: in turn, fewest requests, most cached blocks (then fewest requests)
ROUND_ROBIN, LEAST_LOADED, PREFIX_AWARE = 0, 1, 2

# Entries of Pool.counters
NEXT_REQUEST, N_STREAM, N_ENDED, N_DISPATCHED, N_SENDS, N_ACCEPTING = 0, 1, 2, 3, 4, 5
N_COUNTERS = 6

NEXT_OF_STREAM = -1  # entry of the heap of sends: whatever request the stream has next

# Where a unit of a prefix is on a rank; above IDLE: on the GPU, and so many running requests use it
ABSENT, ON_HOST, IDLE = -2, -1, 0

# Times between tokens are counted in bins of 2 %, from a microsecond to a day.
GAP_LOW_S, GAPS_PER_E, N_GAPS = 1e-6, 50, 1260

# State is in records: one array instead of a dozen halves the compile time, and a record is in one cache line.
REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),  # when the user sent it first
        ("pause_s", "f8"),  # from its end to its user's next request
        ("ready_s", "f8"),  # through the front end, in its rank's queue
        ("scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("finish_s", "f8"),
        ("start_timeout_s", "f8"),  # the user gives up when it is not scheduled so long after it was sent ...
        ("finish_timeout_s", "f8"),  # ... or not finished
        ("input_tokens", "i8"),
        ("output_tokens", "i8"),
        ("generated", "i8"),  # output tokens when it last joined the decoding batch
        ("joined", "i8"),  # the rank's token counter then
        ("kv_tokens", "i8"),  # tokens whose KV comes with it (prefilled elsewhere, or swapped out)
        ("hash_start", "i8"),  # its first entry in Seats.hash_ids
        ("admission", "i8"),  # order of admission on its rank: the largest is the youngest
        ("next_waiting", "i4"),  # linked list of a rank's queue, -1 ends
        ("successor", "i4"),  # request its user sends next, ``pause_s`` after this one ended; -1: none
        ("priority", "i4"),  # smaller goes first
        ("class_id", "i4"),
        ("rank", "i4"),  # -1: rejected, or not dispatched yet
        ("n_hash", "i4"),  # entries in Seats.hash_ids
        ("n_units", "i4"),  # of them held on its rank
        ("hit_tokens", "i4"),  # prompt tokens found in the prefix cache
        ("swapped", "i4"),  # its KV is in swap space
        ("outcome", "i4"),
    ]
)

RANK = np.dtype(
    [
        ("iteration", "i8"),  # token counter: decode iterations; with speculation, tokens of a sequence there all along
        ("queue_head", "i8"),  # request, -1: empty
        ("queue_tail", "i8"),
        ("incoming_head", "i8"),  # with priorities: requests not yet sorted into the queue, in order of arrival
        ("incoming_tail", "i8"),
        ("n_waiting", "i8"),
        ("n_decoding", "i8"),
        ("n_emitting", "i8"),  # sequences that get a token in this iteration: n_decoding, or 0 while prompts go first
        ("n_admitted", "i8"),  # so far, again after a preemption
        ("n_joining", "i8"),  # prompts that end in this iteration
        ("prefilling", "i8"),  # request whose prompt is partly done, or -1: there is at most one, the youngest
        ("prefilled", "i8"),  # its tokens done
        ("context_sum", "i8"),  # cached tokens of all decoding sequences
        ("free_blocks", "i8"),  # not held by running requests; idle blocks of the prefix cache are among them
        ("committed_blocks", "i8"),  # of all admitted requests once their last token is cached
        ("saved_blocks", "i8"),  # that running requests share instead of holding each its own
        ("idle_units", "i8"),  # prefix cache: units nobody uses
        ("host_units", "i8"),  # units in host memory
        ("free_swap_blocks", "i8"),
        ("reserve_since", "i8"),  # token counter at which the share kept for outputs began to fall
        ("n_waited", "i8"),  # iterations for which prompts have been held back
        ("deadline_s", "f8"),  # no request of this rank gives up before
        ("link_s", "f8"),  # time of the host link for the iteration being composed
        # Decode run: times of an unchanging batch, attention at the ends of the context cell it is in.
        ("linear_s", "f8"),
        ("head_s", "f8"),
        ("host_s", "f8"),
        ("low_s", "f8"),
        ("high_s", "f8"),
        ("low_tokens", "f8"),
        ("high_tokens", "f8"),
        ("emitted_s", "f8"),  # when its decoding sequences had their last token
        # Sums over the run
        ("prefill_tokens", "i8"),
        ("decode_tokens", "i8"),
        ("hit_tokens", "i8"),  # prompt tokens found in the prefix cache, those from the host included
        ("host_hit_tokens", "i8"),
        ("n_preemptions", "i8"),
        ("n_swaps", "i8"),
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
        ("accepts", "i8"),  # 0: gets no new requests (not started, draining, down)
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
    draft_time_s: Floats  # (decode_batch_grid,) drafting for a batch
    graph_sizes: Floats  # captured graphs, ascending: an iteration is padded to the next one; empty: no padding
    step_overhead_s: float
    eager_time_s: float
    graph_max_tokens: float
    host_step_s: float
    host_row_s: float


class Limits(NamedTuple):
    """What a rank may do, and how requests reach it."""

    max_num_seqs: int
    max_num_batched_tokens: int  # >= max_num_seqs * verify_tokens
    chunked_prefill: bool
    block_tokens: int
    n_blocks: int
    max_context_tokens: int
    ranks_per_replica: int
    lookahead: bool  # an iteration is composed when the one before it starts (asynchronous scheduling)
    dispatch: int  # ROUND_ROBIN over replicas, then over their ranks; LEAST_LOADED; PREFIX_AWARE
    closed_loop: bool  # the stream's next request is sent when one ends
    chained: bool  # some requests have a successor
    by_priority: bool  # the queue is in order of priority; the least important running sequence is preempted
    has_timeouts: bool
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
    verify_tokens: int  # tokens of a decoding sequence in an iteration: one, and the drafts it verifies
    caches: bool  # prefix cache, in units of ``unit_blocks`` blocks
    unit_tokens: int
    unit_blocks: int
    host_blocks: int  # blocks that fit a rank's share of host memory, where idle units go when their room is needed
    host_units: int  # the same in units
    swap_blocks: int  # blocks that fit a rank's swap space; 0: a preempted sequence is recomputed
    block_link_s: float  # one block over the host link
    link_overlaps: bool  # the link works while the iteration runs; else before it


# The kernel takes `Limits` as a record, that is by reference: a tuple would be copied in every call.
LIMITS = np.dtype([(name, kind) for name, kind in get_type_hints(Limits).items()])


class Seats(NamedTuple):
    """The running sequences of each rank, and its prefix cache.

    Lists of idle units run from the least to the most recently used one. Entries n_units and n_units + 1 of ``newer``
    and ``older`` are the ends of the lists on the GPU and on the host.
    """

    joining: Ints  # (n_ranks, max_num_seqs) requests whose prompt ends in this iteration
    end_iteration: Floats  # (n_ranks, max_num_seqs) heap of token counters at which sequences end
    end_request: Ints
    block_residue: Ints  # (n_ranks, block_tokens) sequences that need a block at counters of this residue
    hash_ids: SmallInts  # units of all requests, one after the other
    place: SmallInts  # (n_ranks, n_units): ABSENT, ON_HOST, IDLE, or how many running requests use it
    newer: SmallInts  # (n_ranks, n_units + 2)
    older: SmallInts


class Pool(NamedTuple):
    """Replicas and the front door."""

    replicas: npt.NDArray[np.void]  # (n_replicas,) REPLICA
    send_s: Floats  # heap of sends: when ...
    send_request: Ints  # ... and which request, or NEXT_OF_STREAM
    ended: SmallInts  # (n_requests,) in the order in which they ended
    batch_time_s: Floats  # (max_num_seqs + 1,) time of iterations with so many sequences on a rank
    gap_tokens: Floats  # (N_GAPS,) tokens by the time since the one before, see `gap_bin`
    accepted: SmallInts  # tokens a sequence gets in a decode iteration, drawn; a power of two of them
    door_s: Floats  # (1,) end of the last window: a request that found no replica is dispatched no earlier
    counters: Ints
