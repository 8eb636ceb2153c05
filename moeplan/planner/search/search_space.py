"""What a search may choose from: models, machines with their offers, formats; each resolved like any scenario."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from moeplan.errors import InputError, input_error
from moeplan.files.catalog.price_catalog import load_offer, offer_row, offers_for
from moeplan.files.scenario.question import Question
from moeplan.files.scenario.schema_search import OptimizeFile
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS
from moeplan.spec.prices import Money, Offer
from moeplan.spec.scenario import Scenario

# A price has to be stated for a scenario to resolve; the search leaves money out where this stands in.
NO_PRICE = "price={per_gpu_hour: 1 USD/h, date: 2000-01-01}"
_PREFILL = "serving.prefill"
_PREFILL_TP = 8  # where neither degrees nor GPUs are stated


@dataclass(frozen=True, slots=True)
class Priced:
    """An offer and the override that chooses it; "" where the scenario's own price stays."""

    override: str
    money: Money


@dataclass(frozen=True, slots=True)
class Site:
    """A model in chosen formats on a machine: everything but the layout."""

    overrides: tuple[str, ...]
    scenario: Scenario
    offers: tuple[Priced, ...]  # empty: nobody offers it, money is left out
    model: str
    hardware: str
    formats: str
    most_gpus: int  # where the search states none: the file's `gpus`, else one node or the layout's own


def sites(question: Question, search: OptimizeFile, *, training: bool) -> tuple[list[Site], dict[str, str]]:
    """Every combination of model, hardware and formats that exists, and why the others do not.

    Raises InputError when none does.
    """
    excluded: dict[str, str] = {}
    found: list[Site] = []
    problems: list[InputError] = []
    own_hardware = str(question.value("hardware") or "")
    models = search.models or [str(question.value("model") or "")]
    machines = search.hardware or [own_hardware]
    for model, machine, formats in product(models, machines, _formats(question, search, training=training)):
        name = " ".join(part for part in (model, machine, *(text.partition("=")[2] for text in formats)) if part)
        changes = [f"hardware={machine}"] if machine != own_hardware else []
        changes += [f"model={model}"] if model != question.value("model") else []
        changes += formats
        try:
            found.append(_site(question, search, changes, model, machine, own_hardware, formats))
        except InputError as error:
            problems.append(error)
            excluded[name] = "; ".join(p.what for p in error.problems)
    if not found:
        raise InputError([p for error in problems for p in error.problems])
    return _allowed(found, search, excluded), excluded


def _allowed(found: list[Site], search: OptimizeFile, excluded: dict[str, str]) -> list[Site]:
    """Sites within the user's limits of quality."""
    kept = []
    for site in found:
        lowest = search.lowest_precision
        bits = _bits(site.scenario)
        ks = [block.top_k for block in site.scenario.model.moe_blocks]
        name = f"{site.model} {site.hardware} {site.formats}".strip()
        if lowest is not None and lowest != "native" and bits < FORMATS[lowest].bits - 0.51:  # scales of blocks apart
            excluded[name] = f"weights in {bits:g} bits, the lowest allowed is {lowest}"
        elif search.lowest_top_k is not None and ks and min(ks) < search.lowest_top_k:
            excluded[name] = f"{min(ks)} experts per token, the fewest allowed are {search.lowest_top_k}"
        else:
            kept.append(site)
    if not kept:
        hint = "; ".join(f"{name}: {why}" for name, why in excluded.items())
        raise input_error("optimize", "the limits leave nothing to choose from", hint=hint)
    return kept


def _bits(scenario: Scenario) -> float:
    if scenario.serving is not None:
        p = scenario.serving.precision
        return min(FORMATS[name].bits for name in (p.experts, p.attention, p.dense))
    return FORMATS[scenario.training.work.compute_format].bits if scenario.training is not None else 16.0


def _formats(question: Question, search: OptimizeFile, *, training: bool) -> list[list[str]]:
    part = "training" if training else "serving"
    axes: list[list[str]] = []
    if search.precision is not None:
        axes.append([f"{part}.precision={name}" for name in search.precision])
    if search.kv_cache is not None and not training:
        axes.append([f"serving.precision.kv_cache={name}" for name in search.kv_cache])
    if search.top_k is not None:
        axes.append([f"routing.top_k={k}" for k in search.top_k])
    if not training:
        axes.append(_pools(question, search))
    return [[text for text in texts if text] for texts in product(*axes)]


