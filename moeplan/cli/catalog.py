"""``moeplan catalog``: what is known, with sources. Tables for people, ``--json`` for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moeplan.files.catalog.hardware_catalog import HardwareRecord
    from moeplan.provenance import Source


@click.command()
@click.argument("what", type=click.Choice(["hardware", "models", "prices", "runs"]))
@click.argument("name", required=False)
@click.option(
    "--update",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="prices: take the quotes of this CSV into your own catalogue.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there.")
def catalog(what: str, name: str | None, update: Path | None, as_json: bool) -> None:
    """List what is known, or show one entry with the source of every value.

    \b
    moeplan catalog hardware                 all accelerators and systems
    moeplan catalog hardware h200-sxm        one of them (or the path of a profile)
    moeplan catalog models Qwen3-30B-A3B     one model (or the path of a config.json)
    moeplan catalog prices                   what can be rented, by hardware
    moeplan catalog prices h200-sxm          every offer for it (also: one offer, a hosted model)
    moeplan catalog prices --update my.csv   add your own quotes (docs/reference/prices.md)
    """
    if update is not None:
        _update(what, name, update, as_json)
        return
    views = {"hardware": _hardware, "models": _models, "prices": _prices, "runs": _runs}
    data, tables = views[what](name)
    if as_json:
        click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
        return
    from moeplan.report.console import Console

    # sources are printed as they stand: brackets in them are no markup
    console = Console(markup=False, highlight=False, emoji=False)
    for table in tables:
        console.print(table)


def _update(what: str, name: str | None, file: Path, as_json: bool) -> None:
    from moeplan.files.catalog.price_quotes import keep_quotes

    if what != "prices" or name is not None:
        raise click.UsageError("--update belongs to `moeplan catalog prices` without a name")
    kind, n_quotes, kept = keep_quotes(file)
    if as_json:
        click.echo(json.dumps({"kind": kind, "n_quotes": n_quotes, "kept_in": str(kept)}, ensure_ascii=False))
    else:
        click.echo(f"{n_quotes} quotes of {kind} taken into {kept}")


View = tuple[Any, "list[RenderableType]"]


def _hardware(name: str | None) -> View:
    from moeplan.files.catalog.hardware_catalog import hardware_names, hardware_record, load_hardware

    if name is not None:
        return _one_hardware(hardware_record(name))
    from moeplan.units import format_bandwidth, format_bytes, format_flop_rate

    table = _table("name", "memory", "bandwidth", "bf16, dense", "GPUs per node / domain")
    listed = []
    for slug in hardware_names():
        hardware = load_hardware(slug)
        device = hardware.device
        rate = device.flop_per_s("bf16")
        listed.append(
            {
                "name": slug,
                "title": device.name,
                "device": device.slug,
                "vendor": device.vendor,
                "architecture": device.architecture,
                "memory_bytes": device.memory_bytes,
                "memory_bytes_per_s": device.memory_bytes_per_s,
                "dense_flop_per_s": dict(device.dense_flop_per_s),
                "n_gpus_per_node": hardware.n_gpus_per_node,
                "n_gpus_scale_up": hardware.n_gpus_scale_up,
            }
        )
        table.add_row(
            slug,
            format_bytes(device.memory_bytes),
            format_bandwidth(device.memory_bytes_per_s),
            format_flop_rate(rate) if rate is not None else "none",
            f"{hardware.n_gpus_per_node} / {hardware.n_gpus_scale_up}",
        )
    return {"hardware": listed}, [table, _hint("moeplan catalog hardware NAME shows the source of every value")]


def _one_hardware(record: HardwareRecord) -> View:
    data = {
        "name": record.name,
        "title": record.title,
        "device": record.device,
        "extends": list(record.chain[1:]),
        "vendor": record.vendor,
        "architecture": record.architecture,
        **record.texts,
        "values": {
            place: {
                "stated": stated.text,
                "value": stated.sourced.value,
                "unit": stated.sourced.unit,
                "basis": stated.sourced.basis,
                **_source_data(stated.sourced.source),
            }
            for place, stated in record.values.items()
        },
        "disagreements": list(record.disagreements),
        "notes": list(record.notes),
    }
    head = _table("", "")
    head.add_row("name", f"{record.name}: {record.title}")
    if len(record.chain) > 1:
        head.add_row("extends", " > ".join(record.chain[1:]))
    head.add_row("architecture", f"{record.vendor}, {record.architecture}")
    for key, text in record.texts.items():
        if text:
            head.add_row(key.replace("_", " "), text)
    tables: list[RenderableType] = [head]
    values = _table("value", "as stated (kind), source, date, note")
    for place, stated in record.values.items():
        values.add_row(place, _lines(f"{stated.text} {stated.sourced.basis}", stated.sourced.source))
    tables.append(values)
    for title, lines in (("where sources disagree", record.disagreements), ("notes", record.notes)):
        if lines:
            listing = _table(title)
            for line in lines:
                listing.add_row(line)
            tables.append(listing)
    return data, tables


def _models(name: str | None) -> View:
    from moeplan.files.catalog.model_catalog import model_names

    if name is not None:
        return _one_model(name)
    names = model_names()
    table = _table("models")
    for item in names:
        table.add_row(item)
    return {"models": list(names)}, [table, _hint("any Hugging Face config.json works as a model: give its path")]


def _one_model(name: str) -> View:
    from moeplan.costs.memory import cache_bytes_per_sequence
    from moeplan.errors import InputError
    from moeplan.files.catalog.model_catalog import load_model, model_names, model_record
    from moeplan.spec.precision import FORMATS
    from moeplan.units import format_bytes, format_tokens

    try:
        model = load_model(name)
    except InputError:
        if name not in model_names():
            raise
        # a catalog entry that cannot be planned with still has provenance worth showing: why it is not usable
        model = None
    data: dict[str, Any] = {"name": name}
    table = _table("", "")
    if model is not None:
        context = min(8192, model.max_context_tokens)
        cache_bytes = cache_bytes_per_sequence(model.layers, float(context), FORMATS["bf16"], 1)
        data |= {
            "name": model.name,
            "model_type": model.model_type,
            "n_layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "max_context_tokens": model.max_context_tokens,
            "n_params_total": model.n_params_total,
            "n_params_active": model.n_params_active,
            "n_params_mtp": model.n_params_mtp,
            "cache_bytes_per_sequence_bf16": {"context_tokens": context, "value": cache_bytes},
            "checkpoint": asdict(model.checkpoint),
            "notes": list(model.notes),
        }
        table.add_row("name", f"{model.name} ({model.model_type})")
        table.add_row("parameters", format_tokens(model.n_params_total))
        table.add_row("active per token", format_tokens(model.n_params_active))
        table.add_row("layers, width", f"{model.n_layers}, {model.hidden_size}")
        table.add_row("longest context", f"{model.max_context_tokens} tokens")
        table.add_row("cache in bf16", f"{format_bytes(cache_bytes)} for a sequence of {context} tokens")
        for note in model.notes:
            table.add_row("note", note)
    known = next((n for n in model_names() if n.casefold() == data["name"].casefold()), None)
    if known is not None:
        record = model_record(known)
        data["provenance"] = asdict(record)
        table.add_row("source", f"{record.source} ({record.grade})")
        said = {"published by": record.published_source, "note": record.note, "remark": record.remark}
        for label, text in said.items():
            if text:
                table.add_row(label, text)
    return data, [table]


def _prices(name: str | None) -> View:
    from moeplan.files.catalog import price_catalog as prices
    from moeplan.files.catalog.hardware_catalog import hardware_names

    if name is None:
        return _price_overview()
    if name in prices.offers():
        return _one_offer(name)
    if name.casefold() in (model.casefold() for model in prices.api_models()):
        return _api(name)
    offered = {offer.hardware for offer in prices.offers().values()}
    if name.casefold() in offered or name.casefold() in hardware_names():
        return _prices_of(name.casefold())
    raise prices.unknown_offer(name)


def _price_overview() -> View:
    from moeplan.files.catalog import price_catalog as prices

    offers = prices.offers().values()
    table = _table("hardware", "offers", "on demand, USD/GPU/h", "spot")
    listed = []
    for hardware in sorted({offer.hardware for offer in offers}):
        mine = prices.offers_for(hardware)
        by_term = {t: [o.usd_per_gpu_hour for o in mine if o.term == t] for t in ("on_demand", "spot")}
        table.add_row(hardware, str(len(mine)), _range(by_term["on_demand"]), _range(by_term["spot"]))
        listed += [_offer_data(offer) for offer in mine]
    hosted = _table("hosted models (USD per million tokens: moeplan catalog prices MODEL)")
    hosted.add_row(", ".join(prices.api_models()))
    other = _table("other costs", "value (kind), source, date, note")
    for cost in prices.other_costs():
        other.add_row(f"{cost.category}: {cost.item}", _lines(f"{cost.value:g} {cost.unit}".strip(), cost.source))
    data = {
        "offers": listed,
        "api_models": list(prices.api_models()),
        "other_costs": [{**asdict(cost), **_source_data(cost.source)} for cost in prices.other_costs()],
    }
    return data, [table, hosted, other]


def _prices_of(hardware: str) -> View:
    from moeplan.files.catalog import price_catalog as prices
    from moeplan.files.catalog.hardware_catalog import hardware_names, load_hardware

    slugs = [hardware]
    if hardware in hardware_names() and (device := load_hardware(hardware).device.slug) != hardware:
        slugs.append(device)
    offers = prices.offers_for(*slugs)
    table = _table("offer", "USD/GPU/h", "GPUs", "term", "date")
    for offer in offers:
        table.add_row(
            offer.name, f"{offer.usd_per_gpu_hour:.3f}", str(offer.n_gpus_per_instance), offer.term, offer.price_date
        )
    reference = _table("published, but not an offer", "value", "why not", "date")
    references = [r for slug in slugs for r in prices.reference_prices(slug)]
    for entry in references:
        reference.add_row(entry.name, entry.text, entry.why_not_an_offer, entry.price_date)
    bought = [c for slug in slugs for c in prices.other_costs(hardware=slug)]
    other = _table("purchase and power", "value (kind), source, date, note")
    for cost in bought:
        other.add_row(f"{cost.category}: {cost.item}", _lines(f"{cost.value:g} {cost.unit}", cost.source))
    data = {
        "hardware": hardware,
        "offers": [_offer_data(offer) for offer in offers],
        "reference_prices": [
            {"name": r.name, "stated": r.text, "why_not_an_offer": r.why_not_an_offer, **_source_data(r.source)}
            for r in references
        ],
        "other_costs": [{**asdict(cost), **_source_data(cost.source)} for cost in bought],
    }
    if not offers:
        table.add_row("none: state a price of your own", "", "", "", "")
    return data, [table, *([reference] if references else []), *([other] if bought else [])]


def _one_offer(name: str) -> View:
    from moeplan.files.catalog import price_catalog as prices

    row = prices.offer_row(name)
    table = _table("", "")
    for key, text in row.items():
        if text:
            table.add_row(key.replace("_", " "), text)
    return {**_offer_data(prices.load_offer(name)), "stated": dict(row)}, [table]


def _api(model: str) -> View:
    from moeplan.files.catalog.price_catalog import api_offers

    offers = api_offers(model)
    table = _table("hosted offer", "input", "cached", "output", "batch in / out", "date")
    for offer in offers:
        table.add_row(
            offer.name,
            _per_million(offer.usd_per_input_token),
            _per_million(offer.usd_per_cached_input_token),
            _per_million(offer.usd_per_output_token),
            " / ".join(
                _per_million(price)
                for price in (offer.usd_per_batch_input_token, offer.usd_per_batch_output_token)
                if price is not None
            ),
            offer.price_date,
        )
    data = [{**asdict(offer), **_source_data(offer.source)} for offer in offers]
    return {"model": model, "api_offers": data}, [table, _hint("USD per million tokens")]


def _per_million(usd_per_token: float | None) -> str:
    return "" if usd_per_token is None else f"{usd_per_token * 1e6:.4g}"


def _runs(name: str | None) -> View:
    from moeplan.errors import input_error

    if name is not None:
        raise input_error("runs", "no such measured run", got=name, hint="no measured runs are shipped")
    text = "No measured runs are shipped with this package; moeplan accuracy RUNS.csv judges runs of your own."
    return {"runs": []}, [text]


def _range(prices: list[float]) -> str:
    if not prices:
        return ""
    low, high = min(prices), max(prices)
    return f"{low:.2f}" if low == high else f"{low:.2f} .. {high:.2f}"


def _offer_data(offer: Any) -> dict[str, Any]:
    return {**asdict(offer), **_source_data(offer.source)}


def _source_data(source: Source) -> dict[str, str]:
    return {"kind": source.kind.value, "source": source.text, "date": source.date, "note": source.note}


def _lines(value: str, source: Source) -> str:
    """The value with its kind, and its citation on the next line."""
    date = "" if source.date in source.text else source.date
    citation = "; ".join(part for part in (source.text, date, source.note) if part)
    return f"{value} ({source.kind.value})\n{citation}"


def _hint(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style="dim")


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
