"""Stage one of a search: every layout of one replica shape at once, bounded and estimated without simulating.

Two kinds of numbers, never mixed: *bounds* that no simulation of the same table can beat rule candidates out;
*estimates* with a queueing correction only say what to simulate first. Equations: docs/method/search.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from moeplan.simulate.arrivals import draw_requests
from moeplan.spec.scenario import Serving
from moeplan.spec.workload import Engine
from moeplan.steps.table import StepTable

Array = npt.NDArray[np.float64]

# Grids of stage one are coarser than a simulation's, and a pipeline's sends are left out: bounds give that much away.
SLACK_FRAC = 0.03
_BALANCING = 8  # rounds of the fixed points: they contract, and only an order of candidates hangs on them
# What a token of a prompt may cost, in tokens of an answer: multipliers of the bound on a request's time.
_PRICES = np.array([0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])


@dataclass(frozen=True, slots=True)
class Demand:
    """What bounds need to know of a traffic."""

    rate_per_s: float | None  # None: closed loop or all at once
    n_users: int
    think_s: float
    n_requests: int
    prompt_tokens: float  # mean that must be computed; zero where prompts repeat text that may be cached
    usual_prompt_tokens: float  # mean, whole
    prompt_tokens_at: float  # at the percentile of the targets
    decode_tokens: float  # mean tokens after the first
    decode_tokens_at: float
    context_tokens: float  # mean of the tokens' contexts
    context_low_tokens: float
    held_low_tokens: float  # of the KV cache by the smallest request alone; zero where requests may share blocks
    context_high_tokens: float
    horizon_s: float | None  # time in which a run that meets its targets ends
    output_tokens_total: float
    measured_span_s: float | None
    percentile: float
    bounded: bool  # every request is served whole: rates and batches have bounds
    verified: int  # tokens of a sequence in an iteration: one, and its drafts
    gained: float  # of which so many stay, on average


def demand_of(serving: Serving, seed: int) -> Demand:
    """Means and percentiles of the requests that a simulation would draw."""
    drawn, arrivals, slo = draw_requests(serving.traffic, seed), serving.traffic.arrivals, serving.slo
    apart = serving.prefill is not None  # prompts are another pool's
    prompt, answer = drawn.input_tokens.astype(float), drawn.output_tokens.astype(float)
    decode = np.maximum(answer - 1.0, 0.0)
    weight = np.maximum(decode, 1e-9)
    n = len(drawn)
    n_stream = n if drawn.n_stream is None else drawn.n_stream
    open_loop = arrivals.kind in ("open", "trace")
    shares_text = drawn.hash_ids is not None
    patient = drawn.start_timeout_s is None and drawn.finish_timeout_s is None
    span_s = float(drawn.arrival_s[:n_stream].max()) if open_loop else 0.0
    first = min(arrivals.warmup_requests, n_stream - 1)
    slack_s = None if slo.tpot_s is None else (slo.ttft_s or 0.0) + float(answer.max()) * slo.tpot_s
    measured = span_s - float(drawn.arrival_s[first]) if open_loop else 0.0
    return Demand(
        rate_per_s=n / span_s if open_loop and span_s > 0.0 else None,
        n_users=drawn.n_users,
        think_s=arrivals.think_s,
        n_requests=n,
        prompt_tokens=0.0 if shares_text or apart else float(prompt.mean()),
        usual_prompt_tokens=1.0 if apart else float(prompt.mean()),
        prompt_tokens_at=1.0 if shares_text or apart else float(np.percentile(prompt, slo.percentile, method="lower")),
        decode_tokens=float(decode.mean()),
        decode_tokens_at=float(np.percentile(decode, slo.percentile, method="lower")),
        context_tokens=float(np.average(prompt + answer / 2.0, weights=weight)),
        context_low_tokens=float(prompt.min()),
        held_low_tokens=0.0 if shares_text else float(prompt.min()),
        context_high_tokens=float((prompt + answer).max()),
        horizon_s=span_s + slack_s if open_loop and slack_s is not None else None,
        output_tokens_total=float(answer.sum()),
        measured_span_s=measured if measured > 0.0 else None,
        percentile=slo.percentile,
        bounded=patient and n_stream == n,
        verified=serving.engine.verified_tokens,
        gained=serving.engine.tokens_gained,
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """Bounds and estimates of candidates, arrays of one shape. Times [s], rates [requests/s] of the deployment."""

    capacity_most: Array  # upper bound
    ttft_least: Array
    tpot_least: Array
    e2e_least: Array
    capacity: Array  # estimates
    ttft: Array
    tpot: Array
    e2e: Array
    requests_per_s: Array


class ReplicaTimes:
    """Time of an iteration with ``b`` decoding sequences and ``t`` tokens, on nodes of both."""

    def __init__(self, table: StepTable, demand: Demand) -> None:
        self.demand = demand
        most_tokens = float(table.token_grid[-1])
        corners = [x for x in (table.graph_max_tokens, table.graph_max_tokens + 1) if 1 <= x <= most_tokens]
        nodes = np.round(np.geomspace(1, most_tokens, 2 * int(np.ceil(np.log2(most_tokens))) + 1))
        self.nodes: Array = np.unique(np.concatenate([nodes, corners]))
        b, t = np.concatenate([[0.0], self.nodes]), self.nodes
        linear = np.interp(t, table.token_grid, table.linear_time_s)
        decode = np.concatenate([[0.0], _decode_s(table, demand, self.nodes)])
        v = demand.verified
        if table.draft_time_s is not None:
            decode[1:] += np.interp(self.nodes, table.decode_batch_grid, table.draft_time_s)
        rows = np.interp(v * self.nodes, table.head_rows_grid, table.head_time_s)
        head = np.concatenate([[0.0], _kept_slope(v * self.nodes, table.head_rows_grid, table.head_time_s, rows)])
        self.prompt_token_s = float(np.min(table.prefill_attention_time_s[:, 0] / table.prefill_query_grid))
        self.new: Array = t[None, :] - v * b[:, None]  # prompt tokens of an iteration
        gpu = linear[None, :] + (decode + head)[:, None] + self.prompt_token_s * np.maximum(self.new, 0.0)

        def wall_s(gpu_s: Array, n_tokens: Array, sequences: Array) -> Array:
            launched = (n_tokens > table.graph_max_tokens) * table.eager_time_s
            host_s = table.host_step_s + sequences * table.host_row_s + launched
            return np.maximum(gpu_s, host_s) + table.step_overhead_s

        self.time_s: Array = np.where(self.new >= 0.0, wall_s(gpu, t[None, :], b[:, None]), np.inf)
        own = np.interp(v * self.nodes, table.token_grid, table.linear_time_s) + decode[1:] + head[1:]
        self.decode_s: Array = wall_s(own, v * self.nodes, self.nodes)  # decoding alone

    def request_time_least_s(self, batch: Array, tokens: Array) -> Array:
        """Least time of a lane that one request takes, with at most ``batch`` sequences and ``tokens`` an iteration.

        A linear program's dual: whatever a decode and a prompt token are worth, an iteration gives at most so much
        worth a second, and a request is worth so much.
        """
        d = self.demand
        worth = np.arange(self.nodes.size + 1) > 0
        b = np.concatenate([[0.0], self.nodes])
        least = np.zeros(np.broadcast(batch, tokens).shape)
        i = np.searchsorted(self.nodes, np.minimum(batch, self.nodes[-1])) + 1
        j = np.searchsorted(self.nodes, np.minimum(tokens, self.nodes[-1]))
        for price in _PRICES:
            value = b[:, None] * worth[:, None] + price * np.maximum(self.new, 0.0)
            ratio = np.divide(self.time_s, value, out=np.full_like(self.time_s, np.inf), where=value > 0.0)
            ratio[1:] = np.minimum(
                ratio[1:], np.where(self.new[1:] >= 0.0, (self.decode_s / self.nodes)[:, None], np.inf)
            )
            best = np.minimum.accumulate(np.minimum.accumulate(ratio, axis=0), axis=1)
            least = np.maximum(least, (d.decode_tokens / d.verified + price * d.prompt_tokens) * best[i, j])
        return least

    def decode_time_least_s(self, tokens_per_s: Array, prompts_share: Array) -> Array:
        """Least mean iteration of a sequence at a decode rate of one lane, a share of whose time goes to prompts.

        Little's law: the time is the mean batch over the rate, and the mean batch that a concave rate needs is least
        when it is constant (Jensen); the Legendre transform stands for the concave hull.
        """
        rate = self.nodes / self.decode_s
        slopes = np.diff(self.nodes) / np.maximum(np.diff(rate), 1e-12)
        slopes = np.concatenate([[self.nodes[0] / rate[0]], slopes[slopes > 0.0]])
        over = np.maximum(np.max(slopes[:, None] * rate[None, :] - self.nodes[None, :], axis=1), 0.0)
        free = np.maximum(1.0 - prompts_share, 1e-9)
        need = tokens_per_s / free
        batch = np.max(slopes * need[..., None] - over, axis=-1)
        return np.where(tokens_per_s > 0.0, free * batch / np.maximum(tokens_per_s, 1e-300), self.decode_s[0])

    @property
    def prompt_token_least_s(self) -> float:
        """Least time one more prompt token adds to an iteration."""
        inside = self.new[1:] > 0.0
        extra = (np.where(inside, self.time_s[1:], 0.0) - self.decode_s[:, None])[inside] / self.new[1:][inside]
        return float(max(0.0, extra.min())) if extra.size else 0.0

    def first_token_least_s(self, tokens: Array, prompt: float) -> Array:
        """Least time to process a prompt alone in iterations of at most ``tokens``."""
        one = np.interp(np.minimum(prompt, tokens), self.nodes, self.time_s[0])
        per_token = np.minimum.accumulate(self.time_s[0] / self.nodes)
        many = prompt * per_token[np.searchsorted(self.nodes, np.minimum(tokens, self.nodes[-1]))]
        return np.where(prompt <= tokens, one, many)


def _decode_s(table: StepTable, demand: Demand, batch: Array) -> Array:
    """Attention at the mean context under the lower hull in context: means over iterations cannot be less."""
    contexts, c = table.decode_context_grid, demand.context_tokens
    first = max(int(np.searchsorted(contexts, demand.context_low_tokens, side="right")) - 1, 0)
    last = min(int(np.searchsorted(contexts, demand.context_high_tokens)), contexts.size - 1)
    at = contexts[first : last + 1]
    times = np.stack([np.interp(batch, table.decode_batch_grid, table.decode_attention_time_s[:, k])
                      for k in range(first, last + 1)])  # fmt: skip
    best = np.full(batch.size, np.inf)
    for i in np.flatnonzero(at <= c):
        for j in np.flatnonzero(at >= c):
            w = 0.0 if at[i] == at[j] else (c - at[i]) / (at[j] - at[i])
            best = np.minimum(best, (1.0 - w) * times[i] + w * times[j])
    if not np.all(np.isfinite(best)):  # outside the grid: its nearest end
        best = times[0] if c < at[0] else times[-1]
    return best


def _kept_slope(x: Array, grid: Array, values: Array, inside: Array) -> Array:
    """Interpolated ``values``; above the grid the last slope, as the kernel does."""
    slope = (values[-1] - values[-2]) / (grid[-1] - grid[-2])
    return np.where(x > grid[-1], values[-1] + slope * (x - grid[-1]), inside)


def assess(
    times: ReplicaTimes,
    engine: Engine,
    *,
    tokens: Array,
    batch: Array,
    usual_batch: Array,
    lanes: Array,
    in_step: int,
) -> Stage:
    """Bounds and estimates of candidates. The arrays broadcast.

    Args:
        tokens: most tokens of an iteration.
        batch: most sequences a lane may run (seats, and as many as the shortest contexts let into the KV cache).
        usual_batch: the same with the mean context.
        lanes: queues of the deployment: replicas x dp x pp.
        in_step: lanes that share an iteration: dp x pp.
    """
    d, keep = times.demand, 1.0 - SLACK_FRAC
    request_s = keep * times.request_time_least_s(batch, tokens)
    capacity_most = np.where(request_s > 0.0, lanes / np.maximum(request_s, 1e-300), np.inf)
    overhead_s = engine.request_overhead_s + engine.front_request_s
    first_s = keep * times.first_token_least_s(tokens, max(d.prompt_tokens_at, 1.0)) + overhead_s
    single_s = keep * times.decode_s[0] / d.verified
    tpot_least = np.broadcast_to(single_s, np.broadcast(request_s, lanes).shape)
    if d.bounded and d.rate_per_s is not None and d.horizon_s is not None and d.percentile >= 50.0:
        per_lane = d.n_requests / d.horizon_s / lanes
        share = np.minimum(per_lane * d.prompt_tokens * times.prompt_token_least_s, 1.0)
        steps_s = keep * times.decode_time_least_s(per_lane * d.decode_tokens / d.verified, share)
        tpot_least = np.maximum(tpot_least, steps_s / d.verified)
    estimate = _estimate(times, engine, tokens, usual_batch, lanes, in_step)
    shape = np.broadcast(capacity_most, first_s, tpot_least, estimate["ttft"]).shape
    full = {name: np.broadcast_to(value, shape) for name, value in estimate.items()}
    return Stage(
        capacity_most=np.broadcast_to(capacity_most if d.bounded else np.inf, shape),
        ttft_least=np.broadcast_to(first_s, shape),
        tpot_least=np.broadcast_to(tpot_least, shape),
        e2e_least=np.broadcast_to(first_s * 0.0 + overhead_s + d.decode_tokens_at * single_s, shape),
        **full,
    )


def _estimate(
    times: ReplicaTimes, engine: Engine, tokens: Array, batch: Array, lanes: Array, in_step: int
) -> dict[str, Array]:
    """Steady state of one replica by balance of time; tails by normal occupancy and an exponential wait.

    ``in_step`` lanes share every iteration, which lasts as long as its busiest lane's: a prompt on one holds up all.
    With K prompts in an iteration of T, Poisson with mean m = rate x T, the busiest lane has about max(1 - exp(-m),
    m / in_step) of them, and T = T_decode(b) + that x the time of a prompt; b = rate of a lane x tokens x T.
    """
    d, nodes = times.demand, times.nodes
    steps = max(d.decode_tokens / d.gained, 1e-9)  # iterations of a request after its first token
    shape = np.broadcast(tokens, batch, lanes).shape
    lane, seats = np.broadcast_to(lanes, shape), np.clip(np.broadcast_to(batch, shape), 1.0, nodes[-1])
    chunk = np.clip(np.broadcast_to(tokens, shape), 1.0, max(d.usual_prompt_tokens, 1.0))
    n_chunks = max(d.usual_prompt_tokens, 1.0) / chunk
    z = float(ndtri(min(max(d.percentile, 1.0), 99.9) / 100.0))
    tail = -math.log(1.0 - min(d.percentile, 99.9) / 100.0)

    def iteration_s(b: Array, per_lane: Array) -> tuple[Array, Array]:
        """Mean iteration with ``b`` sequences, and the time a prompt adds to one."""
        b = np.clip(b, 1.0, nodes[-1])
        alone = np.interp(b, nodes, times.decode_s)
        prompt_s = np.interp(np.minimum(b + chunk, nodes[-1]), nodes, times.time_s[0]) - np.interp(
            b, nodes, times.time_s[0]
        )
        prompt_s = np.maximum(prompt_s, 0.0)
        found = alone + prompt_s
        for _ in range(_BALANCING):
            m = per_lane * in_step * n_chunks * found
            found = alone + prompt_s * np.maximum(-np.expm1(-m), m / in_step)
        return found, prompt_s

    if d.rate_per_s is not None:
        per_lane = d.rate_per_s / lane
        running = np.ones(shape)
        for _ in range(_BALANCING):
            step_s, _ = iteration_s(running, per_lane)
            running = np.minimum(0.5 * running + 0.5 * per_lane * steps * step_s, 4.0 * seats)
    else:
        running = np.minimum(seats, d.n_users / lane) if d.n_users else seats
        per_lane = np.zeros(shape)
        for _ in range(_BALANCING):
            step_s, _ = iteration_s(running, per_lane)
            per_lane = running / (max(steps, 1.0) * step_s)
    fullest, _ = iteration_s(seats, per_lane)
    most = seats / (steps * fullest)
    served = np.minimum(per_lane, most)
    busy = np.clip(per_lane / most, 0.0, 0.999)
    step_s, prompt_s = iteration_s(np.minimum(running + z * np.sqrt(running), seats), served)
    own_s = (prompt_s + step_s) * d.prompt_tokens_at / chunk
    tpot = step_s / d.gained
    full_s = np.where(busy > 0.9, busy**8 / (1.0 - busy) / np.maximum(most, 1e-12) * tail, 0.0)
    ttft = own_s + full_s + step_s * (1.5 if engine.async_scheduling else 0.5) + engine.request_overhead_s
    return {
        "capacity": most * lane,
        "ttft": ttft,
        "tpot": tpot,
        "e2e": ttft + tpot * d.decode_tokens_at,
        "requests_per_s": served * lane,
    }
