"""Cost and budget of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.costs.money import Bill, monthly_cost, run_cost, usd_per_million_tokens
from moeplan.planner.intervals import exact
from moeplan.spec.plan import BudgetResult, CostResult, Q, ServingResult, TrainingResult
from moeplan.spec.prices import Budget, Money


@dataclass(frozen=True, slots=True)
class Spending:
    """Money of one plan; ``compared`` is what the budget limits."""

    cost: CostResult
    compared: Q | None


def serving_spending(money: Money, n_gpus: int, result: ServingResult | None) -> Spending:
    """A fleet that runs all month, whatever it serves."""
    bill = monthly_cost(money, n_gpus)
    per_hour = bill.total / money.hours_per_month
    per_million = None
    if result is not None and result.output_tokens_per_s.low > 0.0:
        tokens = result.output_tokens_per_s
        per_million = Q(
            usd_per_million_tokens(per_hour, tokens.value),
            usd_per_million_tokens(per_hour, tokens.high),
            usd_per_million_tokens(per_hour, tokens.low),
        )
    cost = CostResult(
        usd_per_hour=exact(per_hour),
        usd_per_month=exact(bill.total),
        usd_per_million_output_tokens=per_million,
        total_usd=None,
        breakdown=_by_purpose(bill),
    )
    return Spending(cost, exact(bill.total))


def training_spending(money: Money, n_gpus: int, result: TrainingResult | None) -> Spending:
    """A run that is paid for as long as it takes."""
    per_hour = exact(monthly_cost(money, n_gpus).total / money.hours_per_month)
    if result is None:
        return Spending(CostResult(per_hour, None, None, None, {}), None)
    wall = result.wall_time_s
    bill = run_cost(money, n_gpus, wall.value)
    total = Q(*(run_cost(money, n_gpus, t).total for t in (wall.value, wall.low, wall.high)))
    return Spending(CostResult(per_hour, None, None, total, _by_purpose(bill)), total)


def lifecycle_spending(training: Spending, serving: Spending, months: float) -> Spending:
    """Train once, then serve for ``months``."""
    run, monthly = training.cost.total_usd, serving.cost.usd_per_month
    total = None
    if run is not None and monthly is not None:
        total = Q(*(r + m * months for r, m in zip(_ends(run), _ends(monthly), strict=True)))
    breakdown = {f"training_{k}": v for k, v in training.cost.breakdown.items()}
    breakdown |= {f"serving_{k}": v * months for k, v in serving.cost.breakdown.items()}
    cost = CostResult(
        usd_per_hour=serving.cost.usd_per_hour,
        usd_per_month=monthly,
        usd_per_million_output_tokens=serving.cost.usd_per_million_output_tokens,
        total_usd=total,
        breakdown=breakdown,
    )
    return Spending(cost, total)


def judge_budget(budget: Budget | None, spending: Spending) -> BudgetResult | None:
    """Whether the limit holds at the predicted value."""
    if budget is None or spending.compared is None:
        return None
    used = spending.compared
    return BudgetResult(budget.limit_usd, budget.per, used, used.value <= budget.limit_usd)


def _by_purpose(bill: Bill) -> dict[str, float]:
    parts = {"gpus": bill.gpus, "storage": bill.storage, "egress": bill.egress, "people": bill.people, "tax": bill.tax}
    return {name: value for name, value in parts.items() if name == "gpus" or value}


def _ends(q: Q) -> tuple[float, float, float]:
    return q.value, q.low, q.high
