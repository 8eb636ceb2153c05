"""What memory must obey whatever the model: shards add up to the whole, more ranks never need more per GPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import BF16, attention, dense, engine, hardware, latent, linear, model, moe, work

from moeplan.costs.memory import cache_bytes_per_sequence, layers_params, stages, vocabulary_params
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.precision import FORMATS
from moeplan.spec.workload import Adapter
from moeplan.steps.memory import serving_memory
from moeplan.steps.stages import training_stages
from moeplan.steps.training_memory import training_memory

MODELS = {
    "gqa-moe": model(),
    "mla-shared": model(latent(), moe(shared=1536)),
    "linear-dense": model(linear(), dense()),
    "gqa-dense": model(attention(), dense()),
}
H100 = hardware("h100-sxm")


def held(m, tp, pp, ep, expert_tp):
    return [
        layers_params(layers, m.hidden_size, tp, ep, expert_tp)
        + vocabulary_params(m, tp, first=i == 0, last=i == pp - 1)
        for i, layers in enumerate(stages(m, pp))
    ]


@pytest.mark.parametrize("name", MODELS)
def test_one_gpu_holds_exactly_the_parameters(name):
    m = MODELS[name]
    assert held(m, 1, 1, 1, 1)[0].total == m.n_params_total


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("ep", [1, 2, 4])
def test_shards_add_up(tp, pp, ep):
    """tp ranks together hold every split matrix once and each replicated parameter tp times."""
    m = MODELS["gqa-moe"]
    expert_tp = max(1, tp // ep)
    found = held(m, tp, pp, ep, expert_tp)
    experts = sum(stage.experts for stage in found) * ep * expert_tp
    assert experts == pytest.approx(sum(b.n_experts * b.n_params_per_expert for b in m.moe_blocks))
    mixers = sum(stage.attention for stage in found) * tp
    assert mixers == pytest.approx(sum(layer.blocks[0].n_params for layer in m.layers))


def test_replicated_key_value_heads_cost_memory():
    m = model(attention(n_kv_heads=2))
    kv = 2 * 128 * 2 * m.hidden_size
    whole = held(m, 1, 1, 1, 1)[0].attention
    eight = held(m, 8, 1, 8, 1)[0].attention * 8
    assert eight - whole == pytest.approx(m.n_layers * kv * (8 / 2 - 1))


@pytest.mark.parametrize("name", MODELS)
@given(tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 4]), context=st.integers(16, 32768))
@settings(deadline=None, max_examples=20)
def test_serving_need_falls_with_ranks(name, tp, pp, context):
    """Beside the buffers that only exist with several GPUs, nothing grows."""
    m = MODELS[name]

    def need(tp, pp):
        fit = serving_memory(m, H100, ServingLayout(tp=tp, pp=pp), BF16, engine(), max_context_tokens=context)
        return fit.need_bytes - fit.breakdown["communication"]

    assert need(2 * tp, pp) < need(tp, pp)
    assert need(tp, 2 * pp) < need(tp, pp)


@pytest.mark.parametrize("name", MODELS)
def test_serving_breakdown_and_capacity(name):
    fit = serving_memory(MODELS[name], H100, ServingLayout(), BF16, engine(), max_context_tokens=8192)
    assert fit.fits
    assert fit.per_gpu_bytes == pytest.approx(0.9 * H100.device.memory_bytes)
    assert fit.need_bytes <= fit.per_gpu_bytes
    assert fit.kv_capacity_tokens * fit.kv_bytes_per_token == pytest.approx(fit.breakdown["kv_cache"])


def test_cache_of_a_window_stops_growing_and_state_never_grows():
    fmt = FORMATS["bf16"]
    windowed, recurrent = model(attention(window=1024)), model(linear())
    assert cache_bytes_per_sequence(windowed.layers, 1024, fmt, 1) == cache_bytes_per_sequence(
        windowed.layers, 9999, fmt, 1
    )
    assert (
        cache_bytes_per_sequence(recurrent.layers, 1, fmt, 1)
        == cache_bytes_per_sequence(recurrent.layers, 9999, fmt, 1)
        > 0
    )


def test_an_engine_that_does_not_trim_windows_holds_what_full_attention_would():
    layout, context = ServingLayout(), 8192
    windowed, full = model(attention(window=1024)), model()
    trimmed, whole, reference = (
        serving_memory(m, H100, layout, BF16, engine(window_cache=kept), max_context_tokens=context)
        for m, kept in ((windowed, "trimmed"), (windowed, "whole"), (full, "trimmed"))
    )
    assert whole.kv_capacity_tokens == pytest.approx(reference.kv_capacity_tokens)
    assert trimmed.kv_capacity_tokens == pytest.approx(context / 1024 * whole.kv_capacity_tokens)


def test_fewer_bits_need_less():
    sizes = [
        serving_memory(
            MODELS["gqa-moe"],
            H100,
            ServingLayout(),
            BF16.__class__(fmt, fmt, fmt, "bf16", "bf16"),
            engine(),
            max_context_tokens=8192,
        ).need_bytes
        for fmt in ("bf16", "fp8", "mxfp4")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


LAYOUT = TrainingLayout(tp=2, pp=2, dp=4, ep=4, zero_stage=1, recompute="selective")


@pytest.mark.parametrize("name", ["gqa-moe", "mla-shared"])
def test_training_memory_falls_with_each_remedy(name):
    m = MODELS[name]
    job = work(micro_batch_sequences=2)

    def need(**changes):
        fit = training_memory(
            m, H100, TrainingLayout(**{**{f: getattr(LAYOUT, f) for f in LAYOUT.__slots__}, **changes}), job
        )
        assert fit.per_gpu_bytes == pytest.approx(sum(fit.breakdown.values()))
        return fit.need_bytes

    zero = [need(zero_stage=stage, pp=1, dp=8) for stage in (0, 1, 2, 3)]
    assert zero == sorted(zero, reverse=True)
    recompute = [need(recompute=r) for r in ("none", "selective", "full")]
    assert recompute == sorted(recompute, reverse=True)
    assert need(ep=8) < need(ep=4)
    assert need(tp=4, dp=2) < need()
    assert need(sequence_parallel=True) < need(sequence_parallel=False)


def test_frozen_base_needs_no_optimizer_for_it():
    m = MODELS["gqa-moe"]
    lora = work(method="lora", adapter=Adapter(16, "attention", "bf16"))
    quantised = work(method="lora", adapter=Adapter(16, "attention", "int4"))
    layout = TrainingLayout(zero_stage=0)
    full = training_memory(m, H100, layout, work()).breakdown
    adapted = training_memory(m, H100, layout, lora).breakdown
    assert adapted["optimizer"] < 0.01 * full["optimizer"]
    assert adapted["gradients"] < 0.01 * full["gradients"]
    assert training_memory(m, H100, layout, quantised).breakdown["weights"] < 0.35 * adapted["weights"]


@given(n_layers=st.integers(2, 40), pp=st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_training_stages_are_a_balanced_partition(n_layers, pp):
    if pp > n_layers:
        with pytest.raises(ValueError, match="exceeds"):
            training_stages(model(n_layers=n_layers), TrainingLayout(pp=pp), work())
        return
    found = training_stages(model(n_layers=n_layers), TrainingLayout(pp=pp), work())
    assert len(found) == pp
    counts = [len(stage.layers) for stage in found]
    assert all(counts)
    assert sum(counts) == n_layers
    assert pp == 1 or max(counts[:-1]) <= -(-n_layers // pp) + 1
    assert pp == 1 or counts[-1] <= max(counts[:-1])  # the head counts
    assert [stage.embedding for stage in found] == [True] + [False] * (pp - 1)
    assert [stage.n_heads for stage in found] == [0] * (pp - 1) + [1]
