"""One iteration of a rank: who is in it, what it takes, what it leaves behind. The policies of `Limits` are here."""

from __future__ import annotations

import numpy as np
from numba import njit

from moeplan.kernels.engine_state import (
    COMPLETED,
    N_ENDED,
    N_USERS_READY,
    heap_push,
    heap_remove,
    interpolate,
    interpolate2,
)


@njit
def blocks_of(tokens, block_tokens):
    return (tokens + block_tokens - 1) // block_tokens


@njit
def _cached_tokens(requests, ranks, rank, request):
    """KV tokens a decoding request holds."""
    decoded = ranks[rank].iteration - requests[request].joined
    return requests[request].input_tokens + requests[request].generated - 1 + decoded


@njit
def _preempt_youngest(limits, requests, ranks, seats, rank):
    """Puts the youngest running sequence back at the head of the queue; its KV is lost, its output tokens are kept."""
    request = ranks[rank].prefilling
    if request >= 0:
        ranks[rank].prefilling = -1
        held = requests[request].input_tokens + requests[request].generated
    else:
        keys = seats.end_iteration[rank]
        items = seats.end_request[rank]
        size = ranks[rank].n_decoding
        youngest = 0
        for i in range(1, size):
            if requests[items[i]].admission > requests[items[youngest]].admission:
                youngest = i
        request = items[youngest]
        heap_remove(keys, items, size, youngest)
        held = _cached_tokens(requests, ranks, rank, request)
        _leave_batch(limits, ranks, seats, rank, held)
        requests[request].generated += ranks[rank].iteration - requests[request].joined
    _give_back(limits, requests, ranks, rank, request, held)
    ranks[rank].reserve_since = ranks[rank].iteration
    ranks[rank].n_preemptions += 1
    requests[request].next_waiting = ranks[rank].queue_head
    if ranks[rank].queue_head < 0:
        ranks[rank].queue_tail = request
    ranks[rank].queue_head = request
    ranks[rank].n_waiting += 1


@njit
def _leave_batch(limits, ranks, seats, rank, held):
    ranks[rank].n_decoding -= 1
    ranks[rank].context_sum -= held
    residue = (ranks[rank].iteration - held) % limits.block_tokens
    seats.block_residue[rank, residue] -= 1


@njit
def _give_back(limits, requests, ranks, rank, request, held):
    ranks[rank].free_blocks += blocks_of(held, limits.block_tokens)
    ranks[rank].committed_blocks -= _final_blocks(limits, requests, request)


@njit
def _final_blocks(limits, requests, request):
    """Blocks of a request before its last token."""
    return blocks_of(requests[request].input_tokens + requests[request].output_tokens - 1, limits.block_tokens)


@njit
def fits(limits, requests, ranks, rank, request, fresh_blocks):
    """Whether a request may be admitted. ``fresh_blocks``: for outputs of those admitted in this iteration."""
    free = ranks[rank].free_blocks
    if not limits.reserves_output:
        tokens = requests[request].input_tokens + requests[request].generated
        return blocks_of(tokens, limits.block_tokens) <= free
    to_come = ranks[rank].committed_blocks - (limits.n_blocks - free)
    share = reserve_frac(limits, ranks, rank)
    kept = share * (to_come - fresh_blocks) + fresh_blocks
    return _final_blocks(limits, requests, request) <= free - kept


@njit
def reserve_frac(limits, ranks, rank):
    fallen = (ranks[rank].iteration - ranks[rank].reserve_since) / limits.reserve_steps
    start = limits.reserve_start_frac
    return start + min(fallen, 1.0) * (limits.reserve_end_frac - start)


