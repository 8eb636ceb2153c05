"""Fleets whose replicas come and go: nothing is lost from the books, and known limits come out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from serving_cases import closed_loop, engine, fixed, poisson, table

from moeplan import metrics
from moeplan.simulate.fleet import MOST_SAMPLES
from moeplan.simulate.serving import OUTCOMES, simulate_serving
from moeplan.spec.fleet import (
    PLAIN_FLEET,
    Autoscaling,
    ColdStart,
    Failures,
    Fleet,
    RollingUpdate,
    Spot,
)
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Arrivals, Conversations, LengthDistribution, RateStep, Traffic

STEP_S = 0.01
TABLE = table(STEP_S)
KV = 10**7
START = ColdStart(5.0, 1e9, 15.0)  # 20 s and what the weights take
FLEET = Fleet("least_loaded", START, retries=1, drain_s=5.0)


def run(traffic, fleet=FLEET, *, replicas=2, seed=0, kv=KV, weight_bytes=0.0, **settings):
    layout = ServingLayout(replicas=replicas)
    return simulate_serving(
        TABLE, traffic, engine(**settings), layout, kv, seed, fleet=fleet, weight_bytes=weight_bytes
    )


def scaler(least=1, most=8, signal="in_flight", target=8.0, interval_s=15.0, cooldown_s=60.0, tolerance=0.1):
    return Autoscaling(least, most, signal, target, interval_s, cooldown_s, tolerance)


FLEETS = {
    "failures": replace(FLEET, failures=Failures(1 / 200.0, 30.0)),
    "failures, no retry": replace(FLEET, failures=Failures(1 / 100.0, 30.0), retries=0),
    "spot": replace(FLEET, spot=Spot(1 / 200.0, 0.5, 60.0)),
    "spot without notice": replace(FLEET, spot=Spot(1 / 100.0, 0.0, 10.0), retries=0),
    "update": replace(FLEET, update=RollingUpdate(50.0, 1, None), drain_s=0.0),
    "rollback": replace(FLEET, update=RollingUpdate(50.0, 1, 60.0)),
    "scaling": replace(FLEET, autoscaling=scaler(2)),
    "everything": replace(
        FLEET,
        failures=Failures(1 / 300.0, 30.0),
        spot=Spot(1 / 300.0, 2.0, 20.0),
        update=RollingUpdate(60.0, 2, 150.0),
        autoscaling=scaler(2, 5),
    ),
}
TRAFFICS = {
    "poisson": poisson(20.0, 6000, 50, 60),
    "closed": closed_loop(30, 6000, 50, 60),
    "conversations": Traffic(
        Arrivals("open", 20.0, None, 6000, 0), None, fixed(50), fixed(60),
        conversations=Conversations(LengthDistribution("uniform", 2.0, 1, 4), 3.0)),
    "impatient": replace(poisson(20.0, 6000, 50, 60), timeout_s=1.5),
}  # fmt: skip


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("traffic", TRAFFICS)
def test_every_request_has_one_end(fleet, traffic):
    log = run(TRAFFICS[traffic], FLEETS[fleet])
    kinds = metrics.outcome_counts(log, np.ones(6000, dtype=bool))
    assert kinds.completed + kinds.rejected + kinds.timed_out + kinds.lost == 6000
    assert not np.isnan(log.finish_s).any()
    assert np.all(np.diff(log.arrival_s) >= 0.0)
    assert np.all(log.finish_s >= log.arrival_s)
    assert np.all(log.retries <= FLEETS[fleet].retries)
    assert (kinds.timed_out > 0) <= (traffic == "impatient")
    assert kinds.lost == 0 or FLEETS[fleet].changes
    done = log.completed
    assert np.all(log.first_token_s[done] <= log.finish_s[done])
    # hardware is held while replicas are able to work, and work is done by able ones (the last iteration aside)
    assert np.all(log.replica_ready_s <= log.replica_held_s + 1e-9)
    assert np.all(log.replica_busy_s <= log.replica_ready_s + 2 * STEP_S * (1 + sum(log.fleet_events.values())))
    assert log.gpu_s == pytest.approx(log.replica_held_s.sum())
    assert log.window_s.size <= MOST_SAMPLES


def test_a_request_without_retries_goes_with_its_replica():
    log = run(TRAFFICS["poisson"], FLEETS["failures, no retry"])
    lost = log.outcome[~log.completed]
    assert {OUTCOMES[code] for code in lost} == {"lost with its replica"}
    assert log.fleet_events["failures"] > 0
    again = run(TRAFFICS["poisson"], replace(FLEETS["failures, no retry"], retries=100))
    assert again.completed.all()
    assert again.retries.sum() > 0


def test_availability_is_that_of_a_renewal_process():
    """A life of mean 1/r begins with the start c, a repair u follows: exp(-r c) / (1 + r u) of the time is ready."""
    rate, repair_s, cold_s = 1 / 300.0, 60.0, 20.0
    fleet = replace(FLEET, failures=Failures(rate, repair_s))
    log = run(poisson(0.02, 2000, 5, 5), fleet, replicas=20)
    expected = math.exp(-rate * cold_s) / (1.0 + rate * repair_s)
    cycles = log.fleet_events["failures"]
    assert cycles > 3000
    assert log.replica_ready_s.sum() / (20 * log.span_s) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(cycles))


@pytest.mark.parametrize(
    "fleet",
    [
        replace(FLEET, failures=Failures(1e-12, 30.0)),
        replace(FLEET, failures=Failures(0.0, 30.0)),
        replace(FLEET, spot=Spot(1e-12, 30.0, 0.0)),
        replace(FLEET, autoscaling=scaler(2, 2)),
        replace(FLEET, update=RollingUpdate(1e9, 1, None)),
    ],
    ids=["rare failures", "no failures", "rare preemptions", "as many as there are", "a later update"],
)
def test_a_fleet_in_which_nothing_happens_is_a_plain_one(fleet):
    """Nor do control events between the windows change a single event."""
    plain = run(TRAFFICS["poisson"], PLAIN_FLEET)
    other = run(TRAFFICS["poisson"], fleet)
    for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s", "replica"):
        assert getattr(plain, name).tobytes() == getattr(other, name).tobytes()


@pytest.mark.parametrize(("rate_per_s", "steady"), [(40.0, 5), (12.0, 2), (3.0, 1)])
def test_the_autoscaler_settles_where_the_load_is_the_target(rate_per_s, steady):
    """In flight by Little's law: rate x (100 + 1) steps; a target of 8 each, within the tolerance and its noise."""
    log = run(poisson(rate_per_s, int(900 * rate_per_s), 1, 100), replace(FLEET, autoscaling=scaler()), replicas=1)
    settled = log.window_ready[log.window_s > 300.0]
    assert steady <= settled.mean() <= steady + 1.2
    assert log.window_ready.max() <= 8
    assert log.window_ready.min() >= 1


