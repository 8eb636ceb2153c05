"""The door of a pool: who is sent next, to which rank, and who gives up."""

from __future__ import annotations

import numpy as np

from moeplan.kernels import inner
from moeplan.kernels.engine_cache import find_prefix
from moeplan.kernels.engine_grids import heap_remove
from moeplan.kernels.engine_iteration import blocks_of, cached_tokens, final_blocks, give_back, leave_batch
from moeplan.kernels.engine_queue import busy, deadline_s, end_request, enqueue, enter_front, take_send
from moeplan.kernels.engine_state import (
    N_ACCEPTING,
    N_DISPATCHED,
    N_SENDS,
    N_STREAM,
    NEXT_OF_STREAM,
    NEXT_REQUEST,
    PENDING,
    PREFIX_AWARE,
    REJECTED_CONTEXT,
    REJECTED_EMPTY,
    REJECTED_KV,
    ROUND_ROBIN,
    TIMED_OUT_RUNNING,
    TIMED_OUT_WAITING,
)


@inner
def next_send(limits, requests, pool):
    """The request that reaches the door next, and when [s]; -1 and infinity: nobody will, or no replica accepts."""
    counters = pool.counters
    in_stream = counters[NEXT_REQUEST] < counters[N_STREAM]
    while counters[N_SENDS] > 0 and pool.send_request[0] == NEXT_OF_STREAM and not in_stream:
        take_send(pool)  # a user with nothing left to send
    request = np.int64(-1)
    sent_s = np.inf
    if counters[N_ACCEPTING] == 0:
        return request, sent_s
    if in_stream and not limits.closed_loop:
        request = counters[NEXT_REQUEST]
        sent_s = requests[request].arrival_s
    if counters[N_SENDS] > 0 and pool.send_s[0] < sent_s:
        request = pool.send_request[0]
        sent_s = pool.send_s[0]
        if request == NEXT_OF_STREAM:
            request = counters[NEXT_REQUEST]
    return request, max(sent_s, pool.door_s[0])


@inner
def take_request(limits, requests, pool, request):
    """Takes what `next_send` found from where it was."""
    counters = pool.counters
    from_stream = request == counters[NEXT_REQUEST] and request < counters[N_STREAM]
    if limits.closed_loop or not from_stream:
        if np.isnan(requests[request].arrival_s):
            requests[request].arrival_s = pool.send_s[0]
        take_send(pool)
    if from_stream:
        counters[NEXT_REQUEST] += 1


