"""A serving pool under a traffic, request by request: simpy for the control events, one kernel call per window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.kernels import engine_state as state
from moeplan.simulate.arrivals import draw_requests
from moeplan.simulate.fleet import WINDOW_S, FleetHistory, FleetRun
from moeplan.simulate.pool import OUTCOMES, ReplicaPool
from moeplan.spec.fleet import PLAIN_FLEET, Fleet
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Engine, Traffic
from moeplan.steps.table import StepTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

__all__ = ["DISPATCH", "OUTCOMES", "EventLog", "HostMemory", "engine_limits", "simulate_serving"]

COMPLETED = state.COMPLETED
DISPATCH = {
    "least_loaded": state.LEAST_LOADED,
    "round_robin": state.ROUND_ROBIN,
    "prefix_aware": state.PREFIX_AWARE,
}
_UNBOUNDED_BLOCKS = 2**50


@dataclass(frozen=True, slots=True, eq=False)
class EventLog:
    """What happened. Request arrays have shape (n_requests,), in order of arrival; a time never reached is NaN."""

    arrival_s: Floats  # when the user sent it
    scheduled_s: Floats  # start of the first iteration that worked on it
    first_token_s: Floats
    finish_s: Floats  # last token, the rejection, or when the engine learnt that the user had given up
    outcome: Ints  # key of OUTCOMES
    input_tokens: Ints
    output_tokens: Ints
    hit_tokens: Ints  # prompt tokens found in the prefix cache
    class_id: Ints
    replica: Ints  # -1: rejected at the door
    n_users: int  # closed loop; 0 otherwise
    last_own_s: float  # last arrival that no answer brought about; NaN in a closed loop
    n_ranks: int  # queues over all replicas: attention data-parallel ranks x pipeline lanes
    replica_busy_s: Floats  # (n_replicas,) time in iterations
    replica_iterations: Ints  # (n_replicas,)
    prefill_tokens: int  # processed, recomputed ones included
    decode_tokens: int
    running_time_s: float  # integral of running sequences over time, all ranks
    n_preemptions: int
    n_swaps: int  # of them
    host_hit_tokens: int  # prompt tokens whose KV came from host memory
    kv_peak_frac: float  # fullest moment of the fullest rank
    gap_s: Floats  # (n_bins,) times between tokens of an answer ...
    gap_tokens: Floats  # ... and how many tokens came after them
    batch_time_s: Floats  # (most running + 1,) time of iterations with so many sequences on a rank, all ranks
    retries: Ints  # times a request was sent again because its replica went
    replica_ready_s: Floats  # (n_replicas,) able to take requests, or finishing them
    replica_held_s: Floats  # hardware held for it, starts and repairs included
    gpu_s: float  # GPUs x time held
    span_s: float  # of the run, to the end of its last request
    fleet_events: dict[str, int]  # failures, preemptions, starts, stops, replaced, rollbacks
    window_s: Floats  # (n_windows,) ends of the control windows, which get longer in a long run
    window_ready: Ints  # replicas that take requests
    window_replica_waiting: Ints  # (n_windows, n_replicas) requests queued then
    window_replica_running: Ints
    window_kv_frac: Floats  # (n_windows, n_replicas) share of the KV cache that running requests hold
    window_cached_frac: Floats  # share that only the prefix cache holds

    @property
    def completed(self) -> npt.NDArray[np.bool_]:
        return self.outcome == COMPLETED

    @property
    def window_waiting(self) -> Ints:
        """Requests queued at the end of each window, all replicas."""
        return np.asarray(self.window_replica_waiting.sum(axis=1))

    @property
    def window_running(self) -> Ints:
        return np.asarray(self.window_replica_running.sum(axis=1))


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Host memory of one attention data-parallel rank for KV, and the link to it."""

    token_s: float  # one token's KV over the link
    swap_tokens: float = 0.0  # KV tokens of swapped sequences
    offload_tokens: float = 0.0  # KV tokens of idle blocks of the prefix cache

    def __post_init__(self) -> None:
        if not 0.0 <= self.token_s < np.inf:
            raise ValueError(f"token_s: must be finite and not negative (got {self.token_s})")


