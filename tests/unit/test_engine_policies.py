"""The scheduling policies of the engines, each where its effect can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serving_cases import closed_loop, engine, recorded, table

from moeplan.files.catalog.engine_defaults import default_engine
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.simulate.serving import simulate_serving
from moeplan.spec.fleet import PLAIN_FLEET
from moeplan.spec.hardware import Device
from moeplan.spec.layout import ServingLayout

STEP_S = 0.01  # every iteration, whatever is in it
STEPS = table(base_s=STEP_S)


def simulate(traffic, *, kv=1e9, dp=1, dispatch="least_loaded", **settings):
    return simulate_serving(
        STEPS, traffic, engine(**settings), ServingLayout(dp=dp), kv, 0, fleet=replace(PLAIN_FLEET, dispatch=dispatch)
    )


def test_prompts_first_keep_users_of_equal_length_together():
    """8 prompts in 4 iterations, all before the first decode: then nobody's decoding is ever interrupted."""
    log = simulate(closed_loop(8, 80, 100, 21), max_num_batched_tokens=200, max_num_seqs=8, prefill_first=True)
    tpot_s = (log.finish_s - log.first_token_s) / 20
    wave = np.arange(80) // 8
    for each in range(10):
        ttft_s = np.sort((log.first_token_s - log.arrival_s)[wave == each])
        np.testing.assert_allclose(ttft_s, STEP_S * np.repeat([1, 2, 3, 4], 2))
    # the first pair waits for the three other iterations of its wave, the last for none
    np.testing.assert_allclose(np.unique(np.round(tpot_s / STEP_S * 20)), [20, 21, 22, 23])


def test_mixed_prompts_do_not_pause_decoding():
    mixed = simulate(recorded([0.0, 0.05], [10, 100], [50, 50]))
    paused = simulate(recorded([0.0, 0.05], [10, 100], [50, 50]), prefill_first=True)
    assert mixed.finish_s[0] == pytest.approx(50 * STEP_S)
    assert paused.finish_s[0] == pytest.approx(51 * STEP_S)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_whole_outputs_reserved_never_preempt(share):
    log = simulate(closed_loop(20, 200, 100, 400), kv=4000, output_reserve_frac=share, output_reserve_end_frac=share)
    assert log.completed.all()
    assert (log.n_preemptions == 0) == (share == 1.0)


def test_reserve_admits_what_fits_to_the_end():
    """Of 1,000 blocks, sequences that grow to 100 + 150 - 1 tokens: four at a time."""
    log = simulate(
        closed_loop(10, 40, 100, 150),
        kv=1000,
        kv_block_tokens=1,
        output_reserve_frac=1.0,
        output_reserve_end_frac=1.0,
    )
    started = np.sort(log.scheduled_s)
    assert np.count_nonzero(started == 0.0) == 4
    assert log.kv_peak_frac == pytest.approx(4 * 249 / 1000)


def test_falling_reserve_admits_more_with_time():
    falling = {"output_reserve_frac": 0.7, "output_reserve_end_frac": 0.1, "output_reserve_iterations": 100}
    log = simulate(closed_loop(10, 10, 100, 400), kv=2000, kv_block_tokens=1, **falling)
    at_once = np.count_nonzero(log.scheduled_s == 0.0)
    # the third needs 499 of 2000 - 2 * 499 at the first iteration, whose own outputs are kept whole
    assert at_once == 4
    assert np.any((log.scheduled_s > 0.0) & (log.scheduled_s < log.finish_s.min()))


def test_new_requests_are_seen_every_so_many_decode_iterations():
    arrival_s = [0.0, 0.032, 0.051]
    log = simulate(recorded(arrival_s, [10, 10, 10], [100, 5, 5]), receive_iterations=10)
    # looked at when the prompt is done (0.01 s), then ten decode iterations later, then after that prompt
    np.testing.assert_allclose(log.scheduled_s, [0.0, 0.11, 0.11])
    plain = simulate(recorded(arrival_s, [10, 10, 10], [100, 5, 5]))
    np.testing.assert_allclose(plain.scheduled_s, [0.0, 0.04, 0.06])


