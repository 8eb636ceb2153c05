"""Prices, budget and other costs of a scenario file to ``spec.prices``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import partial
from typing import Literal, cast

from moeplan.errors import InputError, input_error
from moeplan.files.catalog import price_catalog as catalog
from moeplan.files.catalog.price_age import STALE_DAYS, price_used, today
from moeplan.files.catalog.price_match import serves
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema import ScenarioFile
from moeplan.files.scenario.schema_money import BudgetFile, OwnFile, PriceFile, first_day
from moeplan.files.scenario.schema_walk import Loc
from moeplan.provenance import Kind, Source
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.prices import (
    ApiOffer,
    Budget,
    Commitment,
    Facility,
    Market,
    Money,
    Offer,
    Ownership,
    PriceUsed,
    Term,
)
from moeplan.units import HOUR_S, HOURS_PER_MONTH, UnitError, parse

MONTH_S = HOURS_PER_MONTH * HOUR_S

_COSTS = {
    "people": "people_usd_per_month",
    "operations": "operations_usd_per_month",
    "storage": "storage_usd_per_month",
    "storage_price": "storage_usd_per_month_per_byte",
    "checkpoints_kept": "n_checkpoints_kept",
    "egress": "egress_usd_per_month",
    "egress_price": "egress_usd_per_byte",
    "egress_per_token": "egress_bytes_per_token",
    "experiments": "experiments_frac",
    "tax": "tax_frac",
}
_AROUND_TRAINING = ("experiments", "checkpoints_kept")


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
    for key, field in _COSTS.items():
        rs.note(f"{target}.{field}", ("costs", key))
        if kind == "serving" and key in _AROUND_TRAINING and rs.given(("costs", key)):
            rs.problem(("costs", key), "belongs to a training run, this scenario only serves", getattr(file.costs, key))
    rs.derived(f"{target}.hours_per_month", "default", "moeplan/units.py", "8760 h / 12")
    budget = None if file.budget is None else _budget(rs, file.budget, kind, target)
    own = None
    if price is not None and price.own is not None:
        rs.note(f"{target}.ownership", (*price_loc, "own"))
        own = _ownership(rs, price.own, (*price_loc, "own"), hardware)
    if offer is None:
        return None
    return Money(
        offer=offer,
        hours_per_month=HOURS_PER_MONTH,
        budget=budget,
        commitment=_commitment(rs, price, price_loc, target),
        ownership=own,
        **{field: getattr(file.costs, key) for key, field in _COSTS.items()},
    )


def _offer(rs: Resolving, price: PriceFile | None, loc: Loc, hardware: Hardware, target: str) -> Offer | None:
    device = hardware.device.slug
    slugs = tuple(dict.fromkeys((hardware.slug, device)))

    def nothing_stated() -> Offer:
        raise catalog.no_price_error(*slugs)

    if price is None:
        return rs.attempt(loc, nothing_stated)
    rs.note(f"{target}.offer", (*loc, "offer"), shorthand=True)
    if price.own is not None:
        rs.note(f"{target}.offer", (*loc, "own"))
        source = Source("the scenario", price.own.date, Kind.DERIVED, "bought hardware")
        return Offer("own hardware", device, 0.0, 1, "own", price.own.date, source)
    if price.per_gpu_hour is not None:
        rs.note(f"{target}.offer", (*loc, "per_gpu_hour"), shorthand=True)
        if price.date is None and rs.given((*loc, "per_gpu_hour")):
            what = "a quoted price needs its date"
            rs.problem(
                (*loc, "per_gpu_hour"), what, hint="date: 2026-11-27; a price to try out is written price: 3 USD/h"
            )
        source = Source("the scenario", price.date or "", Kind.LIST_PRICE, "a price stated by the user")
        n_gpus, day = price.gpus_per_instance, price.date or ""
        return Offer("scenario", device, price.per_gpu_hour, n_gpus, cast(Term, price.term), day, source)
    name = price.offer or ""
    offer = rs.attempt((*loc, "offer"), lambda: catalog.load_offer(name))
    rs.derived(f"{target}.offer", "catalog", f"prices, named at {rs.mark((*loc, 'offer'))}")
    if offer is not None and offer.hardware not in slugs:
        what = f"this offer is for {offer.hardware}, the hardware is {' / '.join(slugs)}"
        rs.problem((*loc, "offer"), what, name, hint=f"moeplan catalog prices --hardware {device}")
    if offer is not None and offer.term == "reserved" and price.commitment is None:
        rs.problem((*loc, "offer"), "a reserved price needs its term", name, hint="commitment: {term: 12 months}")
    return offer


def _commitment(rs: Resolving, price: PriceFile | None, loc: Loc, target: str) -> Commitment | None:
    if price is None or price.commitment is None:
        return None
    rs.note(f"{target}.commitment", (*loc, "commitment"))
    return Commitment(price.commitment.term / MONTH_S, price.commitment.discount)


def _ownership(rs: Resolving, own: OwnFile, loc: Loc, hardware: Hardware) -> Ownership | None:
    power_w = own.power
    around = hardware.allin_power_w_per_gpu is not None or hardware.host.power_w is not None
    if power_w is None and (not around or hardware.device.tdp_w is None):
        what = (
            f"missing key: the profile of {hardware.slug} does not state the power of the GPU and the machine around it"
        )
        rs.problem((*loc, "power"), what, hint="state the draw per GPU with its host's share")
    price = own.electricity
    if isinstance(price, str):
        rs.derived("electricity", "catalog", f"prices, named at {rs.mark((*loc, 'electricity'))}")
    usd_per_j = rs.attempt((*loc, "electricity"), lambda: _electricity(rs, price)) if isinstance(price, str) else price
    if usd_per_j is None:
        return None
    return Ownership(
        own.purchase,
        own.lifetime / MONTH_S,
        own.residual,
        own.interest,
        own.hosting,
        usd_per_j,
        power_w,
        own.date,
    )


def _electricity(rs: Resolving, item: str) -> float:
    """Price of the catalogue [USD/J], in another currency at the scenario's rate."""
    cost = catalog.electricity(item)
    try:
        return parse(f"{cost.value} {cost.unit}", "usd_per_energy", rs.currencies)
    except UnitError as error:
        raise input_error("electricity", error.what, got=item, allowed=error.allowed, hint=error.hint) from None


