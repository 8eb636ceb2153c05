"""Numbers of an event log: latency percentiles, throughput, utilization, queue, goodput. Pure functions, in seconds.

Definitions follow vLLM's serving benchmark: TTFT = first token - arrival; TPOT = (last token - first token) / (output
tokens - 1), undefined for one token; ITL = time between consecutive tokens, over all tokens; E2E = last token -
arrival. Goodput counts requests that are inside every target (of their class).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moeplan.simulate.pool import OUTCOME_KINDS, OUTCOMES
from moeplan.spec.workload import Slo

if TYPE_CHECKING:
    from moeplan.simulate.serving import EventLog
    from moeplan.spec.workload import RequestClass

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NO_SLO = Slo(None, None, None, 90.0)

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_PERCENTS = (50.0, 90.0, 95.0, 99.0)
_N_BATCHES = 20  # usual choice for batch means: few enough that batches are nearly independent (Law, ch. 9)
_GROWTH_Z = 3.0  # standard errors by which the second half of the run must wait longer to call it saturated


@dataclass(frozen=True, slots=True)
class Latency:
    """Statistics of one latency over the counted requests [s], with batch-means standard errors [s]."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    standard_error: dict[str, float]  # by STATISTICS; NaN with too few requests
    n: int


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """What became of the counted requests; a retried one also has its end among the others."""

    completed: int
    rejected: int
    timed_out: int
    lost: int
    retried: int


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class of the counted requests, judged by its own targets."""

    ttft: Latency
    tpot: Latency
    e2e: Latency
    outcomes: OutcomeCounts
    goodput_requests_per_s: float | None  # None without targets
    slo_met_frac: float | None  # of all requests of the class, those without an answer included


@dataclass(frozen=True, slots=True)
class ServingMetrics:
    """What a run says about its counted requests (those after the warm-up)."""

    ttft: Latency
    tpot: Latency
    itl: Latency  # of all requests, warm-up included: tokens are counted, not kept
    e2e: Latency
    queueing: Latency  # arrival to first scheduling
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    utilization_frac: float  # replica time spent in iterations
    mean_running: float  # sequences, all replicas
    mean_waiting: float  # requests sent and not yet worked on
    max_waiting: int  # at the ends of the control windows
    mean_batch: float  # decode tokens per iteration
    goodput_requests_per_s: float | None  # None without an SLO
    slo_met_frac: float | None  # of all counted requests, rejected ones included
    saturated: bool
    n_counted: int
    outcomes: OutcomeCounts
    reasons: dict[str, int]  # why counted requests were not answered
    classes: dict[str, ClassMetrics]
    n_preemptions: int


def ttft_s(log: EventLog) -> Floats:
    """Time to first token (n_requests,), NaN where there was none."""
    return log.first_token_s - log.arrival_s


def tpot_s(log: EventLog) -> Floats:
    """Mean time per output token after the first (n_requests,), NaN where undefined."""
    gaps = np.where(log.completed & (log.output_tokens > 1), log.output_tokens - 1.0, np.nan)
    return (log.finish_s - log.first_token_s) / gaps


def e2e_s(log: EventLog) -> Floats:
    """Arrival to last token (n_requests,), NaN where not completed."""
    return np.where(log.completed, log.finish_s - log.arrival_s, np.nan)


def counted(log: EventLog, warmup_requests: int) -> Flags:
    """Requests that count: all but the first ``warmup_requests`` arrivals. Raises ValueError when none is left."""
    n = log.arrival_s.size
    if not 0 <= warmup_requests < n:
        raise ValueError(f"warmup_requests: between 0 and {n - 1} (got {warmup_requests})")
    return np.arange(n) >= warmup_requests


def latency(values_s: Floats) -> Latency:
    """Statistics of ``values_s`` in order of arrival, NaN left out; all NaN when nothing is left."""
    values_s = values_s[~np.isnan(values_s)]
    if values_s.size == 0:
        nan = float("nan")
        return Latency(nan, nan, nan, nan, nan, dict.fromkeys(STATISTICS, nan), 0)
    return Latency(*_statistics(values_s), batch_means_error(values_s), int(values_s.size))


def _statistics(values_s: Floats) -> list[float]:
    return [float(values_s.mean()), *map(float, np.percentile(values_s, _PERCENTS))]


def batch_means_error(values_s: Floats, n_batches: int = _N_BATCHES) -> dict[str, float]:
    """Standard error of each statistic by non-overlapping batch means (Law, Simulation Modeling and Analysis, 9.5.3).

    Consecutive requests wait together, so a plain standard error would be far too small. The error of a percentile is
    that of the batches' percentiles.
    """
    if values_s.size < 2 * n_batches:
        return dict.fromkeys(STATISTICS, float("nan"))
    batches = np.array([_statistics(batch) for batch in np.array_split(values_s, n_batches)])
    errors = batches.std(axis=0, ddof=1) / np.sqrt(n_batches)
    return dict(zip(STATISTICS, map(float, errors), strict=True))


def is_saturated(log: EventLog, warmup_requests: int = 0) -> bool:
    """True when open arrivals queue longer and longer: offered load is above what the deployment serves.

    Compares queueing in the third and fourth quarter of the arrivals by batch means, and asks that the backlog left
    at the last arrival takes over a tenth of the run to serve. A closed loop and simultaneous arrivals have no queue
    to grow.
    """
    if log.n_users > 0:
        return False
    waits_s = (log.scheduled_s - log.arrival_s)[counted(log, warmup_requests)]
    waits_s = waits_s[~np.isnan(waits_s)]
    span_s = log.last_own_s - float(log.arrival_s[0])
    if waits_s.size < 4 * _N_BATCHES or span_s <= 0.0:
        return False
    if _backlog_s(log) < 0.1 * span_s:
        return False
    third, fourth = np.array_split(waits_s, 4)[2:]
    error_s = np.hypot(batch_means_error(third)["mean"], batch_means_error(fourth)["mean"])
    return bool(fourth.mean() - third.mean() > _GROWTH_Z * error_s)


def slo_met(log: EventLog, slo: Slo, classes: Sequence[RequestClass] = ()) -> Flags:
    """Requests that completed within every target (n_requests,); an undefined TPOT meets its target.

    With ``classes`` each request is held to the targets of its own.
    """
    met = log.completed.copy()
    targets = [c.slo for c in classes] or [slo]
    class_id = log.class_id if classes else np.zeros(met.size, dtype=np.int64)
    for name, values_s in (("ttft_s", ttft_s(log)), ("tpot_s", tpot_s(log)), ("e2e_s", e2e_s(log))):
        asked = [getattr(target, name) for target in targets]
        limit_s = np.array([np.inf if target is None else target for target in asked])
        met &= ~(values_s > limit_s[class_id])
    return met


def outcome_counts(log: EventLog, keep: Flags) -> OutcomeCounts:
    """How the requests of ``keep`` (n_requests,) ended."""
    kinds = [OUTCOME_KINDS[code] for code in log.outcome[keep].tolist()]
    return OutcomeCounts(
        *(kinds.count(kind) for kind in ("completed", "rejected", "timed_out", "lost")),
        retried=int((log.retries[keep] > 0).sum()),
    )


def _class_metrics(log: EventLog, keep: Flags, met: Flags, goodput_requests_per_s: float | None) -> ClassMetrics:
    return ClassMetrics(
        ttft=latency(ttft_s(log)[keep]),
        tpot=latency(tpot_s(log)[keep]),
        e2e=latency(e2e_s(log)[keep]),
        outcomes=outcome_counts(log, keep),
        goodput_requests_per_s=goodput_requests_per_s,
        slo_met_frac=None if goodput_requests_per_s is None or not keep.any() else float(met[keep].mean()),
    )


def _measured_span(log: EventLog, keep: Flags) -> tuple[float, float, Flags]:
    """Start and stop of the measurement [s] and the completions that count for rates.

    Everything that completes from the arrival of the first counted request on, what had come before it included. Open
    arrivals: until the last arrival of its own, because the drain afterwards, the last conversations included, is not
    the load asked for. Where what had arrived by then takes long to drain (a burst, overload) and in a closed loop:
    until the last counted request ends, as in serving benchmarks.
    """
    start_s, last_s = float(log.arrival_s[keep].min()), log.last_own_s
    drained = log.n_users == 0 and _backlog_s(log) < 0.5 * (last_s - start_s)
    stop_s = last_s if drained else float(np.nanmax(log.finish_s[keep]))
    return start_s, stop_s, log.completed & (log.finish_s > start_s) & (log.finish_s <= stop_s)


def _backlog_s(log: EventLog) -> float:
    """How long it takes to serve what is there at the last arrival of its own [s]."""
    return float(np.nanmax(log.finish_s[log.arrival_s <= log.last_own_s])) - log.last_own_s


def serving_metrics(
    log: EventLog, warmup_requests: int = 0, slo: Slo | None = None, classes: Sequence[RequestClass] = ()
) -> ServingMetrics:
    """All metrics of a run. Utilization and the mean numbers running and waiting cover the whole run.

    Raises ValueError when no request is left after the warm-up.
    """
    keep = counted(log, warmup_requests)
    start_s, stop_s, in_span = _measured_span(log, keep)
    waits_s = log.scheduled_s - log.arrival_s
    asked = any(c.slo.asked for c in classes) or (not classes and slo is not None and slo.asked)
    met = slo_met(log, slo or NO_SLO, classes)

    def per_s(amount: float) -> float:
        return float(amount) / (stop_s - start_s) if stop_s > start_s else 0.0  # nothing can complete in no time

    whole_s = float(np.nanmax(log.finish_s)) - float(log.arrival_s[0])
    n_iterations = int(log.replica_iterations.sum())
    return ServingMetrics(
        ttft=latency(ttft_s(log)[keep]),
        tpot=latency(tpot_s(log)[keep]),
        itl=histogram_latency(log.gap_s, log.gap_tokens),
        e2e=latency(e2e_s(log)[keep]),
        queueing=latency(waits_s[keep]),
        requests_per_s=per_s(in_span.sum()),
        input_tokens_per_s=per_s(log.input_tokens[in_span].sum()),
        output_tokens_per_s=per_s(log.output_tokens[in_span].sum()),
        utilization_frac=float(log.replica_busy_s.sum() / log.replica_ready_s.sum()) if whole_s > 0.0 else float("nan"),
        mean_running=log.running_time_s / whole_s if whole_s > 0.0 else float("nan"),
        mean_waiting=float(np.nansum(waits_s)) / whole_s if whole_s > 0.0 else float("nan"),
        max_waiting=int(log.window_waiting.max()),
        mean_batch=log.decode_tokens / n_iterations if n_iterations else 0.0,
        goodput_requests_per_s=per_s((met & in_span).sum()) if asked else None,
        slo_met_frac=float(met[keep].mean()) if asked else None,
        saturated=is_saturated(log, warmup_requests),
        n_counted=int(keep.sum()),
        outcomes=outcome_counts(log, keep),
        reasons=reasons(log, keep),
        classes={
            c.name: _class_metrics(log, keep & mine, met, per_s((met & in_span & mine).sum()) if c.slo.asked else None)
            for c, mine in ((c, log.class_id == i) for i, c in enumerate(classes))
        },
        n_preemptions=log.n_preemptions,
    )


def reasons(log: EventLog, keep: Flags) -> dict[str, int]:
    """Requests of ``keep`` (n_requests,) that were not answered, by what happened to them."""
    codes, counts = np.unique(log.outcome[keep & ~log.completed], return_counts=True)
    return {OUTCOMES[int(code)]: int(count) for code, count in zip(codes, counts, strict=True)}


def histogram_latency(values_s: Floats, counts: Ints) -> Latency:
    """Statistics of values that were counted in bins; ``values_s`` (n_bins,) ascending. Without a standard error."""
    total = int(counts.sum())
    if total == 0:
        return latency(np.zeros(0))
    reached = np.cumsum(counts)
    percentiles = (float(values_s[np.searchsorted(reached, q / 100.0 * total)]) for q in _PERCENTS)
    mean = float(np.average(values_s, weights=counts))
    return Latency(mean, *percentiles, dict.fromkeys(STATISTICS, float("nan")), total)


def quantiles(values_s: Floats) -> tuple[float, ...]:
    """Quantiles at 0, 1, ... 100 %, NaN left out; empty when nothing is left."""
    values_s = values_s[~np.isnan(values_s)]
    return tuple(np.percentile(values_s, np.arange(101)).tolist()) if values_s.size else ()


def thinned(n: int, most: int) -> Ints:
    """Indices of at most ``most`` of ``n`` samples, evenly spaced, the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def batch_sizes(log: EventLog, most: int = 256) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sequences of a rank and the share of iteration time with so many; wide ranges are put together."""
    time_s = np.trim_zeros(log.batch_time_s, "b")
    if not time_s.size:
        return (), ()
    width = -(-time_s.size // most)
    grouped = np.add.reduceat(time_s, np.arange(0, time_s.size, width))
    seen = np.flatnonzero(grouped > 0.0)
    # a group goes by its largest size, as padding to captured graphs does
    sizes = np.minimum(seen * width + width - 1, time_s.size - 1)
    return tuple(sizes.tolist()), tuple((grouped[seen] / grouped.sum()).tolist())
