"""The serving part of a scenario file to ``spec.scenario.Serving``, with every check that needs model and hardware."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeplan.files.catalog.engine_defaults import ENGINE_FIELDS, cache_format, default_engine, engine_defaults
from moeplan.files.scenario.resolve_fleet import resolve_fleet, resolve_prefill
from moeplan.files.scenario.resolve_traffic import resolve_slo, resolve_traffic
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_serving import EngineFile, PrecisionFile, ServingFile, ServingLayoutFile
from moeplan.files.scenario.schema_walk import Loc
from moeplan.spec.hardware import Device, Hardware
from moeplan.spec.layout import ServingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.scenario import Serving
from moeplan.spec.workload import Engine

_PARTS = ("experts", "attention", "dense", "embedding")


def resolve_serving(
    rs: Resolving, file: ServingFile, model: ModelArchitecture, hardware: Hardware, *, arrays: bool
) -> Serving:
    """``arrays``: hold a trace in numpy arrays, as simulation needs; without, ``check`` stays free of numpy."""
    layout = resolve_layout(rs, file.layout, ("serving", "layout"), "serving.layout")
    precision = resolve_precision(
        rs, file.precision, ("serving", "precision"), "serving.precision", model, hardware.device, file.engine.name
    )
    engine = resolve_engine(rs, file.engine, hardware.device, layout.tp, ("serving", "engine"), "serving.engine")
    _check_host(rs, engine, model, hardware)
    max_context = _max_context(rs, file.engine, model)
    slo = resolve_slo(rs, file.slo, ("serving", "slo"), "serving.slo")
    traffic = resolve_traffic(rs, file.traffic, slo, max_context, arrays)
    fleet = resolve_fleet(rs, file.fleet, layout)
    prefill = None if file.prefill is None else resolve_prefill(rs, file.prefill, engine)
    return Serving(layout, precision, engine, traffic, slo, max_context, fleet, prefill)


def resolve_layout(rs: Resolving, file: ServingLayoutFile, loc: Loc, target: str) -> ServingLayout:
    """Degrees as given; whether they suit model and hardware is ``resolve_checks``' business."""
    for key in ("tp", "pp", "dp", "ep", "replicas"):
        rs.note(f"{target}.{key}", (*loc, key))
    return ServingLayout(file.tp, file.pp, file.dp, file.ep, file.replicas)


def resolve_precision(
    rs: Resolving,
    file: PrecisionFile,
    loc: Loc,
    target: str,
    model: ModelArchitecture,
    device: Device,
    engine: str,
) -> Precision:
    """Format of each part; reports formats the device has no arithmetic for."""
    names: dict[str, str] = {}
    for part in _PARTS:
        own: str | None = getattr(file, part)
        # a mixed llama.cpp file has one mean over all its tensors; other schemes leave embedding and head alone
        whole_file = file.weights.startswith("q")
        inherited = file.weights if part != "embedding" or whole_file else "native"
        wanted = own or inherited
        at: Loc = (*loc, part) if own else (*loc, "weights")
        names[part] = getattr(model.checkpoint, part) if wanted == "native" else wanted
        if wanted == "native":
            rs.derived(f"{target}.{part}", "catalog", f"checkpoint of {model.name}")
        else:
            rs.note(f"{target}.{part}", at, shorthand=True)
        check_runs(rs, at, names[part], device)
    kv = file.kv_cache
    rs.note(f"{target}.kv_cache", (*loc, "kv_cache"), default="16 bit, the engine's default")
    if kv == "auto":
        kv = cache_format(engine)
    return Precision(kv_cache=kv, **names)


def check_runs(rs: Resolving, loc: Loc, name: str, device: Device) -> None:
    """Report a format whose arithmetic the device has neither natively nor as the format's fallback."""
    fmt = FORMATS[name]
    rates = device.dense_flop_per_s
    if fmt.compute in rates or (fmt.fallback is not None and fmt.fallback in rates):
        return
    runs = [f.name for f in FORMATS.values() if f.compute in rates or (f.fallback or "") in rates]
    rs.problem(loc, f"{device.name} has no {fmt.compute} arithmetic", name, ", ".join(runs))


