"""With constant step times the engine is a textbook queue: closed forms and Lindley's recursion must come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from serving_cases import closed_loop, engine, poisson, recorded, table

from moeplan.simulate.serving import simulate_serving
from moeplan.spec.layout import ServingLayout

STEP_S = 1e-3
N = 100_000
MANY = 10**9


def waits_s(traffic, *, max_num_seqs=1, replicas=1):
    log = simulate_serving(
        table(STEP_S),
        traffic,
        engine(max_num_seqs=max_num_seqs),
        ServingLayout(replicas=replicas),
        MANY,
        seed=1,
        window_s=1e4,
    )
    assert log.completed.all()
    return log


def poisson_trace(rate_per_s, output_tokens, seed=5):
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_per_s, len(output_tokens)))
    return recorded(arrival_s - arrival_s[0], np.ones(len(output_tokens)), output_tokens)


def lindley_s(arrival_s, service_s):
    """Waiting times of a single FCFS server: W[n+1] = max(0, W[n] + S[n] - A[n]) (Lindley, 1952)."""
    waits = np.zeros(len(arrival_s))
    for i, gap in enumerate(np.diff(arrival_s)):
        waits[i + 1] = max(0.0, waits[i] + service_s[i] - gap)
    return waits


def mean_wait_mg1_s(rate_per_s, service_s):
    """Pollaczek-Khinchine (Kleinrock, Queueing Systems I, 5.6)."""
    load = rate_per_s * service_s.mean()
    return rate_per_s * np.mean(service_s**2) / (2.0 * (1.0 - load))


def erlang_c(servers, offered):
    """Probability to wait in M/M/c (Kleinrock I, 3.5)."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_one_seat_and_one_token_is_m_d_1(load):
    log = waits_s(poisson(load / STEP_S, N, n_in=1, n_out=1))
    waits = log.scheduled_s - log.arrival_s
    np.testing.assert_allclose(waits, lindley_s(log.arrival_s, np.full(N, STEP_S)), atol=1e-9)
    assert waits.mean() == pytest.approx(load * STEP_S / (2 * (1 - load)), rel=0.05)
    assert log.replica_busy_s[0] == pytest.approx(N * STEP_S)


def test_one_seat_with_geometric_answers_is_m_m_1():
    rng = np.random.default_rng(3)
    tokens = rng.geometric(1 / 400, N)
    load = 0.6
    log = waits_s(poisson_trace(load / (400 * STEP_S), tokens))
    waits = log.scheduled_s - log.arrival_s
    np.testing.assert_allclose(waits, lindley_s(log.arrival_s, tokens * STEP_S), atol=1e-6)
    mean_service_s = 400 * STEP_S
    assert waits.mean() == pytest.approx(load * mean_service_s / (1 - load), rel=0.06)
    # Sojourn times of M/M/1 are exponential with mean S / (1 - load).
    sojourn = log.finish_s - log.arrival_s
    assert np.percentile(sojourn, 90) == pytest.approx(-math.log(0.1) * mean_service_s / (1 - load), rel=0.06)


def test_one_seat_with_any_answers_is_m_g_1():
    rng = np.random.default_rng(4)
    tokens = np.where(rng.random(N) < 0.9, 20, 400)
    service_s = tokens * STEP_S
    rate_per_s = 0.7 / service_s.mean()
    log = waits_s(poisson_trace(rate_per_s, tokens))
    waits = log.scheduled_s - log.arrival_s
    np.testing.assert_allclose(waits, lindley_s(log.arrival_s, service_s), atol=1e-6)
    assert waits.mean() == pytest.approx(mean_wait_mg1_s(rate_per_s, service_s), rel=0.06)


@pytest.mark.parametrize("shape", ["seats", "replicas"])
def test_several_seats_or_replicas_are_m_m_c(shape):
    """A constant step serves c seats in parallel; long answers make the step boundary negligible."""
    servers, mean_tokens = 4, 1000
    rng = np.random.default_rng(6)
    tokens = rng.geometric(1 / mean_tokens, 60_000)
    mean_service_s = mean_tokens * STEP_S
    offered = 0.8 * servers
    traffic = poisson_trace(offered / mean_service_s, tokens)
    if shape == "seats":
        log = waits_s(traffic, max_num_seqs=servers)
        waits = (log.scheduled_s - log.arrival_s).mean() - STEP_S / 2  # mean time to the next step boundary
        expected_s = erlang_c(servers, offered) * mean_service_s / (servers - offered)
        assert waits == pytest.approx(expected_s, rel=0.08)
    else:
        # Joining the shortest queue is between one common queue and random splitting.
        log = waits_s(traffic, replicas=servers)
        waits = (log.scheduled_s - log.arrival_s).mean()
        assert erlang_c(servers, offered) * mean_service_s / (servers - offered) < waits < 4 * mean_service_s


def test_seats_for_everybody_is_m_g_infinity():
    """Mean number in service = rate x mean service, whatever the lengths (insensitivity)."""
    tokens = np.random.default_rng(8).geometric(1 / 300, 50_000)
    log = waits_s(poisson_trace(20.0, tokens), max_num_seqs=2000)
    whole_s = log.finish_s.max() - log.arrival_s[0]
    assert log.running_time_s / whole_s == pytest.approx(20.0 * 300 * STEP_S, rel=0.03)
    # No queue: everybody is scheduled at the next step boundary.
    assert (log.scheduled_s - log.arrival_s).max() <= STEP_S * (1 + 1e-9)


def test_closed_loop_on_one_seat_cycles():
    """n users on one server: throughput 1/S, response n x S (interactive response time law, no think time)."""
    users, tokens = 7, 30
    log = waits_s(closed_loop(users, 700, n_in=1, n_out=tokens))
    service_s = tokens * STEP_S
    np.testing.assert_allclose(np.diff(np.sort(log.finish_s)), service_s)
    np.testing.assert_allclose((log.finish_s - log.arrival_s)[users:], users * service_s)


def test_full_batch_of_a_closed_loop():
    """All users fit the batch: one prefill step and output - 1 decode steps each, lengths add up exactly."""
    base_s, context_s, prompt, answer = 2e-3, 1e-7, 64, 33
    log = simulate_serving(
        table(base_s, per_context_token_s=context_s),
        closed_loop(8, 80, n_in=prompt, n_out=answer),
        engine(),
        ServingLayout(),
        MANY,
        seed=0,
    )
    # Decode step k (k = 0 ...) reads the prompt and k earlier answers of all 8 users.
    steps_s = [base_s + context_s * 8 * (prompt + k) for k in range(answer - 1)]
    np.testing.assert_allclose(log.first_token_s - log.arrival_s, base_s)
    np.testing.assert_allclose(log.finish_s - log.first_token_s, sum(steps_s))
