"""Dated prices shipped with the package: GPU offers, hosted models, purchase, power and electricity.

No price is ever chosen for the user: hardware without a stated price is an error that lists what is on offer for it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from moeplan.errors import InputError, did_you_mean, input_error
from moeplan.files.locate import data_folder
from moeplan.provenance import Kind, Source
from moeplan.spec.prices import ApiOffer, Offer, Term
from moeplan.units import parse

OFFERS = "offers.csv"
_REFERENCE = "reference_prices.csv"
API_OFFERS = "api_offers.csv"
_OTHER = "other_costs.csv"
_LISTED = 12  # offers named in an error


@dataclass(frozen=True, slots=True)
class ReferencePrice:
    """A published figure that is not an offer: modelled cost, market summary, test data, or no GPU count."""

    name: str
    hardware: str
    text: str
    why_not_an_offer: str
    price_date: str
    source: Source


@dataclass(frozen=True, slots=True)
class OtherCost:
    """A purchase price, a power draw, an electricity price or a PUE, in the unit its source states.

    ``category`` is one of "gpu purchase", "server purchase", "server power", "all-in power per GPU", "electricity",
    "pue", "grid intensity", "object storage", "network egress". ``hardware`` is a slug, "" where it concerns none of
    the catalog.
    """

    category: str
    item: str
    hardware: str
    value: float
    unit: str
    basis: str
    source: Source


def offers() -> Mapping[str, Offer]:
    """All rentable offers by name."""
    return {name: _offer(row) for name, row in _rows(OFFERS).items()}


def shipped_offers() -> tuple[Offer, ...]:
    """The offers of the package alone, without the user's quotes."""
    return tuple(_offer(row) for row in _read(OFFERS))


def load_offer(name: str) -> Offer:
    """The offer called ``name``. Raises InputError, with the nearest names, when there is none."""
    row = _rows(OFFERS).get(name)
    if row is None:
        raise unknown_offer(name)
    return _offer(row)


def unknown_offer(name: str) -> InputError:
    """The error for a name that is no offer, with the nearest names."""
    reference = _rows(_REFERENCE).get(name)
    if reference is not None:
        what = f"not an offer: {reference['why_not_an_offer']}"
        return input_error("prices", what, got=name, hint="state it as a price of your own if you mean it")
    hint = did_you_mean(name, _rows(OFFERS)) or "moeplan catalog prices lists all offers"
    return input_error("prices", "unknown offer", got=name, hint=hint)


def offers_for(*hardware: str) -> tuple[Offer, ...]:
    """Offers for any of these slugs (a system and its device), cheapest on demand first, spot last."""
    found = [_offer(row) for row in _rows(OFFERS).values() if row["hardware"] in hardware]
    return tuple(sorted(found, key=lambda o: (o.term == "spot", o.usd_per_gpu_hour, o.name)))