def test_replicas_follow_the_tide_and_come_back_after_the_cooldown():
    steps = (RateStep(600.0, 2.0), RateStep(600.0, 60.0), RateStep(1200.0, 2.0))
    traffic = Traffic(Arrivals("open", 16.5, None, 39_600, 0, rate_steps=steps), None, fixed(1), fixed(100))
    log = run(traffic, replace(FLEET, autoscaling=scaler(cooldown_s=300.0)), replicas=1)

    def ready(start_s, end_s):
        inside = (log.window_s >= start_s) & (log.window_s < end_s)
        return log.window_ready[inside]

    assert ready(0, 600).max() == 1
    assert ready(900, 1200).min() >= 7
    assert ready(1210, 1480).min() >= 7  # cooling down
    assert ready(1700, 2400).max() <= 2
    assert log.completed.all()
    assert log.gpu_s < 0.7 * 8 * log.span_s


def test_a_cold_start_takes_provision_weights_and_engine():
    """The decision falls at 15 s; 5 + 30 + 15 s later there is another replica."""
    log = run(poisson(60.0, 12_000, 1, 100), replace(FLEET, autoscaling=scaler(1, 2)), replicas=1, weight_bytes=30e9)
    second = log.window_s[np.argmax(log.window_ready == 2)]
    assert second == pytest.approx(15.0 + 50.0, abs=1.0)
    assert log.replica_held_s[1] - log.replica_ready_s[1] == pytest.approx(50.0)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_rolling_update_replaces_each_replica_once(batch):
    log = run(poisson(20.0, 8000, 50, 60), replace(FLEET, update=RollingUpdate(50.0, batch, None)), replicas=4)
    assert log.fleet_events == {"replaced": 4}
    assert log.window_ready.min() == 4 - batch
    assert log.completed.all()
    assert log.retries.sum() == 0  # answers take less than the drain
    np.testing.assert_allclose(log.replica_ready_s, log.span_s - 20.0)