def resolve_facility(rs: Resolving, file: ScenarioFile, hardware: Hardware) -> Facility | None:
    """Grid and surroundings; None with the problem recorded."""
    energy = file.energy
    rs.note("facility.region", ("energy", "region"))
    rs.note("facility.pue", ("energy", "pue"), default="the world's average; none where power includes cooling")
    own_power = file.price is not None and file.price.own is not None and file.price.own.power is not None
    only_all_in = hardware.host.power_w is None and hardware.allin_power_w_per_gpu is not None
    if energy.pue is not None and only_all_in and not own_power:
        what = f"the power of {hardware.slug} is known with its cooling: a PUE would count it twice"
        rs.problem(("energy", "pue"), what, energy.pue, hint="leave it away, or state price.own.power without cooling")
    average = next(cost for cost in catalog.other_costs("pue") if cost.item == "global weighted average")
    if energy.grid is not None:
        rs.note("facility.kgco2e_per_j", ("energy", "grid"))
        source = Source("the scenario", "", Kind.LIST_PRICE, "emissions stated by the user")
        return Facility(energy.pue or average.value, energy.pue is not None, energy.region, energy.grid, source)
    found = rs.attempt(("energy", "region"), lambda: catalog.grid_intensity(energy.region))
    if found is None:
        return None
    rs.derived("facility.kgco2e_per_j", "catalog", "prices, grid intensity", found.source.text)
    kgco2e_per_j = parse(f"{found.value} {found.unit}", "carbon_intensity")
    return Facility(energy.pue or average.value, energy.pue is not None, found.item, kgco2e_per_j, found.source)


def resolve_market(rs: Resolving, file: ScenarioFile, model: ModelArchitecture, hardware: Hardware) -> Market:
    """What the same demand could be served by instead; with strict prices, at prices that are not old."""
    wanted = file.alternatives
    offers = tuple(
        offer for offer in catalog.offers_for(*dict.fromkeys((hardware.slug, hardware.device.slug)))
        if _allowed(file, offer)
    )  # fmt: skip
    why = ""
    if wanted.api is not None:
        loc: Loc = ("alternatives", "api")
        named: list[ApiOffer] = []
        for i, name in enumerate(wanted.api):
            offer = rs.attempt((*loc, i), partial(catalog.load_api_offer, name))
            if offer is not None:
                as_of = _as_of(file)
                used = price_used("hosted model", offer.name, offer.price_date, as_of)
                _aged(rs, file, (*loc, i), used, as_of, [])
                named.append(offer)
        api = tuple(named)
        why = "" if api else "the scenario names none"
    else:
        family = catalog.api_offers(model.name)
        mine = [offer for offer in family if serves(offer.name, model)]
        api = tuple(offer for offer in mine if _allowed(file, offer))
        relatives = f" ({len(family)} of relatives: name one under alternatives.api)" if family else ""
        why = "" if api else f"no hosted offer for {model.name} in the catalogue of API prices{relatives}"
        if mine and not api:
            why = f"the prices of all {len(mine)} hosted offers are past {STALE_DAYS} days"
    own = None
    if wanted.own is not None:
        rs.note("market.ownership", ("alternatives", "own"))
        own = _ownership(rs, wanted.own, ("alternatives", "own"), hardware)
    for key in ("cached", "batch"):
        rs.note(f"market.{key}_frac", ("alternatives", key))
    return Market(offers, api, own, wanted.cached, wanted.batch, why)