def no_price_error(*hardware: str) -> InputError:
    """The error for hardware whose price the scenario does not state: it lists what is on offer."""
    found = offers_for(*hardware)
    if not found:
        what = f"no price stated, and the catalog has no offer for {hardware[0]}"
        return input_error("price", what, hint="state one: price: 2.50 USD/h")
    shown = ", ".join(f"{o.name} ({o.usd_per_gpu_hour:.2f} USD/GPU/h, {o.price_date})" for o in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    hint = "name an offer, or state a price of your own: price: 2.50 USD/h"
    return input_error("price", f"no price stated for {hardware[0]}", allowed=shown + more, hint=hint)


def offer_row(name: str) -> Mapping[str, str]:
    """The offer as its file states it, for ``catalog`` and ``explain``. Raises InputError."""
    load_offer(name)
    return _rows(OFFERS)[name]


def reference_prices(hardware: str = "") -> tuple[ReferencePrice, ...]:
    """Published figures that are no offers, of one slug or all."""
    return tuple(
        ReferencePrice(
            name=row["name"],
            hardware=row["hardware"],
            text=f"{row['value']} {row['unit']}",
            why_not_an_offer=row["why_not_an_offer"],
            price_date=row["price_date"],
            source=_source(row, row["price_date"]),
        )
        for row in _rows(_REFERENCE).values()
        if hardware in ("", row["hardware"])
    )


def api_offers(model: str = "") -> tuple[ApiOffer, ...]:
    """Hosted models priced per token, of one model family or all, cheapest output first."""
    rows = [row for row in _rows(API_OFFERS).values() if not model or row["model"].casefold() == model.casefold()]
    return tuple(sorted((_api_offer(row) for row in rows), key=lambda o: (o.usd_per_output_token, o.name)))


def load_api_offer(name: str) -> ApiOffer:
    """The hosted offer called ``name`` ("deepinfra/..."). Raises InputError, with the nearest names."""
    row = _rows(API_OFFERS).get(name)
    if row is None:
        raise input_error("prices", "unknown API offer", got=name, hint=did_you_mean(name, _rows(API_OFFERS)))
    return _api_offer(row)


def grid_intensity(region: str) -> OtherCost:
    """Average emissions of a country's (ISO code), the EU's or the world's electricity. Raises InputError."""
    known = {cost.item.casefold(): cost for cost in other_costs("grid intensity")}
    found = known.get(region.casefold())
    if found is None:
        names = [cost.item for cost in known.values()]
        hint = did_you_mean(region, names) or "or state the emissions: grid: 380 g/kWh"
        raise input_error(
            "region", "no grid intensity for this region", got=region, allowed=", ".join(names), hint=hint
        )
    return found


def electricity(item: str) -> OtherCost:
    """The electricity price called ``item`` ("US Ohio industrial"). Raises InputError."""
    known = {cost.item.casefold(): cost for cost in other_costs("electricity")}
    found = known.get(item.casefold())
    if found is None:
        names = [cost.item for cost in known.values()]
        hint = did_you_mean(item, names) or "or state one: 0.12 USD/kWh"
        raise input_error(
            "electricity", "no electricity price of this name", got=item, allowed=", ".join(names), hint=hint
        )
    return found


def api_models() -> tuple[str, ...]:
    """Model families with hosted offers, sorted."""
    return tuple(sorted({row["model"] for row in _rows(API_OFFERS).values()}))


def other_costs(category: str = "", hardware: str = "") -> tuple[OtherCost, ...]:
    """Purchase prices, power, electricity and PUE as published, of one category or slug or all."""
    return tuple(
        OtherCost(
            category=row["category"],
            item=row["item"],
            hardware=row["hardware"],
            value=float(row["value"]),
            unit=row["unit"],
            basis=row["basis"],
            source=_source(row, row["date"]),
        )
        for row in _read(_OTHER)
        if category in ("", row["category"]) and hardware in ("", row["hardware"])
    )


def _offer(row: Mapping[str, str]) -> Offer:
    return Offer(
        name=row["name"],
        hardware=row["hardware"],
        usd_per_gpu_hour=parse(f"{row['value']} {row['unit']}", "usd_per_gpu_hour"),
        n_gpus_per_instance=int(row["n_gpus"]),
        term=cast(Term, row["term"]),
        price_date=row["price_date"],
        source=_source(row, row["price_date"]),
    )


def _api_offer(row: Mapping[str, str]) -> ApiOffer:
    def price(column: str) -> float | None:
        return parse(f"{row[column]} {row['unit']}", "usd_per_token") if row.get(column) else None

    return ApiOffer(
        name=row["name"],
        model=row["model"],
        usd_per_input_token=parse(f"{row['input']} {row['unit']}", "usd_per_token"),
        usd_per_output_token=parse(f"{row['output']} {row['unit']}", "usd_per_token"),
        price_date=row["price_date"],
        source=_source(row, row["price_date"]),
        usd_per_cached_input_token=price("cached_input"),
        usd_per_batch_input_token=price("batch_input"),
        usd_per_batch_output_token=price("batch_output"),
    )


def _source(row: Mapping[str, str], date: str) -> Source:
    return Source(row.get("source_url") or row["source"], date, Kind(row["kind"]), row.get("note", ""))


def _rows(file: str) -> Mapping[str, Mapping[str, str]]:
    """Rows of a file by name; the user's own quotes take the place of shipped rows of the same name."""
    return {row["name"]: row for row in (*_read(file), *_own_rows(file, quotes_path(file)))}


@cache
def _read(file: str) -> tuple[Mapping[str, str], ...]:
    with (data_folder("prices") / file).open(encoding="utf-8", newline="") as stream:
        return tuple(csv.DictReader(stream))


def quotes_path(file: str) -> Path:
    """Where the user's rows of ``file`` are kept: ``$XDG_DATA_HOME/moeplan/prices``, by default in ~/.local/share."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return Path(base or os.path.expanduser("~/.local/share")) / "moeplan" / "prices" / file


def _own_rows(file: str, path: Path) -> tuple[Mapping[str, str], ...]:
    if file not in (OFFERS, API_OFFERS) or not path.exists():
        return ()
    from moeplan.files.catalog.price_quotes import read_quotes

    return read_quotes(path)[1]
