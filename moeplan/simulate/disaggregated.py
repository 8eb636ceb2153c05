"""Prefill and decode pools: prompts are computed by one, the KV cache crosses the network, the other decodes.

Both pools are engines of their own. They are advanced in turns: prefill first, then its finished prompts are sent
over, then decode. What a decode replica ends may let a user send again; that request reaches the prefill pool at the
end of the turn, late by half a percent of an answer's time at most. Without such feedback turns of any length give the
same events.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeplan.kernels import engine_state as state
from moeplan.simulate.arrivals import Requests, draw_requests
from moeplan.simulate.fleet import MOST_SAMPLES, FleetHistory, Sample
from moeplan.simulate.pool import Queues, ReplicaPool
from moeplan.simulate.serving import EventLog, engine_limits, event_log
from moeplan.spec.fleet import Dispatch
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Engine, Traffic
from moeplan.steps.table import StepTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIRST_TURN_S = 0.005
TURN_FRAC = 0.005  # of the time that answers take: no later does feedback come
MOST_TURNS = 400  # then turns without feedback double
_NEVER_TOKENS = 2**40  # length of a request that is refused at the door


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """The KV cache of a prompt from one rank to another: all GPUs of the rank send and receive their parts at once."""

    bytes_per_token: float  # on the GPU that holds most of either rank, states and windows included
    bytes_per_s: float  # of one GPU's link
    latency_s: float

    def time_s(self, tokens: Ints) -> Floats:
        """Time on the wire of prompts of ``tokens``, latency aside."""
        return np.asarray(self.bytes_per_token * tokens / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One pool: how fast it is, how it is laid out, what it holds."""

    table: StepTable
    engine: Engine
    layout: ServingLayout
    kv_capacity_tokens: float  # of one attention data-parallel rank


def simulate_disaggregated(
    prefill: PoolSettings,
    decode: PoolSettings,
    traffic: Traffic,
    transfer: KvTransfer,
    seed: int,
    progress: Callable[[float], None] | None = None,
    *,
    max_context_tokens: int | None = None,
    dispatch: Dispatch = "least_loaded",
) -> EventLog:
    """Runs ``traffic`` through both pools until every request has ended; see `simulate_serving`."""
    requests = draw_requests(traffic, seed)
    # Prompts are announced to a decode replica while they are computed: no queue in front. Its ranks stream tokens
    # through front ends of their own: one process for dozens of ranks would be the slowest part of a wide replica.
    decode_engine = replace(
        decode.engine,
        prefill_first=False,
        front_request_s=0.0,
        request_overhead_s=0.0,
        front_token_s=decode.engine.front_token_s / decode.layout.dp,
    )
    pools = []
    for settings, engine, seen in (
        (prefill, prefill.engine, _for_prefill(requests, max_context_tokens, decode)),
        (decode, decode_engine, _for_decode(requests)),
    ):
        limits = engine_limits(
            settings.table, engine, settings.layout, settings.kv_capacity_tokens, max_context_tokens, dispatch
        )
        pools.append(
            ReplicaPool(
                settings.table, limits, seen, settings.layout.replicas, None, engine.draft_acceptance_frac, seed
            )
        )
    gpus_of = (prefill.layout.n_gpus_per_replica, decode.layout.n_gpus_per_replica)
    return TwoPoolRun(pools[0], pools[1], requests, transfer, gpus_of, progress).run()


def _for_prefill(requests: Requests, max_context_tokens: int | None, decode: PoolSettings) -> Requests:
    """What the prefill pool sees: answers of one token; what can never be decoded is refused at its door."""
    most = min(
        np.inf if max_context_tokens is None else max_context_tokens, decode.kv_capacity_tokens / decode.table.pp
    )
    too_long = requests.input_tokens + requests.output_tokens > most
    empty = (requests.input_tokens < 1) | (requests.output_tokens < 1)
    n = len(requests)
    n_stream = n if requests.n_stream is None else requests.n_stream
    arrival_s = requests.arrival_s.copy()
    if requests.n_users:
        n_stream = min(requests.n_users, n_stream)
        arrival_s[:n_stream] = 0.0
    return replace(
        requests,
        arrival_s=arrival_s,
        input_tokens=np.where(too_long & ~empty, _NEVER_TOKENS, requests.input_tokens),
        output_tokens=np.minimum(requests.output_tokens, 1),
        n_users=0,
        n_stream=n_stream,
        successor=None,
    )


