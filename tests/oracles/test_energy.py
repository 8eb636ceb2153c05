"""Power of a device at the ends of its range and where it was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.costs.energy import (
    DEFAULTS,
    device_power_w,
    energy_j,
    meter_power_w,
    power_in,
    sustained_clock_frac,
    sustained_stretch,
)
from moeplan.provenance import Kind, Source
from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link
from moeplan.spec.prices import Facility

H200 = Device("h200", "H200", "NVIDIA", "hopper", 1.41e11, 4.8e12, {"bf16": 989e12}, 132, 5e7, 700.0, False)
LINK = Link("nvlink", 450e9, 1e-6, 8, "nvlink")
NODE = Hardware("n", H200, 8, 8, LINK, None, Host(None, None, 4600.0, None), 1730.0, Efficiency({}))
shares = st.floats(0.0, 1.0)


def test_idle_device_draws_its_idle_power() -> None:
    assert device_power_w(0.0, 0.0, device=H200, busy_frac=0.0) == pytest.approx(DEFAULTS["idle_frac"] * 700.0)


@given(memory=shares, compute=shares, busy=shares, more=shares)
def test_power_grows_with_use_and_never_exceeds_the_limit(
    memory: float, compute: float, busy: float, more: float
) -> None:
    power = device_power_w(memory, compute, device=H200, busy_frac=busy)
    assert 0.0 < power <= 700.0
    assert device_power_w(memory, max(compute, more), device=H200, busy_frac=busy) >= power


@pytest.mark.parametrize(("tp", "memory_frac", "measured"), [(2, 0.630, 0.736), (4, 0.399, 0.594), (8, 0.197, 0.435)])
def test_decode_power_of_llama_70b_on_a100(tp: int, memory_frac: float, measured: float) -> None:
    """splitwise-sim @8f99e7d data/perf_model.csv: one sequence, prompt of 128, share of the 400 W limit."""
    a100 = replace(H200, tdp_w=400.0)
    assert device_power_w(memory_frac, 0.0, device=a100) / 400.0 == pytest.approx(measured, rel=0.04)


def test_sustained_gemm_of_an_h200() -> None:
    """Own measurement 2026-11-23: 799 TFLOP/s in bursts, mean 669 over 121 sustained seconds at the 700 W limit."""
    kept = sustained_clock_frac(0.05, 799 / 989, device=H200)
    assert kept * 799 == pytest.approx(669, rel=0.04)
    assert sustained_clock_frac(0.8, 0.01, device=H200) == 1.0
    assert device_power_w(0.0, 799 / 989, device=H200) == 700.0


@given(time_s=st.floats(1e-6, 10.0), arithmetic=shares, memory=shares, more=shares)
def test_the_limit_only_slows_and_slows_more_the_harder_the_use(
    time_s: float, arithmetic: float, memory: float, more: float
) -> None:
    stretch = sustained_stretch(time_s, arithmetic * time_s, memory * time_s, device=H200)
    harder = max(arithmetic, more)
    assert 1.0 <= stretch <= sustained_stretch(time_s, harder * time_s, memory * time_s, device=H200)
    if arithmetic < 0.2 and memory < 0.5:  # far below the limit: burst clocks
        assert stretch == 1.0


def facility(pue: float = 1.5, *, stated: bool = False) -> Facility:
    return Facility(pue, stated, "World", 1e-7, Source("test", "2026", Kind.MEASURED))


def test_meter_power_adds_what_stands_around() -> None:
    """1730 W all in at the limit of 700 W leave 1030 W around the GPU at every load, cooling included: no PUE."""
    assert meter_power_w(700.0, hardware=NODE, facility=facility()) == 1730.0
    assert power_in(NODE, facility()) == "GPU, host, network, cooling"
    assert meter_power_w(0.0, hardware=NODE, facility=facility()) == 1030.0
    host = replace(NODE, allin_power_w_per_gpu=None)
    assert meter_power_w(700.0, hardware=host, facility=facility()) == (700.0 + 575.0) * 1.5
    assert meter_power_w(700.0, hardware=NODE, facility=facility(1.1, stated=True)) == pytest.approx(1275 * 1.1)
    bare = replace(NODE, allin_power_w_per_gpu=None, host=Host(None, None, None, None))
    assert meter_power_w(700.0, hardware=bare, facility=facility()) == 1050.0
    assert power_in(bare, facility()) == "GPU, PUE; no host in the profile"
    assert meter_power_w(700.0, hardware=bare, facility=facility(), power_w=1000.0) == 1500.0
    assert meter_power_w(77.0, hardware=bare, facility=facility(), power_w=1000.0) == (77.0 + 300.0) * 1.5


def test_energy_is_power_times_time() -> None:
    np.testing.assert_allclose(energy_j(np.array([100.0, 700.0]), 3600.0), [3.6e5, 2.52e6])


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="compute_frac must lie between 0 and 1"):
        device_power_w(0.5, bad, device=H200)


def test_unstated_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="h200: the profile states no power limit"):
        device_power_w(0.5, 0.5, device=replace(H200, tdp_w=None))