@inner
def choose_rank(limits, requests, ranks, seats, pool, request):
    """Rank for the next request, of replicas that accept."""
    turn = pool.counters[N_DISPATCHED]
    n_accepting = pool.counters[N_ACCEPTING]
    replica = turn % n_accepting
    if n_accepting < pool.replicas.size:
        replica = _accepting(pool, replica)
    best = replica * limits.ranks_per_replica + (turn // n_accepting) % limits.ranks_per_replica
    if limits.dispatch == ROUND_ROBIN:
        return best
    fewest = np.int64(2**62)
    most = np.int64(-1)
    start = best
    for i in range(ranks.size):
        rank = (start + i) % ranks.size
        if pool.replicas[rank // limits.ranks_per_replica].accepts == 0:
            continue
        n_found = np.int64(0)
        if limits.dispatch == PREFIX_AWARE:
            n_found = find_prefix(limits, requests, seats, rank, request)[0]
        load = ranks[rank].n_waiting + ranks[rank].n_decoding + (ranks[rank].prefilling >= 0)
        if n_found > most or (n_found == most and load < fewest):
            most = n_found
            fewest = load
            best = rank
    return best


@inner
def _accepting(pool, index):
    """The replica with so many accepting ones before it."""
    for replica in range(pool.replicas.size):
        if pool.replicas[replica].accepts != 0:
            if index == 0:
                return replica
            index -= 1
    return np.int64(0)


@inner
def dispatch(limits, requests, ranks, pool, rank, request, sent_s):
    """Sends a request through the front end to a rank's queue, or ends it when it can never be served."""
    replica = rank // limits.ranks_per_replica
    ready_s = enter_front(limits, pool, replica, sent_s) + limits.request_overhead_s
    requests[request].ready_s = ready_s
    n_in = requests[request].input_tokens
    n_out = requests[request].output_tokens
    outcome = np.int64(PENDING)
    if n_in < 1 or n_out < 1:
        outcome = np.int64(REJECTED_EMPTY)
    elif n_in + n_out > limits.max_context_tokens:
        outcome = np.int64(REJECTED_CONTEXT)
    elif final_blocks(limits, requests, request) > limits.n_blocks:
        outcome = np.int64(REJECTED_KV)
    if outcome != PENDING:
        end_request(limits, requests, pool, request, outcome, ready_s)
        return
    if limits.has_timeouts:
        gives_up_s = deadline_s(requests, request)
        if gives_up_s <= sent_s:  # it has waited at the door
            end_request(limits, requests, pool, request, np.int64(TIMED_OUT_WAITING), sent_s)
            return
        ranks[rank].deadline_s = min(ranks[rank].deadline_s, gives_up_s)
    if not busy(limits, ranks, replica):
        pool.replicas[replica].clock_s = max(pool.replicas[replica].clock_s, ready_s)
        pool.replicas[replica].previous_s = pool.replicas[replica].clock_s
        for i in range(replica * limits.ranks_per_replica, (replica + 1) * limits.ranks_per_replica):
            ranks[i].reserve_since = ranks[i].iteration
    pool.counters[N_DISPATCHED] += 1
    requests[request].rank = rank
    enqueue(limits, requests, ranks, rank, request)


@inner
def expire(limits, requests, ranks, seats, pool, rank, now_s):
    """Ends the requests of a rank whose users have given up by ``now_s``, the start of an iteration."""
    if ranks[rank].deadline_s > now_s:
        return
    ranks[rank].deadline_s = np.inf
    ranks[rank].queue_head, ranks[rank].queue_tail = _expire_waiting(
        limits, requests, ranks, pool, rank, ranks[rank].queue_head, now_s
    )
    ranks[rank].incoming_head, ranks[rank].incoming_tail = _expire_waiting(
        limits, requests, ranks, pool, rank, ranks[rank].incoming_head, now_s
    )
    items = seats.end_request[rank]
    while True:
        late = ranks[rank].prefilling  # of those who give up the one that came first, so that caches stay the same
        if late >= 0 and not _gives_up(requests, ranks, rank, late, now_s):
            late = np.int64(-1)
        position = np.int64(-1)
        for i in range(ranks[rank].n_decoding):
            if _gives_up(requests, ranks, rank, items[i], now_s) and (late < 0 or items[i] < late):
                late = items[i]
                position = i
        if late < 0:
            return
        if position < 0:
            ranks[rank].prefilling = -1
            held = requests[late].input_tokens + requests[late].generated
            give_back(limits, requests, ranks, seats, rank, late, held, ranks[rank].prefilled)
        else:
            heap_remove(seats.end_iteration[rank], items, ranks[rank].n_decoding, position)
            held = cached_tokens(requests, ranks, rank, late)
            leave_batch(limits, ranks, seats, rank, held)
            give_back(limits, requests, ranks, seats, rank, late, held, held)
            requests[late].generated += ranks[rank].iteration - requests[late].joined
        end_request(limits, requests, pool, late, np.int64(TIMED_OUT_RUNNING), now_s)


@inner
def _gives_up(requests, ranks, rank, request, now_s):
    gives_up_s = deadline_s(requests, request)
    if gives_up_s > now_s:
        ranks[rank].deadline_s = min(ranks[rank].deadline_s, gives_up_s)
        return False
    return True


@inner
def _expire_waiting(limits, requests, ranks, pool, rank, head, now_s):
    """The list of waiting requests from ``head`` on without those who give up: its new head and tail."""
    request = head
    head = np.int64(-1)
    tail = np.int64(-1)
    while request >= 0:
        following = np.int64(requests[request].next_waiting)
        if _gives_up(requests, ranks, rank, request, now_s):
            ranks[rank].n_waiting -= 1
            if requests[request].swapped != 0:
                ranks[rank].free_swap_blocks += blocks_of(requests[request].kv_tokens, limits.block_tokens)
            started = not np.isnan(requests[request].scheduled_s)
            outcome = np.int64(TIMED_OUT_RUNNING) if started else np.int64(TIMED_OUT_WAITING)
            end_request(limits, requests, pool, request, outcome, now_s)
        else:
            requests[request].next_waiting = -1
            if tail < 0:
                head = request
            else:
                requests[tail].next_waiting = request
            tail = request
        request = following
    return head, tail
