"""Plain twin of `kernels.engine`: the same policy, one sequence and one iteration at a time. Slow and obvious."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from moeplan.kernels.engine import COMPLETED, PENDING, REJECTED_CONTEXT, REJECTED_EMPTY, REJECTED_KV


@dataclass
class Request:
    index: int
    arrival_s: float
    n_in: int
    n_out: int
    ready_s: float = math.nan
    scheduled_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    outcome: int = PENDING
    rank: int = -1
    generated: int = 0
    computed: int = 0  # tokens whose KV is in the cache
    prompt: int = 0  # tokens to process before it decodes: after a preemption its own output too
    blocks: int = 0


@dataclass
class Rank:
    free_blocks: int
    iteration: int = 0  # decode iterations
    reserve_since: int = 0
    waited: int = 0
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)  # in order of admission


@dataclass
class Iteration:
    replica: int
    start_s: float
    end_s: float
    decode: int
    prefill_tokens: int
    running: int
    waiting: int
    used_blocks: int


def blocks_of(tokens, size):
    return -(-tokens // size)


def interpolate(grid, values, x):
    if x <= grid[0]:
        return values[0]
    i = min(int(np.searchsorted(grid, x, side="right")) - 1, len(grid) - 2)
    return values[i] + (x - grid[i]) / (grid[i + 1] - grid[i]) * (values[i + 1] - values[i])


def interpolate2(grid0, grid1, values, x0, x1):
    columns = [interpolate(grid0, values[:, j], x0) for j in range(len(grid1))]
    return interpolate(grid1, columns, x1)


class Twin:
    """Runs the arrays of `kernels.engine` requests; ``requests`` and ``iterations`` hold the result."""

    def __init__(self, table, limits, n_replicas, arrival_s, n_in, n_out, n_users=0, pause_s=None):
        self.table, self.limits = table, limits
        self.n_replicas = n_replicas
        n_ranks = n_replicas * limits.ranks_per_replica
        self.ranks = [Rank(limits.n_blocks) for _ in range(n_ranks)]
        self.clock_s = [0.0] * n_replicas
        self.previous_s = [0.0] * n_replicas
        self.received_s = [0.0] * n_replicas
        self.unreceived = [0] * n_replicas
        self.unbalanced = [0] * n_replicas
        self.front_s = [0.0] * n_replicas
        self.posted = [(0.0, 0)] * n_replicas  # end of the last iteration, tokens that wait for the front end
        self.requests = [
            Request(i, float(a), int(p), int(o)) for i, (a, p, o) in enumerate(zip(arrival_s, n_in, n_out, strict=True))
        ]
        self.pause_s = [0.0] * len(self.requests) if pause_s is None else list(pause_s)
        self.user_ready_s = [0.0] * n_users
        self.next = 0
        self.dispatched = 0
        self.iterations: list[Iteration] = []

    def ranks_of(self, replica):
        n = self.limits.ranks_per_replica
        return self.ranks[replica * n : (replica + 1) * n]

    def busy(self, replica):
        return any(rank.waiting or rank.running for rank in self.ranks_of(replica))

    def run(self):
        while True:
            sent_s = math.inf
            if self.next < len(self.requests):
                if not self.limits.closed_loop:
                    sent_s = self.requests[self.next].arrival_s
                elif self.user_ready_s:
                    sent_s = min(self.user_ready_s)
            for replica in range(self.n_replicas):
                self.wake(replica)
            busy = [r for r in range(self.n_replicas) if self.busy(r)]
            behind = min(busy, key=lambda r: self.clock_s[r], default=None)
            if behind is not None and self.clock_s[behind] < sent_s:
                self.iterate(behind)
            elif sent_s < math.inf:
                self.arrive(sent_s)
            else:
                return self

    def wake(self, replica):
        ranks = self.ranks_of(replica)
        ready_s = [rank.waiting[0].ready_s for rank in ranks if rank.waiting]
        if ready_s and not any(rank.running for rank in ranks) and min(ready_s) > self.clock_s[replica]:
            self.clock_s[replica] = self.previous_s[replica] = min(ready_s)

    def settle(self, replica):
        end_s, n_tokens = self.posted[replica]
        if n_tokens:
            self.front_s[replica] = max(self.front_s[replica], end_s) + n_tokens * self.limits.front_token_s
        self.posted[replica] = (end_s, 0)

    def arrive(self, sent_s):
        request = self.requests[self.next]
        self.next += 1
        if self.limits.closed_loop:
            self.user_ready_s.remove(sent_s)
            request.arrival_s = sent_s
        per_replica = self.limits.ranks_per_replica
        turn = self.dispatched
        chosen = (turn % self.n_replicas) * per_replica + (turn // self.n_replicas) % per_replica
        if self.limits.least_loaded:
            n = len(self.ranks)
            order = [(chosen + i) % n for i in range(n)]
            chosen = min(order, key=lambda r: len(self.ranks[r].waiting) + len(self.ranks[r].running))
        replica = chosen // per_replica
        if self.posted[replica][0] <= sent_s:
            self.settle(replica)
        self.front_s[replica] = max(self.front_s[replica], sent_s) + self.limits.front_request_s
        ready_s = request.ready_s = self.front_s[replica] + self.limits.request_overhead_s
        if request.n_in < 1 or request.n_out < 1:
            return self.end(request, REJECTED_EMPTY, ready_s)
        if request.n_in + request.n_out > self.limits.max_context_tokens:
            return self.end(request, REJECTED_CONTEXT, ready_s)
        if blocks_of(request.n_in + request.n_out - 1, self.limits.block_tokens) > self.limits.n_blocks:
            return self.end(request, REJECTED_KV, ready_s)
        self.dispatched += 1
        if not self.busy(replica):
            self.clock_s[replica] = self.previous_s[replica] = max(self.clock_s[replica], ready_s)
            for rank in self.ranks_of(replica):
                rank.reserve_since = rank.iteration
        request.rank = chosen
        self.ranks[chosen].waiting.append(request)
        return None

    def end(self, request, outcome, end_s):
        request.outcome, request.finish_s = outcome, end_s
        if self.limits.closed_loop:
            self.user_ready_s.append(end_s + self.pause_s[request.index])

    def iterate(self, replica):
        start_s = self.clock_s[replica]
        cutoff_s = start_s
        running = any(rank.running for rank in self.ranks_of(replica))
        if self.limits.lookahead and running:
            cutoff_s = self.previous_s[replica]
        if self.limits.receive_iterations > 1:
            if not running or self.unreceived[replica] >= self.limits.receive_iterations:
                self.received_s[replica] = cutoff_s
                self.unreceived[replica] = 0
            cutoff_s = self.received_s[replica]
        admits = self.balanced(replica, cutoff_s)
        plans = [self.schedule(rank, start_s, cutoff_s, admits) for rank in self.ranks_of(replica)]
        end_s = start_s + max(self.time_s(rank, plan) for rank, plan in zip(self.ranks_of(replica), plans, strict=True))
        self.iterations.append(
            Iteration(
                replica,
                start_s,
                end_s,
                sum(len(decode) for decode, _ in plans),
                sum(chunk for _, prefill in plans for _, chunk in prefill),
                sum(len(rank.running) for rank in self.ranks_of(replica)),
                sum(len(rank.waiting) for rank in self.ranks_of(replica)),
                sum(self.limits.n_blocks - rank.free_blocks for rank in self.ranks_of(replica)),
            )
        )
        self.settle(replica)
        n_out = sum(len(decode) + sum(r.computed + n == r.prompt for r, n in prefill) for decode, prefill in plans)
        self.posted[replica] = (end_s, n_out)
        seen_s = max(self.front_s[replica], end_s) + n_out * self.limits.front_token_s
        has_prompts = any(prefill for _, prefill in plans)
        self.unreceived[replica] += self.limits.receive_iterations if has_prompts else 1
        for rank, (decode, prefill) in zip(self.ranks_of(replica), plans, strict=True):
            if decode or not any(self.decodes(request) for request in rank.running):
                rank.iteration += 1
            for request, tokens in [(request, 1) for request in decode] + prefill:
                request.computed += tokens
                if request.computed >= request.prompt:
                    request.generated += 1
                    if request.generated == 1:
                        request.first_token_s = seen_s
                if request.generated == request.n_out:
                    rank.running.remove(request)
                    rank.free_blocks += request.blocks
                    request.blocks = 0
                    self.end(request, COMPLETED, seen_s)
        self.previous_s[replica], self.clock_s[replica] = start_s, end_s

    def preempt_youngest(self, rank):
        victim = rank.running.pop()
        rank.free_blocks += victim.blocks
        victim.blocks = victim.computed = 0
        rank.reserve_since = rank.iteration
        rank.waiting.insert(0, victim)

    @staticmethod
    def decodes(request):
        return request.blocks > 0 and request.computed >= request.prompt

    def balanced(self, replica, cutoff_s):
        ranks, limits = self.ranks_of(replica), self.limits
        if limits.balance_iterations == 0:
            return True

        def has_prompt(rank):
            if any(not self.decodes(request) for request in rank.running):
                return True
            seat = len(rank.running) < limits.max_num_seqs
            head = rank.waiting[0] if rank.waiting else None
            return bool(head and seat and self.ready(head, cutoff_s) and self.fits(rank, head, []))

        self.unbalanced[replica] += 1
        late = self.unbalanced[replica] >= limits.balance_iterations
        if late or all(map(has_prompt, ranks)) or not all(any(map(self.decodes, rank.running)) for rank in ranks):
            self.unbalanced[replica] = 0
            return True
        return False

    def schedule(self, rank, now_s, cutoff_s, admits):
        """Decoding requests, and (request, tokens) of prompts, of the rank's next iteration."""
        budget = self.limits.max_num_batched_tokens
        if self.limits.prefill_first:
            prefill = self.prompts(rank, now_s, cutoff_s, budget, admits)
            return ([], prefill) if prefill else (self.decoding(rank)[0], [])
        decode, preempted = self.decoding(rank)
        admits = admits and not preempted and not self.holds_back(rank, len(decode), cutoff_s)
        return decode, self.prompts(rank, now_s, cutoff_s, budget - len(decode), admits)

    def decoding(self, rank):
        """Decoding requests with a block for their next token, and whether others were preempted for that."""
        size = self.limits.block_tokens
        preempted = False
        decode = []
        for request in list(rank.running):
            if not self.decodes(request):
                continue
            while request in rank.running and blocks_of(request.computed + 1, size) > request.blocks:
                if rank.free_blocks > 0:
                    rank.free_blocks -= 1
                    request.blocks += 1
                else:
                    self.preempt_youngest(rank)
                    preempted = True
            if request in rank.running:
                decode.append(request)
        return [request for request in decode if request in rank.running], preempted

    def ready(self, request, cutoff_s):
        return request.ready_s <= cutoff_s

    def final_blocks(self, request):
        return blocks_of(request.n_in + request.n_out - 1, self.limits.block_tokens)

    def fits(self, rank, request, fresh):
        """Whether a request may be admitted; ``fresh`` were in this iteration."""
        limits = self.limits
        if not limits.reserves_output:
            return blocks_of(request.n_in + request.generated, limits.block_tokens) <= rank.free_blocks
        share = min((rank.iteration - rank.reserve_since) / limits.reserve_steps, 1.0)
        share = limits.reserve_start_frac + share * (limits.reserve_end_frac - limits.reserve_start_frac)
        to_come = sum(self.final_blocks(r) - r.blocks for r in rank.running)
        new = sum(self.final_blocks(r) - r.blocks for r in fresh)
        return self.final_blocks(request) <= rank.free_blocks - (share * (to_come - new) + new)

    def holds_back(self, rank, n_decode, cutoff_s):
        limits = self.limits
        if limits.wait_iterations == 0 or n_decode == 0 or n_decode < len(rank.running):
            return False
        queue = [request for request in rank.waiting if self.ready(request, cutoff_s)]
        if not queue or not self.fits(rank, queue[0], []):
            return False
        queue = queue[: limits.max_num_seqs - n_decode]
        n_tokens = n_decode + sum(request.n_in + request.generated for request in queue)
        if n_tokens >= limits.wait_tokens or rank.waited >= limits.wait_iterations:
            rank.waited = 0
            return False
        rank.waited += 1
        return True

    def prompts(self, rank, now_s, cutoff_s, budget, admits):
        size = self.limits.block_tokens
        prefill, fresh = [], []
        for request in rank.running:
            if not self.decodes(request):
                chunk = min(budget, request.prompt - request.computed)
                prefill.append((request, chunk))
                budget -= chunk
        while rank.waiting and budget > 0 and admits and len(rank.running) < self.limits.max_num_seqs:
            request = rank.waiting[0]
            tokens = request.n_in + request.generated
            if not self.ready(request, cutoff_s) or not self.fits(rank, request, fresh):
                break
            chunk = min(tokens, budget)
            if not self.limits.chunked_prefill and chunk < tokens:
                if prefill or tokens <= self.limits.max_num_batched_tokens:
                    break
                chunk = tokens
            rank.waiting.pop(0)
            rank.running.append(request)
            request.prompt = tokens
            request.blocks = blocks_of(tokens, size)
            rank.free_blocks -= request.blocks
            fresh.append(request)
            if math.isnan(request.scheduled_s):
                request.scheduled_s = now_s
            prefill.append((request, chunk))
            budget -= chunk
        return prefill

    def time_s(self, rank, plan):
        decode, prefill = plan
        table = self.table
        n_tokens = len(decode) + sum(chunk for _, chunk in prefill)
        if n_tokens == 0:
            return 0.0
        attention_s = 0.0
        for request, chunk in prefill:
            attention_s += interpolate2(
                table.prefill_query_grid,
                table.prefill_context_grid,
                table.prefill_attention_time_s,
                chunk,
                request.computed,
            )
        if decode:
            context = sum(request.computed for request in decode) / len(decode)
            attention_s += interpolate2(
                table.decode_batch_grid,
                table.decode_context_grid,
                table.decode_attention_time_s,
                len(decode),
                context,
            )
        rows = len(decode) + sum(r.computed + chunk == r.prompt for r, chunk in prefill)
        time_s = interpolate(table.token_grid, table.linear_time_s, n_tokens) + attention_s
        if rows:
            time_s += interpolate(table.head_rows_grid, table.head_time_s, rows)
        host_s = table.host_step_s + rows * table.host_row_s
        if n_tokens > table.graph_max_tokens:
            host_s += table.eager_time_s
        return max(time_s, host_s) + table.step_overhead_s
