"""Dollars from hours, joules and bytes: one bill by purpose, and the closed forms of finance around it.

Rates are per GPU hour as listed; instances are billed whole. Equations and hand-worked examples: docs/method/money.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from moeplan.spec.prices import Money, Ownership

PERIOD_MONTHS = 1.0  # interest is compounded monthly
_PERIODS_PER_YEAR = 12.0
_NO_INTEREST = 1e-12  # interest over a whole loan below this is rounding


@dataclass(frozen=True, slots=True)
class Bill:
    """An invoice by purpose [USD]."""

    gpus: float = 0.0  # rent of the hours used
    unused_commitment: float = 0.0  # hours paid for under a commitment and not used
    depreciation: float = 0.0
    financing: float = 0.0
    hosting: float = 0.0
    electricity: float = 0.0
    experiments: float = 0.0  # compute around a training run
    storage: float = 0.0
    egress: float = 0.0
    operations: float = 0.0
    people: float = 0.0
    tax: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(self)))

    @property
    def compute(self) -> float:
        """What grows with GPU hours [USD], before tax."""
        return self.gpus + self.depreciation + self.financing + self.hosting + self.electricity

    def scaled(self, factor: float) -> Bill:
        return Bill(*(getattr(self, f.name) * factor for f in fields(self)))

    def plus(self, other: Bill) -> Bill:
        return Bill(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Usage:
    """What is paid for. ``n_gpus`` are up for ``hours``; bytes are stored and sent over that time."""

    n_gpus: int
    hours: float
    energy_j: float = 0.0  # at the meter, all GPUs
    stored_bytes: float = 0.0
    egress_bytes: float = 0.0
    training: bool = False  # experiments are charged around training runs only
    ends: bool = False  # the whole of what a commitment is used for
    held_frac: float = 1.0  # share of the time the GPUs are held: fewer while a fleet is scaled down


def billed_gpus(n_gpus: int, n_gpus_per_instance: int) -> int:
    """GPUs on the invoice: whole instances only."""
    return math.ceil(n_gpus / n_gpus_per_instance) * n_gpus_per_instance


def bill(money: Money, usage: Usage) -> Bill:
    """What ``usage`` costs [USD]. Monthly amounts are charged for the time it takes."""
    months = usage.hours / money.hours_per_month
    n_billed = billed_gpus(usage.n_gpus, money.offer.n_gpus_per_instance)
    gpus = unused_commitment = depreciation = financing = hosting = electricity = 0.0
    own = money.ownership
    if own is None:
        rate = money.offer.usd_per_gpu_hour
        if money.commitment is not None:
            rate *= 1.0 - money.commitment.discount_frac
        gpus = n_billed * usage.hours * usage.held_frac * rate
        unused_commitment = n_billed * _unused_hours(usage, money) * rate
    else:
        write_off = own.purchase_usd * (1.0 - own.resale_frac) / own.lifetime_months
        depreciation = n_billed * months * write_off
        financing = n_billed * months * (capital_usd_per_month(own) - write_off)
        hosting = n_billed * months * own.hosting_usd_per_month
        electricity = usage.energy_j * own.usd_per_j
    compute = gpus + depreciation + financing + hosting + electricity
    experiments = money.experiments_frac * compute if usage.training else 0.0
    storage = months * (money.storage_usd_per_month + usage.stored_bytes * money.storage_usd_per_month_per_byte)
    egress = months * money.egress_usd_per_month + usage.egress_bytes * money.egress_usd_per_byte
    operations, people = months * money.operations_usd_per_month, months * money.people_usd_per_month
    net = compute + unused_commitment + experiments + storage + egress + operations + people
    return Bill(
        gpus, unused_commitment, depreciation, financing, hosting, electricity, experiments, storage, egress,
        operations, people, net * money.tax_frac,
    )  # fmt: skip


def _unused_hours(usage: Usage, money: Money) -> float:
    """Committed hours beyond a usage that ends. Serving that goes on fills its term."""
    if money.commitment is None or not usage.ends:
        return 0.0 * usage.hours
    return max(money.commitment.term_months * money.hours_per_month - usage.hours, 0.0 * usage.hours)


def capital_usd_per_month(own: Ownership) -> float:
    """Level monthly cost of the capital of one GPU [USD/month]: write-off and interest."""
    rate_frac = own.interest_frac_per_year / _PERIODS_PER_YEAR
    n_periods = own.lifetime_months / PERIOD_MONTHS
    return annuity(own.purchase_usd, rate_frac, n_periods, own.purchase_usd * own.resale_frac) / PERIOD_MONTHS


def annuity(principal: float, rate_frac: float, n_periods: float, final_value: float) -> float:
    """Level payment per period that repays ``principal`` less what is left at the end.

    ``(P - F (1+i)^-n) i / (1 - (1+i)^-n)``; without interest ``(P - F) / n``. Raises ValueError for no periods.
    """
    if n_periods <= 0.0:
        raise ValueError(f"n_periods must be above zero (got {n_periods})")
    if rate_frac * n_periods < _NO_INTEREST:
        return (principal - final_value) / n_periods
    discount = -math.expm1(-n_periods * math.log1p(rate_frac))  # 1 - (1+i)^-n, exact also for small i
    return (principal - final_value * (1.0 - discount)) * rate_frac / discount


def book_value(purchase: float, resale_frac: float, age_frac: float) -> float:
    """Straight-line value [as ``purchase``] after ``age_frac`` of the lifetime; the resale value from then on."""
    return purchase * (1.0 - (1.0 - resale_frac) * min(max(age_frac, 0.0), 1.0))


def break_even(fixed: float, per_unit: float) -> float:
    """Units at which paying ``per_unit`` costs as much as the ``fixed`` amount; infinity where units are free."""
    return fixed / per_unit if per_unit > 0.0 else math.inf


def payback_months(purchase_usd: float, rent_usd_per_month: float, running_usd_per_month: float) -> float:
    """Months until what renting would have cost has paid for the purchase and its running costs; infinity if never."""
    if rent_usd_per_month <= running_usd_per_month:
        return math.inf
    return purchase_usd / (rent_usd_per_month - running_usd_per_month)


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float:
    """Cost of a million tokens [USD] at a sustained token rate."""
    return usd_per_hour / (tokens_per_s * 3600.0) * 1e6