@njit
def compose(table, limits, requests, ranks, seats, rank, now_s, cutoff_s, admits):
    """Composes a rank's next iteration, with requests ready by ``cutoff_s`` if it ``admits`` any. Returns its time [s],
    0 when idle."""
    prefill_tokens = 0
    attention_s = 0.0
    if limits.prefill_first:
        budget = limits.max_num_batched_tokens
        prefill_tokens, attention_s = _take_prompts(
            table, limits, requests, ranks, seats, rank, now_s, cutoff_s, budget, admits
        )
    preempted = False
    ranks[rank].n_emitting = 0
    if prefill_tokens == 0:
        residue = ranks[rank].iteration % limits.block_tokens
        while seats.block_residue[rank, residue] > ranks[rank].free_blocks:
            _preempt_youngest(limits, requests, ranks, seats, rank)
            preempted = True
        ranks[rank].free_blocks -= seats.block_residue[rank, residue]
        ranks[rank].n_emitting = ranks[rank].n_decoding
    n_emitting = ranks[rank].n_emitting
    if not limits.prefill_first:
        admits = admits and not preempted and not _holds_back(limits, requests, ranks, rank, cutoff_s)
        budget = limits.max_num_batched_tokens - n_emitting
        prefill_tokens, attention_s = _take_prompts(
            table, limits, requests, ranks, seats, rank, now_s, cutoff_s, budget, admits
        )
    ranks[rank].prefill_tokens += prefill_tokens
    used = limits.n_blocks - ranks[rank].free_blocks
    ranks[rank].peak_blocks = max(ranks[rank].peak_blocks, used)
    if n_emitting > 0:
        attention_s += interpolate2(
            table.decode_batch_grid,
            table.decode_context_grid,
            table.decode_attention_time_s,
            float(n_emitting),
            ranks[rank].context_sum / n_emitting,
        )
    n_tokens = n_emitting + prefill_tokens
    if n_tokens == 0:
        return 0.0
    return _iteration_time_s(table, n_tokens, n_emitting + ranks[rank].n_joining, attention_s)


@njit
def _ready(limits, requests, request, cutoff_s):
    return request >= 0 and requests[request].ready_s <= cutoff_s


@njit
def _holds_back(limits, requests, ranks, rank, cutoff_s):
    """Whether prompts wait for company (TensorRT-LLM's batch waiting); counts the iterations they do."""
    request = ranks[rank].queue_head
    n_seqs = ranks[rank].n_decoding
    if limits.wait_iterations == 0 or n_seqs == 0 or ranks[rank].prefilling >= 0:
        return False
    if not _ready(limits, requests, request, cutoff_s) or not fits(limits, requests, ranks, rank, request, np.int64(0)):
        return False
    n_tokens = n_seqs
    while _ready(limits, requests, request, cutoff_s) and n_seqs < limits.max_num_seqs:
        n_tokens += requests[request].input_tokens + requests[request].generated
        n_seqs += 1
        request = requests[request].next_waiting
    if n_tokens >= limits.wait_tokens or ranks[rank].n_waited >= limits.wait_iterations:
        ranks[rank].n_waited = 0
        return False
    ranks[rank].n_waited += 1
    return True


@njit
def unbalanced(limits, requests, ranks, pool, replica, cutoff_s):
    """Whether prompts wait until all ranks have some (TensorRT-LLM's attention data-parallel balance)."""
    all_prompts = True
    all_decode = True
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        head = ranks[rank].queue_head
        has_prompt = ranks[rank].prefilling >= 0
        if not has_prompt and _ready(limits, requests, head, cutoff_s):
            has_seat = ranks[rank].n_decoding < limits.max_num_seqs
            has_prompt = has_seat and fits(limits, requests, ranks, rank, head, np.int64(0))
        all_prompts = all_prompts and has_prompt
        all_decode = all_decode and ranks[rank].n_decoding > 0
    pool.replicas[replica].n_unbalanced += 1
    late = pool.replicas[replica].n_unbalanced >= limits.balance_iterations
    if all_prompts or late or not all_decode:
        pool.replicas[replica].n_unbalanced = 0
        return False
    return True


@njit
def _take_prompts(table, limits, requests, ranks, seats, rank, now_s, cutoff_s, budget, admits):
    """Spends a token budget on prompts in order. Returns their tokens and attention time [s]."""
    full_budget = limits.max_num_batched_tokens
    prefill_tokens = 0
    attention_s = 0.0
    n_joining = 0
    fresh_blocks = np.int64(0)
    while budget > 0:
        request = ranks[rank].prefilling
        done = ranks[rank].prefilled
        if request < 0:
            request = ranks[rank].queue_head
            done = 0
            if not admits or ranks[rank].n_decoding + n_joining >= limits.max_num_seqs:
                break
            if not _ready(limits, requests, request, cutoff_s):
                break
        tokens = requests[request].input_tokens + requests[request].generated
        chunk = min(tokens - done, budget)
        if ranks[rank].prefilling < 0:
            if not fits(limits, requests, ranks, rank, request, fresh_blocks):
                break
            if not limits.chunked_prefill and chunk < tokens:
                # A prompt longer than the whole budget can never fit: it goes alone.
                if prefill_tokens > 0 or tokens <= full_budget:
                    break
                chunk = tokens
            blocks = blocks_of(tokens, limits.block_tokens)
            fresh_blocks += _final_blocks(limits, requests, request) - blocks
            _admit(limits, requests, ranks, rank, request, blocks, now_s)
        attention_s += interpolate2(
            table.prefill_query_grid,
            table.prefill_context_grid,
            table.prefill_attention_time_s,
            float(chunk),
            float(done),
        )
        budget -= chunk
        prefill_tokens += chunk
        if done + chunk < tokens:
            ranks[rank].prefilling = request
            ranks[rank].prefilled = done + chunk
        else:
            ranks[rank].prefilling = -1
            seats.joining[rank, n_joining] = request
            n_joining += 1
    ranks[rank].n_joining = n_joining
    return prefill_tokens, attention_s


