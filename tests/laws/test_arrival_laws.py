"""Every law of arrivals and lengths against its distribution; conversations against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from serving_cases import fixed, recorded

from moeplan.files.scenario.resolve_traffic import diurnal_steps
from moeplan.files.scenario.schema_traffic import DiurnalFile
from moeplan.simulate.arrivals import draw_requests, invert_rate
from moeplan.simulate.conversations import UNIT_TOKENS
from moeplan.spec.workload import (
    Arrivals,
    Conversations,
    LengthDistribution,
    RateStep,
    RequestClass,
    Slo,
    Trace,
    Traffic,
)

N = 20_000
NO_SLO = Slo(None, None, None, 90.0)
LEVEL = 1e-3  # a correct law fails one seed in a thousand; seeds are fixed


def open_traffic(rate_per_s=5.0, n=N, **changes) -> Traffic:
    return Traffic(Arrivals("open", rate_per_s, None, n, 0, **changes), None, fixed(10), fixed(10))


def gaps_s(traffic: Traffic, seed: int = 1) -> np.ndarray:
    return np.diff(draw_requests(traffic, seed).arrival_s)


def test_poisson_gaps_are_exponential():
    assert stats.kstest(gaps_s(open_traffic()), stats.expon(scale=0.2).cdf).pvalue > LEVEL


@pytest.mark.parametrize("cv", [0.25, 0.5, 1.5, 2.0])
def test_bursty_gaps_are_gamma_with_the_stated_variation(cv):
    gaps = gaps_s(open_traffic(gap_cv=cv), seed=2)
    assert stats.kstest(gaps, stats.gamma(cv**-2, scale=0.2 * cv**2).cdf).pvalue > LEVEL
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_even_gaps_are_all_equal():
    np.testing.assert_allclose(gaps_s(open_traffic(gap_cv=0.0)), 0.2)


STEPS = (RateStep(10.0, 2.0), RateStep(5.0, 0.0), RateStep(20.0, 9.0))


def test_piecewise_rates_fill_their_steps_as_a_poisson_process_does():
    """Counts per step and cycle are Poisson of the step's mean (chi-square of dispersion), none where the rate is 0."""
    times_s = draw_requests(open_traffic(1.0, 40_000, rate_steps=STEPS), 3).arrival_s
    cycle_s = 35.0
    n_cycles = int(times_s[-1] // cycle_s)
    position = times_s[times_s < n_cycles * cycle_s] % cycle_s
    cycle = times_s[times_s < n_cycles * cycle_s] // cycle_s
    start = 0.0
    for step in STEPS:
        inside = (position >= start) & (position < start + step.duration_s)
        counts = np.bincount(cycle[inside].astype(int), minlength=n_cycles)
        mean = step.duration_s * step.rate_per_s
        assert counts.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / n_cycles))
        if mean:
            dispersion = ((counts - counts.mean()) ** 2).sum() / counts.mean()
            assert LEVEL < stats.chi2(n_cycles - 1).sf(dispersion) < 1 - LEVEL
            within = (position[inside] - start) / step.duration_s
            assert stats.kstest(within, "uniform").pvalue > LEVEL
        start += step.duration_s


def test_diurnal_arrivals_follow_the_cosine():
    """Time of day has the density of the rate; five-minute steps are not told from the cosine by 20,000 arrivals."""
    period, peak, amplitude = 86_400.0, 50_400.0, 0.8
    tide = DiurnalFile(amplitude=f"{amplitude}", period="24 h", peak="14 h")
    steps = diurnal_steps(0.5, tide)
    assert sum(s.duration_s * s.rate_per_s for s in steps) == pytest.approx(0.5 * period)
    assert max(range(len(steps)), key=lambda i: steps[i].rate_per_s) * 300.0 == pytest.approx(peak, abs=301)
    times_s = draw_requests(open_traffic(0.5, 3 * 43_200, rate_steps=steps), 4).arrival_s
    days = times_s[times_s < 2 * period] % period

    def cdf(t):
        w = 2 * np.pi / period
        return t / period + amplitude / (w * period) * (np.sin(w * (t - peak)) + np.sin(w * peak))

    assert stats.kstest(days, cdf).pvalue > LEVEL


