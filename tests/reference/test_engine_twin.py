"""The engine kernel gives the events of its plain twin, request by request, for any small case and any windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from engine_twin import Twin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeplan.kernels import engine_state as kernel
from moeplan.simulate.arrivals import Requests
from moeplan.simulate.pool import ReplicaPool
from moeplan.steps.table import StepTable


@dataclass(frozen=True)
class Case:
    table: StepTable
    limits: kernel.Limits
    n_replicas: int
    n_accepting: int
    requests: Requests
    acceptance_frac: float
    control: tuple  # (time, replica, what, later): see `play`

    def pool(self):
        return ReplicaPool(
            self.table, self.limits, self.requests, self.n_replicas, self.n_accepting, self.acceptance_frac
        )


@st.composite
def tables(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def grid(*points):
        return np.array(points, dtype=float)

    def rising(*shape):
        times = rng.uniform(0.0, 1e-3, shape)
        for axis in range(len(shape)):
            times = np.cumsum(times, axis=axis)
        return times

    return StepTable(
        token_grid=grid(1, 4, 20, 64),
        linear_time_s=rising(4) + 1e-3,
        decode_batch_grid=grid(1, 3, 8),
        decode_context_grid=grid(2, 10, 40),
        decode_attention_time_s=rising(3, 3),
        prefill_query_grid=grid(1, 16),
        prefill_context_grid=grid(0, 7, 30),
        prefill_attention_time_s=rising(2, 3),
        head_rows_grid=grid(1, 5),
        head_time_s=rising(2),
        step_overhead_s=draw(st.sampled_from([0.0, 3e-4])),
        eager_time_s=draw(st.sampled_from([0.0, 5e-3])),
        graph_max_tokens=draw(st.sampled_from([6, 1000])),
        host_step_s=draw(st.sampled_from([0.0, 2e-3])),
        host_row_s=draw(st.sampled_from([0.0, 4e-4])),
        pp=1,
        draft_time_s=rising(3),
        graph_sizes=draw(st.sampled_from([np.zeros(0), grid(2, 4, 16)])),
    )


@st.composite
def cases(draw):
    n = draw(st.integers(1, 40))
    max_num_seqs = draw(st.integers(1, 8))
    block_tokens = draw(st.sampled_from([1, 2, 4, 16]))
    verify_tokens = draw(st.sampled_from([1, 1, 2, 4]))
    closed = draw(st.booleans())
    limits = kernel.Limits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs * verify_tokens + draw(st.integers(0, 30)),
        chunked_prefill=draw(st.booleans()),
        block_tokens=block_tokens,
        n_blocks=draw(st.integers(0, 120)) // block_tokens,
        max_context_tokens=draw(st.sampled_from([60, 2**60])),
        ranks_per_replica=draw(st.integers(1, 3)),
        lookahead=draw(st.booleans()),
        dispatch=draw(st.sampled_from([kernel.ROUND_ROBIN, kernel.LEAST_LOADED, kernel.PREFIX_AWARE])),
        closed_loop=False,
        chained=False,
        by_priority=draw(st.booleans()),
        has_timeouts=False,
        request_overhead_s=draw(st.sampled_from([0.0, 7.7e-4])),
        front_request_s=draw(st.sampled_from([0.0, 3.1e-4])),
        front_token_s=draw(st.sampled_from([0.0, 1.3e-4, 1.1e-3])),
        prefill_first=draw(st.booleans()),
        reserves_output=draw(st.booleans()),
        reserve_start_frac=draw(st.sampled_from([1.0, 0.7])),
        reserve_end_frac=draw(st.sampled_from([1.0, 0.7, 0.098])),
        reserve_steps=draw(st.sampled_from([1.0, 30.0])),
        receive_iterations=draw(st.sampled_from([1, 1, 5])),
        wait_iterations=draw(st.sampled_from([0, 0, 4])),
        wait_tokens=draw(st.sampled_from([12.5, 1000.0])),
        balance_iterations=draw(st.sampled_from([0, 0, 3, 8])),
        verify_tokens=verify_tokens,
        caches=draw(st.booleans()),
        unit_tokens=block_tokens,
        unit_blocks=1,
        host_blocks=draw(st.sampled_from([0, 0, 4, 30])),
        host_units=0,
        swap_blocks=draw(st.sampled_from([0, 0, 8, 60])),
        block_link_s=draw(st.sampled_from([0.0, 1.9e-4])),
        link_overlaps=draw(st.booleans()),
    )
    n_replicas = draw(st.integers(1, 3))
    table = draw(tables())
    requests = draw(streams(n, closed))
    return Case(table, limits, n_replicas, n_replicas, requests, draw(st.sampled_from([0.0, 0.6, 1.0])), ())


@st.composite
def streams(draw, n, closed):
    """Requests, half of the time with priorities, timeouts, successors, shared prefixes each."""

    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def numbers(*values):
        return rng.choice(np.array(values), n)

    def sometimes(values):
        return values if draw(st.booleans()) else None

    lengths = rng.integers(0, 41, (2, n))
    chained = draw(st.sampled_from([False, False, True]))
    n_stream = draw(st.integers(1, n)) if chained else None
    arrival_s = np.full(n, np.nan)
    if not closed:
        arrival_s[:n_stream] = np.cumsum(numbers(0.0, 1.3e-3, 1.71e-2, 0.153))[:n_stream]
    successor = None
    if n_stream is not None:  # each of the others follows one before it
        successor = np.full(n, -1)
        free = list(range(n_stream))
        for i in range(n_stream, n):
            successor[free.pop(rng.integers(len(free)))] = i
            free.append(i)
    n_hash = np.minimum(numbers(0, 1, 2, 3, 5, 9), 10)
    families = numbers(0, 1, 2)  # requests of a family share the prefix, up to where they part
    parts = numbers(1, 2, 4, 10)
    hash_ids = [families[i] * 10 + k if k < parts[i] else 100 + 10 * i + k for i in range(n) for k in range(n_hash[i])]
    prefixes = sometimes((np.array(hash_ids, dtype=np.int64), n_hash)) or (None, None)
    return Requests(
        arrival_s,
        *lengths,
        n_users=draw(st.integers(1, 6)) * closed,
        pause_s=numbers(0.0, 0.0, 2.3e-2),
        n_stream=n_stream,
        priority=sometimes(numbers(0, 1, 2)),
        start_timeout_s=sometimes(numbers(np.inf, 4.3e-2, 0.21)),
        finish_timeout_s=sometimes(numbers(np.inf, 8.7e-2, 0.35)),
        successor=successor,
        hash_ids=prefixes[0],
        n_hash=prefixes[1],
        unit_tokens=draw(st.sampled_from([4, 16])),
    )


@st.composite
def controlled(draw):
    """Cases with replicas that come, drain, and fail."""
    case = draw(cases())
    events = st.tuples(
        st.floats(0.0, 1.0),
        st.integers(0, case.n_replicas - 1),
        st.sampled_from(["accept", "drain", "retry", "lose"]),
        st.sampled_from([0.0, 0.05]),
    )
    control = tuple(sorted(draw(st.lists(events, max_size=8))))
    return Case(
        case.table,
        case.limits,
        case.n_replicas,
        draw(st.integers(0, case.n_replicas)),
        case.requests,
        case.acceptance_frac,
        control,
    )


def play(case, pool, run, end):
    """Control events on a pool or its twin; in the end all replicas take what is left."""
    for at_s, replica, what, later_s in case.control:
        run(at_s)
        pool.accept(replica, what == "accept")
        if what in ("retry", "lose"):
            taken = pool.empty(replica, at_s)
            if what == "retry":
                pool.send(taken, at_s + later_s)
            else:
                end(taken, kernel.LOST, at_s)
    last_s = case.control[-1][0] if case.control else 0.0
    run(last_s)
    for replica in range(case.n_replicas):
        pool.accept(replica, True)
    run(np.inf)


def run_kernel(case, windows_s=()):
    pool = case.pool()

    def run(until_s):
        for window_s in windows_s:
            if pool.pool.door_s[0] < window_s < until_s:
                pool.advance(window_s)
        pool.advance(until_s)

    play(case, pool, run, pool.end)
    return pool


def run_twin(case, pool):
    limits = pool.limits
    units = pool.seats.hash_ids
    requests = case.requests
    if limits.caches:
        requests = Requests(
            **{name: getattr(requests, name) for name in Requests.__slots__ if name not in ("hash_ids", "n_hash")},
            hash_ids=units,
            n_hash=pool.requests["n_hash"],
        )
    twin = Twin(case.table, limits, case.n_replicas, requests, pool.pool.accepted, case.n_accepting)
    play(case, twin, twin.run, twin.end_all)
    return twin


def assert_same(case):
    pool = run_kernel(case)
    twin = run_twin(case, pool)
    state, ranks = pool.requests, pool.ranks
    assert state["outcome"].tolist() == [r.outcome for r in twin.requests]
    assert state["rank"].tolist() == [r.rank for r in twin.requests]
    assert state["hit_tokens"].tolist() == [r.hit_tokens for r in twin.requests]
    for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s"):
        expected = [getattr(r, name) for r in twin.requests]
        np.testing.assert_allclose(state[name], expected, rtol=1e-12, atol=1e-13, err_msg=name)
    assert sorted(pool.ended_since(0).tolist()) == sorted(twin.ended)
    busy = [i for i in twin.iterations if i.end_s > i.start_s]
    assert pool.pool.replicas["n_iterations"].sum() == len(busy)
    assert ranks["decode_tokens"].sum() == sum(i.decode for i in busy)
    assert ranks["prefill_tokens"].sum() == sum(i.prefill_tokens for i in busy)
    assert ranks["n_preemptions"].tolist() == [rank.preemptions for rank in twin.ranks]
    assert ranks["n_swaps"].tolist() == [rank.swaps for rank in twin.ranks]
    assert ranks["hit_tokens"].tolist() == [rank.hit_tokens for rank in twin.ranks]
    assert ranks["host_hit_tokens"].tolist() == [rank.host_hit_tokens for rank in twin.ranks]
    assert ranks["idle_units"].tolist() == [len(rank.idle) for rank in twin.ranks]
    assert ranks["host_units"].tolist() == [len(rank.host) for rank in twin.ranks]
    batch_time_s = np.zeros(pool.pool.batch_time_s.size)
    for i in busy:
        np.add.at(batch_time_s, i.running, i.end_s - i.start_s)
    np.testing.assert_allclose(pool.pool.batch_time_s, batch_time_s, rtol=1e-9, atol=1e-12)
    running_time_s = np.arange(batch_time_s.size) @ batch_time_s
    assert ranks["running_time_s"].sum() == pytest.approx(running_time_s)
    if case.limits.ranks_per_replica == 1:
        assert ranks["peak_blocks"].max() == max((i.used_blocks for i in busy), default=0)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_kernel_gives_the_events_of_the_twin(case):
    assert_same(case)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(controlled())
def test_kernel_gives_the_events_of_the_twin_under_control(case):
    assert_same(case)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(controlled(), st.lists(st.floats(0.0, 1.0), max_size=30))
def test_windows_change_nothing(case, windows_s):
    whole = run_kernel(case)
    cut = run_kernel(case, windows_s=sorted(windows_s))
    for name in whole.requests.dtype.names:
        np.testing.assert_array_equal(whole.requests[name], cut.requests[name], err_msg=name)
    for name in whole.ranks.dtype.names:
        if name == "running_time_s":
            np.testing.assert_allclose(whole.ranks[name], cut.ranks[name], rtol=1e-12)
        elif name not in ("linear_s", "head_s", "host_s", "low_s", "high_s", "low_tokens", "high_tokens", "deadline_s"):
            np.testing.assert_array_equal(whole.ranks[name], cut.ranks[name], err_msg=name)
    np.testing.assert_array_equal(whole.pool.replicas["clock_s"], cut.pool.replicas["clock_s"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(controlled())
def test_nothing_is_left_behind(case):
    """Every request has one outcome and every seat, token and KV block is given back."""
    pool = run_kernel(case)
    ranks, requests, limits = pool.ranks, case.requests, pool.limits
    outcome = pool.requests["outcome"]
    sent = np.isin(np.arange(outcome.size), pool.ended_since(0))
    assert np.array_equal(outcome != kernel.PENDING, sent)
    assert sent.all()
    assert np.all(ranks["free_blocks"] == limits.n_blocks)
    assert np.all(ranks["free_swap_blocks"] == limits.swap_blocks)
    for name in ("n_waiting", "n_decoding", "context_sum", "n_joining", "committed_blocks", "saved_blocks"):
        assert not np.any(ranks[name]), name
    assert not np.any(pool.seats.block_residue)
    for name in ("queue_head", "incoming_head", "prefilling"):
        assert np.all(ranks[name] == -1)
    assert np.all(pool.seats.place <= kernel.IDLE)
    assert np.array_equal((pool.seats.place == kernel.IDLE).sum(axis=1), ranks["idle_units"])
    assert np.array_equal((pool.seats.place == kernel.ON_HOST).sum(axis=1), ranks["host_units"])
    done = outcome == kernel.COMPLETED
    produced = ranks["decode_tokens"].sum()
    if not np.any(outcome > kernel.REJECTED_KV) and not case.control:
        # A prompt's last chunk gives one token; so does each recomputation that got that far.
        tokens = requests.output_tokens[done].sum()
        preemptions = ranks["n_preemptions"].sum()
        assert tokens - done.sum() - preemptions <= produced <= tokens - done.sum()
        prompts = requests.input_tokens[done].sum()
        computed = ranks["prefill_tokens"].sum() + ranks["hit_tokens"].sum()
        assert computed == prompts if preemptions == 0 else computed >= prompts


def test_cases_cover_the_rare_paths():
    """The strategies reach them, otherwise the tests above would prove little."""
    seen = set()

    @settings(max_examples=600, deadline=None, database=None, derandomize=True,
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    @given(controlled())
    def look(case):
        pool = run_kernel(case)
        seen.update(pool.requests["outcome"].tolist())
        for name in ("n_preemptions", "n_swaps", "hit_tokens", "host_hit_tokens"):
            seen.update({name} if pool.ranks[name].sum() else ())

    look()
    outcomes = set(range(kernel.COMPLETED, kernel.LOST + 1))
    assert outcomes | {"n_preemptions", "n_swaps", "hit_tokens", "host_hit_tokens"} <= seen
