"""Routing of a plan: percentiles over simulated steps, intervals over how wrong the popularity law may be."""

from __future__ import annotations

from collections.abc import Callable

from moeplan.costs import routing as expert_routing
from moeplan.planner.intervals import exact, hull
from moeplan.simulate.routing import RoutingSimulation, RoutingStep, Spread, simulate_routing
from moeplan.spec.plan import Percentiles, Q, RoutingResult
from moeplan.spec.routing import RoutingAssumption

# The law is an assumption: intervals span no skew to twice as much.
_SKEWS = (0.0, 2.0)
_N_LAYERS, _TOKEN_LAYERS = 8, 1_500_000  # a fraction of a second


def routing_result(step: RoutingStep, routing: RoutingAssumption, *, exchanges: bool, decoding: bool) -> RoutingResult:
    """Route a sample of steps and layers. ``exchanges``: tokens travel to their experts, not weights to the tokens."""
    routing = routing if step.in_runs else routing.one_by_one()
    found = simulate_routing(step, routing, n_layers=_N_LAYERS, token_layers=_TOKEN_LAYERS)
    block, tokens = step.blocks[0], step.n_tokens
    loads = {s: expert_routing.rank_loads(block, tokens, step.n_ranks, routing.with_skew(s)) for s in (*_SKEWS, 1.0)}
    stated = loads[1.0]

    def scaled(value: float, of: str) -> Q:
        now = float(getattr(stated, of))
        others = (value * float(getattr(loads[s], of)) / now for s in _SKEWS)
        return hull(value, *others) if now > 0.0 else exact(value)

    dropped = found.dropped_frac.mean
    closed = 1.0 - float(stated.kept_frac)
    return RoutingResult(
        imbalance_max_over_mean=scaled(found.expert_max_over_mean.mean, "max_load"),
        straggler_over_mean=_percentiles(found.straggler_over_mean, lambda value: scaled(value, "assignments")),
        dropped_frac=hull(dropped, *(max(0.0, dropped - closed + 1.0 - float(loads[s].kept_frac)) for s in _SKEWS)),
        padding_frac=found.padding_frac.mean,
        all_to_all_bytes_per_token=_bytes_per_token(step, found) if exchanges else 0.0,
        distinct_experts_per_decode_step=scaled(found.distinct_experts.mean, "distinct") if decoding else None,
        n_steps_simulated=found.n_steps,
        path=found.path,
    )


def _percentiles(spread: Spread, scaled: Callable[[float], Q]) -> Percentiles:
    return Percentiles(*(scaled(v) for v in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99)))


def _bytes_per_token(step: RoutingStep, found: RoutingSimulation) -> float:
    """Dispatch and combine of one token to other GPUs, all layers, one copy per distinct GPU."""
    away = found.traffic_tokens.sum() - found.traffic_tokens.trace()
    width = sum(block.expert_hidden_size for block in step.blocks)
    return float(away / step.n_tokens * width * (step.dispatch_bytes_per_value + step.combine_bytes_per_value))
