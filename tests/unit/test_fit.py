"""The fit recovers what made the rows, judges on shapes it has not seen, and says when it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from table_cases import TRUTH, gemm_frame

from moeplan.calibrate import fit
from moeplan.calibrate.op_model import Place, usable
from moeplan.calibrate.ops import gemm, moe
from moeplan.files.catalog.hardware_catalog import load_hardware

PLACE = Place("h100-sxm", "gemm", "vllm")
H100 = load_hardware("h100-sxm")


def frame(**more) -> pd.DataFrame:
    found = gemm_frame(**more)
    return found.assign(measured_s=found["latency_ms"] * 1e-3)


def test_known_parameters_are_recovered():
    found = fit.fit_rows(gemm.MODEL, frame(), PLACE, H100, "bf16", seed=0)
    for name in ("compute_frac", "memory_frac", "launch_s"):
        assert found.values[name] == pytest.approx(TRUTH[name], rel=0.05)
    assert found.heldout.mdape_frac < 0.035  # noise of 3 %
    assert 0.80 <= found.heldout.coverage_frac <= 0.98
    assert found.log_residual[0] < 0.0 < found.log_residual[2]


def test_the_same_rows_and_seed_give_the_same_fit():
    one, two = (fit.fit_rows(gemm.MODEL, frame(), PLACE, H100, "bf16", seed=3) for _ in range(2))
    assert one == two


def test_a_few_wild_rows_move_nothing():
    wild = frame()
    wild.loc[wild.index[::50], "measured_s"] *= 30.0
    found = fit.fit_rows(gemm.MODEL, wild, PLACE, H100, "bf16", seed=0)
    assert found.values["memory_frac"] == pytest.approx(TRUTH["memory_frac"], rel=0.08)


def test_rows_of_one_shape_fall_together():
    rows = pd.concat([frame(), frame(seed=0).sample(frac=1.0, random_state=1)])
    split = fit.split_of(rows, ("m", "n", "k"))
    assert split.groupby([rows["m"], rows["n"], rows["k"]]).nunique().max() == 1
    share = split.value_counts(normalize=True)
    assert share[fit.TEST] == pytest.approx(0.2, abs=0.04)
    assert share[fit.INTERVAL] == pytest.approx(0.1, abs=0.03)


def test_too_few_rows_are_refused():
    with pytest.raises(fit.TooFewRowsError, match="usable rows"):
        fit.fit_rows(gemm.MODEL, frame(n=30), PLACE, H100, "bf16", seed=0)


def test_an_optimiser_that_stops_early_is_no_fit(monkeypatch):
    real = fit.least_squares
    monkeypatch.setattr(fit, "least_squares", lambda *a, **k: real(*a, **{**k, "max_nfev": 1}))
    with pytest.raises(fit.NotConvergedError, match="optimiser stopped"):
        fit.fit_rows(gemm.MODEL, frame(), PLACE, H100, "bf16", seed=0)


def test_thinning_keeps_every_regime():
    rows = frame(n=4000)
    regime = gemm.MODEL.regime_of(rows, PLACE)
    some = fit.thinned(rows, regime, 400, np.random.default_rng(0))
    assert len(some) < 700
    assert set(regime[some.index]) == set(regime)


def test_known_bad_rows_are_left_out_with_their_reason():
    rows = frame(n=200).assign(gemm_dtype="fp8_block")
    keep, reasons = usable(gemm.MODEL, rows, PLACE)
    assert keep.equals(rows["m"] > 256)
    assert sum(reasons.values()) == (rows["m"] <= 256).sum() > 0
    assert set(gemm.MODEL.engine_of(rows, PLACE)) == {"vllm/host_bound"}
    other, none = usable(gemm.MODEL, rows, replace(PLACE, engine="sglang"))
    assert other.all()
    assert not none


def test_hopper_vllm_fp8_experts_are_left_out():
    rows = pd.DataFrame({"moe_dtype": ["fp8", "bfloat16"]})
    assert usable(moe.MODEL, rows, Place("h200-sxm", "moe", "vllm"))[0].tolist() == [False, True]
    assert usable(moe.MODEL, rows, Place("b200-sxm", "moe", "vllm"))[0].all()


def test_accuracy_by_hand():
    found = fit.accuracy(np.array([1.0, 0.5, 2.0]), np.array([0.9, 0.9, 0.9]), np.array([1.1, 1.1, 1.1]))
    assert found.n == 3
    assert found.mdape_frac == pytest.approx(0.5)  # errors 0, +1, -0.5
    assert found.mape_frac == pytest.approx(0.5)
    assert found.bias_frac == pytest.approx(0.0)
    assert found.coverage_frac == pytest.approx(1 / 3)
    assert found.median_width_frac == pytest.approx(0.2)
