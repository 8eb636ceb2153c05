"""Money of a training run: its bill, chance to stay inside a limit, what the limit buys, energy and advice on size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moeplan.costs.model_state import checkpoint_bytes
from moeplan.planner.intervals import exact
from moeplan.planner.money.advice import advice
from moeplan.planner.money.alternatives import at_offer
from moeplan.planner.money.budget import largest_scale
from moeplan.planner.money.energy import Power, energy_result, mean_power
from moeplan.planner.money.money import Spending, cents, run_bill, training_spending
from moeplan.planner.training import TrainingOutcome
from moeplan.spec.plan import AdviceResult, EnergyResult, LifecycleResult
from moeplan.spec.plan_money import Change
from moeplan.spec.prices import Money
from moeplan.spec.scenario import Scenario, Training
from moeplan.units import format_tokens


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """The training part."""

    scenario: Scenario
    training: Training
    outcome: TrainingOutcome
    money: Money
    power: Power | None
    stored_bytes: float
    spending: Spending

    @property
    def n_gpus(self) -> int:
        """GPUs paid for, spares among them."""
        result = self.outcome.result
        return self.training.layout.n_gpus if result is None else result.run.n_gpus_held

    def probability_inside(self, limit_usd: float) -> tuple[float, str] | None:
        """Share of the simulated runs that cost no more: the cost grows with the wall time."""
        result, walls = self.outcome.result, self.outcome.wall_samples_s
        if result is None or len(walls) == 0:
            return None
        longest_s = result.wall_time_s.value * largest_scale(self.usd, limit_usd)
        law = f"{len(walls):,} equally likely runs: simulated failures, joined with the errors of past step times"
        return float((walls <= longest_s * (1.0 + 1e-9)).mean()), law

    def usd(self, factor: float, money: Money | None = None) -> float:
        """The run with ``factor`` times the tokens, at another price [USD]."""
        result = self.outcome.result
        wall_s = 0.0 if result is None else result.wall_time_s.value
        watts = 0.0 if self.power is None else self.power.w_per_gpu.value
        return run_bill(money or self.money, self.n_gpus, wall_s * factor, watts, self.stored_bytes).total


def training_part(scenario: Scenario, training: Training, outcome: TrainingOutcome) -> TrainingPart:
    """The money of a simulated run."""
    money = scenario.training_money or scenario.money
    hardware = scenario.training_hardware or scenario.hardware
    good = exact(1.0) if outcome.result is None else outcome.result.goodput_frac
    power = mean_power(outcome.use, good, hardware, scenario.facility, money)
    stored = money.n_checkpoints_kept * checkpoint_bytes(scenario.model, training.work)
    n_gpus = training.layout.n_gpus if outcome.result is None else outcome.result.run.n_gpus_held
    spending = training_spending(money, n_gpus, outcome.result, power, stored)
    return TrainingPart(scenario, training, outcome, money, power, stored, spending)


def run_energy(run: TrainingPart) -> EnergyResult | None:
    """Energy of the run; None where it does not run."""
    result = run.outcome.result
    if result is None:
        return None
    return energy_result(
        run.power, run.n_gpus, result.wall_time_s, exact(run.training.work.n_tokens),
        run.scenario.facility, basis="run", usd=cents(run.spending.bill.electricity),
    )  # fmt: skip


def run_buys(run: TrainingPart) -> dict[str, float]:
    """What the limit pays at most: tokens trained on, and months the run may take."""
    budget, result = run.money.budget, run.outcome.result
    if budget is None or result is None or budget.per == "month":
        return {}
    factor = largest_scale(run.usd, budget.limit_usd)
    months = result.wall_time_s.value * factor / 3600.0 / run.money.hours_per_month
    return {"training_tokens": run.training.work.n_tokens * factor, "months": months}


def run_changes(run: TrainingPart) -> Iterator[Change]:
    """Single changes of a run: another offer for the same GPUs, or as many tokens as the limit pays."""
    hardware = run.scenario.training_hardware or run.scenario.hardware
    for offer in run.scenario.market.rentable(run.training.layout.n_gpus, hardware.n_gpus_per_node):
        if offer.hardware in (hardware.slug, hardware.device.slug) and offer.name != run.money.offer.name:
            text = f"price: {offer.name} ({offer.usd_per_gpu_hour:.2f} USD/GPU/h, {offer.price_date})"
            yield Change(text, run.usd(1.0, at_offer(run.money, offer)))
    tokens = run_buys(run).get("training_tokens", 0.0)
    budget = run.money.budget
    if tokens > 0.0 and budget is not None:
        yield Change(f"training on {format_tokens(tokens)} tokens", budget.limit_usd)


def size_advice(run: TrainingPart, life: LifecycleResult | None) -> AdviceResult | None:
    """Only where a model is pretrained: a fine-tune's size is given."""
    total, budget = run.spending.cost.total_usd, run.money.budget
    if run.training.work.method != "pretrain" or total is None or total.value <= 0.0:
        return None
    return advice(
        run.scenario.model,
        run.training.work.n_tokens,
        run.scenario.scaling_laws,
        run_flop=run.outcome.model_flop,
        run_usd=total.value,
        limit_usd=None if budget is None or budget.per == "month" else budget.limit_usd,
        served_tokens=0.0 if life is None else life.output_tokens,
        served_usd=0.0 if life is None else life.serving_usd.value,
    )
