"""Routing token by token: which experts each token selects, what is dropped, and which GPUs it is copied to.

Law of top-k gates: expert e is selected in proportion to its weight, without replacement (Plackett-Luce, which is the
top k of log-weights plus Gumbel noise). As a race of exponential clocks of rate w_e: arrivals of one Poisson process,
each of which belongs to expert e with probability w_e; the first arrivals of distinct experts come in exactly that
order, so an alias table and ignoring repeats draw it in O(k) per token whatever the number of experts. After many
repeats in a row the next expert is drawn from the remaining weights directly, which leaves the law unchanged.

Every (step, layer, source GPU) has its own xoroshiro128++ stream (Blackman, Vigna 2021, ACM TOMS 47, 36) keyed by a
hash of the seed, so results do not depend on threads. Tokens keep their topic through the layers: it has a stream of
its own, without a layer. A choice uses 32 random bits: the probability of an expert is
exact to 2^-32. tests/reference/routing_twin.py does the same in plain numpy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from moeplan.kernels import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

PLAIN, TIMED, HASH, EXPERT_CHOICE = 0, 1, 2, 3  # how a token chooses
GROUP_MAX, GROUP_TOP_TWO = 0, 1  # a group's score: its best expert, the sum of its best two

# Entries of Sums
N_PAIRS, N_DROPPED, N_LOST_TOKENS, N_COPIES, N_NODE_COPIES, N_ZERO = 0, 1, 2, 3, 4, 5
N_SUMS = 6

_MAX_REPEATS = 48
_N_BINS = 1024  # of the score, in priority dropping
_BINS_PER_E_FOLD = 48.0
_BLOCK = 1024  # draws ahead of the tokens that use them: they stay in the first cache
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ONE = np.uint64(1)
_TOPICS = 1 << 40  # in place of a layer: topics of a step's tokens, the same in all layers


@compiled
def mixed(word: np.uint64) -> np.uint64:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def stream(seed: int, step: int, layer: int, source: int) -> tuple[np.uint64, np.uint64]:
    """State of the generator that belongs to one step, layer and source."""
    key = mixed(mixed(mixed(mixed(np.uint64(seed)) ^ np.uint64(step)) ^ np.uint64(layer)) ^ np.uint64(source))
    return mixed(key), mixed(key ^ np.uint64(0xD1B54A32D192ED03)) | np.uint64(1)


@njit(inline="always")
def _next(s0, s1):
    word = s0 + s1
    word = ((word << np.uint64(17)) | (word >> np.uint64(47))) + s0
    s1 ^= s0
    s0 = ((s0 << np.uint64(49)) | (s0 >> np.uint64(15))) ^ s1 ^ (s1 << np.uint64(21))
    return word, s0, (s1 << np.uint64(28)) | (s1 >> np.uint64(36))


@njit(inline="always")
def _unit(word):
    """Uniform in (0, 1)."""
    return (np.float64(word >> np.uint64(12)) + 0.5) * 2.0**-52


@njit(inline="always")
def _lookup(table, half):
    """Entry drawn with a random number of 32 bits: high part the column, low part the choice inside it.

    Unsigned, which spares the check for negative indices.
    """
    x = half * np.uint64(table.size)
    packed = table[x >> _HALF]
    return x >> _HALF if (x & _LOW) < (packed >> _HALF) else packed & _LOW


@compiled
def alias_table(weights: Floats) -> Words:
    """Alias table (Walker 1977) of ``weights`` (n,): threshold of 32 bits and alias of each column in one word."""
    n = weights.size
    scaled = weights * (n / weights.sum())
    table = np.empty(n, np.uint64)
    small, large = np.empty(n, np.int64), np.empty(n, np.int64)
    n_small = n_large = 0
    for i in range(n):
        table[i] = (_LOW << _HALF) | np.uint64(i)
        if scaled[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        low, high = small[n_small], large[n_large - 1]
        table[low] = (np.uint64(scaled[low] * 2.0**32) << _HALF) | np.uint64(high)
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            n_large -= 1
            small[n_small] = high
            n_small += 1
    return table


@njit(inline="always")
def _scan(weights, seen, stamp, group_open, per_group, word):
    """One of the experts not seen yet, in proportion to weight, and their total weight; -1 when all weigh nothing."""
    rest = 0.0
    for e in range(weights.size):
        if seen[e] != stamp and group_open[e // per_group]:
            rest += weights[e]
    if rest <= 0.0:
        return -1, 0.0
    left, last = _unit(word) * rest, -1
    for e in range(weights.size):
        if seen[e] != stamp and group_open[e // per_group] and weights[e] > 0.0:
            last = e
            left -= weights[e]
            if left < 0.0:
                break
    return last, rest


@njit(inline="always")
def _choose_plain(table, weights, top_k, seen, stamp, everything, chosen, s0, s1):
    """Top-k without times: two draws a random word."""
    found = repeats = np.uint64(0)
    k = np.uint64(top_k)
    while found < k:
        word, s0, s1 = _next(s0, s1)
        e = _lookup(table, word >> _HALF)
        if seen[e] != stamp:
            seen[e] = stamp
            chosen[found] = e
            found += _ONE
            if found == k:
                break
        e = _lookup(table, word & _LOW)
        if seen[e] != stamp:
            seen[e] = stamp
            chosen[found] = e
            found += _ONE
        else:
            repeats += _ONE
            if repeats > _MAX_REPEATS:
                word, s0, s1 = _next(s0, s1)
                last, _ = _scan(weights, seen, stamp, everything, weights.size, word)
                if last < 0:
                    break
                seen[last] = stamp
                chosen[found] = last
                found += _ONE
    return np.int64(found), s0, s1


@njit(inline="always")
def _count_run(table, weights, n_tokens, top_k, drawn, marked, marks, stamp, everything, s0, s1):
    """Count the choices of tokens that share a table, a block of draws ahead: no branch depends on a single draw.

    ``marked`` (n,): high half the last token that chose the expert, low half how many did. Repeats are not counted;
    tokens that lack experts after ``top_k`` draws, few where popularity is even, draw on.
    """
    k = np.uint64(top_k)
    left = n_tokens
    while left > 0:
        n = min(left, (drawn.size - 1) // top_k)
        left -= n
        for i in range((n * top_k + 1) // 2):
            word, s0, s1 = _next(s0, s1)
            drawn[2 * i] = _lookup(table, word >> _HALF)
            drawn[2 * i + 1] = _lookup(table, word & _LOW)
        for token in range(n):
            stamp += np.uint64(1 << 32)
            found = repeats = np.uint64(0)
            for i in range(token * top_k, (token + 1) * top_k):
                e = drawn[i]
                new = np.uint64((marked[e] ^ stamp) > _LOW)
                marked[e] = stamp | ((marked[e] & _LOW) + new)
                found += new
            while found < k:
                word, s0, s1 = _next(s0, s1)
                repeats += _ONE
                e = np.int64(_lookup(table, word >> _HALF))
                if repeats > _MAX_REPEATS:
                    for i in range(marks.size):
                        marks[i] = marked[i] >> _HALF
                    e, _ = _scan(weights, marks, np.int64(stamp >> _HALF), everything, weights.size, word)
                    if e < 0:
                        break
                new = np.uint64((marked[e] ^ stamp) > _LOW)
                marked[e] = stamp | ((marked[e] & _LOW) + new)
                found += new
    return stamp, s0, s1


@compiled
def count_choices(
    seed: int, step: int, layer: int, source: int, n_tokens: int, top_k: int, tables: Words, weights: Floats,
    burst: int, counts: Ints,
) -> None:  # fmt: skip
    """Add to ``counts`` (n_experts,) how often each expert is among the ``top_k`` of ``n_tokens`` tokens (below 2^32).

    ``tables``, ``weights`` (n_topics, n_experts) and ``burst`` as in `route`.
    """
    s0, s1 = stream(seed, step, layer, source)
    t0, t1 = stream(seed, step, _TOPICS, source)
    marked, marks = np.zeros(counts.size, np.uint64), np.empty(counts.size, np.int64)
    everything = np.ones(1, np.bool_)
    drawn = np.empty(max(_BLOCK, top_k) + 1, np.uint32)
    stamp = np.uint64(0)
    run = burst if tables.shape[0] > 1 else max(n_tokens, 1)
    for first in range(0, n_tokens, run):
        topic = np.uint64(0)
        if tables.shape[0] > 1:
            word, t0, t1 = _next(t0, t1)
            topic = ((word >> _HALF) * np.uint64(tables.shape[0])) >> _HALF
        stamp, s0, s1 = _count_run(
            tables[topic], weights[topic], min(run, n_tokens - first), top_k, drawn, marked, marks, stamp, everything,
            s0, s1,
        )  # fmt: skip
    for e in range(counts.size):
        counts[e] += np.int64(marked[e] & _LOW)


@njit(inline="always")
def _next_expert(table, weights, seen, stamp, group_open, per_group, now, s0, s1):
    """Next new expert of the open groups in order of arrival, and when it arrives; -1 when none can."""
    for _ in range(_MAX_REPEATS):
        word, s0, s1 = _next(s0, s1)
        e = np.int64(_lookup(table, word >> _HALF))
        word, s0, s1 = _next(s0, s1)
        now -= np.log(_unit(word))
        if seen[e] != stamp and group_open[e // per_group]:
            seen[e] = stamp
            return e, now, s0, s1
    word, s0, s1 = _next(s0, s1)
    e, rest = _scan(weights, seen, stamp, group_open, per_group, word)
    if e >= 0:
        word, s0, s1 = _next(s0, s1)
        now -= np.log(_unit(word)) / rest
        seen[e] = stamp
    return e, now, s0, s1


@njit(inline="always")
def _pick_groups(
    table, weights, rule, topk_group, per_group, scale, seen, stamp, order, when, state, group_open, s0, s1
):
    """Draw experts until the ``topk_group`` best groups are certain, and close the others.

    Score of an expert that arrives at t: 1 / (1 + t / scale), a sigmoid of its logit -log t. ``state`` (2, n_group):
    arrivals and score so far of each group. Groups still open to change are bounded by what an arrival now would add.
    """
    n_group, n_found, now = group_open.size, 0, 0.0
    needed = 1 if rule == GROUP_MAX or per_group == 1 else 2
    n_complete = 0
    state[:] = 0.0
    group_open[:] = True
    while True:
        e, now, s0, s1 = _next_expert(table, weights, seen, stamp, group_open, per_group, now, s0, s1)
        if e < 0:
            break
        order[n_found] = e
        when[n_found] = now
        n_found += 1
        g = e // per_group
        if state[0, g] == needed:
            continue
        state[0, g] += 1.0
        state[1, g] += 1.0 / (1.0 + now / scale)
        n_complete += state[0, g] == needed
        if n_complete < topk_group:
            continue
        gain = 1.0 / (1.0 + now / scale)  # the most an arrival from now on can add
        least = 2.0  # score of the last group that is in, were no other to change
        for g in range(n_group):
            if state[0, g] == needed and state[1, g] < least:
                n_better = 0
                for h in range(n_group):
                    n_better += state[0, h] == needed and state[1, h] > state[1, g]
                if n_better < topk_group:
                    least = state[1, g]
        n_threats = 0
        for g in range(n_group):
            n_threats += state[0, g] < needed and state[1, g] + (needed - state[0, g]) * gain > least
        if n_threats == 0:
            break
    for g in range(n_group):
        n_better = 0
        for h in range(n_group):
            if h != g and (state[1, h] > state[1, g] or (state[1, h] == state[1, g] and h < g)):
                n_better += 1
        group_open[g] = n_better < topk_group
    return n_found, now, s0, s1


@njit(inline="always")
def _choose_timed(
    table, weights, top_k, rule, topk_group, scale, seen, stamp, order, when, state, group_open, chosen, score, s0, s1
):
    """Top-k inside the best groups, with arrival times in ``score`` (small is good)."""
    per_group = weights.size // group_open.size
    n_found, now, found = 0, 0.0, 0
    if topk_group < group_open.size:
        n_found, now, s0, s1 = _pick_groups(
            table, weights, rule, topk_group, per_group, scale, seen, stamp, order, when, state, group_open, s0, s1
        )
    for i in range(n_found):
        if group_open[order[i] // per_group] and found < top_k:
            chosen[found] = order[i]
            score[found] = when[i]
            found += 1
    while found < top_k:
        e, now, s0, s1 = _next_expert(table, weights, seen, stamp, group_open, per_group, now, s0, s1)
        if e < 0:
            break
        chosen[found] = e
        score[found] = now
        found += 1
    return found, s0, s1


@njit(inline="always")
def _choose_by_experts(needed, tokens_left, chosen, s0, s1):
    """Expert choice: every expert takes a simple random sample of the tokens, drawn token by token (Knuth's S)."""
    found = 0
    for e in range(needed.size):
        word, s0, s1 = _next(s0, s1)
        if _unit(word) * tokens_left < needed[e]:
            needed[e] -= 1
            chosen[found] = e
            found += 1
    return found, s0, s1


@compiled
def _route_to_one(
    seed, step, layer, n_tokens, top_k, tables, weights, burst, first_slot, counts, slot_counts, traffic, node_traffic,
    sums,
):  # fmt: skip
    """`route` where every token goes to the one GPU there is and nothing is dropped: all follows from the counts."""
    for source in range(traffic.shape[0]):
        new = np.zeros(counts.size, np.int64)
        count_choices(seed, step, layer, source, n_tokens, top_k, tables, weights, burst, new)
        for e in range(new.size):
            copies = first_slot[e + 1] - first_slot[e]
            for j in range(copies):  # used in turn
                turns = (counts[e] + new[e] - j) // copies - (counts[e] - j) // copies
                slot_counts[first_slot[e] + j] += turns
            counts[e] += new[e]
        traffic[source, 0] += n_tokens
        node_traffic[source, 0] += n_tokens
        sums[N_PAIRS] += new.sum()
        sums[N_COPIES] += n_tokens
        sums[N_NODE_COPIES] += n_tokens


@compiled
def route(
    seed: int,
    step: int,
    layer: int,
    n_tokens: int,
    top_k: int,
    method: int,
    tables: Words,
    weights: Floats,
    burst: int,
    group_rule: int,
    n_group: int,
    topk_group: int,
    scale: float,
    hashed: Ints,
    n_real: int,
    capacity: int,
    by_priority: bool,
    first_slot: Ints,
    slot_rank: Ints,
    rank_node: Ints,
    counts: Ints,
    slot_counts: Ints,
    traffic: Ints,
    node_traffic: Ints,
    sums: Ints,
) -> None:
    """Route ``n_tokens`` of every source GPU through one layer; adds to the five last arrays.

    Args:
        tables, weights: (n_topics, n_choices) alias tables and weights that add up to 1; the choices from ``n_real`` on
            are identity experts. Under `HASH` the choices are token ids.
        burst: consecutive tokens of one topic, which is the same in every layer.
        scale: arrival time at which an expert's sigmoid score is one half.
        hashed: (n_choices, top_k) experts of each token id under `HASH`.
        capacity: token-expert pairs an expert takes from one source, 0 = no limit; those beyond are dropped in order of
            the tokens, or by score. Under `EXPERT_CHOICE` what each expert takes.
        first_slot: (n_real + 1,) slots first_slot[e] .. first_slot[e + 1] - 1 hold copies of expert e, used in turn.
        slot_rank, rank_node: GPU of each slot, node of each GPU.
        counts: (n_choices or n_real,) selections of each expert before drops.
        slot_counts: (n_slots,) pairs computed in each slot.
        traffic: (n_sources, n_ranks) tokens sent from a source to a rank: once per distinct rank.
        node_traffic: (n_sources, n_nodes) tokens with at least one expert on a node.
        sums: (N_SUMS,) pairs, dropped pairs, tokens that lost all, copies, node copies, identity choices.
    """
    n_choices = weights.shape[1]
    if method == PLAIN and capacity == 0 and n_choices == n_real and traffic.shape[1] == 1:
        _route_to_one(
            seed, step, layer, n_tokens, top_k, tables, weights, burst, first_slot, counts, slot_counts, traffic,
            node_traffic, sums,
        )  # fmt: skip
        return
    seen = np.full(n_choices, -1, np.int64)
    everything = np.ones(1, np.bool_)
    group_open = np.ones(n_group, np.bool_)
    state = np.zeros((2, n_group))
    order, when = np.empty(n_choices, np.int64), np.empty(n_choices)
    most = n_real if method == EXPERT_CHOICE else top_k
    chosen, score = np.empty(most, np.int64), np.zeros(most)
    taken, needed = np.empty(n_real, np.int64), np.empty(n_real, np.int64)
    rank_seen, node_seen = np.full(slot_rank.max() + 1, -1, np.int64), np.full(rank_node.max() + 1, -1, np.int64)
    bins = np.zeros((n_real if by_priority else 0, _N_BINS), np.int64)
    stamp = 0
    for source in range(traffic.shape[0]):
        taken[:] = 0
        bins[:] = 0
        for replay in range(2 if by_priority and capacity > 0 else 1):
            measuring = by_priority and capacity > 0 and replay == 0
            s0, s1 = stream(seed, step, layer, source)
            t0, t1 = stream(seed, step, _TOPICS, source)
            needed[:] = min(capacity, n_tokens)
            topic = 0
            for token in range(n_tokens):
                stamp += 1
                if tables.shape[0] > 1 and token % burst == 0:
                    word, t0, t1 = _next(t0, t1)
                    topic = np.int64(((word >> _HALF) * np.uint64(tables.shape[0])) >> _HALF)
                table, weight = tables[topic], weights[topic]
                if method == PLAIN:
                    found, s0, s1 = _choose_plain(table, weight, top_k, seen, stamp, everything, chosen, s0, s1)
                elif method == TIMED:
                    if topk_group < n_group:
                        group_open[:] = True
                    found, s0, s1 = _choose_timed(
                        table, weight, top_k, group_rule, topk_group, scale, seen, stamp, order, when, state,
                        group_open, chosen, score, s0, s1,
                    )  # fmt: skip
                elif method == HASH:
                    word, s0, s1 = _next(s0, s1)
                    v = _lookup(table, word >> _HALF)
                    for j in range(top_k):
                        chosen[j] = hashed[v, j]
                    found = top_k
                else:
                    found, s0, s1 = _choose_by_experts(needed, n_tokens - token, chosen, s0, s1)
                n_kept = n_zero = 0
                for j in range(found):
                    e = chosen[j]
                    if e >= n_real:
                        n_zero += 1
                        if not measuring:
                            counts[e] += 1
                        continue
                    level = 0
                    if by_priority:
                        level = np.int64((np.log(score[j]) + 15.0) * _BINS_PER_E_FOLD)
                        level = max(0, min(_N_BINS - 1, level))
                    if measuring:
                        bins[e, level] += 1
                        continue
                    counts[e] += 1
                    if capacity > 0 and method != EXPERT_CHOICE:
                        if by_priority:  # bins now hold what each score may still take
                            if bins[e, level] <= 0:
                                continue
                            bins[e, level] -= 1
                        elif taken[e] >= capacity:
                            continue
                        taken[e] += 1
                    n_kept += 1
                    copies = first_slot[e + 1] - first_slot[e]
                    slot = first_slot[e] + (counts[e] % copies if copies > 1 else 0)
                    slot_counts[slot] += 1
                    rank = slot_rank[slot]
                    if rank_seen[rank] != stamp:
                        rank_seen[rank] = stamp
                        traffic[source, rank] += 1
                        sums[N_COPIES] += 1
                        node = rank_node[rank]
                        if node_seen[node] != stamp:
                            node_seen[node] = stamp
                            node_traffic[source, node] += 1
                            sums[N_NODE_COPIES] += 1
                if not measuring:
                    sums[N_PAIRS] += found
                    sums[N_ZERO] += n_zero
                    sums[N_DROPPED] += found - n_zero - n_kept
                    sums[N_LOST_TOKENS] += n_kept == 0 and n_zero == 0
            if measuring:
                for e in range(n_real):
                    left = capacity
                    for level in range(_N_BINS):
                        bins[e, level] = min(bins[e, level], left)
                        left -= bins[e, level]
