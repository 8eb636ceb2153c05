"""Does the money suffice: headroom, probability, what the limit buys at most, the cheapest change that makes it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from scipy.special import ndtr

from moeplan.planner.money.money import cents
from moeplan.spec.plan import BudgetResult, Q
from moeplan.spec.plan_money import Change
from moeplan.spec.prices import Budget

_Z90 = 1.6448536269514722  # 95 % quantile of the standard normal
EXACT = "exact: prices as listed, hours as planned"
LOG_NORMAL = (
    "two-piece log-normal: median at the value, one in twenty below the low end, one in twenty above the high end"
)


def judge_budget(
    budget: Budget | None,
    used: Q | None,
    buys: Mapping[str, float],
    changes: Callable[[], Iterable[Change]],
    chance: tuple[float, str] | None = None,
) -> BudgetResult | None:
    """Whether the limit holds at the predicted value. ``changes`` are looked for where it does not.

    ``chance``: probability to stay inside and its law, where it is known better than by the interval.
    """
    if budget is None or used is None:
        return None
    fits = used.value <= budget.limit_usd
    probability, law = chance or probability_inside(used, budget.limit_usd)
    change = None if fits else cheapest_fitting(changes(), budget.limit_usd)
    limit = budget.limit_usd
    headroom = Q(cents(limit - used.value), cents(limit - used.high), cents(limit - used.low))
    return BudgetResult(limit, budget.per, used, fits, headroom, probability, law, dict(buys), change)


def probability_inside(used: Q, limit: float) -> tuple[float, str]:
    """Probability that the spending stays inside ``limit``, and the law it follows from the 90 % interval."""
    if used.low == used.high:
        return float(used.value <= limit), EXACT
    if limit <= 0.0 or used.value <= 0.0:
        return float(used.value <= limit), LOG_NORMAL
    distance = math.log(limit / used.value)
    end = used.high if distance >= 0.0 else used.low
    spread = abs(math.log(end / used.value)) / _Z90 if end > 0.0 else math.inf
    if spread == 0.0:
        return (1.0 if distance >= 0.0 else 0.0), LOG_NORMAL
    return float(ndtr(distance / spread)), LOG_NORMAL


def cheapest_fitting(changes: Iterable[Change], limit_usd: float) -> Change | None:
    """The change that costs least and stays inside, the first named of equals."""
    fitting = [Change(change.text, cents(change.usd)) for change in changes if change.usd <= limit_usd]
    return min(fitting, key=lambda change: change.usd, default=None)


def largest_scale(cost_usd: Callable[[float], float], limit_usd: float) -> float:
    """The largest factor of a job whose cost stays inside the limit; ``cost_usd`` does not fall with the factor."""
    if cost_usd(0.0) > limit_usd:
        return 0.0
    high = 1.0
    while cost_usd(high) <= limit_usd:
        high *= 2.0
        if high > 1e12:  # free
            return math.inf
    low = 0.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if cost_usd(middle) <= limit_usd else (low, middle)
    return low


def most_units(cost_usd: Callable[[int], float], limit_usd: float) -> int:
    """The largest whole number of units that stays inside the limit; ``cost_usd`` does not fall with it."""
    if cost_usd(1) > limit_usd:
        return 0
    high = 2
    while cost_usd(high) <= limit_usd:
        high *= 2
        if high > 2**30:  # free
            return high
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_usd(middle) <= limit_usd else (low, middle)
    return low
