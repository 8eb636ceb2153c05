"""Pipeline schedules run by events against their closed-form bubbles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.costs.schedule import micro_batches_in_flight
from moeplan.kernels import pipeline as kernel
from moeplan.steps.pipeline import pipeline_time_s

PASSES = {"forward": 1.0, "input": 1.2, "weight": 0.9}
WHOLE = sum(PASSES.values())
PP = (1, 2, 4, 8, 16)


def bubble(schedule: str, pp: int, n_micro: int, vpp: int = 1, send_s: float = 0.0, **passes: float) -> float:
    """What the pipeline adds to the work of one of its equal stages."""
    f, b, w = ({**PASSES, **passes}[part] for part in PASSES)
    time_s = pipeline_time_s(schedule, [f] * pp, [b] * pp, [w] * pp, n_micro, vpp=vpp, send_s=send_s)
    return time_s - n_micro * (f + b + w)


@pytest.mark.parametrize("pp", PP)
@pytest.mark.parametrize("rounds", [1, 2, 7, 40])
def test_one_f_one_b(pp, rounds):
    """(pp - 1)(F + B) (arXiv:2104.04473, section 2.2.1)."""
    assert bubble("1f1b", pp, rounds * pp) == pytest.approx((pp - 1) * WHOLE, abs=1e-6)


@pytest.mark.parametrize("pp", PP[1:])
@pytest.mark.parametrize("vpp", [2, 3, 8])
def test_interleaved(pp, vpp):
    """The same over vpp (arXiv:2104.04473, section 2.2.2)."""
    assert bubble("1f1b", pp, 4 * pp, vpp) == pytest.approx((pp - 1) * WHOLE / vpp, abs=1e-6)


@pytest.mark.parametrize("pp", PP)
@pytest.mark.parametrize("rounds", [1, 3, 40])
def test_zero_bubble(pp, rounds):
    """(pp - 1)(F + B - 2 W), B with its weight gradient (arXiv:2401.10241, section 2.3, table 1)."""
    expected = (pp - 1) * (PASSES["forward"] + PASSES["input"] - PASSES["weight"])
    assert bubble("zero_bubble", pp, rounds * pp) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pp", PP[1:])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_dualpipe(pp, weight):
    """(pp / 2 - 1)(F&B + B - 3 W) (arXiv:2412.19437, table 2), at input gradients as long as forward passes."""
    found = bubble("dualpipe", pp, 4 * pp, input=1.0, weight=weight)
    assert found == pytest.approx((pp / 2 - 1) * (3.0 - weight), abs=1e-6)


def test_one_micro_batch_passes_every_stage():
    """Forward through all, back through all: the sum of everything, and a send at each border."""
    f, b, w = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [0.5, 0.25, 0.125]
    found = pipeline_time_s("1f1b", f, b, w, 1, send_s=0.1)
    assert found == pytest.approx(sum(f) + sum(b) + sum(w) + 4 * 0.1)


def test_a_send_is_exposed_once_per_micro_batch():
    """Neighbours exchange two micro batches in 2 (F + B) + 2 sends (hand-drawn, two stages)."""
    few, many = (bubble("1f1b", 2, n, send_s=0.01) for n in (8, 16))
    assert many - few == pytest.approx(8 * 0.01)


stages = st.integers(1, 8)
seconds = st.floats(0.1, 2.0)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["1f1b", "zero_bubble", "dualpipe"]), stages, st.integers(1, 40), st.integers(1, 3))
def test_bounds(data, schedule, pp, n_micro, vpp):
    """Never faster than the busiest rank or than one micro batch alone; longer stages and sends never help."""
    if schedule == "dualpipe":
        pp, n_micro = 2 * pp, 2 * n_micro + 4 * pp
    vpp = vpp if schedule == "1f1b" else 1
    n_micro *= pp if vpp > 1 else 1
    f, b, w = (data.draw(st.lists(seconds, min_size=pp, max_size=pp)) for _ in range(3))
    found = pipeline_time_s(schedule, f, b, w, n_micro, vpp=vpp)
    whole = np.sum([f, b, w], axis=0)
    busy = n_micro * (whole if schedule != "dualpipe" else (whole + whole[::-1]) / 2)
    assert found >= max(busy.max(), sum(f) + sum(b)) * (1 - 0.02)
    assert found <= n_micro * whole.sum() * (1 + 1e-9)
    assert pipeline_time_s(schedule, f, b, w, n_micro, vpp=vpp, send_s=0.1) >= found * (1 - 1e-9)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["1f1b", "zero_bubble", "dualpipe"]), st.sampled_from([2, 4, 8]), st.integers(0, 10**6))
def test_later_rounds_add_alike(schedule, pp, seed):
    """Extrapolated from a few rounds or run to the end: the same within 2 % for stages that differ by a fifth."""
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(0.9, 1.1, pp) for _ in range(3)]
    n_micro = 24 * pp
    code = {"1f1b": kernel.ONE_F_ONE_B, "zero_bubble": kernel.ZERO_BUBBLE, "dualpipe": kernel.DUALPIPE}[schedule]
    whole = kernel.makespan_s(code, pp, 1, n_micro, *parts, 0.0)
    assert pipeline_time_s(schedule, *parts, n_micro) == pytest.approx(whole, rel=0.02)


def test_in_flight():
    """arXiv:2104.04473 section 2.2; arXiv:2205.05198 section 4.2.3; arXiv:2401.10241 and 2412.19437, tables."""
    assert [micro_batches_in_flight("1f1b", s, 4, 1, 16) for s in range(4)] == [4, 3, 2, 1]
    assert micro_batches_in_flight("1f1b", 0, 4, 2, 16) == pytest.approx(4 * (1 + 3 / 8))
    assert micro_batches_in_flight("zero_bubble", 3, 4, 1, 16) == 4
    assert micro_batches_in_flight("dualpipe", 3, 4, 1, 16) == 5


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp", "n_micro", "words"),
    [
        ("1f1b", 4, 2, 6, "a multiple of pp"),
        ("zero_bubble", 4, 2, 8, "no virtual stages"),
        ("dualpipe", 3, 1, 8, "even number of stages"),
        ("dualpipe", 4, 1, 6, "at least 2 x pp"),
        ("dualpipe", 4, 1, 9, "even number of micro batches"),
    ],
)
def test_impossible_schedules_are_refused(schedule, pp, vpp, n_micro, words):
    with pytest.raises(ValueError, match=words):
        bubble(schedule, pp, n_micro, vpp)
