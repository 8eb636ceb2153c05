"""Intervals: always hold their value, add up as they should."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.planner.intervals import at_least, exact, from_log_error, hull, worst_tier
from moeplan.provenance import Tier
from moeplan.spec.hardware import OpParameters
from moeplan.spec.plan import Q
from moeplan.spec.uncertainty import LogError

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
