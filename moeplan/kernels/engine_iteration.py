"""One iteration of a rank: who is in it, what it takes, what it leaves behind. The policies of `Limits` are here."""

from __future__ import annotations

import numpy as np

from moeplan.kernels import inner
from moeplan.kernels.engine_cache import find_prefix, leave_prefix, publish, trim, use_prefix
from moeplan.kernels.engine_grids import heap_push, heap_remove, interpolate, interpolate2
from moeplan.kernels.engine_queue import end_request, requeue
from moeplan.kernels.engine_state import COMPLETED


@inner
def blocks_of(tokens, block_tokens):
    return (tokens + block_tokens - 1) // block_tokens


@inner
def cached_tokens(requests, ranks, rank, request):
    """KV tokens a decoding request holds."""
    decoded = ranks[rank].iteration - requests[request].joined
    return requests[request].input_tokens + requests[request].generated - 1 + decoded


@inner
def tokens_gained(accepted, iteration, rank):
    """Tokens each decoding sequence of a rank gets in the iteration that starts at this counter."""
    return np.int64(accepted[(iteration + 7919 * rank) & (accepted.size - 1)])


@inner
def blocks_to_grow(block_residue, block_tokens, rank, iteration, gained):
    """Blocks the decoding sequences of a rank need to get so many tokens each."""
    n_blocks = block_residue[rank, iteration % block_tokens]
    for i in range(1, gained):
        n_blocks += block_residue[rank, (iteration + i) % block_tokens]
    return n_blocks


@inner
def _preempt(limits, requests, ranks, seats, rank):
    """Puts a running sequence back at the head of the queue: the youngest, with priorities of the least important.

    Its output tokens are kept, its KV goes to swap space or is lost.
    """
    keys = seats.end_iteration[rank]
    items = seats.end_request[rank]
    size = ranks[rank].n_decoding
    request = ranks[rank].prefilling
    position = np.int64(-1)
    if request < 0 or limits.by_priority:
        for i in range(size):
            if request < 0 or _goes_before(limits, requests, items[i], request):
                position = i
                request = items[i]
    if position < 0:
        ranks[rank].prefilling = -1
        held = requests[request].input_tokens + requests[request].generated
        give_back(limits, requests, ranks, seats, rank, request, held, ranks[rank].prefilled)
    else:
        heap_remove(keys, items, size, position)
        held = cached_tokens(requests, ranks, rank, request)
        leave_batch(limits, ranks, seats, rank, held)
        requests[request].generated += ranks[rank].iteration - requests[request].joined
        give_back(limits, requests, ranks, seats, rank, request, held, held)
        n_blocks = blocks_of(held, limits.block_tokens)
        if n_blocks <= ranks[rank].free_swap_blocks:
            ranks[rank].free_swap_blocks -= n_blocks
            ranks[rank].link_s += n_blocks * limits.block_link_s
            ranks[rank].n_swaps += 1
            requests[request].kv_tokens = held
            requests[request].swapped = 1
    ranks[rank].reserve_since = ranks[rank].iteration
    ranks[rank].n_preemptions += 1
    requeue(limits, requests, ranks, rank, request)


@inner
def _goes_before(limits, requests, one, other):
    """Whether one running request is preempted before another."""
    if limits.by_priority and requests[one].priority != requests[other].priority:
        return requests[one].priority > requests[other].priority
    return requests[one].admission > requests[other].admission


@inner
def leave_batch(limits, ranks, seats, rank, held):
    ranks[rank].n_decoding -= 1
    ranks[rank].context_sum -= held
    seats.block_residue[rank, _residue(limits, ranks, rank, held)] -= 1


@inner
def _residue(limits, ranks, rank, held):
    """Where a sequence with ``held`` tokens and slots for its drafts is counted in ``Seats.block_residue``."""
    return (ranks[rank].iteration - held - (limits.verify_tokens - 1)) % limits.block_tokens


