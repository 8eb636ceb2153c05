"""What a step must obey whatever the machine: parts add up, one GPU does not talk, faster machines are not slower."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import BF16, UNIFORM, attention, dense, engine, faster, hardware, latent, linear, model, moe, work

from moeplan.costs import host
from moeplan.costs.expert_exchange import COMMUNICATION_SMS_FRAC
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.model import MoeMlp
from moeplan.spec.scenario import RoutingAssumption
from moeplan.spec.workload import Adapter
from moeplan.steps.compiled import compile_step_table, step_parts_s
from moeplan.steps.memory import serving_memory
from moeplan.steps.offload import touched_host_bytes
from moeplan.steps.serving import Iteration, ServingStep
from moeplan.steps.training import training_step

H100 = hardware("h100-sxm")
MODELS = {
    "gqa-moe": model(),
    "windowed-moe": model(attention(window=1024)),
    "mla-shared": model(latent(), moe(shared=1536)),
    "linear-dense": model(linear(), dense()),
}
TRAFFIC = {
    "all_reduce",
    "all_to_all",
    "pipeline",
    "tensor_parallel",
    "context_parallel",
    "pipeline_send",
    "data_parallel",
}
SPREAD = TrainingLayout(tp=2, pp=2, cp=2, dp=4, ep=4, zero_stage=1)


def step_of(m, layout=None, machine=H100, **engine_changes):
    return ServingStep(m, machine, layout or ServingLayout(), BF16, engine(**engine_changes), UNIFORM)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "layout", [ServingLayout(), ServingLayout(tp=4), ServingLayout(tp=2, dp=4, ep=8), ServingLayout(pp=4)]
)
def test_table_and_parts_agree(name, layout):
    """At grid points the table gives what the parts add up to."""
    step = step_of(MODELS[name], layout)
    table = compile_step_table(step.model, H100, layout, BF16, step.engine, UNIFORM)
    np.testing.assert_allclose(sum(table.parts.values()), table.linear_time_s)
    b, c, h = 4, 6, 4
    batch = table.decode_batch_grid[b]
    tokens = float(np.interp(batch, table.token_grid, table.linear_time_s))
    whole = tokens + table.decode_attention_time_s[b, c] + table.head_time_s[h] + table.step_overhead_s
    assert table.head_rows_grid[h] == batch
    parts = step_parts_s(step, Iteration(batch, table.decode_context_grid[c]))
    assert all(seconds >= 0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_one_gpu_does_not_communicate(name):
    parts = step_parts_s(step_of(MODELS[name]), Iteration(8, 1000.0))
    assert all(parts.get(part, 0.0) == 0.0 for part in TRAFFIC)
    train = training_step(MODELS[name], H100, TrainingLayout(), work(), UNIFORM)
    assert all(train.breakdown.get(part, 0.0) == 0.0 for part in TRAFFIC)
    assert all(seconds == 0.0 for seconds in train.hidden.values())


@pytest.mark.parametrize("name", MODELS)
@given(batch=st.integers(1, 256), context=st.integers(1, 30000))
@settings(deadline=None, max_examples=15)
def test_serving_laws(name, batch, context):
    m = MODELS[name]
    iteration = Iteration(float(batch), float(context))

    def seconds(machine=H100, which=m):
        return sum(step_parts_s(step_of(which, machine=machine, step_overhead_s=0.0), iteration).values())

    assert seconds(faster(H100, 2.0)) <= seconds() <= seconds(faster(H100, 0.5))
    head = step_parts_s(step_of(m), iteration)["head"]
    double = seconds(which=replace(m, layers=m.layers * 2))
    assert double - head == pytest.approx(2 * (seconds() - head), rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_time_grows_with_batch_and_context(name):
    table = compile_step_table(MODELS[name], H100, ServingLayout(), BF16, engine(), UNIFORM)
    assert np.all(np.diff(table.decode_attention_time_s, axis=0) >= 0)
    decode = (
        table.decode_attention_time_s
    )  # splitting the keys over SMs may make a longer context a few per cent faster
    assert np.all(np.diff(decode, axis=1) >= -0.03 * decode[:, 1:])
    assert np.all(np.diff(table.head_time_s) >= 0)
    assert table.linear_time_s[-1] > table.linear_time_s[0]


def test_skew_touches_fewer_experts_and_loads_one_more():
    iteration = Iteration(16, 100.0)
    uniform, skewed = (
        step_parts_s(ServingStep(model(), H100, ServingLayout(), BF16, engine(), RoutingAssumption(s, "")), iteration)
        for s in (0.0, 1.5)
    )
    assert skewed["experts"] < uniform["experts"]


def test_eager_floor_applies_above_the_graphs_only():
    step = step_of(model(), cuda_graph_max_tokens=64, eager_layer_s=0.1)
    assert "host" not in step_parts_s(step, Iteration(64, 100.0))
    parts = step_parts_s(step, Iteration(65, 100.0))
    assert sum(parts.values()) - parts["overhead"] == pytest.approx(0.1 * step.model.n_layers)


@pytest.mark.parametrize("hides", [True, False])
def test_host_work_adds_or_hides(hides):
    """Between iterations it adds up; beside the device only what is longer shows. Table and parts agree."""
    quick = step_of(model(), async_scheduling=hides, host_step_s=1e-5, host_sequence_s=1e-7)
    slow = step_of(model(), async_scheduling=hides, host_step_s=0.1, host_sequence_s=1e-3)
    bare = sum(step_parts_s(step_of(model()), Iteration(32, 100.0)).values())
    assert sum(step_parts_s(quick, Iteration(32, 100.0)).values()) == pytest.approx(
        bare if hides else bare + 1e-5 + 32e-7
    )
    overhead_s = slow.engine.step_overhead_s
    assert sum(step_parts_s(slow, Iteration(32, 100.0)).values()) == pytest.approx(
        overhead_s + 0.132 if hides else bare + 0.132
    )
    table = compile_step_table(slow.model, H100, slow.layout, BF16, slow.engine, UNIFORM)
    assert (table.host_step_s, table.host_row_s) == ((0.1, 1e-3) if hides else (0.0, 0.0))


def test_normalised_heads_cost_four_kernels_a_layer():
    """Copies and norms of queries and keys."""
    plain, normed = (step_of(model(replace(attention(), qk_norm=norm))) for norm in (False, True))
    more = (
        step_parts_s(normed, Iteration(1, 1.0))["elementwise"] - step_parts_s(plain, Iteration(1, 1.0))["elementwise"]
    )
    launch_s = normed.ops.parameters("elementwise", "bf16")["launch_s"]
    assert more == pytest.approx(4 * normed.model.n_layers * launch_s, rel=0.02)


def test_compiling_is_quick():
    step = step_of(MODELS["mla-shared"], ServingLayout(tp=2, dp=4, ep=8))
    start = time.perf_counter()
    compile_step_table(step.model, H100, step.layout, BF16, step.engine, RoutingAssumption(0.5, ""))
    assert time.perf_counter() - start < 0.5  # 0.01 s alone on the machine


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "layout", [TrainingLayout(), SPREAD, replace(SPREAD, vpp=2), replace(SPREAD, zero_stage=3, pp=1)]
)
def test_training_breakdown_is_the_step(name, layout):
    found = training_step(MODELS[name], H100, layout, work(), UNIFORM)
    assert sum(found.breakdown.values()) == pytest.approx(found.step_time_s)
    assert all(seconds >= 0.0 for seconds in (*found.breakdown.values(), *found.hidden.values()))
    assert 0.0 < found.mfu_frac < 1.0


@pytest.mark.parametrize("name", MODELS)
def test_training_laws(name):
    m, job = MODELS[name], work(micro_batch_sequences=4, cuda_graphs=True)  # no host: see the test of it
    base = training_step(m, H100, TrainingLayout(), job, UNIFORM)
    assert training_step(m, faster(H100, 2.0), TrainingLayout(), job, UNIFORM).step_time_s < base.step_time_s
    head = base.breakdown["head"]
    double = training_step(replace(m, layers=m.layers * 2), H100, TrainingLayout(), job, UNIFORM)
    assert double.step_time_s - head == pytest.approx(2 * (base.step_time_s - head), rel=0.02)
    full = training_step(m, H100, TrainingLayout(recompute="full"), job, UNIFORM)
    selective = training_step(m, H100, TrainingLayout(recompute="selective"), job, UNIFORM)
    none = training_step(m, H100, TrainingLayout(recompute="none"), job, UNIFORM)
    assert none.step_time_s < selective.step_time_s < full.step_time_s
    assert none.model_flop == full.model_flop
    assert full.step_time_s < 1.5 * none.step_time_s


def test_pipeline_bubble_is_the_closed_form():
    """Equal stages: bubble / compute = (pp - 1) / (vpp n_micro) (arXiv:2104.04473, section 2.2)."""
    m = model(n_layers=64)
    layout = TrainingLayout(pp=4, dp=1)
    job = work(global_batch_sequences=32, cuda_graphs=True)
    found = training_step(m, H100, layout, job, UNIFORM)
    busy = found.step_time_s - found.breakdown["bubble"] - found.breakdown["optimizer"]
    assert found.breakdown["bubble"] / busy == pytest.approx(
        3 / 32, rel=0.1
    )  # the stage with the head has fewer layers
    half = training_step(m, H100, replace(layout, vpp=2), job, UNIFORM)
    # the last stage is short of layers: what it lacks is not halved
    assert half.breakdown["bubble"] == pytest.approx(found.breakdown["bubble"] / 2, rel=0.25)


def test_the_host_bounds_small_steps_only():
    """Without graphs a micro batch takes at least its launches; where the GPU is busier they cost nothing."""
    m = model(attention(), dense())
    for job, bound in ((work(sequence_tokens=128), True), (work(micro_batch_sequences=8), False)):
        eager, graphs = (
            training_step(m, H100, TrainingLayout(), replace(job, cuda_graphs=g), UNIFORM) for g in (False, True)
        )
        assert graphs.breakdown.get("host", 0.0) == 0.0
        assert (eager.breakdown["host"] > 0.0) == bound
        launches_s = eager.n_micro_batches * m.n_layers * host.DEFAULTS["training_host"]["layer_s"]
        assert eager.step_time_s >= launches_s
        assert eager.step_time_s - graphs.step_time_s == pytest.approx(eager.breakdown["host"])


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble", "dualpipe"])
@pytest.mark.parametrize("tokens", [128, 1024, 4096])
def test_a_faster_gpu_never_lengthens_a_pipeline_that_waits_for_its_host(schedule, tokens):
    """A wait moved from a weight gradient to a pass that others wait for would lengthen the bubble."""
    layout, job = TrainingLayout(pp=4, dp=1, schedule=schedule), work(sequence_tokens=tokens)
    slow, fast = (training_step(model(), h, layout, job, UNIFORM) for h in (H100, faster(H100, 2.0)))
    assert slow.breakdown["host"] > 0.0 or tokens > 128
    assert fast.step_time_s <= slow.step_time_s * (1.0 + 1e-9)


def test_the_host_waits_for_every_router_of_an_exchange():
    layout = TrainingLayout(dp=8, ep=8)
    job = work(micro_batch_sequences=8)
    eager, graphs = (training_step(model(), H100, layout, replace(job, cuda_graphs=g), UNIFORM) for g in (False, True))
    sync_s = H100.efficiency.parameters["training_host", "training", "bf16"].values["sync_s"]
    assert eager.step_time_s - graphs.step_time_s == pytest.approx(eager.n_micro_batches * 16 * sync_s)


def test_frozen_weights_skip_their_gradient():
    m = model(attention(), dense())
    job = work(micro_batch_sequences=8)
    lora = replace(job, method="lora", adapter=Adapter(8, "all_linear", "bf16"))
    full, adapted = (training_step(m, H100, TrainingLayout(), j, UNIFORM) for j in (job, lora))
    assert adapted.breakdown["dense"] == pytest.approx(full.breakdown["dense"] * 2 / 3, rel=0.1)
    assert adapted.step_time_s < full.step_time_s
    assert 0.6 < adapted.model_flop / full.model_flop < 0.8


def test_muon_pays_for_its_orthogonalisation():
    """Five Newton-Schulz iterations of every matrix, divided among the ranks that share it."""
    layouts = [TrainingLayout(dp=dp, ep=1) for dp in (1, 8)]
    muon, adam = (
        [
            training_step(model(), H100, layout, work(optimizer=name), UNIFORM).breakdown["optimizer"]
            for layout in layouts
        ]
        for name in ("muon", "adamw")
    )
    assert muon[0] > adam[0]
    assert muon[0] / muon[1] == pytest.approx(8.0, rel=0.05)


def test_overlap_hides_traffic_but_never_time():
    layout = TrainingLayout(dp=8, ep=8)
    hidden, exposed = (
        training_step(model(), H100, layout, work(overlap_comm_frac=f, expert_overlap_frac=f), UNIFORM)
        for f in (1.0, 0.0)
    )
    assert hidden.step_time_s < exposed.step_time_s
    # only the multiprocessors that carry it are missed
    taken = COMMUNICATION_SMS_FRAC * exposed.breakdown["all_to_all"]
    assert hidden.breakdown["all_to_all"] == pytest.approx(taken)
    assert hidden.hidden["all_to_all"] == pytest.approx(exposed.breakdown["all_to_all"])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="global batch of 10"):
        training_step(model(), H100, TrainingLayout(dp=4), work(global_batch_sequences=10), UNIFORM)


def test_experts_in_host_memory_cost_what_the_iteration_touches():
    """One token streams top-k experts of every layer; a large batch streams all of them and no more."""
    step = step_of(MODELS["gqa-moe"], expert_offload_frac=1.0)
    blocks = [b for layer in step.model.layers for b in layer.blocks if isinstance(b, MoeMlp)]
    tokens = np.array([1.0, 1e5])
    _, experts = touched_host_bytes(step, tokens)
    bytes_each = [2.0 * b.n_params_per_expert for b in blocks]
    one = sum(b.top_k * size for b, size in zip(blocks, bytes_each, strict=True))
    every = sum(b.n_experts * size for b, size in zip(blocks, bytes_each, strict=True))
    np.testing.assert_allclose(experts, [one, every], rtol=1e-6)
    link = step.ops.host_copy_s(experts)
    plain = sum(step_parts_s(step_of(MODELS["gqa-moe"]), Iteration(1, 100.0)).values())
    slow = sum(step_parts_s(step, Iteration(1, 100.0)).values())
    assert plain < slow <= plain + link[0]
    assert slow >= link[0]


def test_offloading_frees_what_it_moves():
    step = step_of(MODELS["gqa-moe"])
    half = replace(step.engine, weight_offload_frac=0.5, expert_offload_frac=0.25)
    whole, less = (
        serving_memory(step.model, H100, step.layout, BF16, e, max_context_tokens=4096).breakdown
        for e in (step.engine, half)
    )
    assert less["weights_experts"] == pytest.approx(0.75 * whole["weights_experts"])
    assert less["weights_attention"] == pytest.approx(0.5 * whole["weights_attention"])
    assert less["weights_embedding"] == whole["weights_embedding"]


def test_drafts_need_a_module_and_cost_a_layer_each():
    moe = MODELS["gqa-moe"]
    with pytest.raises(ValueError, match="multi-token-prediction"):
        step_parts_s(step_of(replace(moe, mtp_layers=()), draft_tokens=1), Iteration(4, 100.0))
    able = replace(moe, mtp_layers=moe.layers[-1:])
    drafts = [step_parts_s(step_of(able, draft_tokens=k), Iteration(4, 100.0))["drafts"] for k in (1, 2, 4)]
    np.testing.assert_allclose(np.array(drafts) / drafts[0], [1, 2, 4])
    assert step_parts_s(step_of(moe, draft_tokens=2, drafts="ngram"), Iteration(4, 100.0))["drafts"] == 0.0
