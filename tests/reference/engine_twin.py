"""Plain twin of `kernels.engine`: the same policy, one sequence and one iteration at a time. Slow and obvious."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from moeplan.kernels.engine_state import (
    COMPLETED,
    NEXT_OF_STREAM,
    PENDING,
    PREFIX_AWARE,
    REJECTED_CONTEXT,
    REJECTED_EMPTY,
    REJECTED_KV,
    ROUND_ROBIN,
    TIMED_OUT_RUNNING,
    TIMED_OUT_WAITING,
)


@dataclass
class Request:
    index: int
    arrival_s: float
    n_in: int
    n_out: int
    pause_s: float
    priority: int
    start_timeout_s: float
    finish_timeout_s: float
    successor: int
    units: list[int]  # of its prefix
    kv_tokens: int = 0  # that come with it
    swapped: bool = False
    ready_s: float = math.nan
    scheduled_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    outcome: int = PENDING
    rank: int = -1
    admission: int = 0
    generated: int = 0
    computed: int = 0  # tokens whose KV is in the cache
    prompt: int = 0  # tokens to process before it decodes: after a preemption its own output too
    blocks: int = 0  # shared ones included
    n_units: int = 0  # of its prefix that it uses
    hit_tokens: int = 0

    @property
    def tokens(self):
        return self.n_in + self.generated

    @property
    def decodes(self):
        return self.blocks > 0 and self.computed >= self.prompt

    @property
    def deadline_s(self):
        left_s = self.finish_timeout_s
        if math.isnan(self.scheduled_s):
            left_s = min(left_s, self.start_timeout_s)
        return self.arrival_s + left_s


@dataclass
class Rank:
    number: int
    limits: object
    iteration: int = 0  # token counter
    reserve_since: int = 0
    waited: int = 0
    admitted: int = 0
    waiting: list[Request] = field(default_factory=list)
    incoming: list[Request] = field(default_factory=list)  # with priorities: not yet sorted in
    running: list[Request] = field(default_factory=list)  # in order of admission
    users: Counter = field(default_factory=Counter)  # running requests by unit
    idle: list[int] = field(default_factory=list)  # cached units nobody uses, least recently used first
    host: list[int] = field(default_factory=list)  # units in host memory, likewise
    swapped_blocks: int = 0
    link_s: float = 0.0
    preemptions: int = 0
    swaps: int = 0
    hit_tokens: int = 0
    host_hit_tokens: int = 0

    @property
    def free_blocks(self):
        size = self.limits.unit_blocks
        own = sum(request.blocks - request.n_units * size for request in self.running)
        return self.limits.n_blocks - own - size * len(self.users)

    @property
    def load(self):
        return len(self.waiting) + len(self.incoming) + len(self.running)

    def found(self, request):
        """Units of a waiting request that are cached here, from the first on."""
        if not self.limits.caches or request.kv_tokens > 0:
            return []
        found = []
        for unit in request.units[: (request.tokens - 1) // self.limits.unit_tokens]:
            if not (unit in self.users or unit in self.idle or unit in self.host):
                break
            found.append(unit)
        return found

    def use(self, unit):
        for units in (self.idle, self.host):
            if unit in units:
                units.remove(unit)
        self.users[unit] += 1

    def publish(self, request, tokens):
        """Units a request has filled can be found from now on."""
        if self.limits.caches:
            for unit in request.units[request.n_units : tokens // self.limits.unit_tokens]:
                self.use(unit)
                request.n_units += 1

    def remove(self, request, computed):
        """Takes a request off the running ones; its units stay as long as their room is not needed."""
        self.publish(request, computed)
        for unit in reversed(request.units[: request.n_units]):
            self.users[unit] -= 1
            if self.users[unit] == 0:
                del self.users[unit]
                self.idle.append(unit)
        self.running.remove(request)
        request.blocks = request.n_units = request.computed = 0

    def trim(self):
        while len(self.idle) * self.limits.unit_blocks > self.free_blocks:
            unit = self.idle.pop(0)
            if self.limits.host_units > 0:
                self.host.append(unit)
            if len(self.host) > self.limits.host_units:
                self.host.pop(0)


@dataclass
class Iteration:
    replica: int
    start_s: float
    end_s: float
    decode: int  # tokens
    prefill_tokens: int
    running: list[int]  # by rank
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
    """Runs the requests of `simulate.pool.ReplicaPool`; ``requests`` and ``iterations`` hold the result."""

    def __init__(self, table, limits, n_replicas, requests, accepted=(1,), n_accepting=None):
        """``limits``: as the pool completes them; ``requests``: `simulate.arrivals.Requests` in units of the cache."""
        self.table, self.limits, self.accepted = table, limits, accepted
        self.n_replicas = n_replicas
        self.ranks = [Rank(i, limits) for i in range(n_replicas * limits.ranks_per_replica)]
        self.accepts = [r < (n_replicas if n_accepting is None else n_accepting) for r in range(n_replicas)]
        self.clock_s = [0.0] * n_replicas
        self.previous_s = [0.0] * n_replicas
        self.received_s = [0.0] * n_replicas
        self.unreceived = [0] * n_replicas
        self.unbalanced = [0] * n_replicas
        self.front_s = [0.0] * n_replicas
        self.posted = [(0.0, 0)] * n_replicas  # end of the last iteration, tokens that wait for the front end
        n = len(requests)

        def column(name, otherwise):
            values = getattr(requests, name)
            return [otherwise] * n if values is None else list(values)

        units = [[]] * n
        if limits.caches:
            ends = np.cumsum(requests.n_hash)
            units = [list(requests.hash_ids[end - k : end]) for end, k in zip(ends, requests.n_hash, strict=True)]
        columns = (
            map(float, requests.arrival_s),
            map(int, requests.input_tokens),
            map(int, requests.output_tokens),
            map(float, requests.pause_s),
            column("priority", 0),
            column("start_timeout_s", math.inf),
            column("finish_timeout_s", math.inf),
            column("successor", -1),
            units,
        )
        self.requests = [Request(i, *row) for i, row in enumerate(zip(*columns, strict=True))]
        self.sends = [(0.0, NEXT_OF_STREAM)] * requests.n_users
        self.n_stream = n if requests.n_stream is None else requests.n_stream
        self.next = 0
        self.dispatched = 0
        self.door_s = 0.0
        self.ended: list[int] = []
        self.iterations: list[Iteration] = []

    def ranks_of(self, replica):
        n = self.limits.ranks_per_replica
        return self.ranks[replica * n : (replica + 1) * n]

    def busy(self, replica):
        return any(rank.load for rank in self.ranks_of(replica))

    # Control events

    def accept(self, replica, accepts):
        self.accepts[replica] = accepts

    def empty(self, replica, at_s):
        taken = []
        for i, rank in enumerate(self.ranks_of(replica)):
            taken += rank.waiting + rank.incoming + rank.running
            fresh = Rank(rank.number, self.limits, rank.iteration, rank.reserve_since, rank.waited, rank.admitted)
            for name in ("preemptions", "swaps", "hit_tokens", "host_hit_tokens"):
                setattr(fresh, name, getattr(rank, name))
            self.ranks[replica * self.limits.ranks_per_replica + i] = fresh
        for request in taken:
            request.blocks = request.n_units = request.computed = request.kv_tokens = 0
            request.swapped, request.rank = False, -1
        self.posted[replica] = (self.posted[replica][0], 0)
        self.front_s[replica] = at_s
        return sorted(request.index for request in taken)

    def send(self, requests, at_s):
        self.sends += [(at_s, index) for index in requests]

    def end_all(self, requests, outcome, at_s):
        for index in requests:
            self.end(self.requests[index], outcome, at_s)

    # The run

    def next_send(self):
        if not any(self.accepts):
            return math.inf, None
        sends = [send for send in self.sends if send[1] >= 0 or self.next < self.n_stream]
        if not self.limits.closed_loop and self.next < self.n_stream:
            sends.append((self.requests[self.next].arrival_s, NEXT_OF_STREAM))
        return min(sends, default=(math.inf, None))

    def run(self, until_s=math.inf):
        while True:
            send = self.next_send()
            sent_s = max(send[0], self.door_s)
            for replica in range(self.n_replicas):
                self.wake(replica)
            busy = [r for r in range(self.n_replicas) if self.busy(r)]
            behind = min(busy, key=lambda r: self.clock_s[r], default=None)
            if behind is not None and self.clock_s[behind] < min(sent_s, until_s):
                self.iterate(behind)
            elif sent_s < until_s:
                self.arrive(send, sent_s)
            else:
                self.door_s = max(self.door_s, until_s)
                return self

    def wake(self, replica):
        ranks = self.ranks_of(replica)
        ready_s = [queue[0].ready_s for rank in ranks for queue in (rank.waiting, rank.incoming) if queue]
        if ready_s and not any(rank.running for rank in ranks) and min(ready_s) > self.clock_s[replica]:
            self.clock_s[replica] = self.previous_s[replica] = min(ready_s)

    def settle(self, replica):
        end_s, n_tokens = self.posted[replica]
        if n_tokens:
            self.front_s[replica] = max(self.front_s[replica], end_s) + n_tokens * self.limits.front_token_s
        self.posted[replica] = (end_s, 0)

    def choose(self, request):
        per_replica = self.limits.ranks_per_replica
        accepting = [r for r in range(self.n_replicas) if self.accepts[r]]
        turn = self.dispatched
        chosen = accepting[turn % len(accepting)] * per_replica + (turn // len(accepting)) % per_replica
        if self.limits.dispatch == ROUND_ROBIN:
            return chosen
        n = len(self.ranks)
        order = [r for r in ((chosen + i) % n for i in range(n)) if self.accepts[r // per_replica]]
        if self.limits.dispatch == PREFIX_AWARE:
            return min(order, key=lambda r: (-len(self.ranks[r].found(request)), self.ranks[r].load))
        return min(order, key=lambda r: self.ranks[r].load)

    def arrive(self, send, sent_s):
        of_stream = send[1] == NEXT_OF_STREAM
        request = self.requests[self.next if of_stream else send[1]]
        self.next += of_stream
        if self.limits.closed_loop or not of_stream:
            self.sends.remove(send)
            if math.isnan(request.arrival_s):
                request.arrival_s = send[0]
        limits = self.limits
        chosen = self.choose(request)
        replica = chosen // limits.ranks_per_replica
        if self.posted[replica][0] <= sent_s:
            self.settle(replica)
        self.front_s[replica] = max(self.front_s[replica], sent_s) + limits.front_request_s
        ready_s = request.ready_s = self.front_s[replica] + limits.request_overhead_s
        if request.n_in < 1 or request.n_out < 1:
            return self.end(request, REJECTED_EMPTY, ready_s)
        if request.n_in + request.n_out > limits.max_context_tokens:
            return self.end(request, REJECTED_CONTEXT, ready_s)
        if self.final_blocks(request) > limits.n_blocks:
            return self.end(request, REJECTED_KV, ready_s)
        if request.deadline_s <= sent_s:
            return self.end(request, TIMED_OUT_WAITING, sent_s)
        self.dispatched += 1
        if not self.busy(replica):
            self.clock_s[replica] = self.previous_s[replica] = max(self.clock_s[replica], ready_s)
            for rank in self.ranks_of(replica):
                rank.reserve_since = rank.iteration
        request.rank = chosen
        rank = self.ranks[chosen]
        (rank.incoming if limits.by_priority else rank.waiting).append(request)
        return None

    def end(self, request, outcome, end_s):
        request.outcome, request.finish_s = outcome, end_s
        self.ended.append(request.index)
        if request.successor >= 0:
            self.sends.append((end_s + request.pause_s, request.successor))
        elif self.limits.closed_loop:
            self.sends.append((end_s + request.pause_s, NEXT_OF_STREAM))

    def expire(self, rank, now_s):
        """Ends the requests whose users have given up. Returns how many."""
        late = [r for r in rank.waiting + rank.incoming if r.deadline_s <= now_s]
        late += sorted((r for r in rank.running if r.deadline_s <= now_s), key=lambda r: r.index)
        for request in late:
            if request in rank.running:
                rank.remove(request, request.computed)
            else:
                rank.swapped_blocks -= blocks_of(request.kv_tokens, self.limits.block_tokens) * request.swapped
                (rank.waiting if request in rank.waiting else rank.incoming).remove(request)
            started = not math.isnan(request.scheduled_s)
            self.end(request, TIMED_OUT_RUNNING if started else TIMED_OUT_WAITING, now_s)
        return len(late)

    def sort_in(self, rank, cutoff_s):
        while rank.incoming and rank.incoming[0].ready_s <= cutoff_s:
            request = rank.incoming.pop(0)
            rank.waiting.insert(sum(other.priority <= request.priority for other in rank.waiting), request)

    def gained(self, rank):
        return int(self.accepted[(rank.iteration + 7919 * rank.number) % len(self.accepted)])

    def iterate(self, replica):
        start_s = self.clock_s[replica]
        if sum(self.expire(rank, start_s) for rank in self.ranks_of(replica)) > 0:
            return
        cutoff_s = start_s
        running = any(rank.running for rank in self.ranks_of(replica))
        if self.limits.lookahead and running:
            cutoff_s = self.previous_s[replica]
        if self.limits.receive_iterations > 1:
            if not running or self.unreceived[replica] >= self.limits.receive_iterations:
                self.received_s[replica] = cutoff_s
                self.unreceived[replica] = 0
            cutoff_s = self.received_s[replica]
        for rank in self.ranks_of(replica):
            self.sort_in(rank, cutoff_s)
        admits = self.balanced(replica, cutoff_s)
        plans = [self.schedule(rank, start_s, cutoff_s, admits) for rank in self.ranks_of(replica)]
        end_s = start_s + max(self.time_s(rank, plan) for rank, plan in zip(self.ranks_of(replica), plans, strict=True))
        self.settle(replica)
        n_out = sum(
            len(decode) * self.gained(rank) + sum(r.computed + n == r.prompt for r, n in prefill)
            for rank, (decode, prefill) in zip(self.ranks_of(replica), plans, strict=True)
        )
        self.posted[replica] = (end_s, n_out)
        seen_s = max(self.front_s[replica], end_s) + n_out * self.limits.front_token_s
        has_prompts = any(prefill for _, prefill in plans)
        self.unreceived[replica] += self.limits.receive_iterations if has_prompts else 1
        now = Iteration(
            replica,
            start_s,
            end_s,
            0,
            sum(chunk for _, prefill in plans for _, chunk in prefill),
            [len(rank.running) for rank in self.ranks_of(replica)],
            sum(self.limits.n_blocks - rank.free_blocks for rank in self.ranks_of(replica)),
        )
        self.iterations.append(now)
        for rank, (decode, prefill) in zip(self.ranks_of(replica), plans, strict=True):
            gained = self.gained(rank)
            if decode or not any(request.decodes for request in rank.running):
                rank.iteration += gained
            for request in decode:
                now.decode += min(gained, request.n_out - request.generated)
                request.computed += gained
                request.generated += gained
            for request, tokens in prefill:
                request.computed += tokens
                if request.computed == request.prompt:
                    request.generated += 1
                    if math.isnan(request.first_token_s):
                        request.first_token_s = seen_s
            first = sorted(decode, key=lambda r: (r.n_out - r.generated, r.index))  # that got to its end
            for request in first + [request for request, _ in prefill]:
                if request.generated >= request.n_out:
                    rank.remove(request, request.computed if request in decode else request.prompt)
                    self.end(request, COMPLETED, seen_s)
        self.previous_s[replica], self.clock_s[replica] = start_s, end_s

    def preempt(self, rank):
        limits = self.limits
        victim = rank.running[-1]
        if limits.by_priority:
            victim = max(rank.running, key=lambda request: (request.priority, request.admission))
        held, decoded = victim.computed, victim.decodes
        rank.remove(victim, held)
        n_blocks = blocks_of(held, limits.block_tokens)
        if decoded and n_blocks <= limits.swap_blocks - rank.swapped_blocks:
            rank.swapped_blocks += n_blocks
            rank.link_s += n_blocks * limits.block_link_s
            rank.swaps += 1
            victim.kv_tokens, victim.swapped = held, True
        rank.reserve_since = rank.iteration
        rank.preemptions += 1
        before = sum(other.priority < victim.priority for other in rank.waiting) if limits.by_priority else 0
        rank.waiting.insert(before, victim)

    def balanced(self, replica, cutoff_s):
        ranks, limits = self.ranks_of(replica), self.limits
        if limits.balance_iterations == 0:
            return True

        def has_prompt(rank):
            if any(not request.decodes for request in rank.running):
                return True
            seat = len(rank.running) < limits.max_num_seqs
            head = rank.waiting[0] if rank.waiting else None
            return bool(head and seat and self.ready(head, cutoff_s) and self.fits(rank, head, []))

        self.unbalanced[replica] += 1
        late = self.unbalanced[replica] >= limits.balance_iterations
        decoding = all(any(request.decodes for request in rank.running) for rank in ranks)
        if late or all(map(has_prompt, ranks)) or not decoding:
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
        return decode, self.prompts(rank, now_s, cutoff_s, budget - len(decode) * self.limits.verify_tokens, admits)

    def decoding(self, rank):
        """Decoding requests with blocks for their next tokens, and whether others were preempted for that."""
        preempted = False
        gained = self.gained(rank)
        while True:
            decode = [request for request in rank.running if request.decodes]
            after = [self.own_blocks(request.computed + gained) for request in decode]
            if sum(after) - sum(request.blocks for request in decode) <= rank.free_blocks:
                break
            self.preempt(rank)
            preempted = True
        for request, blocks in zip(decode, after, strict=True):
            request.blocks = blocks
        rank.trim()
        return decode, preempted

    def ready(self, request, cutoff_s):
        return request.ready_s <= cutoff_s

    def own_blocks(self, tokens):
        return blocks_of(tokens + self.limits.verify_tokens - 1, self.limits.block_tokens)

    def final_blocks(self, request):
        return self.own_blocks(request.n_in + request.n_out - 1 + self.limits.verify_tokens - 1)

    def fits(self, rank, request, fresh):
        """Whether a request may be admitted; ``fresh`` were in this iteration."""
        limits = self.limits
        shared = sum(unit in rank.users for unit in rank.found(request)) * limits.unit_blocks
        if not limits.reserves_output:
            return self.own_blocks(request.tokens) - shared <= rank.free_blocks
        share = min((rank.iteration - rank.reserve_since) / limits.reserve_steps, 1.0)
        share = limits.reserve_start_frac + share * (limits.reserve_end_frac - limits.reserve_start_frac)
        to_come = sum(self.final_blocks(r) - r.blocks for r in rank.running)
        new = sum(self.final_blocks(r) - r.blocks for r in fresh)
        return self.final_blocks(request) - shared <= rank.free_blocks - (share * (to_come - new) + new)

    def holds_back(self, rank, n_decode, cutoff_s):
        limits = self.limits
        if limits.wait_iterations == 0 or n_decode == 0 or n_decode < len(rank.running):
            return False
        queue = rank.waiting
        if n_decode >= limits.max_num_seqs:
            return False
        if not queue or not self.ready(queue[0], cutoff_s) or not self.fits(rank, queue[0], []):
            return False
        n_tokens = n_decode * limits.verify_tokens
        for request in queue[: limits.max_num_seqs - n_decode]:
            if not self.ready(request, cutoff_s):
                break
            n_tokens += request.tokens
        if n_tokens >= limits.wait_tokens or rank.waited >= limits.wait_iterations:
            rank.waited = 0
            return False
        rank.waited += 1
        return True

    def admit(self, rank, request, now_s):
        limits = self.limits
        found = rank.found(request)
        on_host = sum(unit in rank.host for unit in dict.fromkeys(found))
        rank.link_s += on_host * limits.unit_blocks * limits.block_link_s
        rank.host_hit_tokens += on_host * limits.unit_tokens
        request.computed = max(len(found) * limits.unit_tokens, request.kv_tokens)
        if request.swapped:
            n_blocks = blocks_of(request.kv_tokens, limits.block_tokens)
            rank.swapped_blocks -= n_blocks
            rank.link_s += n_blocks * limits.block_link_s
        request.kv_tokens, request.swapped = 0, False
        for unit in found:
            rank.use(unit)
        request.n_units = len(found)
        request.hit_tokens += len(found) * limits.unit_tokens
        rank.hit_tokens += len(found) * limits.unit_tokens
        request.prompt = request.tokens
        request.blocks = self.own_blocks(request.tokens)
        request.admission = rank.admitted
        rank.admitted += 1
        rank.waiting.pop(0)
        rank.running.append(request)
        rank.trim()
        if math.isnan(request.scheduled_s):
            request.scheduled_s = now_s

    def prompts(self, rank, now_s, cutoff_s, budget, admits):
        prefill, fresh = [], []
        for request in rank.running:
            if not request.decodes:
                chunk = min(budget, request.prompt - request.computed)
                prefill.append((request, chunk))
                budget -= chunk
                rank.publish(request, request.computed + chunk)
        while rank.waiting and budget > 0 and admits and len(rank.running) < self.limits.max_num_seqs:
            request = rank.waiting[0]
            left = request.tokens - max(len(rank.found(request)) * self.limits.unit_tokens, request.kv_tokens)
            if not self.ready(request, cutoff_s) or not self.fits(rank, request, fresh):
                break
            chunk = min(left, budget)
            if not self.limits.chunked_prefill and chunk < left:
                if prefill or left <= self.limits.max_num_batched_tokens:
                    break
                chunk = left
            self.admit(rank, request, now_s)
            rank.publish(request, request.computed + chunk)
            fresh.append(request)
            prefill.append((request, chunk))
            budget -= chunk
        return prefill

    def time_s(self, rank, plan):
        decode, prefill = plan
        table, limits = self.table, self.limits
        verified = len(decode) * limits.verify_tokens
        n_tokens = verified + sum(chunk for _, chunk in prefill)
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
            if limits.verify_tokens > 1:
                attention_s += interpolate(table.decode_batch_grid, table.draft_time_s, len(decode))
        rows = verified + sum(r.computed + chunk == r.prompt for r, chunk in prefill)
        computed = n_tokens
        if n_tokens <= table.graph_max_tokens:
            computed = min((size for size in table.graph_sizes if size >= n_tokens), default=n_tokens)
        time_s = interpolate(table.token_grid, table.linear_time_s, computed) + attention_s
        if rows:
            time_s += interpolate(table.head_rows_grid, table.head_time_s, rows)
        n_seqs = len(decode) + sum(r.computed + chunk == r.prompt for r, chunk in prefill)
        host_s = table.host_step_s + n_seqs * table.host_row_s
        if n_tokens > table.graph_max_tokens:
            host_s += table.eager_time_s
        time_s = max(time_s, host_s) + table.step_overhead_s
        link_s, rank.link_s = rank.link_s, 0.0
        return max(time_s, link_s) if limits.link_overlaps else time_s + link_s
