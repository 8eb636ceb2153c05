"""The serving part of a scenario file to ``spec.scenario.Serving``, with every check that needs model and hardware."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from moeplan.files.engine_defaults import ENGINE_FIELDS, default_engine, engine_defaults
from moeplan.files.resolving import Resolving
from moeplan.files.schema_serving import (
    EngineFile,
    LengthFile,
    PrecisionFile,
    ServingFile,
    ServingLayoutFile,
    TrafficFile,
)
from moeplan.files.schema_walk import Loc
from moeplan.files.trace import Recording, read_trace
from moeplan.spec.hardware import Device, Hardware
from moeplan.spec.layout import ServingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.scenario import Serving
from moeplan.spec.workload import Arrivals, Engine, LengthDistribution, Slo, Trace, Traffic

# A Poisson stream is simulated for at least so many requests and so long, up to a bound: answers take tens of seconds,
# and a fleet is not in its steady state before many of them ended.
POISSON_REQUESTS, POISSON_S, POISSON_MOST = 2000, 120.0, 500_000
OFFLINE_REQUESTS = 1000
REQUESTS_PER_USER = 12
WARMUP_PER_USER = 2
_PARTS = ("experts", "attention", "dense", "embedding")
_ATTRIBUTION = {"azure": "Azure Public Dataset, CC BY 4.0; Patel et al., Splitwise, ISCA 2024"}


def resolve_serving(
    rs: Resolving, file: ServingFile, model: ModelArchitecture, hardware: Hardware, *, arrays: bool
) -> Serving:
    """``arrays``: hold a trace in numpy arrays, as simulation needs; without, ``check`` stays free of numpy."""
    layout = resolve_layout(rs, file.layout, ("serving", "layout"), "serving.layout")
    precision = resolve_precision(
        rs, file.precision, ("serving", "precision"), "serving.precision", model, hardware.device, file.engine.name
    )
    engine = _engine(rs, file.engine, hardware.device, layout.tp)
    max_context = _max_context(rs, file.engine, model)
    traffic = _traffic(rs, file.traffic, max_context, arrays)
    for key in ("ttft", "tpot", "e2e"):
        rs.note(f"serving.slo.{key}_s", ("serving", "slo", key))
    rs.note("serving.slo.percentile", ("serving", "slo", "percentile"))
    slo = Slo(file.slo.ttft, file.slo.tpot, file.slo.e2e, file.slo.percentile)
    return Serving(layout, precision, engine, traffic, slo, max_context)


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
        kv = "fp16" if engine == "llama.cpp" else "bf16"
    return Precision(kv_cache=kv, **names)


def check_runs(rs: Resolving, loc: Loc, name: str, device: Device) -> None:
    """Report a format whose arithmetic the device has neither natively nor as the format's fallback."""
    fmt = FORMATS[name]
    rates = device.dense_flop_per_s
    if fmt.compute in rates or (fmt.fallback is not None and fmt.fallback in rates):
        return
    runs = [f.name for f in FORMATS.values() if f.compute in rates or (f.fallback or "") in rates]
    rs.problem(loc, f"{device.name} has no {fmt.compute} arithmetic", name, ", ".join(runs))


def _engine(rs: Resolving, file: EngineFile, device: Device, tp: int) -> Engine:
    """The engine's own defaults with what the user changed."""
    defaults = engine_defaults(file.name, device, tp)
    rs.note("serving.engine.name", ("serving", "engine", "name"), shorthand=True)
    stated: dict[str, Any] = {}
    for key, field in ENGINE_FIELDS.items():
        own = getattr(file, key)
        target = f"serving.engine.{field}"
        if own is None and key not in defaults:
            continue  # a policy the engine does not have
        if own is None:
            rs.derived(target, "default", f"engines/{defaults[key].file}", defaults[key].source)
        else:
            rs.note(target, ("serving", "engine", key))
            stated[field] = own
    engine = replace(default_engine(file.name, device, tp), **stated)
    if engine.max_num_batched_tokens < engine.max_num_seqs and file.max_num_batched_tokens is not None:
        rs.problem(
            ("serving", "engine", "max_num_batched_tokens"),
            "fewer tokens than sequences in an iteration",
            engine.max_num_batched_tokens,
            f"at least max_num_seqs = {engine.max_num_seqs}",
        )
    return engine


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


def _traffic(rs: Resolving, file: TrafficFile, max_context: int, arrays: bool) -> Traffic:
    loc: Loc = ("serving", "traffic")
    recording = _recording(rs, file, (*loc, "trace"))
    lengths = {
        key: None if own is None else _lengths(rs, own, (*loc, key), f"serving.traffic.{key}", max_context)
        for key, own in (("input_tokens", file.input_tokens), ("output_tokens", file.output_tokens))
    }
    arrivals = _arrivals(rs, file, loc, 0 if recording is None else len(recording))
    trace = None if recording is None else _trace(recording, file, arrays)
    traffic = Traffic(arrivals, trace, lengths["input_tokens"], lengths["output_tokens"])
    check_longest(rs, (*loc, "input_tokens" if trace is None else "trace"), traffic, max_context)
    return traffic