@inner
def give_back(limits, requests, ranks, seats, rank, request, held, computed):
    """Frees the blocks of a request with slots for ``held`` tokens, ``computed`` of which are worth keeping."""
    n_blocks = _own_blocks(limits, held)
    if limits.caches:
        publish(limits, requests, ranks, seats, rank, request, computed)
        n_blocks -= requests[request].n_units * limits.unit_blocks
        leave_prefix(limits, requests, ranks, seats, rank, request)
    ranks[rank].free_blocks += n_blocks
    ranks[rank].committed_blocks -= final_blocks(limits, requests, request)


@inner
def _own_blocks(limits, tokens):
    """Blocks of a running sequence with so many cached tokens: with slots for the drafts."""
    return blocks_of(tokens + limits.verify_tokens - 1, limits.block_tokens)


@inner
def final_blocks(limits, requests, request):
    """Blocks of a request before its last token, the last drafts running over its end."""
    tokens = requests[request].input_tokens + requests[request].output_tokens - 1
    return _own_blocks(limits, tokens + limits.verify_tokens - 1)


@inner
def fits(limits, requests, ranks, seats, rank, request, fresh_blocks):
    """Whether a request may be admitted. ``fresh_blocks``: for outputs of those admitted in this iteration."""
    free = ranks[rank].free_blocks
    shared = np.int64(0)
    if limits.caches:
        shared = find_prefix(limits, requests, seats, rank, request)[1] * limits.unit_blocks
    if not limits.reserves_output:
        tokens = requests[request].input_tokens + requests[request].generated
        return _own_blocks(limits, tokens) - shared <= free
    to_come = ranks[rank].committed_blocks - (limits.n_blocks - free) - ranks[rank].saved_blocks
    share = reserve_frac(limits, ranks, rank)
    kept = share * (to_come - fresh_blocks) + fresh_blocks
    return final_blocks(limits, requests, request) - shared <= free - kept


@inner
def reserve_frac(limits, ranks, rank):
    fallen = (ranks[rank].iteration - ranks[rank].reserve_since) / limits.reserve_steps
    start = limits.reserve_start_frac
    return start + min(fallen, 1.0) * (limits.reserve_end_frac - start)


@inner
def compose(table, limits, requests, ranks, seats, pool, rank, now_s, cutoff_s, admits):
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
        iteration = ranks[rank].iteration
        gained = tokens_gained(pool.accepted, iteration, rank)
        n_blocks = blocks_to_grow(seats.block_residue, limits.block_tokens, rank, iteration, gained)
        while n_blocks > ranks[rank].free_blocks:
            _preempt(limits, requests, ranks, seats, rank)
            n_blocks = blocks_to_grow(seats.block_residue, limits.block_tokens, rank, iteration, gained)
            preempted = True
        ranks[rank].free_blocks -= n_blocks
        if limits.caches:
            trim(limits, ranks, seats, rank)
        ranks[rank].n_emitting = ranks[rank].n_decoding
    n_emitting = ranks[rank].n_emitting
    verified = n_emitting * limits.verify_tokens
    if not limits.prefill_first:
        admits = admits and not preempted and not _holds_back(limits, requests, ranks, seats, rank, cutoff_s)
        budget = limits.max_num_batched_tokens - verified
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
        if limits.verify_tokens > 1:
            attention_s += interpolate(table.decode_batch_grid, table.draft_time_s, float(n_emitting))
    n_tokens = verified + prefill_tokens
    if n_tokens == 0:
        return 0.0
    n_joining = ranks[rank].n_joining
    time_s = _iteration_time_s(table, n_tokens, verified + n_joining, n_emitting + n_joining, attention_s)
    link_s = ranks[rank].link_s
    if link_s > 0.0:
        time_s = max(time_s, link_s) if limits.link_overlaps else time_s + link_s
        ranks[rank].link_s = 0.0
    return time_s