def test_prompts_wait_for_company():
    settings = {"batch_wait_iterations": 20, "batch_wait_tokens_frac": 0.5, "max_num_batched_tokens": 1000}
    alone = simulate(recorded([0.0, 0.095], [10, 100], [500, 5]), **settings)
    assert alone.scheduled_s[1] == pytest.approx(0.1 + 20 * STEP_S)
    pair = simulate(recorded([0.0, 0.095, 0.145], [10, 300, 300], [500, 5, 5]), **settings)
    np.testing.assert_allclose(pair.scheduled_s[1:], 0.15)


def test_ranks_start_prompts_together():
    arrivals, lengths = [0.0, 0.0, 0.095, 0.195], [500, 500, 5, 5]
    each = simulate(recorded(arrivals, [10] * 4, lengths), dp=2, dispatch="round_robin")
    np.testing.assert_allclose(each.scheduled_s, [0.0, 0.0, 0.1, 0.2])
    together = simulate(recorded(arrivals, [10] * 4, lengths), dp=2, dp_balance_iterations=50, dispatch="round_robin")
    np.testing.assert_allclose(together.scheduled_s, [0.0, 0.0, 0.2, 0.2])


def test_front_end_is_a_queue():
    """Requests at once leave it one by one; tokens of an iteration are seen when it has handled them all."""
    log = simulate(recorded([0.0] * 5, [10] * 5, [1] * 5), front_request_s=0.1)
    np.testing.assert_allclose(log.scheduled_s, 0.1 * np.arange(1, 6))
    # outputs of a full iteration take longer than the iteration: the front end sets the pace
    log = simulate(closed_loop(100, 1000, 10, 50), front_token_s=1e-3)
    assert 1000 * 50 / log.finish_s.max() == pytest.approx(1 / 1e-3, rel=0.1)


def test_think_time_slows_a_closed_loop():
    traffic = closed_loop(1, 400, 10, 10)
    thinking = replace(traffic, arrivals=replace(traffic.arrivals, think_s=0.3))
    busy, idle = simulate(traffic), simulate(thinking)
    assert busy.finish_s.max() == pytest.approx(400 * 10 * STEP_S)
    assert idle.finish_s.max() - busy.finish_s.max() == pytest.approx(399 * 0.3, rel=0.15)


@pytest.mark.parametrize(
    "bad",
    [
        {"output_reserve_frac": 1.5},
        {"output_reserve_frac": 0.2, "output_reserve_end_frac": 0.3},
        {"output_reserve_iterations": 0},
        {"receive_iterations": 0},
        {"batch_wait_iterations": -1},
        {"dp_balance_iterations": -1},
        {"front_request_s": float("nan")},
        {"front_token_s": -1.0},
    ],
)
def test_impossible_policies_are_refused(bad):
    with pytest.raises(ValueError, match="|".join(["reserve", "wait", *bad])):
        simulate(closed_loop(1, 1), **bad)


def test_presets_have_the_policies_of_their_engines():
    device: Device = load_hardware("h100-sxm").device
    vllm, sglang, trtllm = (default_engine(name, device, 4) for name in ("vllm", "sglang", "trtllm"))
    assert (vllm.prefill_first, sglang.prefill_first, trtllm.prefill_first) == (False, True, False)
    assert vllm.output_reserve_frac == 0.0
    assert (sglang.output_reserve_frac, sglang.output_reserve_end_frac) == (0.7, 0.098)
    assert (trtllm.output_reserve_frac, trtllm.output_reserve_end_frac, trtllm.chunked_prefill) == (1.0, 1.0, False)


def test_an_old_version_has_its_own_defaults():
    """vLLM schedules beside the GPU since 0.14; a version without a number is the newest."""
    device = load_hardware("h100-sxm").device
    asked = {version: default_engine("vllm", device, 4, version).async_scheduling for version in
             ("0.12.0", "v0.13.0rc1", "0.14.0", "1.0", "", "nightly")}  # fmt: skip
    assert asked == {"0.12.0": False, "v0.13.0rc1": False, "0.14.0": True, "1.0": True, "": True, "nightly": True}
