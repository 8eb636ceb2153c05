"""Cost of a plan: what the simulation used, billed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal

from moeplan.costs.money import Bill, Usage, bill, usd_per_million_tokens
from moeplan.planner.intervals import exact
from moeplan.planner.money.energy import Power
from moeplan.spec.plan import CostResult, Q, ServingResult, TrainingResult
from moeplan.spec.prices import Money

_CENT = Decimal("0.01")
_DIGITS = Context(prec=60)  # the largest amounts a scenario may state, multiplied out
_SCOPE = ("people", "operations", "storage", "egress", "tax")


@dataclass(frozen=True, slots=True)
class Spending:
    """Money of one part of a plan; ``compared`` is what a budget limits, ``bill`` what it is made of."""

    cost: CostResult
    compared: Q | None
    bill: Bill


def cents(amount: float) -> float:
    """``amount`` [USD] to the cent, as it is reported."""
    return float(_to_cent(amount))


def _to_cent(amount: float) -> Decimal:
    return Decimal(repr(amount)).quantize(_CENT, ROUND_HALF_EVEN, _DIGITS)


def invoice(whole: Bill) -> Bill:
    """``whole`` with every purpose to the cent: invoices add up to what was paid."""
    return Bill(*(cents(usd) for usd in asdict(whole).values()))


def between(month: Bill, low: Bill, high: Bill) -> Q:
    """The reported total of a bill, with its ends [USD]."""
    _, total = reported(month)
    return Q(total, min(total, cents(low.total)), max(total, cents(high.total)))


def reported(whole: Bill) -> tuple[dict[str, float], float]:
    """Purposes to the cent, and a total that is exactly their sum [USD]. Purposes without money are left out."""
    parts = {name: _to_cent(usd) for name, usd in asdict(whole).items()}
    shown = {name: float(usd) for name, usd in parts.items() if usd}
    return shown or {"gpus": 0.0}, float(sum(parts.values()))


def serving_usage(
    money: Money, n_gpus: int, result: ServingResult | None, power: Power | None, stored_bytes: float, held_frac: float
) -> tuple[Usage, Usage, Usage]:
    """A month of a fleet: as predicted, and at the low and high end of energy and traffic.

    ``held_frac``: mean GPUs held over ``n_gpus``, where the fleet scales, fails or is preempted.
    """
    month_s = money.hours_per_month * 3600.0
    tokens = exact(0.0) if result is None else result.output_tokens_per_s.scaled(month_s)
    watts = exact(0.0) if power is None else power.w_per_gpu

    def at(w: float, n_tokens: float) -> Usage:
        sent = n_tokens * money.egress_bytes_per_token
        energy_j = n_gpus * held_frac * w * month_s
        return Usage(n_gpus, money.hours_per_month, energy_j, stored_bytes, sent, held_frac=held_frac)

    return at(watts.value, tokens.value), at(watts.low, tokens.low), at(watts.high, tokens.high)


def serving_spending(
    money: Money,
    n_gpus: int,
    result: ServingResult | None,
    power: Power | None,
    stored_bytes: float,
    held_frac: float = 1.0,
) -> Spending:
    """A fleet that runs all month, whatever it serves."""
    usages = serving_usage(money, n_gpus, result, power, stored_bytes, held_frac)
    month, low, high = (bill(money, usage) for usage in usages)
    monthly = between(month, low, high)
    per_million = idle = None
    if result is not None and result.output_tokens_per_s.low > 0.0:
        tokens = result.output_tokens_per_s
        hours = money.hours_per_month
        per_million = Q(
            usd_per_million_tokens(monthly.value / hours, tokens.value),
            usd_per_million_tokens(monthly.low / hours, tokens.high),
            usd_per_million_tokens(monthly.high / hours, tokens.low),
        )
    if result is not None:
        busy = result.utilization_frac
        idle = Q(*(cents(month.compute * (1.0 - b)) for b in (busy.value, busy.high, busy.low)))
    cost = CostResult(
        usd_per_hour=monthly.scaled(1.0 / money.hours_per_month),
        usd_per_month=monthly,
        usd_per_million_output_tokens=per_million,
        total_usd=None,
        breakdown=reported(month)[0],
        idle_usd=idle,
        not_counted=not_counted(month),
    )
    return Spending(cost, monthly, month)


def run_bill(
    money: Money, n_gpus: int, wall_time_s: float, w_per_gpu: float, stored_bytes: float, *, ends: bool = True
) -> Bill:
    """A training run of ``wall_time_s`` [USD]."""
    hours = wall_time_s / 3600.0
    return bill(money, Usage(n_gpus, hours, n_gpus * w_per_gpu * wall_time_s, stored_bytes, training=True, ends=ends))


def training_spending(
    money: Money, n_gpus: int, result: TrainingResult | None, power: Power | None, stored_bytes: float
) -> Spending:
    """A run that is paid for as long as it takes."""
    hourly = run_bill(money, n_gpus, 3600.0, 0.0 if power is None else power.w_per_gpu.value, stored_bytes, ends=False)
    per_hour = exact(hourly.total)
    if result is None:
        return Spending(CostResult(per_hour, None, None, None, {}, None, not_counted(hourly)), None, Bill())
    wall, watts = result.wall_time_s, exact(0.0) if power is None else power.w_per_gpu
    run, low, high = (
        run_bill(money, n_gpus, t, w, stored_bytes)
        for t, w in ((wall.value, watts.value), (wall.low, watts.low), (wall.high, watts.high))
    )
    total = between(run, low, high)
    good = result.goodput_frac
    idle = Q(*(cents(run.compute * (1.0 - g)) for g in (good.value, good.high, good.low)))
    cost = CostResult(per_hour, None, None, total, reported(run)[0], idle, not_counted(run))
    return Spending(cost, total, run)


def lifecycle_cost(training: Spending, serving: Spending, served: Bill, total: Q, per_million: Q | None) -> CostResult:
    """Train once, then serve; ``served`` is the bill of the whole time in service. ``total`` gives the interval."""
    before, first = reported(training.bill)
    after, second = reported(served)
    value = float(Decimal(repr(first)) + Decimal(repr(second)))
    breakdown = {f"training_{k}": v for k, v in before.items()} | {f"serving_{k}": v for k, v in after.items()}
    idle, waits = training.cost.idle_usd, serving.cost.idle_usd
    if idle is not None and waits is not None and serving.bill.compute > 0.0:
        later = waits.scaled(served.compute / serving.bill.compute)
        idle = Q(*(cents(a + b) for a, b in zip(idle.ends, later.ends, strict=True)))
    return replace(
        serving.cost,
        usd_per_million_output_tokens=per_million,
        idle_usd=idle,
        total_usd=Q(value, min(value, cents(total.low)), max(value, cents(total.high))),
        breakdown=breakdown,
        not_counted=not_counted(training.bill.plus(served)),
    )


def not_counted(whole: Bill) -> tuple[str, ...]:
    """Purposes beside the hardware for which nothing is charged."""
    parts: Mapping[str, float] = asdict(whole)
    return tuple(name for name in _SCOPE if not parts[name])
