"""A pool of replicas as arrays: what the engine kernel advances, and what control events do to it between windows.

docs/decisions/0004 is the contract: who may change what, and when.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.kernels import engine as kernel
from moeplan.kernels import engine_state as state
from moeplan.simulate.arrivals import Requests
from moeplan.simulate.prefixes import prefix_units
from moeplan.steps.table import StepTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OUTCOMES = {
    state.COMPLETED: "completed",
    state.REJECTED_EMPTY: "rejected: no input or output tokens",
    state.REJECTED_CONTEXT: "rejected: longer than the context",
    state.REJECTED_KV: "rejected: larger than the KV cache",
    state.TIMED_OUT_WAITING: "timed out before it was scheduled",
    state.TIMED_OUT_RUNNING: "timed out before it was finished",
    state.LOST: "lost with its replica",
    state.UNSERVED: "no replica took it",
}
OUTCOME_KINDS = {
    state.COMPLETED: "completed",
    state.REJECTED_EMPTY: "rejected",
    state.REJECTED_CONTEXT: "rejected",
    state.REJECTED_KV: "rejected",
    state.TIMED_OUT_WAITING: "timed_out",
    state.TIMED_OUT_RUNNING: "timed_out",
    state.LOST: "lost",
    state.UNSERVED: "lost",
}
_N_DRAWS = 4096  # of tokens accepted in an iteration; repeated after that


@dataclass(frozen=True, slots=True, eq=False)
class Queues:
    """State of each replica at the end of a window, arrays of shape (n_replicas,)."""

    waiting: Ints  # requests queued
    running: Ints
    used_blocks: Ints  # KV blocks of running requests, summed over ranks
    cached_blocks: Ints  # blocks of the prefix cache that no running request uses


class ReplicaPool:
    """Replicas of one engine, sized for the most there will ever be; ``n_accepting`` of them take requests at first."""

    def __init__(
        self,
        table: StepTable,
        limits: state.Limits,
        requests: Requests,
        n_replicas: int,
        n_accepting: int | None = None,
        acceptance_frac: float = 0.0,
        seed: int = 0,
    ) -> None:
        units = None
        if limits.caches and requests.hash_ids is not None and requests.n_hash is not None:
            units = prefix_units(requests.hash_ids, requests.n_hash, requests.unit_tokens, limits.block_tokens)
            n_blocks = units.tokens // limits.block_tokens
            limits = limits._replace(
                unit_tokens=units.tokens, unit_blocks=n_blocks, host_units=limits.host_blocks // n_blocks
            )
        self.limits = limits._replace(
            closed_loop=requests.n_users > 0,
            chained=requests.successor is not None,
            by_priority=limits.by_priority and requests.priority is not None,
            has_timeouts=requests.start_timeout_s is not None or requests.finish_timeout_s is not None,
            caches=units is not None,
        )
        self.record = np.array([tuple(self.limits)], dtype=state.LIMITS)[0]
        self.table = kernel_table(table)
        self.requests = _request_state(requests)
        ids = np.zeros(0, dtype=np.int32)
        if units is not None:
            ids = units.ids
            self.requests["n_hash"] = units.n_units
            self.requests["hash_start"] = np.cumsum(units.n_units) - units.n_units
        self.ranks = _rank_state(self.limits, n_replicas * limits.ranks_per_replica)
        self.seats = _seats(self.limits, self.ranks.size, len(requests), ids)
        accepted = _draw_accepted(limits.verify_tokens, acceptance_frac, seed)
        self.pool = _pool_state(n_replicas, requests, self.seats.end_request.shape[1], accepted)
        for replica in range(n_replicas if n_accepting is None else n_accepting):
            self.accept(replica, True)

    @property
    def last_own_s(self) -> float:
        """Last arrival of a request that comes by itself; NaN where there are none (a closed loop)."""
        n_stream = int(self.pool.counters[state.N_STREAM])
        return float(self.requests["arrival_s"][n_stream - 1]) if n_stream and not self.limits.closed_loop else np.nan

    @property
    def n_ended(self) -> int:
        return int(self.pool.counters[state.N_ENDED])

    def advance(self, until_s: float) -> int:
        """All arrivals, and all iterations that start, before ``until_s``; how many requests have ended."""
        return int(kernel.run(self.table, self.record, self.requests, self.ranks, self.seats, self.pool, until_s))

    def ended_since(self, n_ended: int) -> Ints:
        """Requests that ended after the first ``n_ended``, in order; some may end after the window's end."""
        return self.pool.ended[n_ended : self.n_ended].astype(np.int64)

    def accept(self, replica: int, accepts: bool) -> None:
        """Whether a replica gets new requests. One that does not finishes what it has: it drains."""
        self.pool.replicas["accepts"][replica] = accepts
        self.pool.counters[state.N_ACCEPTING] = np.count_nonzero(self.pool.replicas["accepts"])

    def empty(self, replica: int, at_s: float) -> Ints:
        """Takes all requests off a replica that goes down, in order of number; its caches are lost.

        The iteration under way is counted as done. Each request keeps its ``generated`` tokens and must be sent again
        or ended.
        """
        mine = slice(replica * self.limits.ranks_per_replica, (replica + 1) * self.limits.ranks_per_replica)
        requests, ranks, seats = self.requests, self.ranks, self.seats
        here = (requests["rank"] >= mine.start) & (requests["rank"] < mine.stop)
        taken = np.flatnonzero(here & (requests["outcome"] == state.PENDING))
        for rank in range(mine.start, mine.stop):
            decoding = seats.end_request[rank, : ranks["n_decoding"][rank]]
            requests["generated"][decoding] += ranks["iteration"][rank] - requests["joined"][decoding]
        for name in ("kv_tokens", "n_units", "swapped"):
            requests[name][taken] = 0
        requests["rank"][taken] = -1
        for name in ("queue_head", "queue_tail", "incoming_head", "incoming_tail", "prefilling"):
            ranks[name][mine] = -1
        for name in ("n_waiting", "n_decoding", "n_joining", "context_sum", "committed_blocks", "saved_blocks",
                     "idle_units", "host_units"):  # fmt: skip
            ranks[name][mine] = 0
        ranks["free_blocks"][mine] = self.limits.n_blocks
        ranks["free_swap_blocks"][mine] = self.limits.swap_blocks
        ranks["deadline_s"][mine] = np.inf
        ranks["link_s"][mine] = 0.0
        seats.block_residue[mine] = 0
        seats.place[mine] = state.ABSENT
        _clear_lists(seats, mine)
        self.pool.replicas["n_posted"][replica] = 0
        self.pool.replicas["front_s"][replica] = at_s
        return taken

    def send(self, requests: Ints, at_s: float | Floats) -> None:
        """Requests reach the door at ``at_s``, not before the end of the last window.

        For requests taken off a replica, and for rows whose ``arrival_s`` is NaN: it is set then.
        """
        pool = self.pool
        n = int(pool.counters[state.N_SENDS])
        when_s = np.concatenate([pool.send_s[:n], np.broadcast_to(np.asarray(at_s, np.float64), np.shape(requests))])
        which = np.concatenate([pool.send_request[:n], requests])
        order = np.lexsort((which, when_s))  # a sorted array is a heap
        pool.send_s[: order.size] = when_s[order]
        pool.send_request[: order.size] = which[order]
        pool.counters[state.N_SENDS] = order.size

    def end(self, requests: Ints, outcome: int, at_s: float) -> None:
        """Counts requests that are on no replica as ended; their users go on."""
        start = self.n_ended
        self.requests["outcome"][requests] = outcome
        self.requests["finish_s"][requests] = at_s
        self.pool.ended[start : start + len(requests)] = requests
        self.pool.counters[state.N_ENDED] += len(requests)
        successor = self.requests["successor"][requests].astype(np.int64)
        going_on = np.full(successor.shape, self.limits.closed_loop) | (successor >= 0)
        self.send(successor[going_on], (at_s + self.requests["pause_s"][requests])[going_on])

    def unsent(self) -> Ints:
        """Requests that have not found a replica: all to come, from the stream and from sends."""
        pending = (self.requests["outcome"] == state.PENDING) & (self.requests["rank"] < 0)
        return np.flatnonzero(pending)

    def next_send_s(self) -> float:
        """When the next request reaches the door, or did while no replica took any; inf: none is to come."""
        counters = self.pool.counters
        at = int(counters[state.NEXT_REQUEST])
        in_stream = at < counters[state.N_STREAM]
        stream_s = float(self.requests["arrival_s"][at]) if in_stream and not self.limits.closed_loop else np.inf
        n_sends = int(counters[state.N_SENDS])
        sends_s = self.pool.send_s[:n_sends]
        if not in_stream:  # users who would take from the stream have nothing left to send
            sends_s = sends_s[self.pool.send_request[:n_sends] != state.NEXT_OF_STREAM]
        return min(stream_s, float(sends_s.min(initial=np.inf)))

    def n_at_door(self, now_s: float) -> int:
        """Requests sent by ``now_s`` that no replica has taken."""
        counters = self.pool.counters
        sends_s = self.pool.send_s[: int(counters[state.N_SENDS])]
        at, n_stream = int(counters[state.NEXT_REQUEST]), int(counters[state.N_STREAM])
        n = int(np.count_nonzero(sends_s <= now_s))
        if not self.limits.closed_loop:
            return n + int(np.searchsorted(self.requests["arrival_s"][at:n_stream], now_s, side="right"))
        fresh = np.count_nonzero(self.pool.send_request[: sends_s.size][sends_s <= now_s] == state.NEXT_OF_STREAM)
        return n - max(0, int(fresh) - (n_stream - at))

    def queues(self) -> Queues:
        """What is queued, running and cached now: iterations under way count as done."""

        def by_replica(values: npt.NDArray[np.generic]) -> Ints:
            return values.astype(np.int64).reshape(self.pool.replicas.size, -1).sum(axis=1)

        ranks = self.ranks
        return Queues(
            waiting=by_replica(ranks["n_waiting"]),
            running=by_replica(ranks["n_decoding"] + (ranks["prefilling"] >= 0)),
            used_blocks=by_replica(self.limits.n_blocks - ranks["free_blocks"]),
            cached_blocks=by_replica(ranks["idle_units"] * self.limits.unit_blocks),
        )