@inner
def padded(table, n_tokens):
    """Tokens an iteration computes: those of the smallest captured graph that holds it."""
    sizes = table.graph_sizes
    if sizes.size == 0 or n_tokens > sizes[-1] or n_tokens > table.graph_max_tokens:
        return float(n_tokens)
    low = 0
    high = sizes.size - 1
    while low < high:
        middle = (low + high) >> 1
        if sizes[middle] < n_tokens:
            low = middle + 1
        else:
            high = middle
    return sizes[low]


@inner
def _ready(requests, request, cutoff_s):
    return request >= 0 and requests[request].ready_s <= cutoff_s


@inner
def _holds_back(limits, requests, ranks, seats, rank, cutoff_s):
    """Whether prompts wait for company (TensorRT-LLM's batch waiting); counts the iterations they do."""
    request = ranks[rank].queue_head
    n_seqs = ranks[rank].n_decoding
    if limits.wait_iterations == 0 or n_seqs == 0 or ranks[rank].prefilling >= 0:
        return False
    if n_seqs >= limits.max_num_seqs:
        return False  # nobody could start
    if not _ready(requests, request, cutoff_s) or not fits(limits, requests, ranks, seats, rank, request, np.int64(0)):
        return False
    n_tokens = n_seqs * limits.verify_tokens
    while _ready(requests, request, cutoff_s) and n_seqs < limits.max_num_seqs:
        n_tokens += requests[request].input_tokens + requests[request].generated
        n_seqs += 1
        request = requests[request].next_waiting
    if n_tokens >= limits.wait_tokens or ranks[rank].n_waited >= limits.wait_iterations:
        ranks[rank].n_waited = 0
        return False
    ranks[rank].n_waited += 1
    return True


@inner
def unbalanced(limits, requests, ranks, seats, pool, replica, cutoff_s):
    """Whether prompts wait until all ranks have some (TensorRT-LLM's attention data-parallel balance)."""
    all_prompts = True
    all_decode = True
    first = replica * limits.ranks_per_replica
    for rank in range(first, first + limits.ranks_per_replica):
        head = ranks[rank].queue_head
        has_prompt = ranks[rank].prefilling >= 0
        if not has_prompt and _ready(requests, head, cutoff_s):
            has_seat = ranks[rank].n_decoding < limits.max_num_seqs
            has_prompt = has_seat and fits(limits, requests, ranks, seats, rank, head, np.int64(0))
        all_prompts = all_prompts and has_prompt
        all_decode = all_decode and ranks[rank].n_decoding > 0
    pool.replicas[replica].n_unbalanced += 1
    late = pool.replicas[replica].n_unbalanced >= limits.balance_iterations
    if all_prompts or late or not all_decode:
        pool.replicas[replica].n_unbalanced = 0
        return False
    return True


@inner
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
        n_found = np.int64(0)
        if request < 0:
            request = ranks[rank].queue_head
            if not admits or ranks[rank].n_decoding + n_joining >= limits.max_num_seqs:
                break
            if not _ready(requests, request, cutoff_s):
                break
            n_found = find_prefix(limits, requests, seats, rank, request)[0]
            done = max(n_found * limits.unit_tokens, requests[request].kv_tokens)
        tokens = requests[request].input_tokens + requests[request].generated
        chunk = min(tokens - done, budget)
        if ranks[rank].prefilling < 0:
            if not fits(limits, requests, ranks, seats, rank, request, fresh_blocks):
                break
            if not limits.chunked_prefill and chunk < tokens - done:
                # A prompt longer than the whole budget can never fit: it goes alone.
                if prefill_tokens > 0 or tokens - done <= full_budget:
                    break
                chunk = tokens - done
            blocks = _own_blocks(limits, tokens)
            fresh_blocks += final_blocks(limits, requests, request) - blocks
            _admit(limits, requests, ranks, seats, rank, request, blocks, n_found, now_s)
        attention_s += interpolate2(
            table.prefill_query_grid,
            table.prefill_context_grid,
            table.prefill_attention_time_s,
            float(chunk),
            float(done),
        )
        if limits.caches:
            publish(limits, requests, ranks, seats, rank, request, done + chunk)
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