@given(
    st.lists(st.tuples(st.floats(0.1, 100.0), st.floats(0.0, 50.0)), min_size=1, max_size=6),
    st.lists(st.floats(0.0, 1e4), min_size=1, max_size=50),
)
@settings(max_examples=80, deadline=None)
def test_inverting_a_rate_undoes_cumulating_it(steps, expected):
    steps = tuple(RateStep(*step) for step in steps)
    if sum(s.duration_s * s.rate_per_s for s in steps) < 1e-3:
        return
    expected = np.sort(expected)
    times_s = invert_rate(expected, steps)
    assert np.all(np.diff(times_s) >= -1e-6 * np.maximum(times_s[1:], 1.0))
    ends_s = np.concatenate([[0.0], np.cumsum([s.duration_s for s in steps])])
    cumulated = np.concatenate([[0.0], np.cumsum([s.duration_s * s.rate_per_s for s in steps])])
    rounds = np.floor(times_s / ends_s[-1])
    back = rounds * cumulated[-1] + np.interp(times_s - rounds * ends_s[-1], ends_s, cumulated)
    np.testing.assert_allclose(back, expected, rtol=1e-6, atol=1e-6)


def test_a_constant_rate_in_steps_is_the_constant_rate():
    halves = (RateStep(3.0, 5.0), RateStep(7.0, 5.0))
    np.testing.assert_allclose(
        draw_requests(open_traffic(5.0, rate_steps=halves), 6).arrival_s,
        draw_requests(open_traffic(5.0), 6).arrival_s,
    )


def test_empirical_lengths_come_as_often_as_seen():
    seen = LengthDistribution("empirical", 0.0, 3, 900, 0.0, (3, 50, 900), (1.0, 5.0, 2.0))
    drawn = draw_requests(Traffic(Arrivals("open", 1.0, None, N, 0), None, seen, fixed(1)), 7).input_tokens
    counts = [int((drawn == v).sum()) for v in (3, 50, 900)]
    assert sum(counts) == N
    assert stats.chisquare(counts, np.array([1, 5, 2]) * N / 8).pvalue > LEVEL


def test_uniform_and_lognormal_lengths_have_their_law():
    low_high = LengthDistribution("uniform", 0.0, 11, 30)
    wide = LengthDistribution("lognormal", 5e6, 1, 2**31, 0.7)  # so long that rounding is no matter
    drawn = draw_requests(Traffic(Arrivals("open", 1.0, None, N, 0), None, low_high, wide), 8)
    assert stats.chisquare(np.bincount(drawn.input_tokens - 11, minlength=20)).pvalue > LEVEL
    law = stats.lognorm(0.7, scale=5e6 * np.exp(-0.5 * 0.7**2))
    assert stats.kstest(drawn.output_tokens, law.cdf).pvalue > LEVEL


def two_classes(share: float, **changes) -> Traffic:
    chat = RequestClass("chat", share, fixed(10), None, NO_SLO, 0, 30.0)
    batch = RequestClass("batch", 1.0 - share, fixed(99), fixed(7), NO_SLO, 5)
    return Traffic(Arrivals("open", 1.0, None, N, 0), None, fixed(1), fixed(3), (chat, batch), **changes)


def test_classes_have_their_shares_lengths_and_manners():
    drawn = draw_requests(two_classes(0.3), 9)
    assert stats.binomtest(int((drawn.class_id == 0).sum()), N, 0.3).pvalue > LEVEL
    assert set(drawn.input_tokens[drawn.class_id == 0]) == {10}
    assert set(drawn.output_tokens[drawn.class_id == 0]) == {3}
    assert set(drawn.output_tokens[drawn.class_id == 1]) == {7}
    assert set(drawn.priority[drawn.class_id == 1]) == {5}
    assert set(drawn.finish_timeout_s[drawn.class_id == 0]) == {30.0}
    assert np.isinf(drawn.finish_timeout_s[drawn.class_id == 1]).all()


