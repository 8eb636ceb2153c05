"""Laws every serving run obeys, whatever the table; and inputs meant to break it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_cases import closed_loop, engine, fixed, poisson, recorded, table

from moeplan import metrics
from moeplan.simulate.arrivals import draw_requests
from moeplan.simulate.serving import OUTCOMES, simulate_serving
from moeplan.spec.fleet import PLAIN_FLEET
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Arrivals, LengthDistribution, Slo, Traffic

TABLE = table(base_s=4e-3, per_token_s=2e-5, per_context_token_s=2e-8, per_prefill_token_s=1e-6, head_s=1e-4)
KV = 200_000
LOGNORMAL = LengthDistribution("lognormal", 200.0, 1, 4000, 0.9)


def simulate(traffic, *, kv=KV, replicas=1, dp=1, seed=0, step_table=TABLE, dispatch="least_loaded", **settings):
    layout = ServingLayout(replicas=replicas, dp=dp)
    return simulate_serving(
        step_table, traffic, engine(**settings), layout, kv, seed, fleet=replace(PLAIN_FLEET, dispatch=dispatch)
    )


def mean_e2e_s(log):
    return float(np.mean(log.finish_s - log.arrival_s))


TRAFFICS = {
    "poisson": poisson(8.0, 1500, LOGNORMAL, LOGNORMAL),
    "overload": poisson(500.0, 1500, LOGNORMAL, LOGNORMAL),
    "closed": closed_loop(40, 1500),
    "offline": Traffic(Arrivals("all_at_once", None, None, 1500, 0), None, LOGNORMAL, LOGNORMAL),
}


@pytest.mark.parametrize("name", TRAFFICS)
@pytest.mark.parametrize("kv", [KV, 9000])
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_order_conservation_and_littles_law(name, kv, async_scheduling):
    traffic = TRAFFICS[name]
    log = simulate(traffic, kv=kv, replicas=2, async_scheduling=async_scheduling)
    assert log.completed.all()
    assert np.all(log.arrival_s <= log.scheduled_s)
    assert np.all(log.scheduled_s < log.first_token_s)
    assert np.all((log.first_token_s < log.finish_s) == (log.output_tokens > 1))
    n = log.arrival_s.size
    if log.n_preemptions == 0:
        assert log.prefill_tokens == log.input_tokens.sum()
        assert log.decode_tokens == log.output_tokens.sum() - n
        # Little's law: the kernel's integral of running sequences is the sum of the times they ran.
        assert log.running_time_s == pytest.approx(np.sum(log.finish_s - log.scheduled_s))
    else:
        assert kv == 9000
        assert log.prefill_tokens > log.input_tokens.sum()
        assert log.running_time_s < np.sum(log.finish_s - log.scheduled_s)
    assert np.all(log.replica_busy_s <= log.finish_s.max() * (1 + 1e-12))
    assert 0.0 < log.kv_peak_frac <= 1.0


def test_small_kv_preempts_and_costs_time():
    traffic = TRAFFICS["overload"]
    roomy, tight = simulate(traffic, kv=10**9), simulate(traffic, kv=9000)
    assert roomy.n_preemptions == 0 < tight.n_preemptions
    assert tight.finish_s.max() > roomy.finish_s.max()


def test_sampled_queue_agrees_with_littles_law():
    log = simulate_serving(TABLE, TRAFFICS["poisson"], engine(), ServingLayout(), KV, 0, window_s=0.05)
    inside = log.window_s <= log.arrival_s[-1]
    mean_running = log.running_time_s / (log.finish_s.max() - log.arrival_s[0])
    assert log.window_running[inside].mean() == pytest.approx(mean_running, rel=0.1)


@pytest.mark.parametrize("dispatch", ["least_loaded", "round_robin"])
def test_more_load_is_slower_and_more_replicas_are_faster(dispatch):
    by_rate = [
        mean_e2e_s(simulate(poisson(rate, 2000, LOGNORMAL, LOGNORMAL), dispatch=dispatch)) for rate in (1, 4, 16, 40)
    ]
    assert np.all(np.diff(by_rate) > 0)
    busy = poisson(60.0, 2000, LOGNORMAL, LOGNORMAL)
    by_replicas = [mean_e2e_s(simulate(busy, replicas=r, dispatch=dispatch)) for r in (1, 2, 4, 8)]
    assert np.all(np.diff(by_replicas) < 0)


@settings(max_examples=30, deadline=None)
@given(st.floats(1.01, 5.0), st.integers(0, 5))
def test_slower_hardware_scales_every_time(factor, seed):
    """All step times and all arrivals times f: every event at f times its instant (dimensional invariance)."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(0.05, 150))
    lengths = rng.integers(1, 300, (2, 150))
    slow = table(*(factor * x for x in (4e-3, 2e-5, 2e-8, 1e-6, 1e-4)))
    ours = simulate(recorded(arrival_s - arrival_s[0], *lengths), kv=4000)
    theirs = simulate(recorded((arrival_s - arrival_s[0]) * factor, *lengths), kv=4000, step_table=slow)
    np.testing.assert_allclose(theirs.finish_s, ours.finish_s * factor, rtol=1e-9)


