"""Model FLOP per token against formulas and figures of the papers."""

from __future__ import annotations

import pytest
from step_cases import HIDDEN, attention, dense, model, work

from moeplan.files.catalog.model_catalog import load_model
from moeplan.steps.training_flop import model_flop_per_token


def test_dense_closed_form():
    """6 N + 6 L s (heads * head size) for the causal half (PaLM, arXiv:2204.02311, appendix B, halved)."""
    m = model(attention(), dense())
    params = m.n_params_total - m.vocab_size * HIDDEN
    causal = 6 * m.n_layers * 4096 * 32 * 128
    assert model_flop_per_token(m, work()) == pytest.approx(6 * params + causal)


def test_windows_cut_the_attention_term():
    full, windowed = model(attention(), dense()), model(attention(window=1024), dense())
    job = work(sequence_tokens=16384)
    gap = model_flop_per_token(full, job) - model_flop_per_token(windowed, job)
    visible = 1024 - 1024**2 / (2 * 16384)
    assert gap == pytest.approx(12 * 16 * 32 * 128 * (16384 / 2 - visible))


def test_tied_head_still_computes():
    tied, own = model(tied=True), model(tied=False)
    assert model_flop_per_token(tied, work()) == model_flop_per_token(own, work())


def test_mixtral_counts_two_experts():
    """12.9 B active of 46.7 B (arXiv:2401.04088), 0.13 B of them the input table."""
    flop = model_flop_per_token(load_model("Mixtral-8x7B"), work(sequence_tokens=1))
    assert flop == pytest.approx(6 * (12.88e9 - 0.131e9), rel=0.01)


def test_deepseek_v3_per_token():
    """37 B active (arXiv:2412.19437): 6 x 36.6 B without the input table, and causal attention at 4096 tokens."""
    flop = model_flop_per_token(load_model("DeepSeek-V3"), work())
    attention_flop = 3 * 61 * 2 * 128 * (192 + 128) * 2048
    assert flop == pytest.approx(6 * 36.6e9 + attention_flop, rel=0.01)
