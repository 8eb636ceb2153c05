"""Numbers of an event log: latency percentiles, throughput, utilization, queue, goodput. Pure functions, in seconds.

Definitions follow vLLM's serving benchmark: TTFT = first token - arrival; TPOT = (last token - first token) / (output
tokens - 1), undefined for one token; E2E = last token - arrival.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moeplan.simulate.serving import EventLog
    from moeplan.spec.workload import Slo

Floats = npt.NDArray[np.float64]

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
class ServingMetrics:
    """What a run says about its counted requests (those after the warm-up)."""

    ttft: Latency
    tpot: Latency
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
    n_completed: int
    n_rejected: int
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


def counted(log: EventLog, warmup_requests: int) -> npt.NDArray[np.bool_]:
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
    last_s = float(log.arrival_s[-1])
    span_s = last_s - float(log.arrival_s[0])
    if waits_s.size < 4 * _N_BATCHES or span_s <= 0.0:
        return False
    if float(np.nanmax(log.finish_s)) - last_s < 0.1 * span_s:
        return False
    third, fourth = np.array_split(waits_s, 4)[2:]
    error_s = np.hypot(batch_means_error(third)["mean"], batch_means_error(fourth)["mean"])
    return bool(fourth.mean() - third.mean() > _GROWTH_Z * error_s)


def slo_met(log: EventLog, slo: Slo) -> npt.NDArray[np.bool_]:
    """Requests that completed within every target (n_requests,); an undefined TPOT meets its target."""
    met = log.completed.copy()
    for target_s, values_s in ((slo.ttft_s, ttft_s(log)), (slo.tpot_s, tpot_s(log)), (slo.e2e_s, e2e_s(log))):
        if target_s is not None:
            met &= ~(values_s > target_s)
    return met


def _measured_span(log: EventLog, keep: npt.NDArray[np.bool_]) -> tuple[float, float, npt.NDArray[np.bool_]]:
    """Start and stop of the measurement [s] and the completions that count for rates.

    Open arrivals: everything that completes between the first counted and the last arrival, because the drain
    afterwards is not the load asked for. Where the drain is long (a burst, overload) and in a closed loop: the
    counted requests, from the first one's arrival to the last one's end, as serving benchmarks do.
    """
    start_s, last_s = float(log.arrival_s[keep].min()), float(log.arrival_s.max())
    end_s = float(np.nanmax(log.finish_s[keep]))
    if log.n_users == 0 and end_s - last_s < 0.5 * (last_s - start_s):
        return start_s, last_s, log.completed & (log.finish_s > start_s) & (log.finish_s <= last_s)
    return start_s, end_s, log.completed & keep


def serving_metrics(log: EventLog, warmup_requests: int = 0, slo: Slo | None = None) -> ServingMetrics:
    """All metrics of a run. Utilization and the mean numbers running and waiting cover the whole run.

    Raises ValueError when no request is left after the warm-up.
    """
    keep = counted(log, warmup_requests)
    start_s, stop_s, in_span = _measured_span(log, keep)
    waits_s = log.scheduled_s - log.arrival_s
    met = slo_met(log, slo) if slo is not None else None

    def per_s(amount: float) -> float:
        return float(amount) / (stop_s - start_s) if stop_s > start_s else float("nan")

    whole_s = float(np.nanmax(log.finish_s)) - float(log.arrival_s[0])
    n_iterations = int(log.replica_iterations.sum())
    return ServingMetrics(
        ttft=latency(ttft_s(log)[keep]),
        tpot=latency(tpot_s(log)[keep]),
        e2e=latency(e2e_s(log)[keep]),
        queueing=latency(waits_s[keep]),
        requests_per_s=per_s(in_span.sum()),
        input_tokens_per_s=per_s(log.input_tokens[in_span].sum()),
        output_tokens_per_s=per_s(log.output_tokens[in_span].sum()),
        utilization_frac=float(log.replica_busy_s.mean()) / whole_s if whole_s > 0.0 else float("nan"),
        mean_running=log.running_time_s / whole_s if whole_s > 0.0 else float("nan"),
        mean_waiting=float(np.nansum(waits_s)) / whole_s if whole_s > 0.0 else float("nan"),
        max_waiting=int(log.window_waiting.max()),
        mean_batch=log.decode_tokens / n_iterations if n_iterations else 0.0,
        goodput_requests_per_s=None if met is None else per_s((met & in_span).sum()),
        slo_met_frac=None if met is None else float(met[keep].mean()),
        saturated=is_saturated(log, warmup_requests),
        n_counted=int(keep.sum()),
        n_completed=int((keep & log.completed).sum()),
        n_rejected=int((keep & ~log.completed).sum()),
        n_preemptions=log.n_preemptions,
    )