def _pools(question: Question, search: OptimizeFile) -> list[str]:
    """The prefill pools to choose from; "" leaves the scenario as it is."""
    if search.prefill_replicas is None:
        return [""]
    if question.value(_PREFILL) is not None:
        what = "the scenario states a prefill pool already"
        raise input_error("optimize.prefill_replicas", what, hint=f"remove {_PREFILL} to search it")
    degrees = search.prefill_tp or powers_of_two(search.gpus or _PREFILL_TP)
    found = [""] if 0 in search.prefill_replicas else []
    for replicas in search.prefill_replicas:
        for tp in degrees if replicas else ():
            spreads = (1, tp) if tp > 1 else (1,)
            found += [f"{_PREFILL}={{tp: {tp}, ep: {ep}, replicas: {replicas}}}" for ep in spreads]
    return found


def _site(
    question: Question,
    search: OptimizeFile,
    changes: Sequence[str],
    model: str,
    machine: str,
    own_hardware: str,
    formats: Sequence[str],
) -> Site:
    """Resolved with a stand-in price first: which offers there are depends on the device's own name."""
    neutral = [*changes, *_neutral_layout(question)]
    scenario = question.scenario([*neutral, NO_PRICE])
    stated = question.value("price") is not None and machine == own_hardware
    narrowed = search.offers is not None or search.providers is not None or search.regions is not None
    if stated and not narrowed and not search.spot:
        offers: tuple[Priced, ...] = (Priced("", question.scenario(neutral).money),)
    else:
        chosen = _offers(search, scenario.hardware)
        offers = tuple(Priced(f"price={o.name}", replace(scenario.money, offer=o)) for o in chosen)
    overrides = (*changes, *(() if offers else (NO_PRICE,)))
    shown = ", ".join(("prefill " if text.startswith(_PREFILL) else "") + text.partition("=")[2] for text in formats)
    if scenario.serving is not None and scenario.serving.fleet.autoscaling is not None:
        hint = "leave out serving.fleet.autoscaling: the search finds how many replicas the peak takes"
        raise input_error(question.path, "a fleet that scales itself has no one layout", hint=hint)
    return Site(overrides, scenario, offers, model, machine, shown, _most_gpus(question, scenario.hardware))


def _most_gpus(question: Question, hardware: Hardware) -> int:
    stated = question.value("gpus")
    return stated if isinstance(stated, int) else max(hardware.n_gpus_per_node, _laid_out_gpus(question))


def _laid_out_gpus(question: Question) -> int:
    """GPUs of the layout in the file; a degree that is no number counts as one."""
    most = 1
    for part in ("serving", "training"):
        degrees = question.value(f"{part}.layout")
        if isinstance(degrees, dict):
            stated = (degrees.get(key, 1) for key in ("tp", "pp", "cp", "dp", "replicas"))
            most = max(most, math.prod(n for n in stated if isinstance(n, int)))
    return most


def _neutral_layout(question: Question) -> list[str]:
    """The smallest layout, so that a site resolves whatever layout the file states.

    Raises InputError for runs that are laid out in several places.
    """
    found = []
    for path in ("training.phases", "training.rollout"):
        if question.value(path) is not None:
            what = f"a run with {path.partition('.')[2]} is laid out by hand: a search has one layout for all of it"
            raise input_error(
                question.path, what, hint="search its first phase, or its update, as a scenario of its own"
            )
    if question.tree.child("serving") is not None:
        found += [f"serving.layout.{key}=1" for key in ("tp", "pp", "dp", "ep", "replicas")]
    if question.tree.child("training") is not None:
        found += [f"training.layout.{key}=1" for key in ("tp", "pp", "vpp", "cp", "dp", "ep", "etp")]
        found += ["training.micro_batch=1", "training.layout.schedule=1f1b"]
    return found


def _offers(search: OptimizeFile, hardware: Hardware) -> list[Offer]:
    """Offers for the machine inside the user's limits: the named ones, else the catalog's."""
    slugs = dict.fromkeys((hardware.slug, hardware.device.slug))
    known: Iterable[Offer]
    if search.offers is not None:
        known = [offer for name in search.offers if (offer := load_offer(name)).hardware in slugs]
    else:
        known = [offer for offer in offers_for(*slugs) if offer.term != "spot" or search.spot]
    found = []
    for offer in known:
        provider, region = offer.name.partition("/")[0], offer_row(offer.name).get("region", "")
        if search.providers is not None and provider not in search.providers:
            continue
        if search.regions is not None and not any(r == region or r in offer.name.split("/") for r in search.regions):
            continue
        found.append(offer)
    return found


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return [1 << i for i in range(max(most, 1).bit_length())]
