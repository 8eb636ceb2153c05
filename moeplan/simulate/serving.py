"""A serving pool under a traffic, request by request: simpy for the control events, one kernel call per window."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import simpy

from moeplan.kernels import engine as kernel
from moeplan.simulate.arrivals import Requests, draw_requests
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Engine, Traffic
from moeplan.steps.table import StepTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

COMPLETED = kernel.COMPLETED
OUTCOMES = {
    kernel.COMPLETED: "completed",
    kernel.REJECTED_EMPTY: "rejected: no input or output tokens",
    kernel.REJECTED_CONTEXT: "rejected: longer than the context",
    kernel.REJECTED_KV: "rejected: larger than the KV cache",
}
_UNBOUNDED_BLOCKS = 2**50
_WINDOW_S = 60.0  # simulated time between control events; a run gives the same events for any window
_WINDOWS_BEFORE_DOUBLING = 200  # then windows double, so that a run of years takes a few thousand


@dataclass(frozen=True, slots=True, eq=False)
class EventLog:
    """What happened. Request arrays have shape (n_requests,), in order of arrival; a time never reached is NaN."""

    arrival_s: Floats  # when the user sent it
    scheduled_s: Floats  # start of the first iteration that worked on it
    first_token_s: Floats
    finish_s: Floats  # last token, or the rejection
    outcome: Ints  # key of OUTCOMES
    input_tokens: Ints
    output_tokens: Ints
    replica: Ints  # -1: rejected at the door
    n_users: int  # closed loop; 0 otherwise
    n_ranks: int  # queues over all replicas: attention data-parallel ranks x pipeline lanes
    replica_busy_s: Floats  # (n_replicas,) time in iterations
    replica_iterations: Ints  # (n_replicas,)
    prefill_tokens: int  # processed, recomputed ones included
    decode_tokens: int
    running_time_s: float  # integral of running sequences over time, all ranks
    n_preemptions: int
    kv_peak_frac: float  # fullest moment of the fullest rank
    window_s: Floats  # (n_windows,) ends of the control windows, which get longer in a long run
    window_waiting: Ints  # (n_windows,) requests queued then, all ranks
    window_running: Ints

    @property
    def completed(self) -> npt.NDArray[np.bool_]:
        return self.outcome == COMPLETED


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
    dispatch: Literal["least_loaded", "round_robin"] = "least_loaded",
    window_s: float = _WINDOW_S,
) -> EventLog:
    """Runs ``traffic`` through ``layout.replicas`` replicas until every request has ended.

    kv_capacity_tokens: KV tokens one attention data-parallel rank holds (inf for a model without a KV cache).
    progress: called after each window with the share of requests ended.
    max_context_tokens: longer requests (input + output) are rejected; None = no limit but the KV cache.
    dispatch: how requests reach replicas and their ranks.
    window_s: simulated time between looks at the queues; doubles every 200 looks. Does not change events.

    Raises ValueError for traffic or limits that cannot be simulated.
    """
    limits = _limits(table, engine, layout, kv_capacity_tokens, max_context_tokens, dispatch)
    requests = draw_requests(traffic, seed)
    if not 0.0 < window_s < np.inf:
        raise ValueError(f"window_s: must be positive and finite (got {window_s})")
    run = _Run(table, limits._replace(closed_loop=requests.n_users > 0), requests, layout.replicas)
    environment = simpy.Environment()
    environment.run(environment.process(run.windows(environment, window_s, progress)))
    return run.log()


def _limits(
    table: StepTable,
    engine: Engine,
    layout: ServingLayout,
    kv_capacity_tokens: float,
    max_context_tokens: int | None,
    dispatch: str,
) -> kernel.Limits:
    """Limits of one rank. Pipeline lanes share the sequences and the KV cache of their attention rank evenly."""
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
    if dispatch not in ("least_loaded", "round_robin"):
        raise ValueError(f"dispatch: least_loaded or round_robin (got {dispatch})")
    n_blocks = kv_capacity_tokens / table.pp / engine.kv_block_tokens
    return kernel.Limits(
        max_num_seqs=min(max(engine.max_num_seqs // table.pp, 1), engine.max_num_batched_tokens),
        max_num_batched_tokens=engine.max_num_batched_tokens,
        chunked_prefill=bool(engine.chunked_prefill),
        block_tokens=engine.kv_block_tokens,
        n_blocks=int(min(n_blocks, _UNBOUNDED_BLOCKS)),
        max_context_tokens=2**60 if max_context_tokens is None else int(max_context_tokens),
        ranks_per_replica=layout.dp * table.pp,
        lookahead=bool(engine.async_scheduling),
        least_loaded=dispatch == "least_loaded",
        closed_loop=False,
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
    )


class _Run:
    """The arrays one simulation lives in."""

    def __init__(self, table: StepTable, limits: kernel.Limits, requests: Requests, n_replicas: int) -> None:
        self.limits = limits
        self.table = kernel_table(table)
        self.requests = _request_state(requests)
        n_ranks = n_replicas * limits.ranks_per_replica
        self.ranks = _rank_state(limits, n_ranks)
        self.seats = _seats(limits, n_ranks, len(requests))
        self.pool = _pool_state(n_replicas, requests.n_users)
        self.samples: list[tuple[float, int, int]] = []

    def advance(self, until_s: float) -> int:
        """Runs the kernel to ``until_s``; how many requests have ended."""
        return int(kernel.run(self.table, self.limits, self.requests, self.ranks, self.seats, self.pool, until_s))

    def windows(
        self, environment: simpy.Environment, window_s: float, progress: Callable[[float], None] | None
    ) -> Generator[simpy.Event, None, None]:
        """One simpy event per window: the kernel goes to its end, the queues are sampled."""
        n_requests = self.requests.size
        ended = 0
        while ended < n_requests:
            yield environment.timeout(window_s)
            if len(self.samples) % _WINDOWS_BEFORE_DOUBLING == _WINDOWS_BEFORE_DOUBLING - 1:
                window_s *= 2.0
            ended = self.advance(float(environment.now))
            running = int(self.ranks["n_decoding"].sum() + (self.ranks["prefilling"] >= 0).sum())
            self.samples.append((float(environment.now), int(self.ranks["n_waiting"].sum()), running))
            if progress is not None:
                progress(ended / n_requests)

    def log(self) -> EventLog:
        window_s, waiting, running = (np.array(column) for column in zip(*self.samples, strict=True))
        requests = {name: self.requests[name].copy() for name in kernel.REQUEST.names}
        log = EventLog(
            arrival_s=requests["arrival_s"],
            scheduled_s=requests["scheduled_s"],
            first_token_s=requests["first_token_s"],
            finish_s=requests["finish_s"],
            outcome=requests["outcome"],
            input_tokens=requests["input_tokens"],
            output_tokens=requests["output_tokens"],
            replica=requests["rank"] // self.limits.ranks_per_replica,
            n_users=self.pool.user_ready_s.size,
            n_ranks=self.ranks.size,
            replica_busy_s=self.pool.replicas["busy_s"].copy(),
            replica_iterations=self.pool.replicas["n_iterations"].copy(),
            prefill_tokens=int(self.ranks["prefill_tokens"].sum()),
            decode_tokens=int(self.ranks["decode_tokens"].sum()),
            running_time_s=float(self.ranks["running_time_s"].sum()),
            n_preemptions=int(self.ranks["n_preemptions"].sum()),
            kv_peak_frac=float(self.ranks["peak_blocks"].max() / max(self.limits.n_blocks, 1)),
            window_s=window_s,
            window_waiting=waiting,
            window_running=running,
        )
        for name in log.__slots__:
            if isinstance(value := getattr(log, name), np.ndarray):
                value.flags.writeable = False
        return log


_SCALARS = ("step_overhead_s", "eager_time_s", "graph_max_tokens", "host_step_s", "host_row_s")


def kernel_table(table: StepTable) -> kernel.Table:
    """Own, writable, contiguous copies: the kernel is compiled for exactly that."""
    arrays = {
        name: np.array(getattr(table, name), dtype=np.float64, order="C")
        for name in kernel.Table._fields
        if name not in _SCALARS
    }
    return kernel.Table(**arrays, **{name: float(getattr(table, name)) for name in _SCALARS})


def _request_state(requests: Requests) -> npt.NDArray[np.void]:
    state = np.zeros(len(requests), dtype=kernel.REQUEST)
    for name in ("arrival_s", "pause_s", "input_tokens", "output_tokens"):
        state[name] = getattr(requests, name)
    for name in ("ready_s", "scheduled_s", "first_token_s", "finish_s"):
        state[name] = np.nan
    state["rank"] = state["next_waiting"] = -1
    state["outcome"] = kernel.PENDING
    return state


def _rank_state(limits: kernel.Limits, n_ranks: int) -> npt.NDArray[np.void]:
    state = np.zeros(n_ranks, dtype=kernel.RANK)
    state["queue_head"] = state["queue_tail"] = state["prefilling"] = -1
    state["free_blocks"] = limits.n_blocks
    return state


def _seats(limits: kernel.Limits, n_ranks: int, n_requests: int) -> kernel.Seats:
    shape = (n_ranks, min(limits.max_num_seqs, n_requests))
    return kernel.Seats(
        joining=np.zeros(shape, dtype=np.int64),
        end_iteration=np.zeros(shape),
        end_request=np.zeros(shape, dtype=np.int64),
        block_residue=np.zeros((n_ranks, limits.block_tokens), dtype=np.int64),
    )


def _pool_state(n_replicas: int, n_users: int) -> kernel.Pool:
    counters = np.zeros(kernel.N_COUNTERS, dtype=np.int64)
    counters[kernel.N_USERS_READY] = n_users
    return kernel.Pool(
        replicas=np.zeros(n_replicas, dtype=kernel.REPLICA),
        user_ready_s=np.zeros(n_users),  # all users send at time zero
        user_last=np.full(n_users, -1, dtype=np.int64),
        counters=counters,
    )