def test_lockstep_ranks_never_beat_free_replicas():
    traffic = TRAFFICS["overload"]
    free = simulate(traffic, replicas=4, dispatch="round_robin")
    lockstep = simulate(traffic, dp=4, dispatch="round_robin")
    assert lockstep.finish_s.max() >= free.finish_s.max()
    assert np.array_equal(np.sort(lockstep.input_tokens), np.sort(free.input_tokens))


def test_asynchronous_scheduling_admits_one_iteration_later():
    """Alone both are equal; a request that meets a running batch waits for one more iteration."""
    step_s = 0.01
    constant = table(step_s)
    traffic = recorded([0.0, 0.104], [10, 10], [50, 5])
    plain = simulate(traffic, step_table=constant)
    ahead = simulate(traffic, step_table=constant, async_scheduling=True)
    assert plain.first_token_s.tolist() == pytest.approx([step_s, 0.12])
    assert ahead.first_token_s.tolist() == pytest.approx([step_s, 0.13])


def test_whole_prompts_only():
    """Without chunked prefill a prompt waits for a budget that holds it; one longer than any budget runs alone."""
    traffic = recorded([0, 0, 0, 0], [60, 60, 500, 30], [3, 3, 3, 3])
    whole = simulate(
        traffic, step_table=table(0.01), chunked_prefill=False, max_num_batched_tokens=100, max_num_seqs=10
    )
    assert whole.first_token_s.tolist() == pytest.approx([0.01, 0.02, 0.03, 0.04])
    chunked = simulate(traffic, step_table=table(0.01), max_num_batched_tokens=100, max_num_seqs=10)
    assert chunked.first_token_s.tolist() == pytest.approx([0.01, 0.02, 0.07, 0.07])


def test_pipeline_lanes_share_seats_and_cache():
    log = simulate_serving(
        table(0.01, pp=2), recorded([0] * 4, [10] * 4, [2] * 4), engine(max_num_seqs=2), ServingLayout(pp=2), 1000, 0
    )
    assert log.n_ranks == 2
    assert log.first_token_s.tolist() == pytest.approx([0.01, 0.01, 0.03, 0.03])
    assert log.replica.tolist() == [0, 0, 0, 0]


def test_request_overhead_delays_the_start():
    traffic = recorded([0.0, 5.0], [10, 10], [2, 2])
    log = simulate(traffic, step_table=table(0.01), request_overhead_s=0.5)
    assert log.scheduled_s.tolist() == [0.5, 5.5]
    assert metrics.ttft_s(log).tolist() == pytest.approx([0.51, 0.51])


def test_every_request_that_cannot_be_served_is_named():
    traffic = recorded([0, 0, 0, 1, 1], [10, 10, 0, 5000, 900], [5, 0, 5, 10, 10])
    log = simulate_serving(TABLE, traffic, engine(), ServingLayout(), 800, 0, max_context_tokens=4096)
    assert [OUTCOMES[o].split(":")[-1].strip() for o in log.outcome] == [
        "completed",
        "no input or output tokens",
        "no input or output tokens",
        "longer than the context",
        "larger than the KV cache",
    ]
    assert np.isnan(log.first_token_s[1:]).all()
    assert log.finish_s[1:].tolist() == log.arrival_s[1:].tolist()
    summary = metrics.serving_metrics(log)
    assert (summary.outcomes.completed, summary.outcomes.rejected) == (1, 4)
    assert sum(summary.reasons.values()) == 4


@pytest.mark.parametrize("kv", [0.0, 1.0, 15.9])
def test_no_room_at_all_rejects_all_and_ends(kv):
    log = simulate(closed_loop(3, 50), kv=kv)
    assert not log.completed.any()
    assert np.isnan(metrics.serving_metrics(log).ttft.mean)


