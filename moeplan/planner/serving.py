"""Plan of a deployment: fit, step table, request-by-request simulation, and how wrong it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moeplan.planner.intervals import operations_used, scaled_table, worst_tier
from moeplan.planner.routing import routing_result
from moeplan.planner.serving_result import serving_result, slo_latencies
from moeplan.provenance import Tier
from moeplan.simulate.deployment import Deployment
from moeplan.simulate.routing_steps import serving_step
from moeplan.simulate.serving import EventLog
from moeplan.spec.fleet import PLAIN_FLEET
from moeplan.spec.plan import Q, RoutingResult, ServingResult
from moeplan.spec.scenario import Serving
from moeplan.spec.uncertainty import ModelError, situation
from moeplan.spec.workload import Slo, Traffic
from moeplan.steps.compiled import step_parts_s
from moeplan.steps.memory import MemoryFit
from moeplan.steps.serving import Iteration
from moeplan.steps.table import StepTable
from moeplan.steps.use import Use, serving_use

Say = Callable[[str], None]
_MOST_FLOOD_REQUESTS = 2**15  # bounds the time of a plan; a batch of thousands still turns over several times


@dataclass(frozen=True, slots=True)
class ServingOutcome:
    """A serving plan before money."""

    fit: MemoryFit
    prefill_fit: MemoryFit | None  # of a pool of its own
    result: ServingResult | None  # None when it does not fit
    slo_latency_s: Mapping[str, tuple[Slo, Mapping[str, Q]]]  # by class: targets, latency at their percentile
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
    prefill_fit = None if deployment.prefill is None else deployment.prefill.fit()
    if not fit.fits or (prefill_fit is not None and not prefill_fit.fits):
        return ServingOutcome(fit, prefill_fit, None, {}, None, {}, tier)
    say("simulating requests (the first run on a machine compiles the kernel, which takes up to a minute)")
    tables = (
        tables_at_ends(deployment, error, tier)
        if brief is None
        else [scaled_table(deployment.table(), brief * math.exp(error.of("step", tier).shift))]
    )
    logs = [deployment.run(table, fit) for table in tables]
    say("finding the most it could serve")
    capacities = [] if brief is not None else [_capacity_requests_per_s(t, deployment, fit) for t in tables]
    iteration = _mean_iteration(logs[0], serving)
    parts = step_parts_s(deployment.step, iteration) if iteration.n_tokens > 0 else {}
    return ServingOutcome(
        fit=fit,
        prefill_fit=prefill_fit,
        result=serving_result(logs, capacities, serving, error, tier),
        slo_latency_s=slo_latencies(logs, serving, error, tier),
        routing=None if brief is not None else _routing(deployment, iteration),
        time_breakdown=parts,
        tier=tier,
        use=serving_use(deployment.step, fit, iteration, sum(parts.values())) if parts else None,
        log=logs[0],
    )


def tier_of(deployment: Deployment) -> Tier:
    """The worst tier among the operations that fill a step; an estimate with drafts or weights in host memory, which
    no run has that intervals are learnt from.
    """
    engine = deployment.serving.engine
    if engine.draft_tokens > 0 or engine.weight_offload_frac > 0.0 or engine.expert_offload_frac > 0.0:
        return Tier.ESTIMATE
    return worst_tier(operations_used(deployment.hardware, engine.name, deployment.operations()))


def situation_of(deployment: Deployment) -> str:
    """The class of predictions this one belongs to: how its load comes, and its engine."""
    serving = deployment.serving
    regime = "flood" if serving.traffic.arrivals.kind == "all_at_once" else "steady"
    return situation(regime, serving.engine.name)


def tables_at_ends(deployment: Deployment, error: ModelError, tier: Tier) -> list[StepTable]:
    """Step times as predicted (and corrected by own runs), and at the fast and slow end of what they may be."""
    table, step = deployment.table(), error.of("step", tier)
    ends = (min(step.low, step.shift), max(step.high, step.shift))
    first = table if step.shift == 0.0 else scaled_table(table, math.exp(step.shift))
    return [first, *(scaled_table(table, math.exp(end)) for end in ends)]


def _capacity_requests_per_s(table: StepTable, deployment: Deployment, fit: MemoryFit) -> float | None:
    """Requests/s while a queue stands: the same kind of requests, all there at time zero, as many as that takes.

    One replica that stays is flooded; others behind the same queue, up to the most there may be, are its equals. Two
    pools are flooded together. Users do not pause, and do not give up.
    """
    serving, n_replicas = deployment.serving, 1
    if serving.prefill is None:
        n_replicas = serving.fleet.most_replicas(serving.layout)
        alone = replace(serving.layout, replicas=1)
        serving = replace(serving, layout=alone, fleet=replace(PLAIN_FLEET, dispatch=serving.fleet.dispatch))
    one = replace(deployment, serving=replace(serving, traffic=_unhurried(serving.traffic)))
    arrivals = replace(
        serving.traffic.arrivals, kind="all_at_once", rate_per_s=None, n_users=None, think_s=0.0, warmup_requests=0
    )
    n_requests = min(arrivals.n_requests, _MOST_FLOOD_REQUESTS)
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


def _unhurried(traffic: Traffic) -> Traffic:
    talk = traffic.conversations
    return replace(
        traffic,
        classes=tuple(replace(c, timeout_s=None) for c in traffic.classes),
        conversations=None if talk is None else replace(talk, think_s=0.0),
        timeout_s=None,
    )


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


def _mean_iteration(log: EventLog, serving: Serving) -> Iteration:
    """The average iteration of the simulation, per attention data-parallel rank."""
    n = float(log.replica_iterations.sum()) * serving.layout.dp * serving.layout.pp
    if n == 0.0:
        return Iteration()
    done = log.completed
    prompt, answer = log.input_tokens[done], log.output_tokens[done]
    context = float(np.average(prompt + answer / 2.0, weights=answer)) if done.any() else 0.0
    new = log.prefill_tokens / n
    return Iteration(log.decode_tokens / n / serving.engine.tokens_gained, context, ((new, 0.0),) if new > 0.0 else ())


def _routing(deployment: Deployment, iteration: Iteration) -> RoutingResult | None:
    """Routing of the mean decode step."""
    if not deployment.model.is_moe or iteration.decode_batch <= 0.0:
        return None
    serving = deployment.serving
    step = serving_step(deployment.model, deployment.hardware, serving, "decode", iteration.decode_batch)
    return routing_result(step, deployment.routing, exchanges=serving.layout.dp > 1, decoding=True)
