"""Training steps against published runs: bounds that a broken composition breaks, and the shipped fit made again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from moeplan.calibrate.training_fit import _Table, facts, fit_clocks, fit_host
from moeplan.costs.host import DEFAULTS
from moeplan.files.catalog.training_fits import read_training_fits
from moeplan.files.runs.measured_runs import read_runs

SHARED = Path(os.environ.get("MOEPLAN_SHARED", Path(__file__).parents[2].parent / "shared"))
RUNS = SHARED / "measured" / "training.csv"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not RUNS.is_file(), reason="measured runs are not here")]


@pytest.fixture(scope="module")
def known():
    frame = read_runs(RUNS).frame
    return facts(frame.to_dict("records"))


def mdape(table: _Table, clocks: dict[str, float], host: dict[str, float]) -> float:
    return float(np.median(np.abs(np.expm1(-table.log_errors(clocks, host)))))


def test_published_runs(known):
    """Runs with full-iteration graphs are in no fit but the clock's, which dense runs make."""
    fits = read_training_fits()
    clocks = {device: fit.values["sustained_frac"] for device, fit in fits.devices.items()}
    mine = [f for f in known if f.device in clocks]
    for wanted, bound in (
        ([f for f in mine if not f.is_moe], 0.08),
        ([f for f in mine if f.is_moe and f.graphs], 0.08),
        ([f for f in mine if f.is_moe and not f.graphs], 0.20),
    ):
        assert len(wanted) > 20
        assert mdape(_Table(wanted), clocks, {**DEFAULTS["training_host"], **fits.host.values}) < bound


def test_the_shipped_fit_is_made_again(known):
    """Loose: operator fits move on, and the host's two times share the blame."""
    fits = read_training_fits()
    clocks = fit_clocks(known)
    assert set(clocks) == set(fits.devices)
    for device, clock in clocks.items():
        assert clock == pytest.approx(fits.devices[device].values["sustained_frac"], rel=0.1)
    host = fit_host(known, clocks)
    assert host["expert_s"] == pytest.approx(fits.host.values["expert_s"], rel=0.5)
