"""Requests of a traffic as arrays: when they come, how long they are, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.simulate.conversations import Chains, SharedText, chains_of, draw_turns, trace_text
from moeplan.spec.workload import LengthDistribution, RateStep, Traffic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_TOKENS = 2**31  # of one request; more is a mistake, and would only keep the simulation busy
_MAX_SPAN_S = 1e9  # thirty years: beyond, a double no longer resolves an iteration


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Arrays of shape (n_requests,); None where nothing of the kind is asked for.

    The first ``n_stream`` come by themselves, in order: ``arrival_s`` does not decrease, and is NaN in a closed loop
    (known only in the run). The others are sent when their predecessor has ended, or by a control event; NaN too.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    n_users: int  # closed loop; 0 otherwise
    pause_s: Floats  # between a request's end and its user's next
    n_stream: int | None = None  # None: all
    class_id: Ints | None = None  # index into Traffic.classes
    priority: Ints | None = None  # smaller goes first
    start_timeout_s: Floats | None = None  # its user gives up: not scheduled so long after it was sent
    finish_timeout_s: Floats | None = None  # ... or not finished
    successor: Ints | None = None  # the request its user sends next, -1: none
    # Prefix cache: each request's units of ``unit_tokens``, by the hash of all tokens up to their end, numbered from 0;
    # ``n_hash`` of them, one request after the other. They may go on into the answer.
    hash_ids: Ints | None = None
    n_hash: Ints | None = None
    unit_tokens: int = 0

    def __len__(self) -> int:
        return int(self.arrival_s.size)


def draw_requests(traffic: Traffic, seed: int) -> Requests:
    """The requests of ``traffic``: same traffic and seed, same bytes.

    A trace shorter than ``n_requests`` is repeated, each copy one mean gap after the last; ``rate_per_s`` rescales its
    time axis. Raises ValueError for traffic that cannot be simulated (no requests, no rate, unsorted times, ...).
    """
    arrivals = traffic.arrivals
    n = arrivals.n_requests
    if n < 1:
        raise ValueError(f"n_requests: at least 1 (got {n})")
    # Separate streams: changing the arrivals leaves the lengths as they were.
    spawned = np.random.SeedSequence(seed).spawn(6)
    times, prompts, answers, pauses, kinds, turns = (np.random.default_rng(s) for s in spawned)
    chains = _chains(traffic, n, turns)
    class_id = _classes(traffic, n, chains, kinds)
    arrival_s, n_users = _arrival_times(traffic, n, chains.n_stream, times)
    new_tokens = _lengths(traffic, "input_tokens", class_id, prompts)
    output_tokens = _lengths(traffic, "output_tokens", class_id, answers)
    input_tokens = chains.prompts(new_tokens, output_tokens)
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if np.any(tokens < 0) or np.any(tokens > _MAX_TOKENS):
            raise ValueError(f"{name}: between 0 and {_MAX_TOKENS} tokens (got {tokens.min()} to {tokens.max()})")
    talks = chains.n_stream < n
    think_s = arrivals.think_s if n_users else 0.0
    shared = _shared(traffic, chains, input_tokens, output_tokens)
    classes = traffic.classes
    patience_s = [np.inf if t is None else t for t in [c.timeout_s for c in classes] or [traffic.timeout_s]]
    return Requests(
        arrival_s=arrival_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        n_users=n_users,
        pause_s=pauses.exponential(1.0, n) * np.where(chains.successor >= 0, chains.think_s, think_s),
        n_stream=chains.n_stream if talks else None,
        class_id=class_id if classes else None,
        priority=np.array([c.priority for c in classes], dtype=np.int64)[class_id] if classes else None,
        finish_timeout_s=np.array(patience_s)[class_id] if min(patience_s) < np.inf else None,
        successor=chains.successor if talks else None,
        hash_ids=None if shared is None else np.unique(shared.id, return_inverse=True)[1],
        n_hash=None if shared is None else shared.n_units,
        unit_tokens=0 if shared is None else shared.unit_tokens,
    )


def _chains(traffic: Traffic, n: int, rng: np.random.Generator) -> Chains:
    talk = traffic.conversations
    if talk is None:
        return Chains.single(n)
    if traffic.trace is not None:
        raise ValueError("conversations: a trace has its own")
    if not 0.0 <= talk.think_s < _MAX_SPAN_S:
        raise ValueError(f"think_s: must be finite and not negative (got {talk.think_s})")
    return chains_of(talk, draw_turns(n, lambda k: draw_lengths(talk.turns, k, rng)))


def _classes(traffic: Traffic, n: int, chains: Chains, rng: np.random.Generator) -> Ints:
    """Class of every request; all turns of a conversation have one."""
    classes, trace = traffic.classes, traffic.trace
    if not classes:
        return np.zeros(n, dtype=np.int64)
    if trace is not None and trace.class_id is not None:
        found: Ints = trace.class_id[np.arange(n) % trace.class_id.size]
        if np.any(found < 0) or np.any(found >= len(classes)):
            raise ValueError(f"class_id: between 0 and {len(classes) - 1}")
        return found
    share = np.array([c.share_frac for c in classes])
    if not np.all(share >= 0.0) or not 0.0 < share.sum() < np.inf:
        raise ValueError(f"classes: shares must not be negative, and not all zero (got {share.tolist()})")
    drawn = rng.choice(len(classes), chains.n_stream, p=share / share.sum()).astype(np.int64)
    return np.asarray(drawn[chains.conversation])


def _arrival_times(traffic: Traffic, n: int, n_stream: int, rng: np.random.Generator) -> tuple[Floats, int]:
    """Arrival times (n,), NaN where they follow from the run, and the number of closed-loop users."""
    arrivals, n_users = traffic.arrivals, 0
    arrival_s = np.full(n, np.nan)
    if arrivals.kind == "trace":
        arrival_s[:] = _trace_times(traffic, n)
    elif arrivals.kind == "open":
        arrival_s[:n_stream] = _open_times(traffic, n_stream, n_stream / n, rng)
    elif arrivals.kind == "closed_loop":
        n_users = arrivals.n_users or 0
        if n_users < 1:
            raise ValueError(f"n_users: a closed loop needs at least 1 (got {arrivals.n_users})")
        if not 0.0 <= arrivals.think_s < _MAX_SPAN_S:
            raise ValueError(f"think_s: must be finite and not negative (got {arrivals.think_s})")
    else:
        arrival_s[:n_stream] = 0.0
    last_s = arrival_s[n_stream - 1]
    if n_users == 0 and not last_s <= _MAX_SPAN_S:
        raise ValueError(f"arrivals: {n} requests take {last_s:.3g} s; at most {_MAX_SPAN_S:.0e} s")
    return arrival_s, n_users


def _open_times(traffic: Traffic, n: int, share: float, rng: np.random.Generator) -> Floats:
    """Times of ``n`` arrivals at ``share`` of the stated rate.

    A renewal stream of rate 1, taken through the inverse of the cumulated rate (Cinlar, Introduction to Stochastic
    Processes, 4.7): exact for a Poisson stream, and bursts keep their share of requests in hours of any rate.
    """
    arrivals = traffic.arrivals
    cv = arrivals.gap_cv
    if not 0.0 <= cv <= 100.0:
        raise ValueError(f"gap_cv: between 0 and 100 (got {cv})")
    if cv == 1.0:
        gaps = rng.exponential(1.0, n)
    elif cv == 0.0:
        gaps = np.ones(n)
    else:
        gaps = rng.gamma(cv**-2, cv**2, n)
    arrived = np.cumsum(gaps)
    if not arrivals.rate_steps:
        return np.asarray(arrived / (_positive_rate(arrivals.rate_per_s) * share))
    return invert_rate(arrived / share, arrivals.rate_steps)


def invert_rate(expected: Floats, steps: tuple[RateStep, ...]) -> Floats:
    """Times by which so many arrivals are expected, under rates that repeat [s]."""
    spans_s = np.array([step.duration_s for step in steps])
    rates_per_s = np.array([step.rate_per_s for step in steps])
    if not (np.all(spans_s > 0.0) and np.all(rates_per_s >= 0.0) and np.isfinite(spans_s.sum() + rates_per_s.sum())):
        raise ValueError("rate_steps: durations must be positive and rates must not be negative, all finite")
    per_step = spans_s * rates_per_s
    total = float(per_step.sum())
    if total <= 0.0:
        raise ValueError("rate_steps: no request would ever come")
    ends, starts_s = np.cumsum(per_step), np.cumsum(spans_s) - spans_s
    rounds = np.floor(expected / total)
    rest = expected - rounds * total
    # side right: an instant in which nothing comes belongs to the step after it
    step = np.minimum(np.searchsorted(ends, rest, side="right"), np.flatnonzero(per_step)[-1])
    inside_s = (rest - (ends[step] - per_step[step])) / rates_per_s[step]
    return np.asarray(rounds * spans_s.sum() + starts_s[step] + inside_s)


def _positive_rate(rate_per_s: float | None) -> float:
    if rate_per_s is None or not 0.0 < rate_per_s < np.inf:
        raise ValueError(f"rate_per_s: must be positive and finite (got {rate_per_s})")
    return rate_per_s


def _trace_times(traffic: Traffic, n: int) -> Floats:
    trace, rate_per_s = traffic.trace, traffic.arrivals.rate_per_s
    if trace is None or trace.arrival_s.size == 0:
        raise ValueError("trace: holds no requests")
    times_s = trace.arrival_s
    if not np.all(np.isfinite(times_s)) or np.any(np.diff(times_s) < 0):
        raise ValueError("trace: arrival times must be finite and sorted")
    times_s = times_s - times_s[0]
    size, span_s = times_s.size, float(times_s[-1])
    # One mean gap closes the trace, so that copies follow each other at the trace's own rate.
    period_s = span_s * size / (size - 1) if size > 1 else 0.0
    if rate_per_s is not None:
        _positive_rate(rate_per_s)
        if period_s > 0.0:
            times_s = times_s * (size / rate_per_s / period_s)
        period_s = size / rate_per_s
    index = np.arange(n)
    return np.asarray(times_s[index % size] + (index // size) * period_s)


def _lengths(traffic: Traffic, which: str, class_id: Ints, rng: np.random.Generator) -> Ints:
    """Token counts (n,): of the request's class, else of the traffic, else of the trace."""
    n = class_id.size
    common: LengthDistribution | None = getattr(traffic, which)
    own: list[LengthDistribution | None] = [getattr(c, which) for c in traffic.classes]
    tokens = np.zeros(n, dtype=np.int64)
    if common is not None:
        tokens = draw_lengths(common, n, rng)
    elif traffic.trace is not None:
        recorded = getattr(traffic.trace, which)
        tokens = recorded[np.arange(n) % recorded.size].astype(np.int64)
    elif not own or None in own:
        raise ValueError(f"{which}: neither a trace nor a distribution gives them")
    for i, distribution in enumerate(own):
        if distribution is not None:
            mine = class_id == i
            tokens[mine] = draw_lengths(distribution, int(mine.sum()), rng)
    return tokens