def resolve_engine(rs: Resolving, file: EngineFile, device: Device, tp: int, loc: Loc, at: str) -> Engine:
    """The engine's own defaults with what the user changed."""
    defaults = engine_defaults(file.name, device, tp)
    rs.note(f"{at}.name", (*loc, "name"), shorthand=True)
    stated: dict[str, Any] = {}
    for key, field in ENGINE_FIELDS.items():
        own = getattr(file, key)
        target = f"{at}.{field}"
        if own is None and key not in defaults:
            continue  # a policy the engine does not have
        if own is None:
            rs.derived(target, "default", f"engines/{defaults[key].file}", defaults[key].source)
        else:
            rs.note(target, (*loc, key))
            stated[field] = own
    engine = replace(default_engine(file.name, device, tp), **stated)
    if engine.max_num_batched_tokens < engine.max_num_seqs and file.max_num_batched_tokens is not None:
        rs.problem(
            (*loc, "max_num_batched_tokens"),
            "fewer tokens than sequences in an iteration",
            engine.max_num_batched_tokens,
            f"at least max_num_seqs = {engine.max_num_seqs}",
        )
    if engine.draft_tokens > 0 and file.draft_acceptance is None:
        rs.problem((*loc, "draft_tokens"), "drafts without a chance to be accepted", hint="state draft_acceptance")
    if engine.draft_tokens >= engine.max_num_batched_tokens:
        rs.problem((*loc, "draft_tokens"), "more drafts than tokens in an iteration", engine.draft_tokens,
                   f"below max_num_batched_tokens = {engine.max_num_batched_tokens}")  # fmt: skip
    return engine


def _check_host(rs: Resolving, engine: Engine, model: ModelArchitecture, hardware: Hardware) -> None:
    """Report what the model or the machine lacks for drafts and offloading."""
    loc: Loc = ("serving", "engine")
    if engine.draft_tokens > 0 and engine.drafts == "mtp" and not model.mtp_layers:
        what, hint = f"{model.name} has no multi-token-prediction module", "set drafts: ngram"
        rs.problem((*loc, "draft_tokens"), what, engine.draft_tokens, hint=hint)
    used = {"swap_space": engine.swap_bytes, "kv_offload": engine.kv_offload_bytes}
    shares = {"weight_offload": engine.weight_offload_frac}
    if engine.expert_offload_on == "gpu":
        shares["expert_offload"] = engine.expert_offload_frac
    elif engine.expert_offload_frac > 0.0 and hardware.host.memory_bytes_per_s is None:
        what = f"{hardware.slug} states no bandwidth of the host's memory"
        hint = (
            "expert_offload_on: gpu, a workstation or DGX profile, or one of your own with node.host_memory_bandwidth"
        )
        rs.problem((*loc, "expert_offload_on"), what, hint=hint)
    if hardware.host.pcie is None and not hardware.device.unified_memory:
        for key, value in {**used, **shares}.items():
            if value > 0.0:
                rs.problem((*loc, key), f"{hardware.slug} states no link between host and GPU", value)
    needed, there = sum(used.values()) * hardware.n_gpus_per_node, hardware.host.memory_bytes
    if there is not None and needed > there:
        key = max(used, key=lambda name: used[name])
        rs.problem((*loc, key), "more than the host's memory, all GPUs together", needed, f"at most {there:.3g} bytes")


def _max_context(rs: Resolving, file: EngineFile, model: ModelArchitecture) -> int:
    loc: Loc = ("serving", "engine", "max_model_len")
    if file.max_model_len is None:
        rs.derived("serving.max_context_tokens", "catalog", f"model {model.name}")
        return model.max_context_tokens
    rs.note("serving.max_context_tokens", loc)
    if file.max_model_len > model.max_context_tokens:
        rs.problem(
            loc, f"longer than {model.name} was made for", file.max_model_len, f"at most {model.max_context_tokens}"
        )
    return file.max_model_len
