"""The serving part of a plan from simulated runs: one at the predicted step time, one at each end of its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moeplan import metrics
from moeplan.planner.intervals import at_least, from_log_error, hull
from moeplan.provenance import Tier
from moeplan.simulate.serving import EventLog
from moeplan.spec.plan import (
    BatchSize,
    ClassResult,
    LatencyCdf,
    Outcomes,
    Percentiles,
    Q,
    ServingResult,
    Timeline,
    Usage,
)
from moeplan.spec.scenario import Serving
from moeplan.spec.uncertainty import ModelError
from moeplan.spec.workload import Slo
from moeplan.units import HOUR_S, HOURS_PER_MONTH

_LATENCIES = {"ttft": metrics.ttft_s, "tpot": metrics.tpot_s, "e2e": metrics.e2e_s}
_MOST_INSTANTS = 400


def serving_result(
    logs: Sequence[EventLog], capacities: Sequence[float | None], serving: Serving, error: ModelError, tier: Tier
) -> ServingResult:
    """``logs`` and ``capacities`` [requests/s]: of the prediction first, then of the fast and the slow end."""
    traffic, slo = serving.traffic, serving.slo
    warmup = traffic.arrivals.warmup_requests
    found = [metrics.serving_metrics(log, warmup, slo, traffic.classes) for log in logs]
    mid, log = found[0], logs[0]
    flat_out = mid.saturated or traffic.arrivals.kind == "all_at_once"
    gpus = log.gpu_s / log.span_s if log.span_s > 0.0 else float(serving.n_gpus)

    def rate(pick: Callable[[metrics.ServingMetrics], float]) -> Q:
        return rate_interval([pick(m) for m in found], error, tier, flat_out=flat_out)

    known = [c for c in capacities if c is not None]
    cdf = {name: metrics.quantiles(of(log)[warmup:]) for name, of in _LATENCIES.items()}
    return ServingResult(
        requests_per_s=rate(lambda m: m.requests_per_s),
        input_tokens_per_s=rate(lambda m: m.input_tokens_per_s),
        output_tokens_per_s=rate(lambda m: m.output_tokens_per_s),
        output_tokens_per_s_per_gpu=rate(lambda m: m.output_tokens_per_s / gpus),
        ttft_s=interval_percentiles("ttft", [m.ttft for m in found], error, tier),
        tpot_s=interval_percentiles("tpot", [m.tpot for m in found], error, tier),
        e2e_s=interval_percentiles("e2e", [m.e2e for m in found], error, tier),
        utilization_frac=hull(*(min(1.0, m.utilization_frac) for m in found)),
        capacity_requests_per_s=rate_interval(known, error, tier, flat_out=True)
        if known and len(known) == len(capacities)
        else None,
        n_requests_simulated=mid.n_counted,
        n_requests_rejected=mid.outcomes.rejected,
        slo_met_frac=_hull_of([m.slo_met_frac for m in found]),
        saturated=mid.saturated,
        itl_s=interval_percentiles("itl", [m.itl for m in found], error, tier),
        goodput_requests_per_s=_hull_of([m.goodput_requests_per_s for m in found]),
        outcomes=_outcomes(mid.outcomes),
        reasons=mid.reasons,
        classes={name: _class_result([m.classes[name] for m in found], error, tier) for name in mid.classes},
        timeline=_timeline(log),
        latency_cdf=LatencyCdf(cdf["ttft"], cdf["tpot"], cdf["e2e"]),
        batch_size=BatchSize(*metrics.batch_sizes(log)),
        usage=Usage(
            span_hours=log.span_s / HOUR_S,
            replica_hours=float(log.replica_held_s.sum()) / HOUR_S,
            gpu_hours=log.gpu_s / HOUR_S,
            gpu_hours_per_month=gpus * HOURS_PER_MONTH,
            held_over_start=gpus / serving.n_gpus,
        ),
    )


def slo_latencies(
    logs: Sequence[EventLog], serving: Serving, error: ModelError, tier: Tier
) -> Mapping[str, tuple[Slo, Mapping[str, Q]]]:
    """Targets, and latency at their percentile by metric, of each class ("" where there are none)."""
    traffic = serving.traffic
    keep = metrics.counted(logs[0], traffic.arrivals.warmup_requests)
    if not traffic.classes:
        return {"": (serving.slo, _at_percentile(logs, [keep] * len(logs), serving.slo, error, tier))}
    return {
        c.name: (c.slo, _at_percentile(logs, [keep & (log.class_id == i) for log in logs], c.slo, error, tier))
        for i, c in enumerate(traffic.classes)
    }


def _at_percentile(
    logs: Sequence[EventLog], keeps: Sequence[np.ndarray], slo: Slo, error: ModelError, tier: Tier
) -> dict[str, Q]:
    """A request without an answer waits for ever; where so many do that the percentile is one of them there is none."""
    found: dict[str, Q] = {}
    for name, target in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("e2e", slo.e2e_s)):
        if target is None:
            continue
        rows = [_LATENCIES[name](log)[keep] for log, keep in zip(logs, keeps, strict=True)]
        rows = [np.where(log.completed[keep], row, np.inf) for row, log, keep in zip(rows, logs, keeps, strict=True)]
        rows = [row[~np.isnan(row)] for row in rows]  # one-token answers have no time per further token
        if not all(row.size for row in rows):
            continue
        at = [_percentile(row, slo.percentile) for row in rows]
        if math.isfinite(at[0]):
            noise = metrics.batch_means_error(rows[0][np.isfinite(rows[0])])
            found[name] = latency_interval(name, at, noise.get(f"p{slo.percentile:g}", math.nan), error, tier)
    return found


def _percentile(values_s: np.ndarray, percent: float) -> float:
    endless = not np.isfinite(values_s).all()
    return float(np.percentile(values_s, percent, method="higher" if endless else "linear"))


def rate_interval(rates: list[float], error: ModelError, tier: Tier, *, flat_out: bool) -> Q:
    """Interval of a rate: what is asked for where the deployment keeps up, what it can give where it runs flat out."""
    if flat_out and rates[0] > 0.0:
        return from_log_error(rates[0], error.of("throughput", tier))
    return hull(*rates)


def latency_interval(name: str, values: list[float], standard_error: float, error: ModelError, tier: Tier) -> Q:
    """Hull of the simulated ends, the sampling error of the simulation, and at least how wrong TTFT is as such."""
    q = hull(*values)
    if math.isfinite(standard_error) and q.low > 0.0:
        noise = 1.645 * standard_error  # 90 % of a normal
        # Below by the factor that the same error is above, to first order: no latency is zero.
        q = Q(q.value, q.low / (1.0 + noise / q.low), q.high + noise)
    return at_least(q, error.of("ttft", tier)) if name == "ttft" else q


def interval_percentiles(name: str, rows: list[metrics.Latency], error: ModelError, tier: Tier) -> Percentiles | None:
    if any(row.n == 0 for row in rows):
        return None
    mean, *percentiles = (
        latency_interval(name, [getattr(row, stat) for row in rows], rows[0].standard_error[stat], error, tier)
        for stat in metrics.STATISTICS
    )
    # Each has a sampling error of its own. No interval becomes narrower by keeping their ends in order.
    lows = np.minimum.accumulate([q.low for q in reversed(percentiles)])[::-1]
    highs = np.maximum.accumulate([q.high for q in percentiles])
    ordered = (Q(q.value, float(low), float(high)) for q, low, high in zip(percentiles, lows, highs, strict=True))
    return Percentiles(mean, *ordered)


def _hull_of(values: Sequence[float | None]) -> Q | None:
    known = [value for value in values if value is not None]
    return hull(*known) if len(known) == len(values) else None


def _outcomes(counts: metrics.OutcomeCounts) -> Outcomes:
    return Outcomes(counts.completed, counts.rejected, counts.timed_out, counts.lost, counts.retried)


def _class_result(rows: list[metrics.ClassMetrics], error: ModelError, tier: Tier) -> ClassResult:
    return ClassResult(
        outcomes=_outcomes(rows[0].outcomes),
        ttft_s=interval_percentiles("ttft", [row.ttft for row in rows], error, tier),
        tpot_s=interval_percentiles("tpot", [row.tpot for row in rows], error, tier),
        e2e_s=interval_percentiles("e2e", [row.e2e for row in rows], error, tier),
        goodput_requests_per_s=_hull_of([row.goodput_requests_per_s for row in rows]),
        slo_met_frac=_hull_of([row.slo_met_frac for row in rows]),
    )


def _timeline(log: EventLog) -> Timeline:
    at = metrics.thinned(log.window_s.size, _MOST_INSTANTS)
    ready = np.maximum(log.window_ready, 1)
    columns = (log.window_s, log.window_waiting, log.window_running, log.window_kv_frac.sum(axis=1) / ready)
    return Timeline(*(tuple(column[at].astype(float).tolist()) for column in (*columns, log.window_ready)))
