"""Intervals: always hold their value, add up as they should."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan import metrics
from moeplan.planner.intervals import at_least, exact, from_log_error, hull, worst_tier
from moeplan.planner.serving_result import interval_percentiles
from moeplan.provenance import Tier
from moeplan.spec.hardware import OpParameters
from moeplan.spec.plan import Q
from moeplan.spec.uncertainty import ANY, LogError, ModelError, situation

positive = st.floats(1e-6, 1e9)
errors = st.builds(LogError, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.just(1), st.just("test"))


@given(positive, errors, errors)
def test_every_interval_holds_its_value(value: float, a: LogError, b: LogError) -> None:
    q = at_least(from_log_error(value, a), b)
    assert q.low <= q.value * (1 + 1e-12)
    assert q.high >= q.value * (1 - 1e-12)


def test_the_wider_end_counts_on_each_side() -> None:
    q = at_least(from_log_error(1.0, LogError(-0.3, 0.5, 1, "")), LogError(-0.4, 0.4, 1, ""))
    assert (q.low, q.high) == pytest.approx((math.exp(-0.4), math.exp(0.5)))


def test_inverse_swaps_the_ends() -> None:
    assert Q(2.0, 1.0, 4.0).inverse() == Q(0.5, 0.25, 1.0)


def test_hull_spans_simulated_ends_in_any_order() -> None:
    assert hull(2.0, 3.0, 1.0) == Q(2.0, 1.0, 3.0)
    assert exact(5.0) == Q(5.0, 5.0, 5.0)


def test_a_prediction_is_as_good_as_its_worst_operation() -> None:
    def parameters(tier: Tier) -> OpParameters:
        return OpParameters("gemm", "vllm", "bf16", {}, tier, (0.0, 0.0, 0.0), "test")

    assert worst_tier([parameters(Tier.FITTED), parameters(Tier.TRANSFERRED)]) is Tier.TRANSFERRED
    assert worst_tier([]) is Tier.ESTIMATE


@given(st.lists(st.tuples(positive, st.floats(0.0, 1e9)), min_size=4, max_size=4), positive, positive)
def test_percentiles_keep_their_order(drawn: list[tuple[float, float]], fast: float, slow: float) -> None:
    """Ends rise with the percentile, and no latency may be zero, however unsure a short run is of each."""
    values = sorted(value for value, _ in drawn)
    noise = dict(zip(metrics.STATISTICS, (0.0, *(error for _, error in drawn)), strict=True))
    rows = [
        metrics.Latency(values[0] * f, *(value * f for value in values), noise, 100)
        for f in (1.0, min(fast, 1.0), max(slow, 1.0))
    ]
    known = LogError(-0.1, 0.1, 1, "test")
    error = ModelError({"ttft": {Tier.FITTED: {situation(ANY, ANY): known}}})
    found = interval_percentiles("tpot", rows, error, Tier.FITTED)
    assert found is not None
    ends = [found.p50, found.p90, found.p95, found.p99]
    assert all(a.low <= b.low and a.high <= b.high for a, b in pairwise(ends))
    assert all(0.0 < q.low <= q.value <= q.high for q in ends)