def kernel_table(table: StepTable) -> state.Table:
    """Own, writable, contiguous copies: the kernel is compiled for exactly that."""
    values = {name: getattr(table, name) for name in state.Table._fields}
    if table.draft_time_s is None:
        values["draft_time_s"] = np.zeros(table.decode_batch_grid.size)
    return state.Table(
        **{
            name: np.array(value, dtype=np.float64, order="C") if isinstance(value, np.ndarray) else float(value)
            for name, value in values.items()
        }
    )


def _draw_accepted(verify_tokens: int, acceptance_frac: float, seed: int) -> npt.NDArray[np.int32]:
    """Tokens of an iteration: one, and the drafts before the first that is refused, each accepted independently.

    Leviathan et al., Fast inference from transformers via speculative decoding (2023), section 3.1.
    """
    if verify_tokens == 1:
        return np.ones(1, dtype=np.int32)
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(5)[-1])  # the first four are the requests'
    refused = rng.random((_N_DRAWS, verify_tokens)) >= acceptance_frac
    refused[:, -1] = True
    return (1 + refused.argmax(axis=1)).astype(np.int32)


def _request_state(requests: Requests) -> npt.NDArray[np.void]:
    rows = np.zeros(len(requests), dtype=state.REQUEST)
    rows["rank"] = rows["next_waiting"] = rows["successor"] = -1
    rows["outcome"] = state.PENDING
    for name in ("ready_s", "scheduled_s", "first_token_s", "finish_s"):
        rows[name] = np.nan
    rows["start_timeout_s"] = rows["finish_timeout_s"] = np.inf
    for name in ("arrival_s", "pause_s", "input_tokens", "output_tokens", "priority", "class_id", "successor",
                 "start_timeout_s", "finish_timeout_s"):  # fmt: skip
        if (values := getattr(requests, name)) is not None:
            rows[name] = values
    return rows


