"""Weight-only formats run on any 16-bit arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

import moeplan
from moeplan.errors import MoeplanError

QUICKSTART = Path(__file__).resolve().parents[2] / "scenarios" / "quickstart.yaml"
V100 = ["hardware=v100-sxm", "price=1 USD/h", "gpus=2", "serving.layout.tp=2"]


def test_four_bit_weights_run_on_a_v100_in_fp16() -> None:
    scenario = moeplan.load(QUICKSTART, [*V100, "serving.precision=int4"])
    assert scenario.serving is not None
    assert scenario.serving.precision.experts == "int4"


def test_fp8_arithmetic_still_needs_a_device_that_has_it() -> None:
    with pytest.raises(MoeplanError, match="has no fp8 arithmetic"):
        moeplan.load(QUICKSTART, [*V100, "serving.precision=fp8"])
