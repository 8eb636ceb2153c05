"""What a deployment could serve: from a standing queue, whatever the traffic that was asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

import moeplan
from moeplan.spec.plan import Plan

QUICKSTART = Path(__file__).resolve().parents[2] / "scenarios" / "quickstart.yaml"


def _plan(traffic: str) -> Plan:
    return moeplan.simulate(moeplan.load(QUICKSTART, [f"serving.traffic={traffic}", "serving.slo={}"]))


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    lengths = "input_tokens: 500, output_tokens: 100"
    return {
        "offline": _plan(f"{{offline: true, {lengths}}}"),
        "user": _plan(f"{{users: 1, {lengths}}}"),
        "single": _plan(f"{{rate: 1 req/s, requests: 1, {lengths}}}"),
        "poisson": _plan(f"{{rate: 2 req/s, {lengths}}}"),
    }


def test_capacity_does_not_depend_on_how_requests_arrive(plans: dict[str, Plan]) -> None:
    capacity = [plan.serving.capacity_requests_per_s.value for plan in plans.values()]
    assert max(capacity) < 1.15 * min(capacity), capacity


def test_no_capacity_above_what_the_tensor_cores_can_compute(plans: dict[str, Plan]) -> None:
    """600 tokens, each at least 2 operations per active parameter (3.0 billion without the embedding), 989 Tflop/s."""
    most = 989e12 / (600 * 2 * 3.0e9)
    for plan in plans.values():
        assert plan.serving.capacity_requests_per_s.high < most


def test_batch_work_runs_near_its_capacity(plans: dict[str, Plan]) -> None:
    offline = plans["offline"].serving
    assert 0.5 < offline.requests_per_s.value / offline.capacity_requests_per_s.value <= 1.0