def draw_lengths(distribution: LengthDistribution, n: int, rng: np.random.Generator) -> Ints:
    """Token counts (n,). Log-normal: ``mean_tokens`` is the mean before rounding and clipping to [low, high]."""
    low, high = distribution.low_tokens, distribution.high_tokens
    if distribution.kind == "fixed":
        return np.full(n, low, dtype=np.int64)
    if distribution.kind == "empirical":
        weights = np.array(distribution.weights)
        if not weights.size or not np.all(weights >= 0.0) or not 0.0 < weights.sum() < np.inf:
            raise ValueError("lengths: weights must not be negative, and not all zero")
        return np.array(distribution.values_tokens, dtype=np.int64)[
            rng.choice(weights.size, n, p=weights / weights.sum())
        ]
    if high < low:
        raise ValueError(f"lengths: upper end {high} below lower end {low}")
    if distribution.kind == "uniform":
        return rng.integers(low, high, n, endpoint=True)
    sigma = distribution.sigma_log
    if not (distribution.mean_tokens > 0.0 and 0.0 <= sigma < np.inf):
        raise ValueError(f"lengths: log-normal needs mean > 0, sigma >= 0 (got {distribution.mean_tokens}, {sigma})")
    # Mean of a log-normal is exp(mu + sigma^2 / 2).
    draw = rng.lognormal(np.log(distribution.mean_tokens) - 0.5 * sigma**2, sigma, n)
    return np.clip(np.rint(draw), low, high).astype(np.int64)


def _shared(traffic: Traffic, chains: Chains, input_tokens: Ints, output_tokens: Ints) -> SharedText | None:
    trace = traffic.trace
    if trace is None:
        return chains.shared(input_tokens, output_tokens)
    if trace.block_start is None or trace.block_id is None:
        return None
    return trace_text(trace.block_start, trace.block_id, trace.block_tokens, input_tokens.size)
