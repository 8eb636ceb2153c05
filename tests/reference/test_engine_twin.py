"""The engine kernel gives the events of its plain twin, request by request, for any small case and any windows."""

from __future__ import annotations

import numpy as np
import pytest
from engine_twin import Twin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeplan.kernels import engine as kernel
from moeplan.simulate.arrivals import Requests
from moeplan.simulate.serving import _Run
from moeplan.steps.table import StepTable


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
    )


@st.composite
def cases(draw):
    n = draw(st.integers(1, 40))
    max_num_seqs = draw(st.integers(1, 8))
    block_tokens = draw(st.sampled_from([1, 2, 4, 16]))
    closed = draw(st.booleans())
    limits = kernel.Limits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 30)),
        chunked_prefill=draw(st.booleans()),
        block_tokens=block_tokens,
        n_blocks=draw(st.integers(0, 120)) // block_tokens,
        max_context_tokens=draw(st.sampled_from([60, 2**60])),
        ranks_per_replica=draw(st.integers(1, 3)),
        lookahead=draw(st.booleans()),
        least_loaded=draw(st.booleans()),
        closed_loop=closed,
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
    )
    lengths = st.lists(st.integers(0, 40), min_size=n, max_size=n)
    gaps_s = draw(st.lists(st.sampled_from([0.0, 1.3e-3, 1.71e-2, 0.153]), min_size=n, max_size=n))
    arrival_s = np.full(n, np.nan) if closed else np.cumsum(gaps_s)
    pause_s = np.array(draw(st.lists(st.sampled_from([0.0, 0.0, 2.3e-2]), min_size=n, max_size=n)))
    n_users = draw(st.integers(1, 6)) * closed
    none, forever = np.zeros(n, np.int64), np.full(n, np.inf)
    prompts, answers = np.array(draw(lengths)), np.array(draw(lengths))
    requests = Requests(arrival_s, prompts, answers, n_users, pause_s, none, none, forever, none - 1, n, None)
    return draw(tables()), limits, draw(st.integers(1, 3)), requests


def run_kernel(table, limits, n_replicas, requests, windows_s=()):
    run = _Run(table, limits, requests, n_replicas)
    for until_s in (*windows_s, np.inf):
        run.advance(until_s)
    return run


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_kernel_gives_the_events_of_the_twin(case):
    table, limits, n_replicas, requests = case
    run = run_kernel(*case)
    lengths = requests.input_tokens, requests.output_tokens
    twin = Twin(table, limits, n_replicas, requests.arrival_s, *lengths, requests.n_users, requests.pause_s).run()
    state = run.requests
    assert state["outcome"].tolist() == [r.outcome for r in twin.requests]
    assert state["rank"].tolist() == [r.rank for r in twin.requests]
    for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s"):
        expected = [getattr(r, name) for r in twin.requests]
        np.testing.assert_allclose(state[name], expected, rtol=1e-12, atol=1e-13, err_msg=name)
    busy = [i for i in twin.iterations if i.end_s > i.start_s]
    assert run.pool.replicas["n_iterations"].sum() == len(busy)
    assert run.ranks["decode_tokens"].sum() == sum(i.decode for i in busy)
    assert run.ranks["prefill_tokens"].sum() == sum(i.prefill_tokens for i in busy)
    running_time_s = sum(i.running * (i.end_s - i.start_s) for i in busy)
    assert run.ranks["running_time_s"].sum() == pytest.approx(running_time_s)
    if limits.ranks_per_replica == 1:
        peak = max((i.used_blocks for i in busy), default=0)
        assert run.ranks["peak_blocks"].max() == peak


@settings(max_examples=100, deadline=None)
@given(cases(), st.lists(st.floats(0.0, 1.0), max_size=30))
def test_windows_change_nothing(case, windows_s):
    whole = run_kernel(*case)
    cut = run_kernel(*case, windows_s=sorted(windows_s))
    for name in whole.requests.dtype.names:
        np.testing.assert_array_equal(whole.requests[name], cut.requests[name], err_msg=name)
    for name in whole.ranks.dtype.names:
        if name == "running_time_s":
            np.testing.assert_allclose(whole.ranks[name], cut.ranks[name], rtol=1e-12)
        elif name not in ("linear_s", "head_s", "low_s", "high_s", "low_tokens", "high_tokens"):
            np.testing.assert_array_equal(whole.ranks[name], cut.ranks[name], err_msg=name)
    np.testing.assert_array_equal(whole.pool.replicas["clock_s"], cut.pool.replicas["clock_s"])


@settings(max_examples=200, deadline=None)
@given(cases())
def test_nothing_is_left_behind(case):
    """Every request has one outcome and every seat, token and KV block is given back."""
    _, limits, _, requests = case
    run = run_kernel(*case)
    assert np.all(run.requests["outcome"] != kernel.PENDING)
    assert run.pool.counters[kernel.N_ENDED] == len(requests)
    assert np.all(run.ranks["free_blocks"] == limits.n_blocks)
    for name in ("n_waiting", "n_decoding", "context_sum", "n_joining"):
        assert not np.any(run.ranks[name]), name
    assert not np.any(run.seats.block_residue)
    assert np.all(run.ranks["queue_head"] == -1)
    done = run.requests["outcome"] == kernel.COMPLETED
    produced = run.ranks["decode_tokens"].sum()
    preemptions = run.ranks["n_preemptions"].sum()
    # A prompt's last chunk gives one token; so does each recomputation that got that far.
    tokens = requests.output_tokens[done].sum()
    assert tokens - done.sum() - preemptions <= produced <= tokens - done.sum()
    prompts = requests.input_tokens[done].sum()
    assert run.ranks["prefill_tokens"].sum() >= prompts
    if preemptions == 0:
        assert run.ranks["prefill_tokens"].sum() == prompts


def test_cases_cover_preemption_and_rejection():
    """The strategies reach the rare paths, otherwise the tests above would prove little."""
    seen = set()

    @settings(max_examples=1000, deadline=None, database=None, derandomize=True)
    @given(cases())
    def look(case):
        run = run_kernel(*case)
        seen.update(run.requests["outcome"].tolist())
        seen.update({"preempted"} if run.ranks["n_preemptions"].sum() else ())

    look()
    assert {kernel.COMPLETED, kernel.REJECTED_EMPTY, kernel.REJECTED_CONTEXT, kernel.REJECTED_KV, "preempted"} <= seen
