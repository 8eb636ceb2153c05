"""Scenario file to ``spec.Scenario``: names to catalogue entries, defaults filled in, everything checked together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from moeplan.errors import InputError, input_error
from moeplan.files.catalog.model_data import load_model_error
from moeplan.files.catalog.scaling_laws import load_scaling_laws
from moeplan.files.locate import is_path
from moeplan.files.scenario.resolve_calibration import calibrated
from moeplan.files.scenario.resolve_checks import check_fleet, check_serving_layout, check_training
from moeplan.files.scenario.resolve_money import (
    MONTH_S,
    exchange_rates,
    raise_if_any,
    resolve_ages,
    resolve_facility,
    resolve_market,
    resolve_money,
)
from moeplan.files.scenario.resolve_routing import resolve_routing
from moeplan.files.scenario.resolve_serving import resolve_layout, resolve_precision, resolve_serving
from moeplan.files.scenario.resolve_traffic import check_longest
from moeplan.files.scenario.resolve_training import resolve_training
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema import CompareFile, ScenarioFile
from moeplan.files.scenario.schema_money import LifecycleFile
from moeplan.files.scenario.schema_training import TrainingFile
from moeplan.files.scenario.schema_walk import Loc, empty_values, problems_of, written
from moeplan.files.yaml_tree import Node
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import Layer, ModelArchitecture, MoeMlp
from moeplan.spec.prices import Money
from moeplan.spec.scenario import Comparison, Demand, Reference, Scenario, Serving, Training

MAX_ATTEMPTS = 4  # rounds of setting faulty values aside

Kind = Literal["serving", "training", "lifecycle"]


def resolve(tree: Node, path: Path, *, arrays: bool = True) -> Scenario:
    """The scenario ``tree`` read from ``path``. ``arrays``: read what only a simulation needs, too.

    Raises InputError with every problem found.
    """
    rs = Resolving(tree, path.resolve().parent, fits=arrays)
    rs.problems.extend(empty_values(tree))
    table = tree.child("exchange_rates")
    stated = table.plain() if table is not None and isinstance(table.value, dict) else {}
    currencies = exchange_rates(rs, stated)
    file = _validated(rs, currencies)
    if file is None:
        _check_names(rs)
        raise_if_any(rs)
        raise InputError(rs.problems)
    kind = _kind(rs, file)
    model = _model(rs, file.model, ("model",), "model")
    if model is not None and file.routing.top_k is not None:
        model = _with_top_k(rs, model, file.routing.top_k)
    hardware = _hardware(rs, file.hardware, ("hardware",), "hardware")
    if model is None or hardware is None:
        if hardware is not None:
            resolve_money(rs, file, file.price, ("price",), hardware, kind)
        raise_if_any(rs)
        raise InputError(rs.problems)
    return _complete(rs, file, kind, model, hardware, path, arrays)


def _complete(
    rs: Resolving,
    file: ScenarioFile,
    kind: Kind,
    model: ModelArchitecture,
    hardware: Hardware,
    path: Path,
    arrays: bool,
) -> Scenario:
    training_hardware, training_money = _training_place(rs, file, hardware, kind)
    trains_on = training_hardware or hardware
    serving = comparison = training = None
    if file.serving is not None:
        serving = resolve_serving(rs, file.serving, model, hardware, arrays=arrays)
        check_serving_layout(rs, ("serving", "layout"), serving.layout, model, hardware, file.gpus)
        check_fleet(rs, serving, model, hardware, file.gpus)
    if file.training is not None:
        training = resolve_training(rs, file.training, model, trains_on)
        check_training(rs, training, model, trains_on, file.gpus if training_hardware is None else None)
    if file.compare_with is not None:
        comparison = _comparison(rs, file.compare_with, file, serving, hardware, trains_on)
    money = resolve_money(rs, file, file.price, ("price",), hardware, kind)
    facility = resolve_facility(rs, file, hardware)
    market = resolve_market(rs, file, model, hardware)
    as_of, prices = resolve_ages(rs, file, {"price": money, "lifecycle.training.price": training_money}, market)
    for key in ("name", "kind", "seed"):
        rs.note(key, (key,), default={"name": "the file's name", "kind": "told by the sections"}.get(key, ""))
    degrees = {"serving.layout.ep": serving.layout.ep} if serving is not None else {}
    if training is not None:
        degrees["training.layout.ep"] = training.layout.ep
    routing, training_routing = resolve_routing(
        rs, file.routing, model, file.seed, degrees, comparison.model if comparison is not None else None
    )
    error = load_model_error()
    if file.calibration and arrays:
        engine = None if serving is None else serving.engine.name
        hardware, error = calibrated(rs, file.calibration, hardware, engine, error)
    raise_if_any(rs)
    if money is None or facility is None:
        raise InputError(rs.problems)
    months, demand = _lifecycle(rs, file.lifecycle)
    return Scenario(
        name=file.name or path.stem,
        kind=kind,
        seed=file.seed,
        model=model,
        hardware=hardware,
        serving=serving,
        training=training,
        routing=routing,
        training_routing=training_routing,
        money=money,
        lifecycle_months=months,
        demand=demand,
        training_hardware=training_hardware,
        training_money=training_money,
        comparison=comparison,
        references=tuple(Reference(r.quantity, r.value, r.source) for r in file.references),
        model_error=error,
        facility=facility,
        market=market,
        as_of=as_of,
        prices=prices,
        scaling_laws=load_scaling_laws(),
        origins=dict(sorted(rs.origins.items())),
    )


def _validated(rs: Resolving, currencies: dict[str, float]) -> ScenarioFile | None:
    """The file's values, checked. What the schema refuses is reported and set aside, so that the rest is checked too.

    None when nothing is left that could be resolved.
    """
    data = _without_empty(rs.tree.plain())
    for attempt in range(MAX_ATTEMPTS):
        try:
            return ScenarioFile.model_validate(data, context={"currencies": currencies})
        except ValidationError as error:
            if attempt == 0:
                rs.problems.extend(problems_of(error, rs.tree))
            for item in error.errors():
                _set_aside(data, written(rs.tree, item["loc"]), rs)
    return None


def _set_aside(data: Any, loc: Loc, rs: Resolving) -> None:
    """Remove the value at ``loc``, or what it is missing from."""
    for part in loc[:-1]:
        inside = isinstance(part, str) and isinstance(data, dict) and part in data
        if not inside:
            return
        data = data[part]
    if loc and isinstance(data, dict):
        if loc[-1] in data:
            del data[loc[-1]]
        elif len(loc) > 1:
            data.clear()
        rs.set_aside.append(loc)


def _without_empty(value: Any) -> Any:
    """The tree less its empty values, which are reported on their own."""
    if isinstance(value, dict):
        return {key: _without_empty(below) for key, below in value.items() if below is not None}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def _check_names(rs: Resolving) -> None:
    """Model and hardware of a file whose schema failed elsewhere."""
    for key, read in (("model", _model), ("hardware", _hardware)):
        node = rs.tree.child(key)
        if node is not None and isinstance(node.value, str) and node.value.strip():
            read(rs, node.value.strip(), (key,), key)


def _kind(rs: Resolving, file: ScenarioFile) -> Kind:
    """The stated kind, or the one the sections tell; contradictions become problems."""
    has = {name: getattr(file, name) is not None for name in ("serving", "training", "lifecycle")}
    told = "lifecycle" if has["lifecycle"] else "training" if has["training"] else "serving"
    kind = file.kind or told
    needed = {"serving": {"serving"}, "training": {"training"}, "lifecycle": {"serving", "training", "lifecycle"}}[kind]
    for name in sorted(needed):
        if not has[name]:
            rs.problem((name,), f"a {kind} scenario needs a `{name}` section", hint="moeplan init writes an example")
    for name in sorted(set(has) - needed):
        if has[name]:
            hint = "add `lifecycle` to train and then serve" if name == "serving" else ""
            rs.problem((name,), f"a {kind} scenario has no `{name}` section", hint=hint)
    return cast(Kind, kind)


def _model(rs: Resolving, name: str, loc: Loc, target: str) -> ModelArchitecture | None:
    from moeplan.files.catalog.model_catalog import load_model

    model = rs.attempt(loc, lambda: load_model(_local(rs, name, loc, (".json",)), rs.folder))
    if model is not None:
        rs.note(target, loc)
    return model


def _with_top_k(rs: Resolving, model: ModelArchitecture, top_k: int) -> ModelArchitecture:
    """``model`` whose tokens go to ``top_k`` experts."""
    loc: Loc = ("routing", "top_k")
    rs.note("model.top_k", loc)
    if not model.is_moe:
        rs.problem(loc, f"{model.name} is dense: it chooses no experts", top_k)
    for n in sorted({block.n_experts // block.n_group * block.topk_group for block in model.moe_blocks}):
        if top_k > n:
            rs.problem(loc, "more experts than a token can choose from", top_k, f"1 to {n}")

    def changed(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        new = {
            layer: replace(
                layer, blocks=tuple(replace(b, top_k=top_k) if isinstance(b, MoeMlp) else b for b in layer.blocks)
            )
            for layer in set(layers)
        }
        return tuple(new[layer] for layer in layers)

    note = f"experts per token: {top_k}, by the scenario"
    return replace(
        model, layers=changed(model.layers), mtp_layers=changed(model.mtp_layers), notes=(*model.notes, note)
    )


def _hardware(rs: Resolving, name: str, loc: Loc, target: str) -> Hardware | None:
    from moeplan.files.catalog.hardware_catalog import load_hardware

    hardware = rs.attempt(loc, lambda: load_hardware(_local(rs, name, loc, (".yaml", ".yml")), rs.folder, fits=rs.fits))
    if hardware is not None:
        rs.note(target, loc)
    return hardware


def _local(rs: Resolving, name: str, loc: Loc, suffixes: tuple[str, ...]) -> str:
    """A catalogue name as it is; a path relative to the scenario's folder, inside which it must lie."""
    looks_like_path = name.endswith(suffixes) or name.startswith((".", "/", "~"))
    if not looks_like_path and not (is_path(name) and (rs.folder / name).exists()):
        return name
    path = rs.inside(name, loc)
    if not path.exists():
        raise input_error(name, f"no such {loc[-1]} file")
    return "./" + path.relative_to(rs.folder).as_posix()


