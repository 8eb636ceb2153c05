"""Dollars from GPU hours. Rates are per GPU hour as listed; instances are billed whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moeplan.spec.prices import Money


@dataclass(frozen=True, slots=True)
class Bill:
    """An invoice by purpose [USD]."""

    gpus: float
    storage: float
    egress: float
    people: float
    tax: float

    @property
    def total(self) -> float:
        return self.gpus + self.storage + self.egress + self.people + self.tax


def billed_gpus(n_gpus: int, n_gpus_per_instance: int) -> int:
    """GPUs on the invoice: whole instances only."""
    return math.ceil(n_gpus / n_gpus_per_instance) * n_gpus_per_instance


def gpu_usd_per_hour(money: Money, n_gpus: int) -> float:
    """Rent of ``n_gpus`` [USD/h], before tax."""
    return billed_gpus(n_gpus, money.offer.n_gpus_per_instance) * money.offer.usd_per_gpu_hour


def monthly_cost(money: Money, n_gpus: int) -> Bill:
    """Cost of keeping ``n_gpus`` up all month [USD/month]."""
    gpus = gpu_usd_per_hour(money, n_gpus) * money.hours_per_month
    net = gpus + money.storage_usd_per_month + money.egress_usd_per_month + money.people_usd_per_month
    return Bill(
        gpus=gpus,
        storage=money.storage_usd_per_month,
        egress=money.egress_usd_per_month,
        people=money.people_usd_per_month,
        tax=net * money.tax_frac,
    )


def run_cost(money: Money, n_gpus: int, wall_time_s: float) -> Bill:
    """Cost of a run of ``wall_time_s`` on ``n_gpus`` [USD]; monthly costs are charged for the time the run takes."""
    hours = wall_time_s / 3600.0
    months = hours / money.hours_per_month
    gpus = gpu_usd_per_hour(money, n_gpus) * hours
    storage, egress, people = (
        rate * months for rate in (money.storage_usd_per_month, money.egress_usd_per_month, money.people_usd_per_month)
    )
    return Bill(gpus, storage, egress, people, (gpus + storage + egress + people) * money.tax_frac)


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float:
    """Cost of a million tokens [USD] at a sustained token rate."""
    return usd_per_hour / (tokens_per_s * 3600.0) * 1e6
