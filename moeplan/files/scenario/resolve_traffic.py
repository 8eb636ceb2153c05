"""The traffic of a scenario file to ``spec.workload.Traffic``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

from moeplan.files.scenario.length_table import read_lengths
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_traffic import (
    DiurnalFile,
    EmpiricalFile,
    LengthFile,
    RequestClassFile,
    SloFile,
    TrafficFile,
)
from moeplan.files.scenario.schema_walk import Loc
from moeplan.files.scenario.trace import Recording, read_trace
from moeplan.spec.workload import (
    Arrivals,
    Conversations,
    LengthDistribution,
    RateStep,
    RequestClass,
    Slo,
    Trace,
    Traffic,
)

# A Poisson stream is simulated for at least so many requests and so long, up to a bound: answers take tens of seconds,
# and a fleet is not in its steady state before many of them ended.
POISSON_REQUESTS, POISSON_S, POISSON_MOST = 2000, 120.0, 500_000
OFFLINE_REQUESTS = 1000
REQUESTS_PER_USER = 12
WARMUP_PER_USER = 2
DIURNAL_STEPS = 288  # a cycle in so many constant rates: five minutes of a day
_ATTRIBUTION = {
    "azure": "Azure Public Dataset, CC BY 4.0; Patel et al., Splitwise, ISCA 2024",
    "burstgpt": "BurstGPT; Wang et al., arXiv:2401.17644",
    "mooncake": "Mooncake traces, Apache-2.0; Qin et al., FAST 2025",
}
_LOC: Loc = ("serving", "traffic")


def resolve_slo(rs: Resolving, file: SloFile, loc: Loc, target: str) -> Slo:
    """Latency targets as stated."""
    for key in ("ttft", "tpot", "e2e"):
        rs.note(f"{target}.{key}_s", (*loc, key))
    rs.note(f"{target}.percentile", (*loc, "percentile"))
    return Slo(file.ttft, file.tpot, file.e2e, file.percentile)


def resolve_traffic(rs: Resolving, file: TrafficFile, slo: Slo, max_context: int, arrays: bool) -> Traffic:
    """``slo``: targets of classes that state none. ``arrays``: hold a trace in numpy arrays."""
    recording = _recording(rs, file, (*_LOC, "trace"))
    lengths = {
        key: None if own is None else resolve_lengths(rs, own, (*_LOC, key), f"serving.traffic.{key}", max_context)
        for key, own in (("input_tokens", file.input_tokens), ("output_tokens", file.output_tokens))
    }
    classes = tuple(_class(rs, one, i, file, slo, max_context) for i, one in enumerate(file.classes or ()))
    arrivals = _arrivals(rs, file, 0 if recording is None else len(recording))
    rs.note("serving.traffic.timeout_s", (*_LOC, "timeout"))
    trace = None if recording is None else _trace(rs, recording, file, classes, arrays)
    traffic = Traffic(
        arrivals,
        trace,
        lengths["input_tokens"],
        lengths["output_tokens"],
        classes,
        _conversations(rs, file, max_context),
        file.timeout,
    )
    check_longest(rs, (*_LOC, "input_tokens" if trace is None else "trace"), traffic, max_context)
    return traffic


def _class(
    rs: Resolving, file: RequestClassFile, index: int, traffic: TrafficFile, slo: Slo, max_context: int
) -> RequestClass:
    loc: Loc = (*_LOC, "classes", index)
    target = f"serving.traffic.classes[{index}]"
    for field, key in (("name", "name"), ("share_frac", "share"), ("priority", "priority"), ("timeout_s", "timeout")):
        rs.note(f"{target}.{field}", (*loc, key))
    prompt, answer = (
        None if own is None else resolve_lengths(rs, own, (*loc, key), f"{target}.{key}", max_context)
        for key, own in (("input_tokens", file.input_tokens), ("output_tokens", file.output_tokens))
    )
    own_slo = slo if file.slo is None else resolve_slo(rs, file.slo, (*loc, "slo"), f"{target}.slo")
    patience_s = traffic.timeout if file.timeout is None else file.timeout
    return RequestClass(file.name, file.share or 0.0, prompt, answer, own_slo, file.priority, patience_s)


def _conversations(rs: Resolving, file: TrafficFile, max_context: int) -> Conversations | None:
    own = file.conversation
    if own is None:
        return None
    loc: Loc = (*_LOC, "conversation")
    target = "serving.traffic.conversations"
    for field, key in (("think_s", "think_time"), ("prefix_tokens", "shared_prefix"), ("n_prefixes", "prefixes")):
        rs.note(f"{target}.{field}", (*loc, key))
    turns = resolve_lengths(rs, own.turns, (*loc, "turns"), f"{target}.turns", max_context)
    return Conversations(turns, own.think_time, own.shared_prefix, own.prefixes)


def _recording(rs: Resolving, file: TrafficFile, loc: Loc) -> Recording | None:
    if file.trace is None:
        return None
    named, fmt = file.trace.file, file.trace.format

    def read() -> Recording:
        return read_trace(rs.inside(named, (*loc, "file")), fmt)

    rs.note("serving.traffic.trace", (*loc, "file"), shorthand=True)
    return rs.attempt((*loc, "file"), read)


def _trace(
    rs: Resolving, recording: Recording, file: TrafficFile, classes: tuple[RequestClass, ...], arrays: bool
) -> Trace:
    stated = file.trace.attribution if file.trace is not None else None
    attribution = stated or _ATTRIBUTION.get(recording.format, "")
    class_id = _class_ids(rs, recording, classes)
    names = ("arrival_s", "input_tokens", "output_tokens")
    columns: dict[str, Any] = {name: getattr(recording, name) for name in names}
    if class_id is not None:
        columns["class_id"] = class_id
    if recording.block_id:
        columns |= {"block_start": recording.block_start, "block_id": recording.block_id}
    if arrays:
        import numpy as np

        columns = {
            name: np.array(values, dtype=np.float64 if name == "arrival_s" else np.int64)
            for name, values in columns.items()
        }
    return Trace(
        name=Path(recording.path).name, attribution=attribution, block_tokens=recording.block_tokens, **columns
    )


def _class_ids(rs: Resolving, recording: Recording, classes: tuple[RequestClass, ...]) -> Sequence[int] | None:
    """Index of each request's class, None where the trace or the scenario has no classes."""
    if not classes or not recording.classes:
        return None
    index = {c.name: i for i, c in enumerate(classes)}
    unknown = sorted(set(recording.classes) - set(index))
    if unknown:
        rs.problem((*_LOC, "classes"), "the trace has a class that is not described", unknown[0], ", ".join(index))
    return [index.get(name, 0) for name in recording.classes]