def test_free_steps_end():
    """Steps that take no time make no progress on the clock, but on the work."""
    log = simulate(closed_loop(3, 50), step_table=table(0.0))
    assert log.completed.all()
    assert log.finish_s.max() == 0.0
    metrics.serving_metrics(log)


def test_more_users_than_requests_and_huge_limits():
    log = simulate(closed_loop(1000, 10), max_num_seqs=10**12, max_num_batched_tokens=10**12, kv=np.inf)
    assert log.completed.all()
    assert log.arrival_s.tolist() == [0.0] * 10


def test_years_between_requests_take_no_time_to_simulate():
    log = simulate(poisson(1e-7, 10))
    assert log.completed.all()
    assert log.finish_s[-1] > 1e7
    assert log.window_s.size < 10_000
    assert np.all(np.diff(log.window_s) > 0)


@pytest.mark.parametrize("time_s", [-1e-3, float("nan"), float("inf"), 1e300])
def test_a_table_without_usable_times_is_refused(time_s):
    for name in ("base_s", "per_context_token_s", "head_s", "overhead_s"):
        with pytest.raises(ValueError, match="between 0 and"), np.errstate(invalid="ignore", over="ignore"):
            table(**{name: time_s})


def test_same_seed_same_bytes():
    first, second, other = (simulate(TRAFFICS["poisson"], seed=seed) for seed in (3, 3, 4))
    assert first.finish_s.tobytes() == second.finish_s.tobytes()
    assert first.finish_s.tobytes() != other.finish_s.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        first.finish_s[0] = 0.0


def test_interruption_leaves_nothing_behind():
    seen = []

    def interrupt(share):
        seen.append(share)
        raise KeyboardInterrupt

    before = simulate(TRAFFICS["closed"])
    with pytest.raises(KeyboardInterrupt):
        simulate_serving(TABLE, TRAFFICS["closed"], engine(), ServingLayout(), KV, 0, interrupt, window_s=0.5)
    assert len(seen) == 1
    assert simulate(TRAFFICS["closed"]).finish_s.tobytes() == before.finish_s.tobytes()