def _training_place(
    rs: Resolving, file: ScenarioFile, hardware: Hardware, kind: Kind
) -> tuple[Hardware | None, Money | None]:
    """Hardware and money of a lifecycle's training part where they are not those of its service."""
    place = file.lifecycle.training if file.lifecycle is not None else None
    if place is None:
        return None, None
    own = None
    if place.hardware is not None:
        own = _hardware(rs, place.hardware, ("lifecycle", "training", "hardware"), "training_hardware")
        if own is None:
            return None, None
    if place.price is None and own is None:
        return None, None
    loc: Loc = ("lifecycle", "training", "price")
    return own, resolve_money(rs, file, place.price, loc, own or hardware, kind, "training_money")


def _lifecycle(rs: Resolving, life: LifecycleFile | None) -> tuple[float | None, Demand | None]:
    """Months in service and the forecast."""
    if life is None:
        return None, None
    rs.note("lifecycle_months", ("lifecycle", "duration"))
    rs.note("demand", ("lifecycle", "demand"), default="constant")
    file = life.demand
    if file is None:
        return life.duration / MONTH_S, None
    adoption = file.adoption
    return life.duration / MONTH_S, Demand(
        growth_frac_per_month=file.growth,
        seasonality_frac=file.seasonality,
        peak_month=file.peak_month,
        adoption_start_frac=None if adoption is None else adoption.start,
        adoption_midpoint_months=None if adoption is None else adoption.midpoint / MONTH_S,
        monthly=None if file.monthly is None else tuple(file.monthly),
    )