def simulate_serving(
    table: StepTable,
    traffic: Traffic,
    engine: Engine,
    layout: ServingLayout,
    kv_capacity_tokens: float,
    seed: int,
    progress: Callable[[float], None] | None = None,
    *,
    max_context_tokens: int | None = None,
    fleet: Fleet = PLAIN_FLEET,
    weight_bytes: float = 0.0,
    host: HostMemory | None = None,
    window_s: float = WINDOW_S,
) -> EventLog:
    """Runs ``traffic`` through ``layout.replicas`` replicas until every request has ended.

    kv_capacity_tokens: KV tokens one attention data-parallel rank holds (inf for a model without a KV cache).
    progress: called after each window with the share of requests ended.
    max_context_tokens: longer requests (input + output) are rejected; None = no limit but the KV cache.
    fleet: how requests reach replicas and their ranks, and what happens to replicas.
    weight_bytes: what a replica reads when it starts.
    host: for swapping and the offload tier; None: there is none.
    window_s: simulated time between looks at the queues, at first. Does not change events.

    Raises ValueError for traffic or limits that cannot be simulated.
    """
    limits = engine_limits(table, engine, layout, kv_capacity_tokens, max_context_tokens, fleet.dispatch, host)
    requests = draw_requests(traffic, seed)
    if not 0.0 < window_s < np.inf:
        raise ValueError(f"window_s: must be positive and finite (got {window_s})")
    most = fleet.most_replicas(layout)
    pool = ReplicaPool(table, limits, requests, most, layout.replicas, engine.draft_acceptance_frac, seed)
    start = fleet.cold_start
    history = FleetRun(
        pool,
        fleet,
        layout.replicas,
        gpus_per_replica=layout.n_gpus_per_replica,
        cold_start_s=start.provision_s + weight_bytes / start.weights_bytes_per_s + start.engine_s,
        seed=seed,
        window_s=window_s,
        progress=progress,
    ).run()
    return event_log(pool, requests.n_users, history, layout.n_gpus_per_replica)


