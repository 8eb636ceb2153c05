"""GuideLLM `benchmarks.json`: several benchmarks a file. Holds prompts and an API key: only numbers are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.row import Benchmark, Latency, Setup


def _recognises(value: Object) -> bool:
    runs = value.get("benchmarks")
    return isinstance(runs, list) and all(isinstance(run, dict) and "metrics" in run for run in runs) and bool(runs)


def _latency(run: Document, name: str, scale: float = 1.0) -> Latency:
    metric = run.within("metrics", name, "successful")
    spread = metric.within("percentiles")
    return Latency(
        metric.number("mean", scale=scale),
        metric.number("median", scale=scale),
        spread.number("p90", scale=scale),
        spread.number("p99", scale=scale),
    )


def _load(run: Document) -> dict[str, object]:
    for place in (("config", "strategy"), ("args", "strategy"), ("scheduler", "strategy")):
        strategy = run.within(*place)
        kind = strategy.name("type_")
        if kind == "synchronous":
            return {"load": "closed_loop", "concurrency": 1.0}
        if kind in ("concurrent", "throughput"):
            users = strategy.number("streams", "max_concurrency")
            return {"load": "closed_loop" if kind == "concurrent" else "offline", "concurrency": users}
        if kind in ("poisson", "constant"):
            return {"load": "poisson", "requests_per_s": strategy.number("rate")}
    return {}


def _duration_s(run: Document) -> float | None:
    """Of the measured part; older versions state the length itself or the ends of the whole benchmark."""
    measured = run.within("scheduler_metrics")
    for part, begin, end in ((measured, "measure_start_time", "measure_end_time"), (run, "start_time", "end_time")):
        since, until = part.number(begin), part.number(end)
        if since is not None and until is not None and until > since:
            return until - since
    return run.number("duration")


def _model(one: Document) -> str:
    """The served model's name, wherever this version keeps it."""
    for place in (("args", "backend_kwargs"), ("config", "backend_kwargs"), ("config", "spec", "backend")):
        found = one.within(*place).name("model")
        if found:
            return found
    return ""


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        for i in range(len(one.value["benchmarks"])):
            run = one.within("benchmarks", i)
            counts = run.within("metrics", "request_totals")
            constant = run.within("config", "strategy").name("type_") == "constant"
            yield Benchmark(
                line=one.line,
                setup=Setup(
                    model=_model(one) or None,
                    input_tokens=_latency(run, "prompt_token_count").mean,
                    output_tokens=_latency(run, "output_token_count").mean,
                    **_load(run),  # type: ignore[arg-type]
                ),
                ttft=_latency(run, "time_to_first_token_ms"),
                # its time_per_output_token_ms counts the first token; this is (last - first) / (tokens - 1)
                tpot=_latency(run, "inter_token_latency_ms"),
                e2e=_latency(run, "request_latency", 1e3),
                output_tokens_per_s=_latency(run, "output_tokens_per_second").mean,
                duration_s=_duration_s(run),
                completed=counts.number("successful"),
                failed=counts.number("errored"),
                note="evenly spaced arrivals" if constant else "",
            )


FORMAT = Format("GuideLLM", _recognises, _read)