@njit
def _admit(limits, requests, ranks, rank, request, blocks, now_s):
    """Takes the head of the queue."""
    ranks[rank].free_blocks -= blocks
    ranks[rank].committed_blocks += _final_blocks(limits, requests, request)
    ranks[rank].queue_head = requests[request].next_waiting
    ranks[rank].n_waiting -= 1
    requests[request].admission = ranks[rank].n_admitted
    ranks[rank].n_admitted += 1
    if np.isnan(requests[request].scheduled_s):
        requests[request].scheduled_s = now_s


@njit
def _iteration_time_s(table, n_tokens, n_rows, attention_s):
    gpu_s = interpolate(table.token_grid, table.linear_time_s, float(n_tokens)) + attention_s
    if n_rows > 0:
        gpu_s += interpolate(table.head_rows_grid, table.head_time_s, float(n_rows))
    return wall_time_s(table, gpu_s, n_tokens, n_rows)


@njit
def wall_time_s(table, gpu_s, n_tokens, n_rows):
    """The device's time, or the host's where that is longer, and what neither hides."""
    host_s = table.host_step_s + n_rows * table.host_row_s
    if n_tokens > table.graph_max_tokens:
        host_s += table.eager_time_s
    return max(gpu_s, host_s) + table.step_overhead_s


@njit
def end_request(limits, requests, pool, request, outcome, end_s):
    requests[request].finish_s = end_s
    requests[request].outcome = outcome
    pool.counters[N_ENDED] += 1
    if limits.closed_loop:
        ready_s = end_s + requests[request].pause_s
        heap_push(pool.user_ready_s, pool.user_last, pool.counters[N_USERS_READY], ready_s, request)
        pool.counters[N_USERS_READY] += 1


@njit
def complete(limits, requests, ranks, seats, pool, rank, seen_s):
    """Ends a rank's iteration: every decoding sequence has one more token, finished ones leave, prompts done join."""
    n_emitting = ranks[rank].n_emitting
    ranks[rank].decode_tokens += n_emitting
    ranks[rank].context_sum += n_emitting
    if n_emitting == ranks[rank].n_decoding:  # else decoding pauses, and so does its counter
        ranks[rank].iteration += 1
    now = ranks[rank].iteration
    keys = seats.end_iteration[rank]
    items = seats.end_request[rank]
    while ranks[rank].n_decoding > 0 and keys[0] == now:
        request = items[0]
        heap_remove(keys, items, ranks[rank].n_decoding, np.int64(0))
        held = _cached_tokens(requests, ranks, rank, request)
        _leave_batch(limits, ranks, seats, rank, held)
        _give_back(limits, requests, ranks, rank, request, held)
        end_request(limits, requests, pool, request, np.int64(COMPLETED), seen_s)
    for i in range(ranks[rank].n_joining):
        request = seats.joining[rank, i]
        held = requests[request].input_tokens + requests[request].generated
        requests[request].generated += 1
        if np.isnan(requests[request].first_token_s):
            requests[request].first_token_s = seen_s
        left = requests[request].output_tokens - requests[request].generated
        if left == 0:
            _give_back(limits, requests, ranks, rank, request, held)
            end_request(limits, requests, pool, request, np.int64(COMPLETED), seen_s)
        else:
            requests[request].joined = now
            heap_push(keys, items, ranks[rank].n_decoding, float(now + left), request)
            ranks[rank].n_decoding += 1
            ranks[rank].context_sum += held
            seats.block_residue[rank, (now - held) % limits.block_tokens] += 1
    ranks[rank].n_joining = 0
