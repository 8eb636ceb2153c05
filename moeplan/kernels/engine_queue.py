"""Where requests wait: the front end of a replica, the queues of its ranks; and how they end."""

from __future__ import annotations

import numpy as np

from moeplan.kernels import inner
from moeplan.kernels.engine_grids import heap_push, heap_remove
from moeplan.kernels.engine_state import N_ENDED, N_SENDS, NEXT_OF_STREAM


@inner
def send(pool, at_s, request):
    """A request, or `NEXT_OF_STREAM`, reaches the door at ``at_s``."""
    heap_push(pool.send_s, pool.send_request, pool.counters[N_SENDS], at_s, np.int64(request))
    pool.counters[N_SENDS] += 1


@inner
def take_send(pool):
    """Removes the first entry of the heap of sends."""
    heap_remove(pool.send_s, pool.send_request, pool.counters[N_SENDS], np.int64(0))
    pool.counters[N_SENDS] -= 1


@inner
def end_request(limits, requests, pool, request, outcome, end_s):
    """A request ends; its user sends the next one if there is any."""
    requests[request].finish_s = end_s
    requests[request].outcome = outcome
    pool.ended[pool.counters[N_ENDED]] = request
    pool.counters[N_ENDED] += 1
    if requests[request].successor >= 0:
        send(pool, end_s + requests[request].pause_s, requests[request].successor)
    elif limits.closed_loop:
        send(pool, end_s + requests[request].pause_s, NEXT_OF_STREAM)


@inner
def enqueue(limits, requests, ranks, rank, request):
    """A request from the front end is the last in a rank's queue."""
    requests[request].next_waiting = -1
    ranks[rank].n_waiting += 1
    if limits.by_priority:
        if ranks[rank].incoming_head < 0:
            ranks[rank].incoming_head = request
        else:
            requests[ranks[rank].incoming_tail].next_waiting = request
        ranks[rank].incoming_tail = request
        return
    if ranks[rank].queue_head < 0:
        ranks[rank].queue_head = request
    else:
        requests[ranks[rank].queue_tail].next_waiting = request
    ranks[rank].queue_tail = request


@inner
def requeue(limits, requests, ranks, rank, request):
    """A preempted request is the first in its rank's queue, of its priority."""
    ranks[rank].n_waiting += 1
    _insert(limits, requests, ranks, rank, request, requests[request].priority)


@inner
def sort_in(limits, requests, ranks, rank, cutoff_s):
    """With priorities: requests that are ready by ``cutoff_s`` take their places in the queue."""
    while ranks[rank].incoming_head >= 0 and requests[ranks[rank].incoming_head].ready_s <= cutoff_s:
        request = ranks[rank].incoming_head
        ranks[rank].incoming_head = requests[request].next_waiting
        _insert(limits, requests, ranks, rank, request, requests[request].priority + 1)


@inner
def _insert(limits, requests, ranks, rank, request, before):
    """Puts a request before the first one whose priority is ``before`` or more; without priorities before all."""
    previous = np.int64(-1)
    following = ranks[rank].queue_head
    if limits.by_priority:
        tail = ranks[rank].queue_tail
        if following >= 0 and requests[tail].priority < before:
            previous = tail
            following = np.int64(-1)
        while following >= 0 and requests[following].priority < before:
            previous = following
            following = np.int64(requests[following].next_waiting)
    requests[request].next_waiting = following
    if previous < 0:
        ranks[rank].queue_head = request
    else:
        requests[previous].next_waiting = request
    if following < 0:
        ranks[rank].queue_tail = request


@inner
def running(limits, ranks, replica):
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        if ranks[rank].n_decoding > 0 or ranks[rank].prefilling >= 0:
            return True
    return False


@inner
def busy(limits, ranks, replica):
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        if ranks[rank].n_waiting > 0:
            return True
    return running(limits, ranks, replica)


@inner
def wake(limits, requests, ranks, pool, replica):
    """Moves an idle replica's clock to the first request in its queues that is ready."""
    first = replica * limits.ranks_per_replica
    ready_s = np.inf
    for rank in range(first, first + limits.ranks_per_replica):
        if ranks[rank].queue_head >= 0:
            ready_s = min(ready_s, requests[ranks[rank].queue_head].ready_s)
        if limits.by_priority and ranks[rank].incoming_head >= 0:
            ready_s = min(ready_s, requests[ranks[rank].incoming_head].ready_s)
    if ready_s > pool.replicas[replica].clock_s:
        pool.replicas[replica].clock_s = ready_s
        pool.replicas[replica].previous_s = ready_s


@inner
def post(limits, pool, replica, end_s, n_tokens):
    """Hands the tokens of an iteration that ends to the front end. Returns when the users have them [s]."""
    _settle(limits, pool, replica)
    pool.replicas[replica].posted_s = end_s
    pool.replicas[replica].n_posted = n_tokens
    return max(pool.replicas[replica].front_s, end_s) + n_tokens * limits.front_token_s


@inner
def _settle(limits, pool, replica):
    """The front end takes on the tokens that wait for it."""
    n_posted = pool.replicas[replica].n_posted
    if n_posted > 0:
        begin_s = max(pool.replicas[replica].front_s, pool.replicas[replica].posted_s)
        pool.replicas[replica].front_s = begin_s + n_posted * limits.front_token_s
        pool.replicas[replica].n_posted = 0


@inner
def enter_front(limits, pool, replica, sent_s):
    """A request passes the front end behind what is there already. Returns when it is through [s]."""
    if pool.replicas[replica].posted_s <= sent_s:
        _settle(limits, pool, replica)
    through_s = max(pool.replicas[replica].front_s, sent_s) + limits.front_request_s
    pool.replicas[replica].front_s = through_s
    return through_s


@inner
def deadline_s(requests, request):
    """When its user gives up."""
    left_s = requests[request].finish_timeout_s
    if np.isnan(requests[request].scheduled_s):
        left_s = min(left_s, requests[request].start_timeout_s)
    return requests[request].arrival_s + left_s