def _rank_state(limits: state.Limits, n_ranks: int) -> npt.NDArray[np.void]:
    rows = np.zeros(n_ranks, dtype=state.RANK)
    for name in ("queue_head", "queue_tail", "incoming_head", "incoming_tail", "prefilling"):
        rows[name] = -1
    rows["free_blocks"] = limits.n_blocks
    rows["free_swap_blocks"] = limits.swap_blocks
    rows["deadline_s"] = np.inf
    return rows


def _seats(limits: state.Limits, n_ranks: int, n_requests: int, ids: npt.NDArray[np.int32]) -> state.Seats:
    shape = (n_ranks, min(limits.max_num_seqs, n_requests))
    n_units = int(ids.max(initial=-1)) + 1
    seats = state.Seats(
        joining=np.zeros(shape, dtype=np.int64),
        end_iteration=np.zeros(shape),
        end_request=np.zeros(shape, dtype=np.int64),
        block_residue=np.zeros((n_ranks, limits.block_tokens), dtype=np.int64),
        hash_ids=ids,
        place=np.full((n_ranks, n_units), state.ABSENT, dtype=np.int32),
        newer=np.zeros((n_ranks, n_units + 2), dtype=np.int32),
        older=np.zeros((n_ranks, n_units + 2), dtype=np.int32),
    )
    _clear_lists(seats, slice(None))
    return seats


def _clear_lists(seats: state.Seats, ranks: slice) -> None:
    n_units = seats.place.shape[1]
    for links in (seats.newer, seats.older):
        links[ranks, n_units:] = n_units, n_units + 1  # each end points at itself


def _pool_state(n_replicas: int, requests: Requests, most_running: int, accepted: npt.NDArray[np.int32]) -> state.Pool:
    n_users = requests.n_users
    counters = np.zeros(state.N_COUNTERS, dtype=np.int64)
    counters[state.N_STREAM] = len(requests) if requests.n_stream is None else requests.n_stream
    counters[state.N_SENDS] = n_users
    send_s = np.zeros(n_users + len(requests))  # all users send at time zero
    send_request = np.full(send_s.size, state.NEXT_OF_STREAM, dtype=np.int64)
    return state.Pool(
        replicas=np.zeros(n_replicas, dtype=state.REPLICA),
        send_s=send_s,
        send_request=send_request,
        ended=np.zeros(len(requests), dtype=np.int32),
        batch_time_s=np.zeros(most_running + 1),
        gap_tokens=np.zeros(state.N_GAPS),
        accepted=accepted,
        door_s=np.zeros(1),
        counters=counters,
    )
