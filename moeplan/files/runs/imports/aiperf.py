"""AIPerf and GenAI-Perf: aggregates (`*_aiperf.json`, `*_genai_perf.json`), requests (`profile_export.jsonl`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.histogram import Histogram
from moeplan.files.runs.imports.row import Benchmark, Latency, Setup

_MS: Mapping[str, float] = {
    "ns": 1e-6, "nanoseconds": 1e-6, "us": 1e-3, "microseconds": 1e-3, "ms": 1.0, "milliseconds": 1.0,
    "s": 1e3, "sec": 1e3, "seconds": 1e3,
}  # fmt: skip
_PER_S: Mapping[str, float] = {
    "tokens/sec": 1.0, "tokens/s": 1.0, "requests/sec": 1.0, "requests/s": 1.0,
    "tokens/minute": 1 / 60, "requests/minute": 1 / 60,
}  # fmt: skip
_COUNT: Mapping[str, float] = {"tokens": 1.0, "requests": 1.0, "count": 1.0, "": 1.0}


def _scale(metric: Document, units: Mapping[str, float]) -> float | None:
    """Factor of a metric's stated unit; an unknown one is a problem."""
    if not metric.value:
        return None
    unit = str(metric.value.get("unit", "")).casefold()
    if unit not in units:
        metric.wrong("unit", f"not a unit of this metric; known: {', '.join(filter(None, units))}", unit)
        return None
    return units[unit]


def _average(one: Document, name: str, units: Mapping[str, float]) -> float | None:
    metric = one.within(name)
    scale = _scale(metric, units)
    return None if scale is None else metric.number("avg", scale=scale)


def _latency(one: Document, name: str) -> Latency:
    metric = one.within(name)
    scale = _scale(metric, _MS)
    if scale is None:
        return Latency()
    mean, p50, p90, p99 = (metric.number(key, scale=scale) for key in ("avg", "p50", "p90", "p99"))
    return Latency(mean, p50, p90, p99)


def _recognises(value: Object) -> bool:
    metric = value.get("request_latency")
    return isinstance(metric, Mapping) and "unit" in metric and "input_config" in value


def _load(one: Document) -> dict[str, object]:
    generator = one.within("input_config", "loadgen")
    concurrency, rate = generator.number("concurrency"), generator.number("request_rate")
    if rate is not None:
        return {"load": "poisson", "requests_per_s": rate}
    return {"load": "closed_loop", "concurrency": concurrency} if concurrency is not None else {}


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        models = one.within("input_config", "endpoint").value.get("model_names")
        named = replace(one, value={"model": models[0] if isinstance(models, list) and models else None})
        duration = _average(one, "benchmark_duration", _MS)
        yield Benchmark(
            line=one.line,
            setup=Setup(
                model=named.name("model") or None,
                input_tokens=_average(one, "input_sequence_length", _COUNT),
                output_tokens=_average(one, "output_sequence_length", _COUNT),
                measured_on=one.date("start_time"),
                **_load(one),  # type: ignore[arg-type]
            ),
            ttft=_latency(one, "time_to_first_token"),
            # a request's (last - first) / (tokens - 1): what vLLM calls TPOT
            tpot=_latency(one, "inter_token_latency"),
            e2e=_latency(one, "request_latency"),
            output_tokens_per_s=_average(one, "output_token_throughput", _PER_S),
            duration_s=None if duration is None else duration / 1e3,
            completed=_average(one, "request_count", _COUNT),
            failed=_average(one, "error_request_count", _COUNT),
        )


def _recognises_requests(value: Object) -> bool:
    return isinstance(value.get("metadata"), Mapping) and isinstance(value.get("metrics"), Mapping) and "error" in value


def _read_requests(documents: Iterable[Document]) -> Iterator[Benchmark]:
    """One run of all requests of the profiling phase that ended well, in memory that does not grow with them."""
    latencies = {name: Histogram() for name in ("time_to_first_token", "inter_token_latency", "request_latency")}
    lengths = {name: Histogram() for name in ("input_sequence_length", "output_sequence_length")}
    first_ns, last_ns, failed = float("inf"), 0.0, 0
    for one in documents:
        about = one.within("metadata")
        if about.value.get("benchmark_phase", "profiling") != "profiling":
            continue
        if one.value["error"] is not None or about.value.get("was_cancelled"):
            failed += 1
            continue
        for group, units in ((latencies, _MS), (lengths, _COUNT)):
            for name, histogram in group.items():
                metric = one.within("metrics", name)
                scale = _scale(metric, units)
                value = None if scale is None else metric.number("value", scale=scale)
                if value is not None:
                    histogram.add(value)
        start, end = about.number("request_start_ns"), about.number("request_end_ns")
        first_ns, last_ns = min(first_ns, start or first_ns), max(last_ns, end or last_ns)
    span_s = (last_ns - first_ns) * 1e-9
    answered = lengths["output_sequence_length"]
    yield Benchmark(
        line=1,
        setup=Setup(input_tokens=lengths["input_sequence_length"].mean(), output_tokens=answered.mean()),
        ttft=latencies["time_to_first_token"].latency(),
        tpot=latencies["inter_token_latency"].latency(),
        e2e=latencies["request_latency"].latency(),
        output_tokens_per_s=answered.total / span_s if span_s > 0.0 and answered.n else None,
        duration_s=span_s if span_s > 0.0 else None,
        completed=float(answered.n),
        failed=float(failed),
    )


FORMAT = Format("AIPerf / GenAI-Perf", _recognises, _read)
REQUESTS = Format("AIPerf requests", _recognises_requests, _read_requests)
