"""Memory figures worked out by hand from published shapes, and formulas of the papers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from step_cases import BF16, HIDDEN, attention, dense, engine, hardware, model, moe, work

from moeplan.costs.memory import (
    ActivationRule,
    block_activation_bytes_per_token,
    cache_bytes_per_sequence,
    layers_params,
    vocabulary_params,
)
from moeplan.costs.model_state import adapter_params
from moeplan.files.catalog.model_catalog import load_model, model_names
from moeplan.spec.kv import kv_bytes_per_sequence, state_bytes_per_sequence
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.precision import FORMATS
from moeplan.spec.workload import Adapter
from moeplan.steps.memory import serving_memory
from moeplan.steps.training_memory import training_memory


@pytest.mark.parametrize(
    ("name", "tp", "fmt", "bytes_per_token"),
    [
        ("Qwen3-30B-A3B", 1, "bf16", 48 * 2 * 4 * 128 * 2),  # 48 layers, 4 key-value heads of 128
        ("Qwen3-30B-A3B", 2, "bf16", 48 * 2 * 2 * 128 * 2),
        ("Qwen3-30B-A3B", 8, "fp8", 48 * 2 * 1 * 128 * 1),  # heads replicated beyond 4
        ("DeepSeek-V3", 8, "bf16", 61 * (512 + 64) * 2),  # one latent, on every rank (arXiv:2405.04434, table 1)
        ("Mixtral-8x7B", 1, "bf16", 32 * 2 * 8 * 128 * 2),
    ],
)
def test_cache_bytes_per_token(name, tp, fmt, bytes_per_token):
    m = load_model(name)
    assert cache_bytes_per_sequence(m.layers, 1000, FORMATS[fmt], tp) == 1000 * bytes_per_token


@pytest.mark.parametrize("name", model_names())
def test_one_gpu_holds_the_whole_of_every_catalogue_model(name):
    """Shards at tp = 1 are the model: its parameters (0.1 %), its cache and its state."""
    m = load_model(name)
    held = layers_params(m.layers, m.hidden_size, 1, 1, 1) + vocabulary_params(m, 1, first=True, last=True)
    assert held.total == pytest.approx(m.n_params_total, rel=1e-3)
    whole = float(kv_bytes_per_sequence(m, 5000, 2.0)) + state_bytes_per_sequence(m)
    assert cache_bytes_per_sequence(m.layers, 5000, FORMATS["bf16"], 1) == pytest.approx(whole)


def test_weights_of_qwen3_30b_as_vllm_loads_them():
    """vLLM 0.24.0 on an H200 reports 56.88 GiB."""
    fit = serving_memory(
        load_model("Qwen3-30B-A3B"), hardware("h200-sxm"), ServingLayout(), BF16, engine(), max_context_tokens=8192
    )
    weights = sum(size for name, size in fit.breakdown.items() if name.startswith("weights_"))
    assert weights / 2**30 == pytest.approx(56.88, rel=0.001)
    assert fit.kv_capacity_tokens == pytest.approx(732_496, rel=0.03)  # the same run at utilisation 0.90


def test_model_state_is_sixteen_bytes_per_parameter():
    """2 weights + 2 gradients + 12 optimizer with its master copy (ZeRO, arXiv:1910.02054, section 3.1)."""
    m = model(attention(), dense())
    parts = training_memory(
        m, hardware(), TrainingLayout(zero_stage=0, dp=2), work(gradient_bytes_per_param=2.0)
    ).breakdown
    state = sum(parts[name] for name in ("weights", "gradients", "optimizer", "master_weights"))
    assert state == pytest.approx(16.0 * m.n_params_total)


@pytest.mark.parametrize(("stage", "bytes_per_param"), [(1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)])
def test_zero_divides_the_state(stage, bytes_per_param):
    m = model(attention(), dense())
    parts = training_memory(
        m, hardware(), TrainingLayout(zero_stage=stage, dp=8), work(gradient_bytes_per_param=2.0)
    ).breakdown
    state = sum(parts[name] for name in ("weights", "gradients", "optimizer", "master_weights"))
    assert state == pytest.approx(bytes_per_param * m.n_params_total)


def test_activations_of_a_gated_layer():
    """Per token: 4 h bytes of input and norm a block, q k v and the output, gate and up and their product."""
    none = ActivationRule(tp=1, sequence_parallel=True, expert_tp=1, linear_input_bytes=2.0)
    qkv, out = (32 + 2 * 8) * 128, 32 * 128
    assert block_activation_bytes_per_token(attention(), HIDDEN, none) == 4 * HIDDEN + 2 * (qkv + out) + 4 * 32
    assert block_activation_bytes_per_token(dense(), HIDDEN, none) == 4 * HIDDEN + 2 * 3 * 6144
    routed = 2 * 3 * 768 + 2 * HIDDEN  # gate, up and their product; the token in expert order
    assert block_activation_bytes_per_token(moe(), HIDDEN, none) == 4 * HIDDEN + 8 * 64 + 8 * routed


def test_full_recompute_keeps_the_layer_inputs():
    m = model()
    fit = training_memory(m, hardware(), TrainingLayout(recompute="full"), work(sequence_tokens=1000))
    assert fit.breakdown["activations"] == 1000 * m.n_layers * 2 * HIDDEN


def test_interleaving_holds_more_micro_batches():
    """1F1B holds L layers on stage 0, interleaving L (1 + (p - 1) / (p m)) (arXiv:2205.05198, section 4.2.3)."""
    m = replace(model(n_layers=64), vocab_size=128)  # a head too small to unbalance the stages
    base, interleaved = (
        training_memory(m, hardware(), TrainingLayout(pp=4, vpp=vpp), work()).breakdown["activations"] for vpp in (1, 2)
    )
    assert interleaved / base == pytest.approx(1 + 3 / (4 * 2), rel=0.01)


def test_adapter_parameters():
    """Rank times (inputs + outputs) of every matrix (LoRA, arXiv:2106.09685, section 4.1)."""
    m = model(attention(), dense(), n_layers=2)
    found = adapter_params(m, m.layers, Adapter(16, "all_linear", "bf16"), TrainingLayout())
    fused = (HIDDEN + 48 * 128) + (32 * 128 + HIDDEN)
    assert found.attention == 2 * 16 * fused
    assert found.dense == 2 * 16 * 3 * (HIDDEN + 6144)