def resolve_lengths(rs: Resolving, file: LengthFile, loc: Loc, target: str, max_context: int) -> LengthDistribution:
    if file.fixed is not None:
        rs.note(target, (*loc, "fixed"), shorthand=True)
        return LengthDistribution("fixed", float(file.fixed), file.fixed, file.fixed)
    if file.uniform is not None:
        rs.note(target, (*loc, "uniform"))
        low, high = file.uniform.low, file.uniform.high
        return LengthDistribution("uniform", (low + high) / 2.0, low, high)
    if file.empirical is not None:
        rs.note(target, (*loc, "empirical"))
        return _seen_lengths(rs, file.empirical, (*loc, "empirical"))
    shape = file.lognormal
    if shape is None:
        raise ValueError("the schema lets no length without a kind through")
    rs.note(target, (*loc, "lognormal"))
    high = shape.max if shape.max is not None else max(max_context // 2, shape.min)
    if not shape.min <= shape.mean <= high:
        rs.problem((*loc, "lognormal", "mean"), "mean outside min and max", shape.mean, f"{shape.min} to {high}")
    return LengthDistribution("lognormal", float(shape.mean), shape.min, high, shape.sigma)


def _seen_lengths(rs: Resolving, file: EmpiricalFile, loc: Loc) -> LengthDistribution:
    counts: dict[int, float] = {}
    for value in file.values or ():
        counts[value] = counts.get(value, 0.0) + 1.0
    if file.file is not None:
        named = file.file
        counts = rs.attempt((*loc, "file"), lambda: read_lengths(rs.inside(named, (*loc, "file")))) or {1: 1.0}
    values = tuple(sorted(counts))
    weights = tuple(counts[value] for value in values)
    mean = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)
    return LengthDistribution("empirical", mean, values[0], values[-1], 0.0, values, weights)


