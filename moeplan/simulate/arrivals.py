"""Requests of a traffic as arrays: when they come and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.spec.workload import LengthDistribution, Traffic

_MAX_TOKENS = 2**31  # of one request; more is a mistake, and would only keep the simulation busy
_MAX_SPAN_S = 1e9  # thirty years: beyond, a double no longer resolves an iteration


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Arrays of shape (n_requests,). ``arrival_s`` does not decrease; NaN in a closed loop (known only in the run)."""

    arrival_s: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    n_users: int  # closed loop; 0 otherwise
    pause_s: npt.NDArray[np.float64]  # closed loop: between a request's end and its user's next

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
    times, prompts, answers, pauses = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    n_users = 0
    if arrivals.kind == "trace":
        arrival_s = _trace_times(traffic, n)
    elif arrivals.kind == "poisson":
        rate_per_s = _positive_rate(arrivals.rate_per_s)
        arrival_s = np.cumsum(times.exponential(1.0 / rate_per_s, n))
    elif arrivals.kind == "closed_loop":
        n_users = arrivals.n_users or 0
        if n_users < 1:
            raise ValueError(f"n_users: a closed loop needs at least 1 (got {arrivals.n_users})")
        if not 0.0 <= arrivals.think_s < _MAX_SPAN_S:
            raise ValueError(f"think_s: must be finite and not negative (got {arrivals.think_s})")
        arrival_s = np.full(n, np.nan)
    else:
        arrival_s = np.zeros(n)
    if n_users == 0 and not arrival_s[-1] <= _MAX_SPAN_S:
        raise ValueError(f"arrivals: {n} requests take {arrival_s[-1]:.3g} s; at most {_MAX_SPAN_S:.0e} s")
    return Requests(
        arrival_s=arrival_s,
        input_tokens=_lengths(traffic, "input_tokens", n, prompts),
        output_tokens=_lengths(traffic, "output_tokens", n, answers),
        n_users=n_users,
        pause_s=pauses.exponential(1.0, n) * (arrivals.think_s if n_users else 0.0),
    )


def _positive_rate(rate_per_s: float | None) -> float:
    if rate_per_s is None or not 0.0 < rate_per_s < np.inf:
        raise ValueError(f"rate_per_s: must be positive and finite (got {rate_per_s})")
    return rate_per_s


def _trace_times(traffic: Traffic, n: int) -> npt.NDArray[np.float64]:
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


def _lengths(traffic: Traffic, which: str, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    distribution: LengthDistribution | None = getattr(traffic, which)
    if distribution is None:
        if traffic.trace is None:
            raise ValueError(f"{which}: neither a trace nor a distribution gives them")
        recorded = getattr(traffic.trace, which)
        tokens = recorded[np.arange(n) % recorded.size].astype(np.int64)
    else:
        tokens = draw_lengths(distribution, n, rng)
    if np.any(tokens < 0) or np.any(tokens > _MAX_TOKENS):
        raise ValueError(f"{which}: between 0 and {_MAX_TOKENS} tokens (got {tokens.min()} to {tokens.max()})")
    return tokens


def draw_lengths(distribution: LengthDistribution, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Token counts (n,). Log-normal: ``mean_tokens`` is the mean before rounding and clipping to [low, high]."""
    low, high = distribution.low_tokens, distribution.high_tokens
    if distribution.kind == "fixed":
        return np.full(n, low, dtype=np.int64)
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
