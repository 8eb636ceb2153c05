"""Plan of a deployment: fit, step table, request-by-request simulation, and how wrong it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moeplan import metrics
from moeplan.planner.intervals import at_least, from_log_error, hull, operations_used, scaled_table, worst_tier
from moeplan.planner.routing import routing_result
from moeplan.provenance import Tier
from moeplan.simulate.deployment import Deployment
from moeplan.simulate.routing_steps import serving_step
from moeplan.simulate.serving import EventLog
from moeplan.spec.plan import Percentiles, Q, RoutingResult, ServingResult
from moeplan.spec.scenario import Serving
from moeplan.spec.uncertainty import ModelError, situation
from moeplan.steps.memory import MemoryFit
from moeplan.steps.serving import Iteration, step_parts_s
from moeplan.steps.table import StepTable
from moeplan.steps.use import Use, serving_use

Say = Callable[[str], None]
_MOST_FLOOD_REQUESTS = 2**15  # bounds the time of a plan; a batch of thousands still turns over several times


@dataclass(frozen=True, slots=True)
class ServingOutcome:
    """A serving plan before money."""

    fit: MemoryFit
    result: ServingResult | None  # None when it does not fit
    slo_latency_s: Mapping[str, Q]  # latency at the target's percentile, by metric
    routing: RoutingResult | None
    time_breakdown: Mapping[str, float]  # mean iteration of the simulation [s]
    tier: Tier
    use: Use | None = None  # of a GPU by the mean iteration
    log: EventLog | None = None  # the simulation at the predicted step time


def plan_serving(deployment: Deployment, error: ModelError, say: Say, *, brief: float | None = None) -> ServingOutcome:
    """Simulate the deployment at the predicted step time and at both ends of its interval.

    Queueing makes latency a steep function of step time, so the ends are simulated, not scaled. ``brief``: only at
    this multiple of the predicted step time, as a search compares values; no capacity, no sample of the routing.
    """
    serving = deployment.serving
    tier, error = tier_of(deployment), error.where(situation_of(deployment))
    fit = deployment.fit()
    if not fit.fits:
        return ServingOutcome(fit, None, {}, None, {}, tier)
    say("simulating requests (the first run on a machine compiles the kernel, which takes up to a minute)")
    tables = tables_at_ends(deployment, error, tier) if brief is None else [scaled_table(deployment.table(), brief)]
    logs = [deployment.run(table, fit) for table in tables]
    say("finding the most it could serve")
    capacities = [] if brief is not None else [_capacity_requests_per_s(t, deployment, fit) for t in tables]
    result, slo_latency = _result(logs, capacities, deployment, error, tier)
    iteration = _mean_iteration(logs[0], serving)
    parts = step_parts_s(deployment.step, iteration) if iteration.n_tokens > 0 else {}
    return ServingOutcome(
        fit=fit,
        result=result,
        slo_latency_s=slo_latency,
        routing=None if brief is not None else _routing(deployment, iteration),
        time_breakdown=parts,
        tier=tier,
        use=serving_use(deployment.step, fit, iteration, sum(parts.values())) if parts else None,
        log=logs[0],
    )


def tier_of(deployment: Deployment) -> Tier:
    """The worst tier among the operations that fill a step."""
    used = operations_used(deployment.hardware, deployment.serving.engine.name, deployment.operations())
    return worst_tier(used)


def situation_of(deployment: Deployment) -> str:
    """The class of predictions this one belongs to: how its load comes, and its engine."""
    serving = deployment.serving
    regime = "flood" if serving.traffic.arrivals.kind == "all_at_once" else "steady"
    return situation(regime, serving.engine.name)


def tables_at_ends(deployment: Deployment, error: ModelError, tier: Tier) -> list[StepTable]:
    """Step times as predicted, and at the fast and slow end of what they may be."""
    table, step = deployment.table(), error.of("step", tier)
    return [table, scaled_table(table, math.exp(step.low)), scaled_table(table, math.exp(step.high))]


def _capacity_requests_per_s(table: StepTable, deployment: Deployment, fit: MemoryFit) -> float | None:
    """Requests/s while a queue stands: the same kind of requests, all there at time zero, as many as that takes.

    One replica is flooded; others behind the same queue are its equals.
    """
    serving = deployment.serving
    n_replicas = serving.layout.replicas
    one = replace(deployment, serving=replace(serving, layout=replace(serving.layout, replicas=1)))
    arrivals = replace(
        serving.traffic.arrivals, kind="all_at_once", rate_per_s=None, n_users=None, think_s=0.0, warmup_requests=0
    )
    n_requests = arrivals.n_requests
    while True:
        log = one.run(table, fit, replace(arrivals, n_requests=n_requests))
        if not log.completed.any():
            return None
        per_s = _standing_queue_requests_per_s(log)
        if per_s is not None:
            return n_replicas * per_s
        if n_requests >= _MOST_FLOOD_REQUESTS:  # a lower bound: filling and emptying are in it
            return n_replicas * float(log.completed.sum() / log.finish_s[log.completed].max())
        n_requests *= 4


def _standing_queue_requests_per_s(log: EventLog) -> float | None:
    """Requests/s between the first end and the last start of a request; None when that is too short to tell.

    The work of a request counts evenly from its start to its end: equal requests end in waves, and counting ends would
    measure the height of a wave.
    """
    done = log.completed
    start, end = log.scheduled_s[done], log.finish_s[done]
    first, last = float(end.min()), float(start.max())
    if last - first < 2.0 * float(np.mean(end - start)):
        return None
    inside = np.minimum(end, last) - np.maximum(start, first)
    return float(np.sum(np.maximum(inside, 0.0) / (end - start)) / (last - first))


def _result(
    logs: list[EventLog],
    capacities: list[float | None],
    deployment: Deployment,
    error: ModelError,
    tier: Tier,
) -> tuple[ServingResult, dict[str, Q]]:
    serving = deployment.serving
    warmup, slo = serving.traffic.arrivals.warmup_requests, serving.slo
    found = [metrics.serving_metrics(log, warmup, slo) for log in logs]
    mid = found[0]

    flat_out = mid.saturated or serving.traffic.arrivals.kind == "all_at_once"

    def rate(pick: Callable[[metrics.ServingMetrics], float]) -> Q:
        return rate_interval([pick(m) for m in found], error, tier, flat_out=flat_out)

    def share(pick: Callable[[metrics.ServingMetrics], float]) -> Q:
        return hull(*(pick(m) for m in found))

    def latencies(name: str) -> Percentiles | None:
        rows = [getattr(m, name) for m in found]
        if any(row.n == 0 for row in rows):
            return None
        return Percentiles(
            *(
                latency_interval(name, [getattr(row, stat) for row in rows], rows[0].standard_error[stat], error, tier)
                for stat in ("mean", "p50", "p90", "p95", "p99")
            )
        )

    known = [c for c in capacities if c is not None]
    result = ServingResult(
        requests_per_s=rate(lambda m: m.requests_per_s),
        input_tokens_per_s=rate(lambda m: m.input_tokens_per_s),
        output_tokens_per_s=rate(lambda m: m.output_tokens_per_s),
        output_tokens_per_s_per_gpu=rate(lambda m: m.output_tokens_per_s / serving.layout.n_gpus),
        ttft_s=latencies("ttft"),
        tpot_s=latencies("tpot"),
        e2e_s=latencies("e2e"),
        utilization_frac=share(lambda m: min(1.0, m.utilization_frac)),
        capacity_requests_per_s=rate_interval(known, error, tier, flat_out=True)
        if known and len(known) == len(capacities)
        else None,
        n_requests_simulated=mid.n_counted,
        n_requests_rejected=mid.n_rejected,
        slo_met_frac=share(lambda m: 0.0 if m.slo_met_frac is None else m.slo_met_frac) if _asked(serving) else None,
        saturated=mid.saturated,
    )
    return result, _slo_latencies(logs, result, deployment, error, tier)


def _asked(serving: Serving) -> bool:
    return any(t is not None for t in (serving.slo.ttft_s, serving.slo.tpot_s, serving.slo.e2e_s))


def rate_interval(rates: list[float], error: ModelError, tier: Tier, *, flat_out: bool) -> Q:
    """Interval of a rate: what is asked for where the deployment keeps up, what it can give where it runs flat out."""
    if flat_out and rates[0] > 0.0:
        return from_log_error(rates[0], error.of("throughput", tier))
    return hull(*rates)


def latency_interval(name: str, values: list[float], standard_error: float, error: ModelError, tier: Tier) -> Q:
    """Hull of the simulated ends, the sampling error of the simulation, and at least how wrong TTFT is as such."""
    q = hull(*values)
    if math.isfinite(standard_error):
        noise = 1.645 * standard_error  # 90 % of a normal
        q = Q(q.value, max(0.0, q.low - noise), q.high + noise)
    return at_least(q, error.of("ttft", tier)) if name == "ttft" else q


def _slo_latencies(
    logs: list[EventLog], result: ServingResult, deployment: Deployment, error: ModelError, tier: Tier
) -> dict[str, Q]:
    """Latency at the percentile of the targets: the reported one where it is among those, else its own."""
    serving = deployment.serving
    keep = metrics.counted(logs[0], serving.traffic.arrivals.warmup_requests)
    found: dict[str, Q] = {}
    for name, target, values in (
        ("ttft", serving.slo.ttft_s, metrics.ttft_s),
        ("tpot", serving.slo.tpot_s, metrics.tpot_s),
        ("e2e", serving.slo.e2e_s, metrics.e2e_s),
    ):
        if target is None:
            continue
        reported = getattr(getattr(result, f"{name}_s"), f"p{serving.slo.percentile:g}", None)
        if reported is not None:
            found[name] = reported
            continue
        rows = [values(log)[keep] for log in logs]
        if np.isnan(rows[0]).all():
            continue
        at = [float(np.nanpercentile(row, serving.slo.percentile)) for row in rows]
        found[name] = latency_interval(name, at, math.nan, error, tier)
    return found


def _mean_iteration(log: EventLog, serving: Serving) -> Iteration:
    """The average iteration of the simulation, per attention data-parallel rank."""
    n = float(log.replica_iterations.sum()) * serving.layout.dp * serving.layout.pp
    if n == 0.0:
        return Iteration()
    done = log.completed
    prompt, answer = log.input_tokens[done], log.output_tokens[done]
    context = float(np.average(prompt + answer / 2.0, weights=answer)) if done.any() else 0.0
    new = log.prefill_tokens / n
    return Iteration(log.decode_tokens / n, context, ((new, 0.0),) if new > 0.0 else ())


def _routing(deployment: Deployment, iteration: Iteration) -> RoutingResult | None:
    """Routing of the mean decode step."""
    if not deployment.model.is_moe or iteration.decode_batch <= 0.0:
        return None
    serving = deployment.serving
    step = serving_step(deployment.model, deployment.hardware, serving, "decode", iteration.decode_batch)
    return routing_result(step, deployment.routing, exchanges=serving.layout.dp > 1, decoding=True)