def _for_decode(requests: Requests) -> Requests:
    """What the decode pool sees: nothing until a prompt arrives."""
    return replace(
        requests, arrival_s=np.full(len(requests), np.nan), n_users=0, n_stream=0, successor=None, hash_ids=None,
        n_hash=None,
    )  # fmt: skip


class TwoPoolRun:
    """One simulation of both pools. ``gpus_of``: GPUs of a prefill and of a decode replica."""

    def __init__(
        self,
        prefill: ReplicaPool,
        decode: ReplicaPool,
        requests: Requests,
        transfer: KvTransfer,
        gpus_of: tuple[int, int],
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.prefill, self.decode, self.requests, self.transfer = prefill, decode, requests, transfer
        self.gpus_of, self.progress = gpus_of, progress
        decode.requests["kv_tokens"] = requests.input_tokens
        decode.requests["generated"] = 1  # the prompt's end brought the first token
        self.sender_free_s = np.zeros(prefill.ranks.size)
        self.receiver_free_s = [0.0] * decode.ranks.size
        self.transfer_s = np.full(len(requests), np.nan)
        n_stream = len(requests) if requests.n_stream is None else requests.n_stream
        self.next_of_users = min(requests.n_users, n_stream) if requests.n_users else n_stream
        self.n_stream = n_stream
        self.n_ended = 0
        self.now_s = 0.0
        self.answer_s = 0.0  # of the requests that ended last
        self.samples: list[Sample] = []

    def run(self) -> EventLog:
        """To the end of every request."""
        feedback = self.requests.n_users > 0 or self.requests.successor is not None
        turn_s, seen_prefill, seen_decode, n_turns, sample_every = FIRST_TURN_S, 0, 0, 0, 1
        while self.n_ended < len(self.requests):
            self.now_s += turn_s
            n_turns += 1
            if feedback:
                turn_s = max(FIRST_TURN_S, TURN_FRAC * self.answer_s)
            elif n_turns % MOST_TURNS == 0:
                turn_s *= 2.0
            self.prefill.advance(self.now_s)
            done = self.prefill.ended_since(seen_prefill)
            seen_prefill += done.size
            over = self._hand_over(done)
            self.decode.advance(self.now_s)
            ended = self.decode.ended_since(seen_decode)
            seen_decode += ended.size
            self._send_next(over, self.prefill.requests["finish_s"][over])
            self._send_next(ended, self.decode.requests["finish_s"][ended])
            self.n_ended += over.size + ended.size
            if ended.size:
                spent_s = self.decode.requests["finish_s"][ended] - self.prefill.requests["arrival_s"][ended]
                self.answer_s = float(spent_s.mean())
            if n_turns % sample_every == 0:
                self.samples.append(Sample(self.now_s, self._queues(), self.decode.pool.replicas.size))
                if len(self.samples) >= MOST_SAMPLES:
                    del self.samples[::2]
                    sample_every *= 2
            if self.progress is not None:
                self.progress(self.n_ended / len(self.requests))
        return self.log()

    def _hand_over(self, done: Ints) -> Ints:
        """Sends finished prompts to the decode pool, in the order they finished. Returns those that end here."""
        rows = self.prefill.requests
        goes_on = (rows["outcome"][done] == state.COMPLETED) & (self.requests.output_tokens[done] > 1)
        going = done[goes_on]
        going = going[np.argsort(rows["finish_s"][going], kind="stable")]
        wire_s = self.transfer.time_s(self.requests.input_tokens[going])
        arrives_s = np.empty(going.size)
        for k, request in enumerate(going.tolist()):
            finish_s, rank = float(rows["finish_s"][request]), int(rows["rank"][request])
            begin_s = max(finish_s, self.sender_free_s[rank], self.receiver_free_s[0])
            end_s = begin_s + float(wire_s[k])
            self.sender_free_s[rank] = end_s
            heapq.heapreplace(self.receiver_free_s, end_s)
            arrives_s[k] = end_s + self.transfer.latency_s
            self.transfer_s[request] = arrives_s[k] - finish_s
        if going.size:
            if self.requests.finish_timeout_s is not None:  # patience counts from the arrival at the first pool
                spent_s = arrives_s - rows["arrival_s"][going]
                self.decode.requests["finish_timeout_s"][going] = self.requests.finish_timeout_s[going] - spent_s
            self.decode.send(going, arrives_s)
        return done[~goes_on]

    def _send_next(self, ended: Ints, at_s: Floats) -> None:
        """Users go on: with the next turn of their conversation, or with what the closed loop has next."""
        if not ended.size:
            return
        following = np.full(ended.size, -1, dtype=np.int64)
        if self.requests.successor is not None:
            following = self.requests.successor[ended]
        if self.requests.n_users:
            fresh = np.flatnonzero(following < 0)[: max(0, self.n_stream - self.next_of_users)]
            following[fresh] = self.next_of_users + np.arange(fresh.size)
            self.next_of_users += fresh.size
        goes_on = following >= 0
        sent_s = np.maximum(at_s + self.requests.pause_s[ended], self.now_s)[goes_on]
        if sent_s.size:
            self.prefill.send(following[goes_on], sent_s)

    def _queues(self) -> Queues:
        """The decode pool's, with what the prefill pool has added to the first replica's."""
        queues, before = self.decode.queues(), self.prefill.queues()
        waiting, running = queues.waiting.copy(), queues.running.copy()
        waiting[0] += before.waiting.sum()
        running[0] += before.running.sum()
        return Queues(waiting, running, queues.used_blocks, queues.cached_blocks)

    def log(self) -> EventLog:
        """What happened: of the decode pool, with times and outcomes of both."""
        first, second = self.prefill.requests, self.decode.requests
        end_s = max(float(first["finish_s"].max()), float(np.nanmax(second["finish_s"], initial=0.0)))
        history = FleetHistory.steady(self.decode, self.samples, end_s)
        log = event_log(self.decode, self.requests.n_users, history, self.gpus_of[1])
        decoded = second["rank"] >= 0
        unserved = (second["outcome"] != state.PENDING) & ~decoded  # refused by the decode pool
        own = {
            "arrival_s": first["arrival_s"],
            "scheduled_s": first["scheduled_s"],
            # a user sees the first token when the replica that streams the answer has taken it on
            "first_token_s": np.where(decoded | unserved, second["scheduled_s"], first["first_token_s"]),
            "finish_s": np.where(decoded | unserved, second["finish_s"], first["finish_s"]),
            "outcome": np.where(decoded | unserved, second["outcome"], first["outcome"]).astype(np.int64),
            "input_tokens": self.requests.input_tokens,
            "output_tokens": self.requests.output_tokens,
            "hit_tokens": first["hit_tokens"].astype(np.int64),
            "class_id": first["class_id"].astype(np.int64),
            "replica": second["rank"].astype(np.int64) // self.decode.limits.ranks_per_replica,
            "retries": np.zeros(len(self.requests), dtype=np.int64),
        }
        order = np.argsort(own["arrival_s"], kind="stable")
        busy_s = self.prefill.pool.replicas["busy_s"]
        return replace(
            log,
            **{name: values[order] for name, values in own.items()},
            last_own_s=float("nan") if self.requests.n_users else self.prefill.last_own_s,
            replica_busy_s=np.concatenate([log.replica_busy_s, busy_s]),
            replica_ready_s=np.full(log.replica_busy_s.size + busy_s.size, end_s),
            replica_held_s=np.full(log.replica_busy_s.size + busy_s.size, end_s),
            gpu_s=end_s * (self.gpus_of[0] * busy_s.size + self.gpus_of[1] * log.replica_busy_s.size),
        )