def engine_limits(
    table: StepTable,
    engine: Engine,
    layout: ServingLayout,
    kv_capacity_tokens: float,
    max_context_tokens: int | None,
    dispatch: str,
    host: HostMemory | None = None,
) -> state.Limits:
    """Limits of one rank. Pipeline lanes share the sequences and the KV cache of their attention rank evenly."""
    _check(engine, layout, kv_capacity_tokens)
    if dispatch not in DISPATCH:
        raise ValueError(f"dispatch: {' or '.join(DISPATCH)} (got {dispatch})")
    verify_tokens = engine.verified_tokens
    n_blocks = kv_capacity_tokens / table.pp / engine.kv_block_tokens
    memory = HostMemory(0.0) if host is None else host

    def host_blocks(tokens: float) -> int:
        return int(min(tokens / table.pp / engine.kv_block_tokens, _UNBOUNDED_BLOCKS))

    return state.Limits(
        max_num_seqs=min(max(engine.max_num_seqs // table.pp, 1), engine.max_num_batched_tokens // verify_tokens),
        max_num_batched_tokens=engine.max_num_batched_tokens,
        chunked_prefill=bool(engine.chunked_prefill),
        block_tokens=engine.kv_block_tokens,
        n_blocks=int(min(n_blocks, _UNBOUNDED_BLOCKS)),
        max_context_tokens=2**60 if max_context_tokens is None else int(max_context_tokens),
        ranks_per_replica=layout.dp * table.pp,
        lookahead=bool(engine.async_scheduling),
        dispatch=DISPATCH[dispatch],
        closed_loop=False,
        chained=False,
        by_priority=bool(engine.priority_scheduling),
        has_timeouts=False,
        request_overhead_s=float(engine.request_overhead_s),
        front_request_s=float(engine.front_request_s),
        front_token_s=float(engine.front_token_s),
        prefill_first=bool(engine.prefill_first),
        reserves_output=engine.output_reserve_frac > 0.0,
        reserve_start_frac=float(engine.output_reserve_frac),
        reserve_end_frac=float(engine.output_reserve_end_frac),
        reserve_steps=float(engine.output_reserve_iterations),
        receive_iterations=int(engine.receive_iterations),
        wait_iterations=int(engine.batch_wait_iterations),
        balance_iterations=int(engine.dp_balance_iterations),
        wait_tokens=engine.batch_wait_tokens_frac * engine.max_num_batched_tokens,
        verify_tokens=verify_tokens,
        caches=bool(engine.prefix_caching),
        unit_tokens=engine.kv_block_tokens,
        unit_blocks=1,
        host_blocks=host_blocks(memory.offload_tokens),
        host_units=host_blocks(memory.offload_tokens),
        swap_blocks=host_blocks(memory.swap_tokens),
        block_link_s=float(memory.token_s * engine.kv_block_tokens),
        link_overlaps=bool(engine.kv_link_overlap),
    )


def _check(engine: Engine, layout: ServingLayout, kv_capacity_tokens: float) -> None:
    for name in ("max_num_seqs", "max_num_batched_tokens", "kv_block_tokens"):
        if getattr(engine, name) < 1:
            raise ValueError(f"{name}: at least 1 (got {getattr(engine, name)})")
    for name in ("request_overhead_s", "front_request_s", "front_token_s"):
        if not 0.0 <= getattr(engine, name) < np.inf:
            raise ValueError(f"{name}: must be finite and not negative (got {getattr(engine, name)})")
    shares = (engine.output_reserve_frac, engine.output_reserve_end_frac, engine.batch_wait_tokens_frac)
    if not all(0.0 <= share <= 1.0 for share in shares) or engine.output_reserve_end_frac > engine.output_reserve_frac:
        raise ValueError(f"output reserve and batch wait: shares between 0 and 1, the reserve falling (got {shares})")
    waits = (engine.batch_wait_iterations, engine.dp_balance_iterations)
    if engine.output_reserve_iterations < 1 or engine.receive_iterations < 1 or min(waits) < 0:
        raise ValueError("iterations of reserve and receive: at least 1, of waits: at least 0")
    if not kv_capacity_tokens >= 0.0:
        raise ValueError(f"kv_capacity_tokens: must not be negative (got {kv_capacity_tokens})")
    if layout.replicas < 1 or layout.dp < 1:
        raise ValueError(f"layout: at least one replica and rank (got {layout.replicas}, {layout.dp})")
    if engine.draft_tokens < 0 or not 0.0 <= engine.draft_acceptance_frac <= 1.0:
        raise ValueError(f"drafts: none or more, accepted between 0 and 1 (got {engine.draft_tokens})")
    if engine.draft_tokens >= engine.max_num_batched_tokens:
        raise ValueError(f"draft_tokens: below max_num_batched_tokens (got {engine.draft_tokens})")


def event_log(pool: ReplicaPool, n_users: int, history: FleetHistory, gpus_per_replica: int) -> EventLog:
    """What happened in a pool whose requests have all ended, in order of arrival."""
    ranks = pool.ranks
    order = np.argsort(pool.requests["arrival_s"], kind="stable")
    requests = pool.requests[order]
    samples = history.samples
    n_blocks = max(pool.limits.n_blocks, 1)
    replica_blocks = n_blocks * pool.limits.ranks_per_replica
    log = EventLog(
        **{name: requests[name].copy() for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s")},
        **{
            name: requests[name].astype(np.int64)
            for name in ("outcome", "input_tokens", "output_tokens", "hit_tokens", "class_id")
        },
        replica=requests["rank"].astype(np.int64) // pool.limits.ranks_per_replica,
        n_users=n_users,
        last_own_s=pool.last_own_s,
        n_ranks=ranks.size,
        replica_busy_s=pool.pool.replicas["busy_s"].copy(),
        replica_iterations=pool.pool.replicas["n_iterations"].copy(),
        prefill_tokens=int(ranks["prefill_tokens"].sum()),
        decode_tokens=int(ranks["decode_tokens"].sum()),
        running_time_s=float(ranks["running_time_s"].sum()),
        n_preemptions=int(ranks["n_preemptions"].sum()),
        n_swaps=int(ranks["n_swaps"].sum()),
        host_hit_tokens=int(ranks["host_hit_tokens"].sum()),
        kv_peak_frac=float(ranks["peak_blocks"].max() / n_blocks),
        gap_s=state.GAP_LOW_S * np.exp((np.arange(state.N_GAPS) + 0.5) / state.GAPS_PER_E),
        gap_tokens=pool.pool.gap_tokens.copy(),
        batch_time_s=pool.pool.batch_time_s.copy(),
        retries=history.retries[order],
        replica_ready_s=history.ready_s,
        replica_held_s=history.held_s,
        gpu_s=float(history.held_s.sum()) * gpus_per_replica,
        span_s=history.end_s,
        fleet_events=history.counts,
        window_s=np.array([sample.at_s for sample in samples]),
        window_ready=np.array([sample.ready for sample in samples]),
        window_replica_waiting=np.array([sample.queues.waiting for sample in samples]),
        window_replica_running=np.array([sample.queues.running for sample in samples]),
        window_kv_frac=np.array([sample.queues.used_blocks for sample in samples]) / replica_blocks,
        window_cached_frac=np.array([sample.queues.cached_blocks for sample in samples]) / replica_blocks,
    )
    for name in log.__slots__:
        if isinstance(value := getattr(log, name), np.ndarray):
            value.flags.writeable = False
    return log