def test_a_rollback_returns_what_was_replaced():
    update = RollingUpdate(50.0, 1, 80.0)  # a replica takes 20 to 25 s: two are replaced before
    log = run(poisson(20.0, 8000, 50, 60), replace(FLEET, update=update), replicas=4)
    assert log.fleet_events["rollbacks"] == 1
    assert log.fleet_events["replaced"] == 4
    assert log.window_ready.min() == 3


def test_notice_saves_what_ends_in_time():
    """Answers take 0.6 s: a second's notice loses nothing, none loses what runs."""
    warned = run(TRAFFICS["poisson"], replace(FLEET, spot=Spot(1 / 100.0, 2.0, 10.0), retries=0), replicas=4)
    taken = run(TRAFFICS["poisson"], replace(FLEET, spot=Spot(1 / 100.0, 0.0, 10.0), retries=0), replicas=4)
    assert warned.completed.all()
    assert not taken.completed.all()
    assert np.all(warned.replica_held_s < warned.span_s)


@pytest.mark.parametrize(
    "fleet",
    [
        replace(FLEET, failures=Failures(1e3, 1.0)),
        replace(FLEET, failures=Failures(1e3, 0.0), cold_start=ColdStart(0.0, 1e9, 0.0)),
        replace(FLEET, failures=Failures(1.0, 1e12)),
        replace(FLEET, spot=Spot(1e3, 0.0, 0.0)),
        replace(FLEET, spot=Spot(1.0, 1e6, 1e12)),
        replace(FLEET, failures=Failures(1.0, 1e12), autoscaling=scaler(1, 8)),
        replace(FLEET, failures=Failures(1.0, 1e12), update=RollingUpdate(0.0, 1, None)),
    ],
)
def test_a_fleet_that_cannot_serve_ends_with_its_requests_counted(fleet):
    log = run(poisson(50.0, 500, 50, 60), fleet)
    kinds = metrics.outcome_counts(log, np.ones(500, dtype=bool))
    assert kinds.lost > 0
    assert kinds.completed + kinds.lost == 500


def test_scarce_requests_under_an_autoscaler_cost_no_time():
    log = run(poisson(1e-6, 20, 5, 5), replace(FLEET, autoscaling=scaler(1, 4)), replicas=1)
    assert log.completed.all()
    assert log.finish_s[-1] > 1e6


def test_the_same_seed_gives_the_same_fleet():
    one, two, other = (run(TRAFFICS["closed"], FLEETS["everything"], seed=seed) for seed in (1, 1, 2))
    assert one.finish_s.tobytes() == two.finish_s.tobytes()
    assert one.fleet_events == two.fleet_events
    assert one.finish_s.tobytes() != other.finish_s.tobytes()


def test_a_turn_is_sent_a_pause_after_the_answer():
    """One conversation: gaps between an end and the next arrival are the pauses drawn for it."""
    from moeplan.simulate.arrivals import draw_requests

    talk = Conversations(fixed(6), 10.0)
    traffic = Traffic(Arrivals("open", 1.0, None, 6, 0), None, fixed(50), fixed(60), conversations=talk)
    log = run(traffic, replicas=1)
    np.testing.assert_allclose(log.arrival_s[1:] - log.finish_s[:-1], draw_requests(traffic, 0).pause_s[:-1])
    assert log.input_tokens.tolist() == [50 + 110 * turn for turn in range(6)]


def test_prefix_aware_dispatch_finds_more_than_taking_turns():
    talk = Conversations(fixed(5), 0.5, prefix_tokens=512, n_prefixes=4)
    traffic = Traffic(Arrivals("open", 10.0, None, 2000, 0), None, fixed(200), fixed(60), conversations=talk)
    hits = {
        dispatch: run(traffic, replace(FLEET, dispatch=dispatch), replicas=4, prefix_caching=True).hit_tokens.sum()
        for dispatch in ("round_robin", "prefix_aware")
    }
    assert hits["prefix_aware"] > 1.2 * hits["round_robin"] > 0


def test_impatient_users_are_counted_and_no_answer_is_late():
    """First come, first served under overload with patience: most are given up while they run, as in a real engine."""
    traffic = replace(poisson(60.0, 6000, 50, 60), timeout_s=1.5)
    log = run(traffic, replicas=1, max_num_seqs=16)
    found = metrics.serving_metrics(log)
    assert found.outcomes.timed_out > 1000
    assert found.outcomes.completed > 0
    assert np.nanmax(metrics.e2e_s(log)) <= 1.5 + 2 * STEP_S
    assert sum(found.reasons.values()) == found.outcomes.timed_out
