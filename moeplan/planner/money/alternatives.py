"""Rent, buy or call an API: the same demand priced each way, and where the verdict flips.

Equations and a worked example: docs/method/money.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from moeplan.costs.money import Bill, bill, break_even, payback_months
from moeplan.planner.intervals import exact
from moeplan.planner.money.energy import Power
from moeplan.planner.money.money import between, cents, serving_usage
from moeplan.spec.plan import AlternativesResult, Q, ServingResult
from moeplan.spec.plan_money import AtLoad, Option
from moeplan.spec.prices import ApiOffer, Market, Money, Offer, Ownership

_RENT_SHOWN = 3  # other offers of the same hardware
_API_SHOWN = 3
_LOADS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)

Age = Callable[[str], tuple[int | None, bool]]  # of a price date: days, stale
PowerOf = Callable[[Ownership | None], Power | None]


@dataclass(frozen=True, slots=True)
class Demand:
    """A month of requests."""

    requests: float
    input_tokens: float
    output_tokens: float

    def scaled(self, factor: float) -> Demand:
        return Demand(self.requests * factor, self.input_tokens * factor, self.output_tokens * factor)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The deployment as it is paid for: how many GPUs a replica takes, how many replicas the demand needs."""

    n_gpus_per_replica: int
    n_gpus_per_node: int
    n_replicas: int
    n_gpus: int  # of all of them, with a prefill pool
    n_planned: int  # replicas of the scenario
    capacity_requests_per_s: Q  # of all of them
    result: ServingResult
    power_of: PowerOf
    stored_bytes: float
    held_frac: float = 1.0  # of the time its GPUs are held, on average

    def rentable(self, market: Market) -> tuple[Offer, ...]:
        """Offers one replica can run on."""
        return market.rentable(self.n_gpus_per_replica, self.n_gpus_per_node)

    def month(self, money: Money) -> tuple[Bill, Bill, Bill]:
        """A month of all replicas [USD]: as predicted, and at the ends of energy and traffic."""
        power = self.power_of(money.ownership)
        now, low, high = serving_usage(money, self.n_gpus, self.result, power, self.stored_bytes, self.held_frac)
        return bill(money, now), bill(money, low), bill(money, high)


def monthly_demand(result: ServingResult, asked_per_s: float | None, hours_per_month: float) -> Demand:
    """What a month brings: the rate that is asked for, or what was served where users wait for their answers."""
    served = result.requests_per_s.value
    per_s = served if asked_per_s is None else asked_per_s
    month_s = hours_per_month * 3600.0
    each = month_s * per_s / served if served > 0.0 else 0.0
    return Demand(month_s * per_s, result.input_tokens_per_s.value * each, result.output_tokens_per_s.value * each)


def api_usd(offer: ApiOffer, demand: Demand, market: Market) -> float:
    """A month of ``demand`` at a hosted offer [USD], before tax. A price the provider does not list is the full one."""
    cached = offer.usd_per_input_token if offer.usd_per_cached_input_token is None else offer.usd_per_cached_input_token
    now = market.cached_frac * cached + (1.0 - market.cached_frac) * offer.usd_per_input_token
    batch_in = now if offer.usd_per_batch_input_token is None else offer.usd_per_batch_input_token
    batch_out = (
        offer.usd_per_output_token if offer.usd_per_batch_output_token is None else offer.usd_per_batch_output_token
    )
    share = market.batch_frac
    return demand.input_tokens * ((1.0 - share) * now + share * batch_in) + demand.output_tokens * (
        (1.0 - share) * offer.usd_per_output_token + share * batch_out
    )


def alternatives(money: Money, market: Market, fleet: Fleet, demand: Demand, age: Age) -> AlternativesResult | None:
    """The options and where they change places; None where nothing is served."""
    capacity = fleet.capacity_requests_per_s
    if demand.output_tokens <= 0.0 or capacity.low <= 0.0:
        return None
    month_s = money.hours_per_month * 3600.0
    load = Q(*(demand.requests / month_s / c for c in (capacity.value, capacity.high, capacity.low)))
    own_bill, _, _ = fleet.month(money)
    tax = 1.0 + money.tax_frac
    # people and traffic to the users stay whoever serves the model
    shared_usd = (own_bill.people + own_bill.egress) * tax
    api = sorted(
        ((cents(api_usd(offer, demand, market) * tax + shared_usd), offer) for offer in market.api_offers),
        key=lambda found: (found[0], found[1].name),
    )
    renting = _self_hosted(money, market, fleet, demand, age)
    fixed_usd = min(option.usd_per_month.value for option in renting) - shared_usd
    most = demand.scaled(capacity.value * month_s / demand.requests)
    options = list(renting)
    for usd, offer in api[:_API_SHOWN]:
        mine = api_usd(offer, demand.scaled(1.0 / demand.requests), market) * tax
        from_requests = break_even(fixed_usd, mine)
        days, stale = age(offer.price_date)
        reached = from_requests <= most.requests
        options.append(
            Option(
                "api", offer.name, exact(usd), exact(usd / demand.output_tokens * 1e6), offer.price_date, days, stale,
                False, from_requests if reached else None, "" if reached else "cheaper at any load of this deployment",
            )
        )  # fmt: skip
    cheapest = min(options, key=lambda option: option.usd_per_month.value)
    flips = certain = None
    if api:
        per_request = api_usd(api[0][1], demand.scaled(1.0 / demand.requests), market) * tax
        at = break_even(fixed_usd, per_request) / most.requests
        flips = at if at <= 1.0 else None
        # as many replicas as the demand needs at the low end of the capacity
        more = max(1.0, math.ceil(load.high * fleet.n_replicas) / fleet.n_replicas)
        certain = (fixed_usd <= per_request * demand.requests) == (fixed_usd * more <= per_request * demand.requests)
    found = AlternativesResult(
        requests_per_month=demand.requests,
        input_tokens_per_month=demand.input_tokens,
        output_tokens_per_month=demand.output_tokens,
        utilization_frac=load,
        options=tuple(options),
        n_api_offers=len(api),
        cheapest=cheapest.name,
        flips_at_utilization_frac=flips,
        certain=certain is not False,
        payback_months=_payback(money, market, fleet),
        break_even_month=None,
        sensitivity=_sensitivity(fixed_usd, shared_usd, demand, most, options),
        text="",
    )
    return replace(found, text=_text(found, market, fleet))


