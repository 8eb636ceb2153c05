"""Train once, then serve for months under a forecast: capacity steps, total cost of ownership, where the money goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from moeplan import metrics
from moeplan.costs.money import Bill, Usage, bill
from moeplan.planner.money.energy import Power
from moeplan.planner.money.money import Spending, cents, invoice
from moeplan.simulate.deployment import Deployment
from moeplan.simulate.serving import EventLog
from moeplan.spec.plan import LifecycleResult, Q, ServingResult
from moeplan.spec.plan_money import LifeMonth
from moeplan.spec.prices import Money
from moeplan.spec.scenario import Demand, Serving
from moeplan.spec.workload import Slo

_BISECTIONS = 7  # to a hundredth of the capacity
_MONTHS_PER_YEAR = 12.0
_LARGEST_EXPONENT = 200.0  # of a growth: beyond any fleet, within a float


def demand_factor(demand: Demand | None, month: float) -> float:
    """Request rate at ``month`` in service over the traffic's rate, see `Demand`."""
    if demand is None:
        return 1.0
    if demand.monthly is not None:
        return demand.monthly[min(int(month), len(demand.monthly) - 1)]
    factor = math.exp(min(month * math.log1p(demand.growth_frac_per_month), _LARGEST_EXPONENT))
    if demand.adoption_start_frac is not None and demand.adoption_midpoint_months is not None:
        start = demand.adoption_start_frac
        steepness = math.log((1.0 - start) / start) / demand.adoption_midpoint_months
        factor /= 1.0 + math.exp(min(steepness * (demand.adoption_midpoint_months - month), 700.0))
    peak = demand.peak_month - 0.5  # the middle of that month
    return factor * (1.0 + demand.seasonality_frac * math.cos(2.0 * math.pi * (month - peak) / _MONTHS_PER_YEAR))


def requests_per_s_per_replica(deployment: Deployment, result: ServingResult) -> float:
    """The most one replica takes while every latency target holds and its queue stays bounded.

    Found by simulation at the predicted step time, so the utilisation at which a replica is full is a result and not
    an assumption. Replicas behind one queue do a little better than this. Targets that hold at no load are left out
    (their own verdicts fail). Where users wait for their answers there is no rate to raise: the load per replica stays
    as it is in the scenario.
    """
    replicas = deployment.serving.layout.replicas
    now = result.requests_per_s.value / replicas
    capacity = result.capacity_requests_per_s
    arrivals = deployment.serving.traffic.arrivals
    if arrivals.rate_per_s is None or capacity is None:
        return now
    one = replace(
        deployment, serving=replace(deployment.serving, layout=replace(deployment.serving.layout, replicas=1))
    )
    table, fit = one.table(), one.fit()

    def most(*, within_targets: bool) -> float:
        low, high = 0.0, capacity.value / replicas
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            log = one.run(table, fit, replace(arrivals, rate_per_s=middle))
            holds = not within_targets or _targets_hold(log, deployment.serving)
            keeps_up = holds and not metrics.is_saturated(log, arrivals.warmup_requests)
            low, high = (middle, high) if keeps_up else (low, middle)
        return low

    return most(within_targets=True) or most(within_targets=False) or now


def _targets_hold(log: EventLog, serving: Serving) -> bool:
    """Whether every latency target holds, of each class of requests where there are any."""
    keep = metrics.counted(log, serving.traffic.arrivals.warmup_requests)
    classes = serving.traffic.classes
    if not classes:
        return _slo_holds(log, keep, serving.slo)
    return all(_slo_holds(log, keep & (log.class_id == i), c.slo) for i, c in enumerate(classes))


def _slo_holds(log: EventLog, keep: npt.NDArray[np.bool_], slo: Slo) -> bool:
    for target_s, values_s in ((slo.ttft_s, metrics.ttft_s), (slo.tpot_s, metrics.tpot_s), (slo.e2e_s, metrics.e2e_s)):
        if target_s is None:
            continue
        seen = values_s(log)[keep]
        if np.isfinite(seen).any() and float(np.nanpercentile(seen, slo.percentile)) > target_s:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Service:
    """What a month in service takes."""

    money: Money
    n_gpus_per_replica: int
    least_replicas: int  # of the scenario's layout: without a forecast there are these
    requests_per_s: float  # of the traffic
    output_tokens_per_request: float
    per_replica: float  # requests/s a replica takes
    power: Power | None
    stored_bytes: float


def serve(
    service: Service, demand: Demand | None, months: float, capacity_factor: float = 1.0
) -> list[tuple[LifeMonth, Bill]]:
    """Every month with its replicas and invoice; the last may be a part of one."""
    return list(each_month(service, demand, months, capacity_factor))


def each_month(
    service: Service, demand: Demand | None, months: float, capacity_factor: float = 1.0
) -> Iterator[tuple[LifeMonth, Bill]]:
    """The months of `serve`, one after the other.

    With a forecast there are as many replicas as the busiest moment of the month needs, never less than one; a
    commitment is paid for the replicas of the scenario's layout, used or not.
    """
    for i in range(math.ceil(months)):
        span = min(1.0, months - i)
        rate = service.requests_per_s * demand_factor(demand, i + 0.5 * span)
        busiest = service.requests_per_s * max(
            demand_factor(demand, i + part * span) for part in (0.0, 0.5, 1.0 - 1e-9)
        )
        replicas = service.least_replicas
        if demand is not None:
            full = service.per_replica * capacity_factor
            replicas = max(1, math.ceil(busiest / full - 1e-9)) if full > 0.0 else service.least_replicas
        tokens = rate * service.output_tokens_per_request * span * service.money.hours_per_month * 3600.0
        whole = invoice(_month(service, replicas, span, tokens))
        yield LifeMonth(i + 1, rate, replicas, cents(whole.total), tokens), whole