def _comparison(
    rs: Resolving,
    file: CompareFile,
    scenario: ScenarioFile,
    serving: Serving | None,
    hardware: Hardware,
    trains_on: Hardware,
) -> Comparison | None:
    """The other model, served and trained as far as the scenario does; `training` says how this one is trained."""
    model = _model(rs, file.model, ("compare_with", "model"), "comparison.model")
    if model is None:
        return None
    other = None if serving is None else _compared_serving(rs, file, scenario, serving, model, hardware)
    route = None
    if file.training is not None and scenario.training is None:
        rs.problem(("compare_with", "training"), "this scenario trains nothing to compare with")
    elif scenario.training is not None:
        route = _compared_training(rs, file.training, scenario.training, model, trains_on)
    rs.note("comparison.once_usd", ("compare_with", "once"))
    return Comparison(model, other, file.quality_note, route, file.once)


def _compared_training(
    rs: Resolving, own: TrainingFile | None, main: TrainingFile, model: ModelArchitecture, hardware: Hardware
) -> Training:
    """How the other model is trained: resolved as a scenario's own `training`, its problems placed where it stands."""
    at = rs.tree if own is None else (rs.tree.child("compare_with") or rs.tree)
    node = at.child("training") or at
    part = Resolving(Node({"training": node}, at.mark, {"training": node.mark}), rs.folder, rs.fits)
    training = resolve_training(part, own or main, model, hardware)
    if own is None and not model.is_moe:
        training = replace(training, layout=replace(training.layout, ep=1, etp=1))
    check_training(part, training, model, hardware, None)
    prefix = "" if own is None else "compare_with."
    rs.problems += [replace(problem, path=prefix + problem.path) for problem in part.problems]
    rs.origins |= {f"comparison.{path}": origin for path, origin in part.origins.items()}
    return training


def _compared_serving(
    rs: Resolving,
    file: CompareFile,
    scenario: ScenarioFile,
    serving: Serving,
    model: ModelArchitecture,
    hardware: Hardware,
) -> Serving | None:
    loc: Loc = ("compare_with",)
    own = scenario.serving
    if own is None:
        return None
    engine = serving.engine
    target = "comparison.serving"
    if file.precision is not None:
        at: Loc = (*loc, "precision")
        precision = resolve_precision(
            rs, file.precision, at, f"{target}.precision", model, hardware.device, engine.name
        )
    else:
        at = ("serving", "precision")
        precision = resolve_precision(rs, own.precision, at, f"{target}.precision", model, hardware.device, engine.name)
    if file.layout is not None:
        at = (*loc, "layout")
        layout = resolve_layout(rs, file.layout, at, f"{target}.layout")
    else:
        at = ("serving", "layout")
        layout = serving.layout if model.is_moe else replace(serving.layout, ep=1)
        rs.derived(f"{target}.layout", "derived", "serving.layout", "" if model.is_moe else "a dense model has ep 1")
    check_serving_layout(rs, at, layout, model, hardware, scenario.gpus)
    context = min(serving.max_context_tokens, model.max_context_tokens)
    rs.derived(f"{target}.max_context_tokens", "derived", "the shorter of both models' contexts")
    if context < serving.max_context_tokens:
        check_longest(rs, (*loc, "model"), serving.traffic, context)
    return replace(serving, layout=layout, precision=precision, max_context_tokens=context)
