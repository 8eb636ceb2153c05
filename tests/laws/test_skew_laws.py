"""Where tokens go changes what is planned: times of prefill, decode and training steps, memory, capacity and cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from step_cases import BF16, engine, hardware, moe, work

import moeplan
from moeplan.costs.expert_exchange import distinct_groups
from moeplan.costs.routing import token_copies
from moeplan.files.catalog.model_catalog import load_model
from moeplan.spec.layout import ServingLayout, TrainingLayout
from moeplan.spec.routing import Correlation, Popularity, RoutingAssumption
from moeplan.steps.compiled import step_parts_s
from moeplan.steps.memory import serving_memory
from moeplan.steps.serving import Iteration, ServingStep
from moeplan.steps.training import training_step
from moeplan.steps.training_memory import training_memory

MODEL = load_model("Qwen3-30B-A3B")
MACHINE = hardware("h100-sxm")
SKEWS = (0.0, 0.5, 1.0, 1.5)
WIDE = ServingLayout(tp=1, dp=16, ep=16)  # two nodes: tokens are sent to their experts


def serving_step_s(routing, iteration, layout=WIDE):
    return sum(step_parts_s(ServingStep(MODEL, MACHINE, layout, BF16, engine(), routing), iteration).values())


def rises(values):
    return bool(np.all(np.diff(values) > 0.0))


@pytest.mark.parametrize("iteration", [Iteration(0.0, 0.0, ((8192.0, 0.0),)), Iteration(256.0, 1000.0)])
def test_serving_iterations(iteration):
    assert rises([serving_step_s(RoutingAssumption(zipf, ""), iteration) for zipf in SKEWS])


def test_serving_memory():
    """Where tokens travel to the experts, buffers are those of the busiest GPU, and less is left for the cache."""
    fits = [
        serving_memory(
            MODEL, MACHINE, WIDE, BF16, engine(), max_context_tokens=8192, routing=RoutingAssumption(zipf, "")
        )
        for zipf in SKEWS
    ]
    assert rises([fit.breakdown["activations"] for fit in fits])
    assert rises([-fit.kv_capacity_tokens for fit in fits])


def test_training():
    """One step takes longer, and the fullest GPU keeps more activations; less of both with a capacity factor."""
    layout = TrainingLayout(dp=16, ep=8)
    skewed = [RoutingAssumption(zipf, "") for zipf in SKEWS]
    times = [
        training_step(
            MODEL, MACHINE, layout, work(micro_batch_sequences=4, global_batch_sequences=64), routing
        ).step_time_s
        for routing in skewed
    ]
    kept = [
        training_memory(
            MODEL, MACHINE, layout, work(micro_batch_sequences=4, global_batch_sequences=64), routing
        ).breakdown["activations"]
        for routing in skewed
    ]
    assert rises(times)
    assert rises(kept)
    dropping = replace(skewed[-1], capacity_factor=1.0)
    assert (
        training_step(
            MODEL, MACHINE, layout, work(micro_batch_sequences=4, global_batch_sequences=64), dropping
        ).step_time_s
        < times[-1]
    )
    assert (
        training_memory(
            MODEL, MACHINE, layout, work(micro_batch_sequences=4, global_batch_sequences=64), dropping
        ).breakdown["activations"]
        < kept[-1]
    )


SERVING = """
model: Qwen3-30B-A3B
hardware: h100-sxm
gpus: 8
serving:
  engine: {name: vllm, max_model_len: 4096}
  precision: native
  layout: {tp: 1, dp: 8, ep: 8}
  traffic: {offline: true, requests: 100, input_tokens: 2048, output_tokens: 8}
price: 3 USD/h
"""
TRAINING = """
model: Qwen3-30B-A3B
hardware: h100-sxm
gpus: 16
training:
  method: pretrain
  tokens: 1B tokens
  sequence_length: 4096
  global_batch: 64
  micro_batch: 2
  precision: bf16
  recompute: full
  layout: {dp: 16, ep: 8, zero: 3}
price: 3 USD/h
"""


def plan(folder, text, *overrides):
    path = folder / "scenario.yaml"
    path.write_text(text)
    return moeplan.simulate(moeplan.load(path, overrides))


DRIFT = ("routing.popularity={law: lognormal, value: 0.8}", "routing.placement=greedy", "routing.drift_half_life=1000")


@pytest.mark.parametrize("text", [SERVING, TRAINING])
def test_cost_of_a_plan(tmp_path, text):
    """From the scenario to the bill: balanced < skewed; drifting and re-placed often < seldom."""

    def usd(*overrides):
        cost = plan(tmp_path, text, *overrides).cost
        return (cost.usd_per_million_output_tokens or cost.total_usd).value

    assert usd("routing.zipf=0") < usd("routing.zipf=0.8")
    assert usd(*DRIFT, "routing.rebalance=100") < usd(*DRIFT)


def test_node_limit_saves_copies():
    """A gate limited to few groups sends a token to fewer nodes, which the exchange between nodes feels."""
    free, limited = moe(64, 8), replace(moe(64, 8), n_group=8, topk_group=2, scoring="sigmoid")
    even = RoutingAssumption(0.0, "")
    all_nodes, few = (token_copies(block, 16, even, n_nodes=4) for block in (free, limited))
    assert all_nodes.n_nodes == pytest.approx(float(distinct_groups(8, 64, 4)))
    assert 1.0 <= few.n_nodes <= 2.0 < all_nodes.n_nodes
    assert few.n_ranks < all_nodes.n_ranks


def test_sampled_copies_agree_with_the_closed_form():
    """Popularity almost uniform is routed token by token, uniform is not."""
    even, almost = RoutingAssumption(0.0, ""), RoutingAssumption(1e-6, "")
    exact, sampled = (token_copies(moe(64, 8), 16, routing, n_nodes=4) for routing in (even, almost))
    assert sampled.n_ranks == pytest.approx(exact.n_ranks, rel=0.01)
    assert sampled.n_nodes == pytest.approx(exact.n_nodes, rel=0.01)


def test_prompts_of_a_topic_load_more_than_decoding():
    """Tokens of a prompt share experts; those of a decode step are of a text each, as if topics were mixed."""
    base = RoutingAssumption(0.0, "", Popularity("uniform"))
    topical = replace(base, correlation=Correlation(8, 1.0, 2048))
    prompt, decode = Iteration(0.0, 0.0, ((4096.0, 0.0),)), Iteration(128.0, 1000.0)
    assert serving_step_s(topical, prompt) > 1.02 * serving_step_s(base, prompt)
    assert serving_step_s(topical, decode) == pytest.approx(serving_step_s(base, decode), rel=0.02)