def test_classes_leave_arrivals_and_common_lengths_alone():
    plain = Traffic(Arrivals("open", 1.0, None, 500, 0), None, LengthDistribution("uniform", 0.0, 5, 50), fixed(3))
    one = RequestClass("all", 1.0, None, None, NO_SLO)
    mixed = Traffic(plain.arrivals, None, plain.input_tokens, plain.output_tokens, (one,))
    a, b = draw_requests(plain, 3), draw_requests(mixed, 3)
    for name in ("arrival_s", "input_tokens", "output_tokens"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def conversations(n=4000, **changes) -> Traffic:
    talk = Conversations(LengthDistribution("uniform", 3.0, 1, 5), 20.0, **changes)
    lengths = LengthDistribution("uniform", 0.0, 5, 200)
    return Traffic(Arrivals("open", 2.0, None, n, 0), None, lengths, lengths, conversations=talk)


def test_a_turn_holds_all_that_was_said_before():
    drawn = draw_requests(conversations(prefix_tokens=70), 10)
    assert len(drawn) == 4000
    assert np.all(np.isnan(drawn.arrival_s) == (np.arange(4000) >= drawn.n_stream))
    follows = np.flatnonzero(drawn.successor >= 0)
    later = drawn.successor[follows]
    assert len(set(later)) == len(later) == 4000 - drawn.n_stream  # every later turn follows exactly one
    added = drawn.input_tokens[later] - drawn.input_tokens[follows] - drawn.output_tokens[follows]
    assert np.all((added >= 5) & (added <= 200))
    first = drawn.input_tokens[: drawn.n_stream]
    assert np.all((first >= 75) & (first <= 270))
    assert stats.kstest(drawn.pause_s[follows], stats.expon(scale=20.0).cdf).pvalue > LEVEL
    assert np.all(drawn.pause_s[drawn.successor < 0] == 0.0)
    # `rate` counts requests: conversations start so much more rarely
    assert drawn.n_stream / drawn.arrival_s[drawn.n_stream - 1] == pytest.approx(2.0 * drawn.n_stream / 4000, rel=0.1)


def test_blocks_are_equal_where_text_is():
    """A turn repeats all whole blocks of the turn before, answer included; first turns share their system prompt."""
    drawn = draw_requests(conversations(n=300, prefix_tokens=3 * UNIT_TOKENS + 5, n_prefixes=2), 11)
    ids = [one.tolist() for one in np.split(drawn.hash_ids, np.cumsum(drawn.n_hash)[:-1])]
    for i, after in enumerate(drawn.successor):
        assert len(ids[i]) == (drawn.input_tokens[i] + drawn.output_tokens[i]) // UNIT_TOKENS
        if after >= 0:
            assert ids[after][: len(ids[i])] == ids[i]
    prefixes = {tuple(one[:3]) for one in ids[: drawn.n_stream]}
    assert len(prefixes) == 2
    rest = [one for i in range(drawn.n_stream) for one in ids[i][3:]]
    assert len(set(rest)) == len(rest)


def test_a_repeated_trace_shares_nothing_with_itself():
    trace = Trace(
        "t", np.array([0.0, 1.0]), np.array([128, 64]), np.array([1, 1]), "", None, 64, np.array([0, 2, 3]),
        np.array([4, 5, 4]),
    )  # fmt: skip
    drawn = draw_requests(Traffic(Arrivals("trace", None, None, 5, 0), trace, None, None), 0)
    assert drawn.n_hash.tolist() == [2, 1, 2, 1, 2]
    assert drawn.hash_ids.tolist() == [0, 1, 0, 2, 3, 2, 4, 5]
    assert drawn.unit_tokens == 64


BAD = {
    "negative variation": (open_traffic(gap_cv=-1.0), "gap_cv"),
    "variation nan": (open_traffic(gap_cv=float("nan")), "gap_cv"),
    "never a request": (open_traffic(rate_steps=(RateStep(5.0, 0.0),)), "no request would ever come"),
    "step of no time": (open_traffic(rate_steps=(RateStep(0.0, 1.0),)), "durations"),
    "negative rate": (open_traffic(rate_steps=(RateStep(1.0, -1.0), RateStep(1.0, 2.0))), "rates must not"),
    "no share": (two_classes(float("nan")), "shares"),
    "trace with conversations": (
        Traffic(Arrivals("trace", None, None, 1, 0), recorded([0.0], [1], [1]).trace, None, None,
                conversations=Conversations(fixed(2), 1.0)), "a trace has its own"),
    "no turns": (Traffic(Arrivals("open", 1.0, None, 9, 0), None, fixed(1), fixed(1),
                         conversations=Conversations(fixed(0), 1.0)), "turns"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_drawn_is_an_error_that_names_it(name):
    traffic, what = BAD[name]
    with pytest.raises(ValueError, match=what):
        draw_requests(traffic, 0)
