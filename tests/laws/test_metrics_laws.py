"""Numbers of an event log against what they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serving_cases import closed_loop, engine, fixed, poisson, recorded, table

from moeplan import metrics
from moeplan.simulate.serving import simulate_serving
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Arrivals, Conversations, LengthDistribution, RequestClass, Slo, Traffic

TABLE = table(base_s=4e-3, per_token_s=2e-5, per_context_token_s=2e-8, per_prefill_token_s=1e-6, head_s=1e-4)
LENGTHS = LengthDistribution("lognormal", 200.0, 1, 4000, 0.9)
NO_SLO = Slo(None, None, None, 90.0)


def run(traffic, *, step_table=TABLE, kv=200_000, replicas=1, **settings):
    return simulate_serving(step_table, traffic, engine(**settings), ServingLayout(replicas=replicas), kv, 0)


@pytest.mark.parametrize("settings", [{}, {"prefill_first": True}, {"async_scheduling": True}])
def test_every_token_after_the_first_is_one_gap(settings):
    """Without preemption the gaps add up to the time from first to last tokens."""
    log = run(poisson(8.0, 1500, LENGTHS, LENGTHS), kv=10**7, **settings)
    assert log.n_preemptions == 0
    assert log.gap_tokens.sum() == (log.output_tokens - 1).sum()
    between_s = np.sum(log.finish_s - log.first_token_s)
    slack = 0.25 if settings.get("prefill_first") else 0.02  # a joining sequence counts with the others' pause
    assert np.sum(log.gap_s * log.gap_tokens) == pytest.approx(between_s, rel=slack)


def test_a_constant_step_has_one_gap():
    found = metrics.serving_metrics(run(closed_loop(20, 500), step_table=table(0.02))).itl
    for value in (found.mean, found.p50, found.p99):
        assert value == pytest.approx(0.02, rel=0.011)


def test_a_stall_is_seen_in_the_gaps_and_not_in_the_mean():
    """One long prompt stalls a decoding answer once: 1 gap in 199."""
    log = run(recorded([0.0, 0.5], [10, 8000], [200, 2]))
    found = metrics.serving_metrics(log)
    assert found.itl.p99 < 0.006 < 0.1 < log.gap_s[np.flatnonzero(log.gap_tokens)[-1]]


def two_classes() -> Traffic:
    chat = RequestClass("chat", 0.7, None, None, Slo(0.05, None, None, 90.0))
    batch = RequestClass("batch", 0.3, fixed(2000), fixed(10), Slo(None, None, 0.2, 90.0))
    return Traffic(Arrivals("open", 12.0, None, 3000, 300), None, LENGTHS, LENGTHS, (chat, batch))


def test_classes_add_up_to_the_whole():
    traffic = two_classes()
    log = run(traffic)
    found = metrics.serving_metrics(log, 300, NO_SLO, traffic.classes)
    parts = found.classes.values()
    assert sum(p.outcomes.completed for p in parts) == found.outcomes.completed == 2700
    assert sum(p.goodput_requests_per_s for p in parts) == pytest.approx(found.goodput_requests_per_s)
    met = sum(p.slo_met_frac * p.outcomes.completed for p in parts)
    assert met / 2700 == pytest.approx(found.slo_met_frac)
    assert 0.0 < found.slo_met_frac < 1.0
    assert found.goodput_requests_per_s < found.requests_per_s
    # each is held to its own target: the other's changes nothing
    other = (traffic.classes[0], replace(traffic.classes[1], slo=NO_SLO))
    again = metrics.serving_metrics(log, 300, NO_SLO, other)
    assert again.classes["chat"].slo_met_frac == found.classes["chat"].slo_met_frac
    assert again.classes["batch"].slo_met_frac is None


def test_goodput_without_targets_is_not_stated():
    found = metrics.serving_metrics(run(poisson(8.0, 200)), slo=NO_SLO)
    assert (found.goodput_requests_per_s, found.slo_met_frac) == (None, None)


def test_priority_helps_who_has_it():
    first = RequestClass("first", 0.5, None, None, NO_SLO, priority=0)
    later = RequestClass("later", 0.5, None, None, NO_SLO, priority=1)
    traffic = Traffic(Arrivals("open", 60.0, None, 2000, 0), None, fixed(100), fixed(50), (first, later))
    log = run(traffic, max_num_seqs=8, priority_scheduling=True)
    found = metrics.serving_metrics(log, classes=traffic.classes).classes
    assert found["first"].ttft.mean < 0.5 * found["later"].ttft.mean


def test_quantiles_and_batch_sizes():
    log = run(poisson(8.0, 1500, LENGTHS, LENGTHS))
    cdf = metrics.quantiles(metrics.ttft_s(log))
    assert len(cdf) == 101
    assert np.all(np.diff(cdf) >= 0.0)
    assert (cdf[0], cdf[-1]) == (np.nanmin(metrics.ttft_s(log)), np.nanmax(metrics.ttft_s(log)))
    assert cdf[50] == pytest.approx(metrics.serving_metrics(log).ttft.p50)
    sizes, shares = metrics.batch_sizes(log)
    assert sum(shares) == pytest.approx(1.0)
    assert np.all(np.diff(sizes) > 0)
    # the mean over time is what the kernel adds up for Little's law
    assert np.dot(sizes, shares) == pytest.approx(log.running_time_s / log.replica_busy_s.sum(), rel=1e-6)
    narrow = metrics.batch_sizes(log, most=4)
    assert len(narrow[0]) <= 4
    assert sum(narrow[1]) == pytest.approx(1.0)
    assert metrics.quantiles(np.array([np.nan])) == ()


def test_rates_of_conversations_leave_the_last_ones_out():
    """Turns follow answers long after the last conversation began: the drain is no load."""
    talk = Conversations(fixed(5), 20.0)
    traffic = Traffic(Arrivals("open", 10.0, None, 10_000, 0), None, fixed(50), fixed(20), conversations=talk)
    log = run(traffic)
    assert log.arrival_s[-1] > log.last_own_s + 30.0
    assert metrics.serving_metrics(log, 1000).requests_per_s == pytest.approx(10.0, rel=0.03)
    assert not metrics.is_saturated(log, 1000)


@pytest.mark.parametrize(("n", "most"), [(1, 400), (400, 400), (401, 400), (5000, 400), (3, 1)])
def test_thinning_keeps_the_last(n, most):
    at = metrics.thinned(n, most)
    assert at.size == min(n, most)
    assert at[-1] == n - 1 or most == 1


@pytest.mark.parametrize(
    "traffic", [closed_loop(400, 1200), poisson(1e4, 4000), closed_loop(3000, 4000)], ids=["users", "flood", "one each"]
)
def test_a_standing_queue_is_served_at_one_rate_whatever_the_warm_up(traffic):
    """What was sent during the warm-up and ends after it took its time, and is served too."""
    log = run(traffic)
    whole = metrics.serving_metrics(log).requests_per_s
    for warmup in (traffic.arrivals.n_requests // 10, traffic.arrivals.n_requests // 2):
        assert metrics.serving_metrics(log, warmup).requests_per_s == pytest.approx(whole, rel=0.15)


def test_no_time_no_rate():
    log = run(closed_loop(3, 6, n_in=10**6))  # nobody is let in
    log = replace(log, finish_s=log.arrival_s)
    assert metrics.serving_metrics(log).requests_per_s == 0.0