@inner
def _admit(limits, requests, ranks, seats, rank, request, blocks, n_found, now_s):
    """Takes the head of the queue, with KV of its own from elsewhere or ``n_found`` units of the prefix cache."""
    if requests[request].swapped != 0:
        n_swapped = blocks_of(requests[request].kv_tokens, limits.block_tokens)
        ranks[rank].free_swap_blocks += n_swapped
        ranks[rank].link_s += n_swapped * limits.block_link_s
        requests[request].swapped = 0
    requests[request].kv_tokens = 0
    if limits.caches:
        use_prefix(limits, requests, ranks, seats, rank, request, n_found)
        ranks[rank].free_blocks -= blocks - n_found * limits.unit_blocks
        trim(limits, ranks, seats, rank)
    else:
        ranks[rank].free_blocks -= blocks
    ranks[rank].committed_blocks += final_blocks(limits, requests, request)
    ranks[rank].queue_head = requests[request].next_waiting
    ranks[rank].n_waiting -= 1
    requests[request].admission = ranks[rank].n_admitted
    ranks[rank].n_admitted += 1
    if np.isnan(requests[request].scheduled_s):
        requests[request].scheduled_s = now_s


@inner
def _iteration_time_s(table, n_tokens, n_rows, n_seqs, attention_s):
    gpu_s = interpolate(table.token_grid, table.linear_time_s, padded(table, n_tokens)) + attention_s
    if n_rows > 0:
        gpu_s += interpolate(table.head_rows_grid, table.head_time_s, float(n_rows))
    return max(gpu_s, host_time_s(table, n_tokens, n_seqs)) + table.step_overhead_s


@inner
def host_time_s(table, n_tokens, n_seqs):
    """What the host needs beside the device for an iteration that gives ``n_seqs`` sequences a token [s]."""
    host_s = table.host_step_s + n_seqs * table.host_row_s
    if n_tokens > table.graph_max_tokens:
        host_s += table.eager_time_s
    return host_s


@inner
def complete(limits, requests, ranks, seats, pool, rank, seen_s):
    """Ends a rank's iteration: every decoding sequence has one more token, finished ones leave, prompts done join."""
    n_emitting = ranks[rank].n_emitting
    gained = tokens_gained(pool.accepted, ranks[rank].iteration, rank)
    ranks[rank].decode_tokens += n_emitting * gained
    ranks[rank].context_sum += n_emitting * gained
    if n_emitting == ranks[rank].n_decoding:  # else decoding pauses, and so does its counter
        ranks[rank].iteration += gained
    now = ranks[rank].iteration
    keys = seats.end_iteration[rank]
    items = seats.end_request[rank]
    while ranks[rank].n_decoding > 0 and keys[0] <= now:
        request = items[0]
        ranks[rank].decode_tokens -= now - np.int64(keys[0])
        heap_remove(keys, items, ranks[rank].n_decoding, np.int64(0))
        held = cached_tokens(requests, ranks, rank, request)
        leave_batch(limits, ranks, seats, rank, held)
        give_back(limits, requests, ranks, seats, rank, request, held, held)
        end_request(limits, requests, pool, request, np.int64(COMPLETED), seen_s)
    for i in range(ranks[rank].n_joining):
        request = seats.joining[rank, i]
        held = requests[request].input_tokens + requests[request].generated
        requests[request].generated += 1
        if np.isnan(requests[request].first_token_s):
            requests[request].first_token_s = seen_s
        left = requests[request].output_tokens - requests[request].generated
        if left == 0:
            give_back(limits, requests, ranks, seats, rank, request, held, held)
            end_request(limits, requests, pool, request, np.int64(COMPLETED), seen_s)
        else:
            requests[request].joined = now
            heap_push(keys, items, ranks[rank].n_decoding, float(now + left), request)
            ranks[rank].n_decoding += 1
            ranks[rank].context_sum += held
            seats.block_residue[rank, _residue(limits, ranks, rank, held)] += 1
    ranks[rank].n_joining = 0
