"""Prefix cache, swapping, offload tier, drafts, priorities and timeouts, each where its effect can be worked out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serving_cases import engine, recorded, table

from moeplan.kernels import engine_state as state
from moeplan.simulate.arrivals import Requests, draw_requests
from moeplan.simulate.pool import ReplicaPool
from moeplan.simulate.prefixes import prefix_units
from moeplan.simulate.serving import HostMemory, engine_limits
from moeplan.spec.layout import ServingLayout

STEP_S = 0.01  # every iteration, whatever is in it
TOKEN_S = 1e-3  # by prompt token, where told
LAYOUT = ServingLayout()


def requests_of(arrival_s, n_in, n_out, **more) -> Requests:
    return replace(draw_requests(recorded(arrival_s, n_in, n_out), 0), **more)


def play(requests, *, kv=1e6, host=None, steps=None, replicas=1, dispatch="least_loaded", **settings) -> ReplicaPool:
    steps = table(base_s=STEP_S) if steps is None else steps
    engine_ = engine(**settings)
    limits = engine_limits(steps, engine_, LAYOUT, kv, None, dispatch, host)
    pool = ReplicaPool(steps, limits, requests, replicas, None, engine_.draft_acceptance_frac)
    pool.advance(1e6)
    return pool


def same_prompts(n, at_s, n_in=1024, n_out=2, hash_ids=(0, 1)):
    ids = np.tile(hash_ids, n)
    return requests_of(at_s, [n_in] * n, [n_out] * n, hash_ids=ids, n_hash=np.full(n, len(hash_ids)), unit_tokens=512)


def test_a_prompt_seen_before_costs_its_last_unit_only():
    """Of two whole units the last must be computed again: its logits are needed. One that came far later finds them."""
    steps = table(base_s=STEP_S, per_prefill_token_s=TOKEN_S)
    pool = play(same_prompts(2, [0.0, 100.0]), steps=steps, prefix_caching=True)
    assert pool.requests["hit_tokens"].tolist() == [0, 512]
    ttft_s = pool.requests["first_token_s"] - pool.requests["arrival_s"]
    np.testing.assert_allclose(ttft_s, [STEP_S + 1024 * TOKEN_S, STEP_S + 512 * TOKEN_S])
    off = play(same_prompts(2, [0.0, 100.0]), steps=steps)
    assert off.requests["hit_tokens"].tolist() == [0, 0]


def test_running_requests_share_their_blocks():
    """Ten requests of 1,000 tokens that share 512 hold 512 + 10 x 488 and their answers, not ten times all."""
    ids = np.tile([0], 10)
    requests = requests_of([0.0] * 10, [1000] * 10, [100] * 10, hash_ids=ids, n_hash=np.full(10, 1), unit_tokens=512)
    peak = {
        on: play(requests, kv=20_000, kv_block_tokens=1, max_num_batched_tokens=10_000, prefix_caching=on).ranks[
            "peak_blocks"
        ][0]
        for on in (False, True)
    }
    assert peak[False] - peak[True] == 9 * 512


def test_the_least_recently_used_prefix_goes_first():
    """Room for two prompts of 1,024 tokens: A, B, A again, C drives out B, so A is found once more and B is not."""
    order = "ABACAB"
    ids = np.concatenate([np.arange(2) + 2 * "ABC".index(name) for name in order])
    n = len(order)
    requests = requests_of(
        100.0 * np.arange(n), [1025] * n, [1] * n, hash_ids=ids, n_hash=np.full(n, 2), unit_tokens=512
    )
    pool = play(requests, kv=2 * 1024 + 32, prefix_caching=True)
    assert pool.requests["hit_tokens"].tolist() == [0, 0, 1024, 0, 1024, 0]


def test_an_offload_tier_brings_prefixes_back_over_the_link():
    order = "ABACAB"
    ids = np.concatenate([np.arange(2) + 2 * "ABC".index(name) for name in order])
    n = len(order)
    requests = requests_of(
        100.0 * np.arange(n), [1025] * n, [1] * n, hash_ids=ids, n_hash=np.full(n, 2), unit_tokens=512
    )
    host = HostMemory(1e-5, offload_tokens=1e5)
    pool = play(requests, kv=2 * 1024 + 32, host=host, prefix_caching=True)
    assert pool.requests["hit_tokens"].tolist() == [0, 0, 1024, 0, 1024, 1024]
    assert pool.ranks["host_hit_tokens"].sum() == 1024
    last_s = pool.requests["first_token_s"] - pool.requests["arrival_s"]
    np.testing.assert_allclose(last_s[-1], STEP_S + 1024e-5)
    hidden = play(requests, kv=2 * 1024 + 32, host=host, prefix_caching=True, kv_link_overlap=True)
    np.testing.assert_allclose((hidden.requests["first_token_s"] - hidden.requests["arrival_s"])[-1], 1024e-5)


@pytest.mark.parametrize("block_tokens", [16, 24, 1024])
def test_units_are_whole_blocks_and_keep_what_is_shared(block_tokens):
    """Two sequences of four hash blocks of 512 part after two: they share as many whole units as fit those two."""
    ids = np.array([0, 1, 2, 3, 0, 1, 4, 5])
    units = prefix_units(ids, np.array([4, 4]), 512, block_tokens)
    assert units.tokens % block_tokens == 0
    one, other = units.ids[: units.n_units[0]], units.ids[units.n_units[0] :]
    shared = int(np.sum(one == other))
    assert shared == 1024 // units.tokens
    assert np.array_equal(one == other, np.arange(one.size) < shared)


def test_swapped_sequences_are_not_computed_again():
    """Two of 400 tokens outgrow 1,000 blocks: the younger waits in host memory for the older, over the link twice."""
    requests = requests_of([0.0, 0.0], [400, 400], [300, 300])
    tight = {"kv": 1000, "kv_block_tokens": 1}
    swapped = play(requests, host=HostMemory(1e-4, swap_tokens=2000), swap_bytes=1.0, **tight)
    again = play(requests, **tight)
    assert (swapped.ranks["n_swaps"][0], swapped.ranks["n_preemptions"][0]) == (1, 1)
    assert again.ranks["n_swaps"][0] == 0
    # after the first token 100 more each fill the cache; then 501 tokens go and come
    assert swapped.ranks["prefill_tokens"][0] == 801
    assert again.ranks["prefill_tokens"][0] == 800 + 501
    whole_s = swapped.requests["finish_s"].max() - again.requests["finish_s"].max()
    assert whole_s == pytest.approx(2 * 500e-4, abs=2e-4)
    assert swapped.ranks["free_swap_blocks"][0] == 2000


@pytest.mark.parametrize("chance", [0.0, 0.7, 1.0])
def test_drafts_give_the_tokens_of_a_geometric_law(chance):
    """Tokens of an iteration with k drafts: (1 - a^(k + 1)) / (1 - a) (arXiv:2211.17192, equation 1)."""
    k, n_out = 3, 200_001
    pool = play(requests_of([0.0], [10], [n_out]), draft_tokens=k, draft_acceptance_frac=chance)
    mean = k + 1 if chance == 1.0 else (1 - chance ** (k + 1)) / (1 - chance)
    assert (n_out - 1) / (pool.pool.replicas["n_iterations"][0] - 1) == pytest.approx(mean, rel=0.02)
    assert pool.ranks["decode_tokens"][0] == n_out - 1


def test_verified_tokens_are_computed_and_drafts_take_their_time():
    steps = replace(table(base_s=STEP_S, per_token_s=1e-3, head_s=0.0), draft_time_s=np.array([2e-3, 2e-3]))
    one = play(requests_of([0.0], [1], [101]), steps=steps, draft_tokens=3)
    # no draft is accepted: 100 iterations of four tokens and three drafts
    assert one.requests["finish_s"][0] - one.requests["first_token_s"][0] == pytest.approx(100 * (STEP_S + 4e-3 + 2e-3))


def test_batches_are_padded_to_captured_sizes():
    steps = replace(table(per_token_s=1e-3, base_s=0.0), graph_sizes=np.array([1.0, 2, 4, 8]), graph_max_tokens=8)
    for n, computed in ((1, 1), (3, 4), (5, 8), (9, 9)):
        pool = play(requests_of([0.0] * n, [1] * n, [2] * n), steps=steps)
        last = (pool.requests["finish_s"] - pool.requests["first_token_s"])[0]
        assert last == pytest.approx(computed * 1e-3)


def test_important_requests_overtake_and_survive():
    """One seat: after the running request the important one starts, though it came last."""
    requests = requests_of([0.0, 0.01, 0.02], [10] * 3, [20] * 3, priority=np.array([1, 1, 0]))
    pool = play(requests, max_num_seqs=1, priority_scheduling=True)
    assert np.argsort(pool.requests["scheduled_s"]).tolist() == [0, 2, 1]
    assert np.argsort(play(requests, max_num_seqs=1).requests["scheduled_s"]).tolist() == [0, 1, 2]
    # without room the less important one is preempted, older or not
    pair = requests_of([0.0, 0.0], [400, 400], [300, 300], priority=np.array([1, 0]))
    pool = play(pair, kv=1000, kv_block_tokens=1, priority_scheduling=True)
    assert pool.requests["finish_s"][1] < pool.requests["finish_s"][0]
    plain = play(pair, kv=1000, kv_block_tokens=1)
    assert plain.requests["finish_s"][0] < plain.requests["finish_s"][1]


def test_users_give_up():
    """One seat, 0.2 s each: the second waits 0.2 s, the third 0.4 s and has left by then."""
    waits = np.full(3, 0.3)
    pool = play(requests_of([0.0] * 3, [10] * 3, [20] * 3, start_timeout_s=waits), max_num_seqs=1)
    assert pool.requests["outcome"].tolist() == [state.COMPLETED, state.COMPLETED, state.TIMED_OUT_WAITING]
    assert pool.requests["finish_s"][2] == pytest.approx(0.3)
    late = play(requests_of([0.0], [10], [100], finish_timeout_s=np.array([0.5])))
    assert late.requests["outcome"].tolist() == [state.TIMED_OUT_RUNNING]
    assert late.requests["generated"][0] == 50
    assert late.ranks["free_blocks"][0] == late.limits.n_blocks


def test_the_replica_that_has_the_prefix_gets_the_request():
    """Two conversations on two replicas: every later turn goes where its first one went."""
    n = 20
    ids = np.concatenate([np.arange(2) + 10 * (i % 2) for i in range(n)])
    at_s = np.arange(n) * 1.0
    requests = requests_of(at_s, [1025] * n, [4] * n, hash_ids=ids, n_hash=np.full(n, 2), unit_tokens=512)
    pool = play(requests, replicas=2, dispatch="prefix_aware", prefix_caching=True)
    assert pool.requests["rank"].tolist() == [0, 1] * (n // 2)
    assert np.count_nonzero(pool.requests["hit_tokens"] == 1024) == n - 2


def test_a_disaggregated_pair_of_pools():
    """Prefill ends with the first token; the decode pool takes the KV as it is and computes nothing but new tokens."""
    prefill = play(requests_of([0.0, 1.0], [500, 500], [1, 1]))
    rows = requests_of([0.0, 0.0], [500, 500], [50, 50])
    rows = replace(rows, arrival_s=np.full(2, np.nan), n_stream=0)
    steps = table(base_s=STEP_S)
    pool = ReplicaPool(steps, engine_limits(steps, engine(), LAYOUT, 1e6, None, "least_loaded"), rows, 1)
    pool.requests["kv_tokens"] = 500
    pool.requests["generated"] = 1
    pool.requests["first_token_s"] = prefill.requests["first_token_s"]
    for i, at_s in enumerate(prefill.requests["finish_s"]):
        pool.send(np.array([i]), at_s + 0.1)
    pool.advance(1e6)
    assert pool.ranks["prefill_tokens"][0] == 2
    np.testing.assert_allclose(pool.requests["finish_s"] - prefill.requests["finish_s"], 0.1 + 49 * STEP_S)


def test_a_failed_replica_gives_its_requests_back():
    """Down at 0.5 s with 50 tokens of each done: the other replica computes prompt and these, then the rest."""
    requests = requests_of([0.0] * 4, [100] * 4, [200] * 4)
    steps = table(base_s=STEP_S)
    pool = ReplicaPool(steps, engine_limits(steps, engine(), LAYOUT, 1e6, None, "round_robin"), requests, 2)
    pool.advance(0.495)
    pool.accept(0, False)
    taken = pool.empty(0, 0.495)
    assert taken.tolist() == [0, 2]
    assert pool.requests["generated"][taken].tolist() == [50, 50]
    pool.send(taken, 1.0)
    pool.advance(1e6)
    assert np.all(pool.requests["outcome"] == state.COMPLETED)
    assert pool.requests["rank"].tolist() == [1, 1, 1, 1]
    assert pool.ranks["prefill_tokens"].sum() == 4 * 100 + 2 * 150
    lost = ReplicaPool(steps, pool.limits, requests, 2)
    lost.advance(0.495)
    lost.accept(0, False)
    lost.end(lost.empty(0, 0.495), state.LOST, 0.495)
    assert lost.advance(1e6) == 4
    assert np.count_nonzero(lost.requests["outcome"] == state.LOST) == 2


def test_requests_wait_at_a_closed_door():
    requests = requests_of([0.0, 0.1], [10, 10], [5, 5])
    steps = table(base_s=STEP_S)
    pool = ReplicaPool(steps, engine_limits(steps, engine(), LAYOUT, 1e6, None, "least_loaded"), requests, 1, 0)
    assert pool.advance(3.0) == 0
    assert pool.unsent().tolist() == [0, 1]
    pool.accept(0, True)
    assert pool.advance(10.0) == 2
    np.testing.assert_allclose(pool.requests["scheduled_s"], 3.0)
    assert pool.queues().used_blocks.tolist() == [0]