def _as_of(file: ScenarioFile) -> date:
    return first_day(file.as_of) if file.as_of is not None else today()


def _allowed(file: ScenarioFile, offer: Offer | ApiOffer) -> bool:
    used = price_used("", offer.name, offer.price_date, _as_of(file))
    return not file.strict_prices or (used.age_days is not None and not used.stale)


def resolve_ages(
    rs: Resolving, file: ScenarioFile, moneys: Mapping[str, Money | None], market: Market
) -> tuple[str, tuple[PriceUsed, ...]]:
    """The day ages are counted from, and the prices the plan rests on; ``moneys`` by the place of their price."""
    as_of = _as_of(file)
    rs.note("as_of", ("as_of",), default="today")
    found: list[PriceUsed] = []
    stated = {
        "price": file.price,
        "lifecycle.training.price": None if file.lifecycle is None else file.lifecycle.training.price,
    }
    for place, money in moneys.items():
        if money is None:
            continue
        loc: Loc = tuple(place.split("."))
        what = "purchase" if money.ownership is not None else "GPU hour"
        _aged(rs, file, loc, price_used(what, money.offer.name, money.offer.price_date, as_of), as_of, found)
        price = stated[place]
        if money.ownership is not None and price is not None and price.own is not None:
            _electricity_aged(rs, file, (*loc, "own"), price.own, as_of, found)
    bought = file.alternatives.own
    if bought is not None and market.ownership is not None:
        here: Loc = ("alternatives", "own")
        _aged(rs, file, here, price_used("purchase", "alternatives.own", bought.date, as_of), as_of, found)
        _electricity_aged(rs, file, here, bought, as_of, found)
    return as_of.isoformat(), tuple(found)


def _electricity_aged(
    rs: Resolving, file: ScenarioFile, loc: Loc, own: OwnFile, as_of: date, found: list[PriceUsed]
) -> None:
    """The age of a price of the catalogue; one the scenario states has no date of its own."""
    if not isinstance(own.electricity, str):
        return
    power = catalog.electricity(own.electricity)
    used = price_used("electricity", power.item, power.source.date, as_of)
    _aged(rs, file, (*loc, "electricity"), used, as_of, found)


def _aged(rs: Resolving, file: ScenarioFile, loc: Loc, used: PriceUsed, as_of: date, found: list[PriceUsed]) -> None:
    found.append(used)
    if used.price_date and first_day(used.price_date) > as_of:
        rs.problem(loc, f"the price of {used.name} is dated after {as_of.isoformat()}", used.price_date, hint="as_of")
    if not file.strict_prices:
        return
    hint = "a newer quote: moeplan catalog prices --update FILE, or price: {per_gpu_hour: ..., date: ...}"
    if used.age_days is None:
        rs.problem(loc, f"strict prices: the price of the {used.what} has no date", used.name, hint=hint)
    elif used.stale:
        what = f"strict prices: the price of {used.name} is {used.age_days} days old on {as_of.isoformat()}"
        rs.problem(loc, what, used.price_date, f"at most {STALE_DAYS} days", hint)


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
    from moeplan.files.scenario.schema import parse_exchange_rate

    rates: dict[str, float] = {}
    for code, text in table.items():
        try:
            rates[code] = parse_exchange_rate(code, text)
        except UnitError as error:
            rs.problem(("exchange_rates", code), error.what, text, error.allowed, error.hint)
    rs.currencies = rates
    return rates


def raise_if_any(rs: Resolving) -> None:
    """Raise InputError with everything recorded, in the order of the file."""
    if rs.problems:
        raise InputError(sorted(rs.problems, key=lambda p: (p.file, p.line or 0, p.col or 0)))
