"""GPU hours of published pretraining runs, from their layout, tokens and GPUs; no row of these is in any fit."""

from __future__ import annotations

from pathlib import Path

import pytest

import moeplan

LLAMA = """
name: Llama 3.1 405B
model: Llama-3.1-405B
hardware: h100-sxm
gpus: 16384
training:  # arXiv:2407.21783, table 4 and section 3.3.4
  method: pretrain
  tokens: 15.6T
  sequence_length: 8192
  global_batch: 2048
  recompute: none
  gradients: bf16
  layout: {tp: 8, pp: 16, vpp: 4, dp: 128, zero: 2}
  reliability: {checkpoint_interval: 20 min}  # not published; near the optimum
price: {per_gpu_hour: 2 USD/h, date: 2024-07-23}
"""


def test_llama_3_1_405b(tmp_path: Path) -> None:
    """30.84 M H100 hours by its model card, post-training included; 41 % MFU at this size (table 4)."""
    path = tmp_path / "llama.yaml"
    path.write_text(LLAMA)
    found = moeplan.simulate(moeplan.load(path)).training
    assert found is not None
    assert found.gpu_hours.value == pytest.approx(30.84e6, rel=0.15)
    assert found.mfu_frac.value == pytest.approx(0.41, rel=0.15)


def test_deepseek_v3() -> None:
    """2.664 M H800 hours (arXiv:2412.19437, table 1)."""
    scenario = Path(__file__).parents[2] / "scenarios" / "pretrain-deepseek-v3.yaml"
    found = moeplan.simulate(moeplan.load(scenario)).training
    assert found is not None
    assert found.gpu_hours.value == pytest.approx(2.664e6, rel=0.15)