BAD = {
    "rate zero": (poisson(0.0, 10), {}, "rate_per_s"),
    "rate negative": (poisson(-1.0, 10), {}, "rate_per_s"),
    "rate nan": (poisson(float("nan"), 10), {}, "rate_per_s"),
    "rate infinite": (poisson(float("inf"), 10), {}, "rate_per_s"),
    "no requests": (poisson(1.0, 0), {}, "n_requests"),
    "no users": (closed_loop(0, 10), {}, "n_users"),
    "unsorted": (recorded([0, 2, 1], [1, 1, 1], [1, 1, 1]), {}, "sorted"),
    "trace with nan": (recorded([0, np.nan], [1, 1], [1, 1]), {}, "finite"),
    "empty trace": (recorded([], [], [], n=5), {}, "no requests"),
    "negative tokens": (recorded([0, 1], [1, -1], [1, 1]), {}, "input_tokens"),
    "absurd tokens": (recorded([0, 1], [1, 1], [1, 2**62]), {}, "output_tokens"),
    "uniform reversed": (poisson(1.0, 5, LengthDistribution("uniform", 5.0, 9, 3)), {}, "lower end"),
    "log-normal mean zero": (poisson(1.0, 5, LengthDistribution("lognormal", 0.0, 1, 3, 1.0)), {}, "mean"),
    "longer than any run": (poisson(1e-12, 5), {}, "arrivals"),
    "front end never done": (poisson(1.0, 5), {"request_overhead_s": float("inf")}, "request_overhead_s"),
    "no seats": (poisson(1.0, 5), {"max_num_seqs": 0}, "max_num_seqs"),
    "no budget": (poisson(1.0, 5), {"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
    "no blocks": (poisson(1.0, 5), {"kv_block_tokens": 0}, "kv_block_tokens"),
    "kv negative": (poisson(1.0, 5), {"kv": -1.0}, "kv_capacity_tokens"),
    "kv nan": (poisson(1.0, 5), {"kv": float("nan")}, "kv_capacity_tokens"),
    "no replicas": (poisson(1.0, 5), {"replicas": 0}, "replica"),
    "dispatch": (poisson(1.0, 5), {"dispatch": "best"}, "dispatch"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_input_is_an_error_that_names_it(name):
    traffic, settings, what = BAD[name]
    with pytest.raises(ValueError, match=what):
        simulate(traffic, **settings)


def test_trace_is_rescaled_and_repeated():
    traffic = recorded([10.0, 11.0, 13.0], [1, 2, 3], [4, 5, 6], rate_per_s=2.0, n=7)
    requests = draw_requests(traffic, 0)
    # Mean gap 1.5 s becomes 0.5 s; the copy follows one mean gap after the last request.
    np.testing.assert_allclose(requests.arrival_s, [0, 1 / 3, 1, 1.5, 1.5 + 1 / 3, 2.5, 3.0])
    assert requests.input_tokens.tolist() == [1, 2, 3, 1, 2, 3, 1]
    simultaneous = draw_requests(recorded([5.0, 5.0], [1, 1], [1, 1], rate_per_s=1.0, n=4), 0)
    assert simultaneous.arrival_s.tolist() == [0.0, 0.0, 2.0, 2.0]


def test_lengths_have_the_stated_moments():
    n = 200_000
    uniform = draw_requests(poisson(1.0, n, LengthDistribution("uniform", 0.0, 80, 100), fixed(3)), 1)
    assert (uniform.input_tokens.min(), uniform.input_tokens.max()) == (80, 100)
    assert uniform.input_tokens.mean() == pytest.approx(90, rel=0.01)
    assert np.all(uniform.output_tokens == 3)
    wide = draw_requests(poisson(2.0, n, LengthDistribution("lognormal", 500.0, 1, 10**9, 0.7), fixed(3)), 1)
    assert wide.input_tokens.mean() == pytest.approx(500, rel=0.02)
    assert np.std(np.log(wide.input_tokens)) == pytest.approx(0.7, rel=0.02)
    assert np.diff(wide.arrival_s).mean() == pytest.approx(0.5, rel=0.02)


def test_metrics_of_a_hand_made_run():
    """Two requests on a constant 10 ms step, by hand."""
    traffic = recorded([0.0, 1.0], [10, 10], [5, 1])
    log = simulate(traffic, step_table=table(0.01))
    found = metrics.serving_metrics(log, slo=Slo(0.02, 0.02, 0.03, 90.0))
    assert found.ttft.mean == pytest.approx(0.01)
    assert found.tpot.p50 == pytest.approx(0.01)
    assert found.tpot.n == 1  # one token has no TPOT
    assert found.e2e.mean == pytest.approx((0.05 + 0.01) / 2)
    assert found.slo_met_frac == 0.5  # the first takes 50 ms
    assert found.requests_per_s == pytest.approx(1.0)  # one completion in the second between the arrivals
    assert found.goodput_requests_per_s == pytest.approx(0.0)
    assert found.utilization_frac == pytest.approx(0.06 / 1.01)
    assert not found.saturated


def test_saturation_and_throughput():
    """Far below capacity throughput is the offered rate; far above, it is the capacity and the run is saturated."""
    light = metrics.serving_metrics(simulate(poisson(5.0, 4000, LOGNORMAL, LOGNORMAL)), warmup_requests=200)
    heavy = metrics.serving_metrics(simulate(poisson(500.0, 4000, LOGNORMAL, LOGNORMAL)), warmup_requests=200)
    closed = metrics.serving_metrics(simulate(closed_loop(256, 4000, 200, 200)), warmup_requests=512)
    assert light.requests_per_s == pytest.approx(5.0, rel=0.05)
    assert not light.saturated
    assert heavy.saturated
    assert heavy.requests_per_s < 100
    assert heavy.utilization_frac > 0.99
    assert not closed.saturated
    assert light.ttft.mean < heavy.ttft.mean
    assert light.slo_met_frac is None


def test_batch_means_cover_correlated_waits():
    """Runs of one queue differ by about the standard error stated, far more than independence would give."""
    means, errors, naive = [], [], []
    for seed in range(30):
        log = simulate(poisson(150.0, 12_000, n_in=1, n_out=1), step_table=table(5e-3), seed=seed, max_num_seqs=1)
        found = metrics.serving_metrics(log, warmup_requests=2000).ttft
        means.append(found.mean)
        errors.append(found.standard_error["mean"])
        naive.append(np.std(metrics.ttft_s(log)[2000:]) / np.sqrt(10_000))
    spread = np.std(means, ddof=1)
    assert 0.5 * spread < np.mean(errors) < 2.0 * spread
    assert np.mean(naive) < 0.5 * spread


def test_warmup_must_leave_requests():
    log = simulate(closed_loop(2, 10))
    for warmup in (-1, 10, 11):
        with pytest.raises(ValueError, match="warmup_requests"):
            metrics.serving_metrics(log, warmup_requests=warmup)
