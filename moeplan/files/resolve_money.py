"""Prices, budget and other costs of a scenario file to ``spec.prices.Money``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from moeplan.errors import InputError
from moeplan.files.resolving import Resolving
from moeplan.files.schema import BudgetFile, OwnFile, PriceFile, ScenarioFile
from moeplan.files.schema_walk import Loc
from moeplan.provenance import Kind, Source
from moeplan.spec.hardware import Hardware
from moeplan.spec.prices import Budget, Money, Offer
from moeplan.units import HOUR_S, HOURS_PER_MONTH, UnitError


def resolve_money(
    rs: Resolving,
    file: ScenarioFile,
    price: PriceFile | None,
    price_loc: Loc,
    hardware: Hardware,
    kind: str,
    target: str = "money",
) -> Money | None:
    """Money of one place of work; None when its price cannot be told (the problem is recorded)."""
    offer = _offer(rs, price, price_loc, hardware, target)
    for key in ("people", "storage", "egress"):
        rs.note(f"{target}.{key}_usd_per_month", ("costs", key))
    rs.note(f"{target}.tax_frac", ("costs", "tax"))
    rs.derived(f"{target}.hours_per_month", "default", "moeplan/units.py", "8760 h / 12")
    budget = None if file.budget is None else _budget(rs, file.budget, kind, target)
    if offer is None:
        return None
    costs = file.costs
    return Money(offer, costs.storage, costs.egress, costs.people, costs.tax, HOURS_PER_MONTH, budget)


def _offer(rs: Resolving, price: PriceFile | None, loc: Loc, hardware: Hardware, target: str) -> Offer | None:
    from moeplan.files.price_catalog import load_offer, no_price_error

    device = hardware.device.slug
    slugs = tuple(dict.fromkeys((hardware.slug, device)))

    def nothing_stated() -> Offer:
        raise no_price_error(*slugs)

    if price is None:
        return rs.attempt(loc, nothing_stated)
    rs.note(f"{target}.offer", (*loc, "offer"), shorthand=True)
    if price.own is not None:
        rs.note(f"{target}.offer", (*loc, "own"))
        return _owned(rs, price.own, (*loc, "own"), hardware)
    if price.per_gpu_hour is not None:
        rs.note(f"{target}.offer", (*loc, "per_gpu_hour"), shorthand=True)
        source = Source("the scenario", price.date or "", Kind.LIST_PRICE, "a price stated by the user")
        term: Literal["on_demand", "spot"] = "spot" if price.term == "spot" else "on_demand"
        return Offer("scenario", device, price.per_gpu_hour, price.gpus_per_instance, term, price.date or "", source)
    name = price.offer or ""
    offer = rs.attempt((*loc, "offer"), lambda: load_offer(name))
    rs.derived(f"{target}.offer", "catalog", f"prices, named at {rs.mark((*loc, 'offer'))}")
    if offer is not None and offer.hardware not in slugs:
        what = f"this offer is for {offer.hardware}, the hardware is {' / '.join(slugs)}"
        rs.problem((*loc, "offer"), what, name, hint=f"moeplan catalog prices --hardware {device}")
    return offer


def _owned(rs: Resolving, own: OwnFile, loc: Loc, hardware: Hardware) -> Offer | None:
    """Cost of an hour of a bought GPU: straight-line depreciation over all hours, hosting, and energy at full load."""
    power_w = own.power * own.pue if own.power is not None else hardware.allin_power_w_per_gpu
    if power_w is None:
        rs.problem(
            (*loc, "power"), f"missing key: the profile of {hardware.slug} states no all-in power", hint="state it"
        )
        return None
    hours = own.lifetime / HOUR_S
    per_hour = own.purchase * (1.0 - own.residual) / hours + own.hosting / HOURS_PER_MONTH
    per_hour += power_w * HOUR_S * own.electricity
    source = Source("the scenario", "", Kind.DERIVED, "bought hardware: depreciation, hosting and energy per hour")
    return Offer("own hardware", hardware.device.slug, per_hour, 1, "own", "", source)


def _budget(rs: Resolving, file: BudgetFile, kind: str, target: str) -> Budget:
    loc: Loc = ("budget", "limit")
    for field in ("limit_usd", "per"):
        rs.note(f"{target}.budget.{field}", loc, shorthand=True)
    rs.note(f"{target}.budget.deadline_s", ("budget", "deadline"))
    if file.deadline is not None and kind == "serving":
        rs.problem(("budget", "deadline"), "a deadline applies to a training run, this scenario only serves")
    limit = file.limit
    if kind == "serving" and not limit.per_month:
        rs.problem(loc, "serving goes on: its budget needs a period", rs.text(loc), "3000 USD/month")
    if kind == "training" and limit.per_month:
        rs.problem(loc, "a training run ends: its budget is one amount", rs.text(loc), "60000 USD")
    per: Literal["month", "run", "total"] = "month" if limit.per_month else "run" if kind == "training" else "total"
    return Budget(limit.usd, per, file.deadline)


def exchange_rates(rs: Resolving, table: Mapping[str, object]) -> dict[str, float]:
    """US dollars per unit of each stated currency; malformed entries become problems."""
    from moeplan.files.schema import parse_exchange_rate

    rates: dict[str, float] = {}
    for code, text in table.items():
        try:
            rates[code] = parse_exchange_rate(code, text)
        except UnitError as error:
            rs.problem(("exchange_rates", code), error.what, text, error.allowed, error.hint)
    return rates


def raise_if_any(rs: Resolving) -> None:
    """Raise InputError with everything recorded, in the order of the file."""
    if rs.problems:
        raise InputError(sorted(rs.problems, key=lambda p: (p.file, p.line or 0, p.col or 0)))