def _month(service: Service, replicas: int, span: float, tokens: float) -> Bill:
    money = service.money
    hours = span * money.hours_per_month
    watts = 0.0 if service.power is None else service.power.w_per_gpu.value

    def usage(n: int, n_tokens: float, stored_bytes: float) -> Usage:
        n_gpus = n * service.n_gpus_per_replica
        return Usage(
            n_gpus, hours, n_gpus * watts * hours * 3600.0, stored_bytes, n_tokens * money.egress_bytes_per_token
        )

    held = service.least_replicas if money.commitment is not None else replicas
    paid = bill(money, usage(max(held, 1), tokens, service.stored_bytes))
    if replicas > held:
        bare = replace(
            money, commitment=None, storage_usd_per_month=0.0, egress_usd_per_month=0.0, people_usd_per_month=0.0,
            operations_usd_per_month=0.0,
        )  # fmt: skip
        return paid.plus(bill(bare, usage(replicas - held, 0.0, 0.0)))
    if replicas < held:
        idle = paid.gpus * (held - replicas) / held
        return replace(paid, gpus=paid.gpus - idle, unused_commitment=idle)
    return paid


def commitment_rest(service: Service, months: float) -> Bill:
    """What is left to pay of a commitment that outlasts the service [USD]."""
    commitment = service.money.commitment
    if commitment is None:
        return Bill()
    left = max(0.0, commitment.term_months - months) * service.money.hours_per_month
    n_gpus = service.n_gpus_per_replica * service.least_replicas
    usd = bill(replace(service.money, commitment=None), Usage(n_gpus, left)).gpus * (1.0 - commitment.discount_frac)
    return invoice(Bill(unused_commitment=usd, tax=usd * service.money.tax_frac))


@dataclass(frozen=True, slots=True)
class Life:
    """A whole life, the bill of its serving part, and its dearest month in service [USD]."""

    result: LifecycleResult
    served: Bill
    invoices: tuple[Bill, ...]  # of its months; ``served`` holds the rest of a commitment as well
    dearest_month: Q


def lifecycle(
    service: Service, demand: Demand | None, months: float, training: Spending, capacity: Q | None
) -> Life | None:
    """Train, then serve; None where the training run has no price."""
    run = training.cost.total_usd
    if run is None:
        return None
    rows = serve(service, demand, months)
    rest = commitment_rest(service, months)
    served = rest
    for _, billed in rows:
        served = served.plus(billed)
    cases = [[month.usd for month, _ in rows]]
    if capacity is not None and demand is not None:
        for end in (capacity.low, capacity.high):
            cases.append([month.usd for month, _ in serve(service, demand, months, end / capacity.value)])
    serving = _spread([sum(usd) + rest.total for usd in cases])
    total = Q(*(cents(a + b) for a, b in zip(run.ends, serving.ends, strict=True)))
    tokens = sum(month.output_tokens for month, _ in rows)
    whole = training.bill.plus(served)
    parts = {"training": training.bill.total, **{f"serving_{k}": v for k, v in asdict(served).items()}}
    scale_at: dict[str, int] = {}
    last = 0
    for month, _ in rows:
        if month.replicas != last:
            scale_at[str(month.month)] = last = month.replicas
    found = LifecycleResult(
        months=months,
        training_usd=run,
        serving_usd=serving,
        total_usd=total,
        output_tokens=tokens,
        usd_per_million_output_tokens=total.scaled(1e6 / tokens) if tokens > 0.0 else None,
        requests_per_s_per_replica=service.per_replica,
        schedule=tuple(month for month, _ in rows),
        scale_at=scale_at,
        shares={name: usd / whole.total for name, usd in parts.items() if usd > 0.0},
        other_name="",
        other_total_usd=None,
        cheaper_from_month=None,
    )
    return Life(found, served, tuple(billed for _, billed in rows), _spread([max(usd) for usd in cases]))


def _spread(usd: list[float]) -> Q:
    """The first amount, between the least and the most of all [USD]."""
    amounts = [cents(x) for x in usd]
    return Q(amounts[0], min(amounts), max(amounts))


def first_month_cheaper(mine: Callable[[int], float], other: Callable[[int], float], months: int) -> int | None:
    """The first month by whose end ``mine`` has cost less than ``other`` and stays so to the end; None: never."""
    cheaper = [mine(month) < other(month) for month in range(1, months + 1)]
    if not cheaper or not cheaper[-1]:
        return None
    later = [i for i, less in enumerate(cheaper) if not less]
    return (later[-1] + 1 if later else 0) + 1


def spent_by(result: LifecycleResult, once_usd: float = 0.0) -> Callable[[int], float]:
    """What has been spent by the end of a month [USD], training first."""
    start = result.training_usd.value + once_usd
    return lambda month: start + sum(m.usd for m in result.schedule[:month])