def _self_hosted(money: Money, market: Market, fleet: Fleet, demand: Demand, age: Age) -> list[Option]:
    """The scenario's own way first, then other offers of the hardware, then bought hardware; cheapest first."""

    def option(kind: str, name: str, way: Money, price_date: str, chosen: bool) -> Option:
        usd = between(*fleet.month(way))
        days, stale = age(price_date)
        each = usd.scaled(1e6 / demand.output_tokens)
        return Option(kind, name, usd, each, price_date, days, stale, chosen, None, "")

    rented = money.ownership is None
    found = [option("rent" if rented else "own", money.offer.name, money, money.offer.price_date, chosen=True)]
    others = [offer for offer in fleet.rentable(market) if offer.name != money.offer.name]
    found += sorted(
        (option("rent", offer.name, at_offer(money, offer), offer.price_date, chosen=False) for offer in others),
        key=lambda o: (o.usd_per_month.value, o.name),
    )[:_RENT_SHOWN]
    if market.ownership is not None:
        own = owned(money, market.ownership)
        found.append(option("own", "bought hardware", own, market.ownership.purchase_date, chosen=False))
    return found


def at_offer(money: Money, offer: Offer) -> Money:
    """The same work at another offer's price."""
    return replace(money, offer=offer, commitment=None, ownership=None)


def owned(money: Money, ownership: Ownership) -> Money:
    """The same work on bought hardware."""
    offer = replace(money.offer, name="own hardware", usd_per_gpu_hour=0.0, n_gpus_per_instance=1, term="own")
    return replace(money, offer=offer, commitment=None, ownership=ownership)


def _payback(money: Money, market: Market, fleet: Fleet) -> float | None:
    """Months of rent that pay for buying instead; None without both, or never within the lifetime."""
    own = money.ownership or market.ownership
    rented = [money] if money.ownership is None else [at_offer(money, o) for o in fleet.rentable(market)]
    if own is None or not rented:
        return None
    rent = min(fleet.month(way)[0].gpus for way in rented)
    running, _, _ = fleet.month(owned(money, own))
    months = payback_months(own.purchase_usd * fleet.n_gpus, rent, running.hosting + running.electricity)
    return months if months <= own.lifetime_months else None


def _sensitivity(
    fixed_usd: float, shared_usd: float, demand: Demand, most: Demand, options: list[Option]
) -> tuple[AtLoad, ...]:
    """Cost of a million output tokens of the same kind of requests at other loads: the cheapest own way and API."""
    best = min((o for o in options if o.kind != "api"), key=lambda option: option.usd_per_month.value)
    hosted = next((o for o in options if o.kind == "api"), None)
    rows = []
    for load in _LOADS:
        tokens = most.output_tokens * load
        ways = [(fixed_usd, best.name)]
        if hosted is not None:
            ways.append(((hosted.usd_per_month.value - shared_usd) * tokens / demand.output_tokens, hosted.name))
        usd, name = min(ways)
        rows.append(AtLoad(load, (usd + shared_usd) / tokens * 1e6, name))
    return tuple(rows)


def _text(found: AlternativesResult, market: Market, fleet: Fleet) -> str:
    chosen = next(option for option in found.options if option.chosen)
    own = min((o for o in found.options if o.kind != "api"), key=lambda o: o.usd_per_month.value)
    hosted = next((o for o in found.options if o.kind == "api"), None)
    needed = "as planned" if fleet.n_replicas == fleet.n_planned else f"with the {fleet.n_replicas} replicas it takes"
    text = f"Rent, buy or API: {needed} {_usd(chosen)} a month"
    if own.name != chosen.name:
        text += f", at {own.name} {_usd(own)}{_old(own)}"
    paid_back = ""
    if found.payback_months is not None:
        paid_back = f" Buying instead of renting pays back in {found.payback_months:.0f} months."
    if hosted is None:
        return f"{text}; {market.why_no_api}.{paid_back}"
    text += f", at the cheapest of {found.n_api_offers} hosted offers, {hosted.name}, {_usd(hosted)}{_old(hosted)}. "
    share = found.utilization_frac.value
    load = f"{f'{share:.0%}' if share >= 0.01 else 'below 1%'} of what the deployment could serve"
    flips = found.flips_at_utilization_frac
    if flips is None:
        text += f"The load is {load}; the API is cheaper even when all of it is used."
    else:
        text += f"The cheapest own way beats that API above a load of {flips:.0%}; the load is {load}."
    return (
        text + paid_back + ("" if found.certain else " Not certain: the low end of the capacity changes the verdict.")
    )


def _usd(option: Option) -> str:
    usd = option.usd_per_month.value
    return f"${usd:,.0f}" if usd >= 100.0 else f"${usd:,.2f}"


def _old(option: Option) -> str:
    """How old a price is."""
    if option.age_days is None:
        return " (undated)"
    return f" ({option.age_days} days old{', past 90' if option.stale else ''})"