def _recording(rs: Resolving, file: TrafficFile, loc: Loc) -> Recording | None:
    if file.trace is None:
        return None
    named, fmt = file.trace.file, file.trace.format

    def read() -> Recording:
        return read_trace(rs.inside(named, (*loc, "file")), fmt)

    rs.note("serving.traffic.trace", (*loc, "file"), shorthand=True)
    return rs.attempt((*loc, "file"), read)


def _trace(recording: Recording, file: TrafficFile, arrays: bool) -> Trace:
    stated = file.trace.attribution if file.trace is not None else None
    attribution = stated or _ATTRIBUTION.get(recording.format, "")
    columns: tuple[Any, Any, Any] = (recording.arrival_s, recording.input_tokens, recording.output_tokens)
    if arrays:
        import numpy as np

        times, prompts, answers = columns
        columns = (
            np.array(times, dtype=np.float64),
            np.array(prompts, dtype=np.int64),
            np.array(answers, dtype=np.int64),
        )
    return Trace(Path(recording.path).name, *columns, attribution)


def _lengths(rs: Resolving, file: LengthFile, loc: Loc, target: str, max_context: int) -> LengthDistribution:
    if file.fixed is not None:
        rs.note(target, (*loc, "fixed"), shorthand=True)
        return LengthDistribution("fixed", float(file.fixed), file.fixed, file.fixed)
    if file.uniform is not None:
        rs.note(target, (*loc, "uniform"))
        low, high = file.uniform.low, file.uniform.high
        return LengthDistribution("uniform", (low + high) / 2.0, low, high)
    shape = file.lognormal
    if shape is None:
        raise ValueError("the schema lets no length without a kind through")
    rs.note(target, (*loc, "lognormal"))
    high = shape.max if shape.max is not None else max(max_context // 2, shape.min)
    if not shape.min <= shape.mean <= high:
        rs.problem((*loc, "lognormal", "mean"), "mean outside min and max", shape.mean, f"{shape.min} to {high}")
    return LengthDistribution("lognormal", float(shape.mean), shape.min, high, shape.sigma)


def check_longest(rs: Resolving, loc: Loc, traffic: Traffic, max_context: int) -> None:
    """Report at ``loc`` that a request does not fit the context: an engine refuses it."""
    prompt, answer, trace = traffic.input_tokens, traffic.output_tokens, traffic.trace
    prompts: Iterable[int] = repeat(prompt.high_tokens) if prompt is not None else trace.input_tokens if trace else ()
    answers: Iterable[int] = repeat(answer.high_tokens) if answer is not None else trace.output_tokens if trace else ()
    n_requests = len(trace.arrival_s) if trace is not None else 1
    longest = max((int(p) + int(a) for p, a in islice(zip(prompts, answers, strict=False), n_requests)), default=0)
    if longest > max_context:
        what = f"the longest request has {longest} tokens, more than the context"
        hint = "raise serving.engine.max_model_len, shorten the requests, or take a model with a longer context"
        rs.problem(loc, what, allowed=f"at most {max_context}", hint=hint)


def _arrivals(rs: Resolving, file: TrafficFile, loc: Loc, n_trace: int) -> Arrivals:
    target = "serving.traffic.arrivals"
    names = {"rate": "rate_per_s", "users": "n_users", "think_time": "think_s", "requests": "n_requests"}
    for key in (*names, "warmup_requests"):
        name = names.get(key, key)
        rs.note(f"{target}.{name}", (*loc, key))
    n, warmup = file.requests, file.warmup_requests
    if file.users is not None:
        n = n or REQUESTS_PER_USER * file.users
        default_warmup = min(WARMUP_PER_USER * file.users, n // 2)
        warmup = default_warmup if warmup is None else warmup
        arrivals = Arrivals("closed_loop", None, file.users, n, warmup, file.think_time or 0.0)
    elif file.offline:
        arrivals = Arrivals("all_at_once", None, None, n or n_trace or OFFLINE_REQUESTS, warmup or 0)
    elif file.trace is not None:
        arrivals = Arrivals("trace", file.rate, None, n or max(n_trace, 1), warmup or 0)
    else:
        lasting = math.ceil(POISSON_S * (file.rate or 0.0))
        n = n or min(max(POISSON_REQUESTS, lasting), POISSON_MOST)
        arrivals = Arrivals("poisson", file.rate, None, n, n // 10 if warmup is None else warmup)
    if arrivals.warmup_requests >= arrivals.n_requests:
        what = "no request is left after the warm-up"
        rs.problem((*loc, "warmup_requests"), what, arrivals.warmup_requests, f"below {arrivals.n_requests}")
    return arrivals
