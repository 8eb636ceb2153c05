"""Prefill and decode apart: limits in which they are as one pool, and laws of the way between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serving_cases import closed_loop, engine, fixed, poisson, recorded, table

from moeplan import metrics
from moeplan.simulate.disaggregated import KvTransfer, PoolSettings, simulate_disaggregated
from moeplan.simulate.serving import OUTCOMES, simulate_serving
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Arrivals, Conversations, LengthDistribution, Traffic

TABLE = table(base_s=4e-3, per_token_s=2e-5, per_context_token_s=2e-8, per_prefill_token_s=1e-6, head_s=1e-4)
KV = 200_000
FREE = KvTransfer(1.0, 1e18, 0.0)
LENGTHS = LengthDistribution("lognormal", 200.0, 1, 4000, 0.9)


def pool(step_table=TABLE, *, replicas=1, dp=1, kv=KV, **settings):
    return PoolSettings(step_table, engine(**settings), ServingLayout(replicas=replicas, dp=dp), kv)


def run(traffic, transfer=FREE, *, prefill=None, decode=None, **options):
    return simulate_disaggregated(prefill or pool(), decode or pool(), traffic, transfer, 0, **options)


TRAFFICS = {
    "poisson": poisson(8.0, 1500, LENGTHS, LENGTHS),
    "overload": poisson(300.0, 1500, LENGTHS, LENGTHS),
    "closed": closed_loop(40, 1500),
    "offline": Traffic(Arrivals("all_at_once", None, None, 1500, 0), None, LENGTHS, LENGTHS),
    "conversations": Traffic(Arrivals("open", 8.0, None, 900, 0), None, fixed(100), fixed(50),
                             conversations=Conversations(fixed(3), 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAFFICS)
@pytest.mark.parametrize("transfer", [FREE, KvTransfer(1e5, 1e9, 5e-3)], ids=["free", "slow"])
def test_every_request_passes_both_pools(name, transfer):
    log = run(TRAFFICS[name], transfer, prefill=pool(replicas=2), decode=pool(replicas=3))
    assert log.completed.all()
    assert np.all(log.arrival_s <= log.scheduled_s)
    assert np.all(log.scheduled_s < log.first_token_s)
    assert np.all(log.first_token_s <= log.finish_s)
    assert log.decode_tokens == np.maximum(log.output_tokens - 2, 0).sum()  # one at the prompt, one on arrival
    assert log.gpu_s == pytest.approx(5 * log.span_s)


def test_one_token_answers_need_no_decode_pool():
    """The prefill pool alone: the same events as a plain pool of its kind."""
    traffic = poisson(50.0, 1500, LENGTHS, 1)
    plain = simulate_serving(TABLE, traffic, engine(), ServingLayout(replicas=2), KV, 0)
    apart = run(traffic, prefill=pool(replicas=2))
    for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s"):
        assert getattr(plain, name).tobytes() == getattr(apart, name).tobytes()
    assert apart.decode_tokens == 0


def test_alone_a_request_takes_prompt_wire_and_decode_steps():
    """By hand: constant steps of 10 and 20 ms, 1 GB over 10 GB/s and a hop of 5 ms."""
    transfer = KvTransfer(1e7, 1e10, 5e-3)
    log = run(recorded([0.0], [100], [11]), transfer, prefill=pool(table(0.01)), decode=pool(table(0.02)))
    assert log.first_token_s[0] == pytest.approx(0.01 + 0.1 + 0.005)
    assert log.finish_s[0] == pytest.approx(log.first_token_s[0] + 10 * 0.02)


def test_decode_is_undisturbed_by_prompts():
    """One pool lets a prompt of 8000 tokens stall decoding; two do not."""
    traffic = recorded([0.0, 0.5], [10, 8000], [200, 2])
    together = simulate_serving(TABLE, traffic, engine(), ServingLayout(), KV, 0)
    apart = run(traffic)
    assert metrics.tpot_s(apart)[0] < metrics.tpot_s(together)[0]


def test_prompts_wait_for_the_link():
    """Eight prompts of one iteration cross one link of their rank one after the other, four ranks share the work."""
    traffic = recorded([0.0] * 8, [100] * 8, [2] * 8)
    transfer = KvTransfer(1e7, 1e10, 0.0)  # 0.1 s each
    one = run(traffic, transfer, prefill=pool(table(0.01)), decode=pool(table(1e-6), dp=8))
    np.testing.assert_allclose(np.sort(one.first_token_s), 0.01 + 0.1 * np.arange(1, 9), atol=1e-5)
    four = run(traffic, transfer, prefill=pool(table(0.01), dp=4), decode=pool(table(1e-6), dp=8))
    np.testing.assert_allclose(np.sort(four.first_token_s), 0.01 + 0.1 * np.repeat([1, 2], 4), atol=1e-5)
    receiver = run(traffic, transfer, prefill=pool(table(0.01), dp=8), decode=pool(table(1e-6)))
    np.testing.assert_allclose(np.sort(receiver.first_token_s), 0.01 + 0.1 * np.arange(1, 9), atol=1e-5)


def test_a_slower_link_and_fewer_replicas_take_longer():
    traffic = TRAFFICS["poisson"]
    by_link = [
        float(np.mean(metrics.e2e_s(run(traffic, KvTransfer(1e5, rate, 1e-3))))) for rate in (1e12, 1e10, 1e9, 3e8)
    ]
    assert np.all(np.diff(by_link) > 0)
    busy = TRAFFICS["overload"]
    by_prefill = [
        float(np.mean(metrics.ttft_s(run(busy, prefill=pool(replicas=n), decode=pool(replicas=4))))) for n in (1, 2, 4)
    ]
    assert np.all(np.diff(by_prefill) < 0)


def test_a_closed_loop_is_as_fast_as_its_slower_pool_lets_it():
    """Users in a cycle of constant times: rate = users / (prompt + wire + answer), feedback late by half a percent."""
    transfer = KvTransfer(1e6, 1e10, 0.0)
    log = run(closed_loop(10, 2000, 100, 51), transfer, prefill=pool(table(0.01), replicas=10),
              decode=pool(table(0.02), dp=1))  # fmt: skip
    found = metrics.serving_metrics(log, warmup_requests=200)
    cycle_s = 0.01 + 0.01 + 50 * 0.02  # waiting for the next decode step comes on top, up to 20 ms
    assert 10 / (cycle_s + 0.03) < found.requests_per_s < 10 / cycle_s
    assert found.tpot.p50 == pytest.approx(0.02, rel=0.05)


def test_what_can_never_be_decoded_is_refused_before_its_prompt_is_computed():
    traffic = recorded([0, 0, 0, 1], [10, 3000, 0, 700], [5, 5, 5, 200])
    log = run(traffic, decode=pool(kv=800), max_context_tokens=2048)
    assert [OUTCOMES[code] for code in log.outcome] == [
        "completed",
        "rejected: longer than the context",
        "rejected: no input or output tokens",
        "rejected: longer than the context",
    ]
    assert log.prefill_tokens <= 10
    assert np.isnan(log.first_token_s[1:]).all()


def test_patience_counts_from_the_first_door():
    traffic = replace(recorded([0.0, 0.0], [100, 100], [20, 200]), timeout_s=1.0)
    log = run(traffic, KvTransfer(1e7, 1e10, 0.0), prefill=pool(table(0.1)), decode=pool(table(0.01)))
    assert [OUTCOMES[code] for code in log.outcome] == ["completed", "timed out before it was finished"]
    assert log.finish_s[1] == pytest.approx(1.0, abs=0.02)