def check_longest(rs: Resolving, loc: Loc, traffic: Traffic, max_context: int) -> None:
    """Report at ``loc`` lengths that no request of the context may have, and a trace of which nothing would be served.

    Single requests of a trace or conversation that are too long are refused in the simulation, and counted.
    """
    if traffic.conversations is not None:
        return
    prompt, answer, trace = traffic.input_tokens, traffic.output_tokens, traffic.trace
    if trace is not None:
        prompts: Iterable[int] = trace.input_tokens if prompt is None else repeat(prompt.low_tokens)
        answers: Iterable[int] = trace.output_tokens if answer is None else repeat(answer.low_tokens)
        totals = zip(prompts, answers, range(len(trace.arrival_s)), strict=False)
        shortest = min((int(p) + int(a) for p, a, _ in totals), default=0)
        _report(rs, loc, "shortest", shortest, max_context)
        return
    for i, c in enumerate(traffic.classes):
        own: Loc = (*loc[:-1], "classes", i) if loc[:-1] == _LOC and (c.input_tokens or c.output_tokens) else loc
        _report(rs, own, "longest", _longest(c.input_tokens or prompt, c.output_tokens or answer), max_context)
    if not traffic.classes:
        _report(rs, loc, "longest", _longest(prompt, answer), max_context)


def _longest(prompt: LengthDistribution | None, answer: LengthDistribution | None) -> int:
    return 0 if prompt is None or answer is None else prompt.high_tokens + answer.high_tokens


def _report(rs: Resolving, loc: Loc, which: str, tokens: int, max_context: int) -> None:
    if tokens > max_context:
        what = f"the {which} request has {tokens} tokens, more than the context"
        hint = "raise serving.engine.max_model_len, shorten the requests, or take a model with a longer context"
        rs.problem(loc, what, allowed=f"at most {max_context}", hint=hint)


def _rate_steps(file: TrafficFile) -> tuple[RateStep, ...]:
    if file.rates is not None:
        return tuple(RateStep(step.duration, step.rate) for step in file.rates)
    if file.diurnal is None or file.rate is None:
        return ()
    return diurnal_steps(file.rate, file.diurnal)


def diurnal_steps(mean_per_s: float, tide: DiurnalFile) -> tuple[RateStep, ...]:
    """A cosine around ``mean_per_s`` as constant rates; each is the cosine's mean over its step."""
    phases = [2.0 * math.pi * (i / DIURNAL_STEPS - tide.peak / tide.period) for i in range(DIURNAL_STEPS + 1)]
    swing = tide.amplitude * DIURNAL_STEPS / (2.0 * math.pi)
    return tuple(
        RateStep(tide.period / DIURNAL_STEPS, max(0.0, mean_per_s * (1.0 + swing * (math.sin(b) - math.sin(a)))))
        for a, b in pairwise(phases)
    )


def _arrivals(rs: Resolving, file: TrafficFile, n_trace: int) -> Arrivals:
    target = "serving.traffic.arrivals"
    names = {"rate": "rate_per_s", "users": "n_users", "think_time": "think_s", "requests": "n_requests"}
    for key in (*names, "warmup_requests"):
        name = names.get(key, key)
        rs.note(f"{target}.{name}", (*_LOC, key))
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
        arrivals = _open(rs, file)
    if arrivals.warmup_requests >= arrivals.n_requests:
        what = "no request is left after the warm-up"
        rs.problem((*_LOC, "warmup_requests"), what, arrivals.warmup_requests, f"below {arrivals.n_requests}")
    return arrivals


def _open(rs: Resolving, file: TrafficFile) -> Arrivals:
    for field, key in (("gap_cv", "burstiness"), ("rate_steps", "rates" if file.rates else "diurnal")):
        rs.note(f"serving.traffic.arrivals.{field}", (*_LOC, key))
    steps = _rate_steps(file)
    cycle_s = math.fsum(step.duration_s for step in steps)
    per_cycle = math.fsum(step.duration_s * step.rate_per_s for step in steps)
    rate_per_s = per_cycle / cycle_s if steps else file.rate or 0.0
    n, warmup = file.requests, file.warmup_requests
    if n is None and steps:
        n = max(1, round(per_cycle))
        if n > POISSON_MOST:
            what = f"a cycle has {n} requests"
            rs.problem((*_LOC, "requests"), what, allowed=f"at most {POISSON_MOST} unless stated", hint="requests: ...")
    elif n is None:
        n = min(max(POISSON_REQUESTS, math.ceil(POISSON_S * rate_per_s)), POISSON_MOST)
    if warmup is None:
        warmup = 0 if steps else n // 10
    cv = 1.0 if file.burstiness is None else file.burstiness
    return Arrivals("open", rate_per_s, None, n, warmup, gap_cv=cv, rate_steps=steps)
