"""`vllm bench serve --save-result`: one object a file, or one a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.row import Benchmark, Latency, Setup, per_request


def _recognises(value: Object) -> bool:
    return {"model_id", "total_token_throughput"} <= value.keys() and ("burstiness" in value or "mean_ttft_ms" in value)


def arrivals(document: Document) -> dict[str, object]:
    """Load of a benchmark client with a request rate and, perhaps, a cap on requests in flight."""
    rate, cap = document.value.get("request_rate"), document.number("max_concurrency")
    unlimited = rate is None or str(rate).casefold() in ("inf", "infinity")
    if not unlimited:
        return {"load": "poisson", "requests_per_s": document.number("request_rate")}
    if cap is not None:
        return {"load": "closed_loop", "concurrency": cap}
    return {"load": "burst", "concurrency": document.number("num_prompts", "completed")}


def latency_ms(document: Document, name: str, *, scale: float = 1.0, suffix: str = "_ms") -> Latency:
    """``mean_NAME_ms`` and its fellows."""
    mean, p50, p90, p99 = (
        document.number(f"{kind}_{name}{suffix}", scale=scale) for kind in ("mean", "median", "p90", "p99")
    )
    return Latency(mean, p50 if p50 is not None else document.number(f"p50_{name}{suffix}", scale=scale), p90, p99)


def results(one: Document, setup: Setup, *, e2e: str, note: str = "") -> Benchmark:
    """What both serving clients report under the same names; ``e2e`` is theirs for the end-to-end latency."""
    cap = one.number("max_concurrency")
    if setup.load == "poisson" and cap is not None:
        note = f"at most {cap:.0f} requests in flight"
    return Benchmark(
        line=one.line,
        setup=setup,
        ttft=latency_ms(one, "ttft"),
        tpot=latency_ms(one, "tpot"),
        itl=latency_ms(one, "itl"),
        e2e=latency_ms(one, e2e),
        output_tokens_per_s=one.number("output_throughput"),
        input_tokens_per_s=one.number("input_throughput"),
        duration_s=one.number("duration"),
        completed=one.number("completed"),
        failed=one.number("failed"),
        note=note,
    )


def lengths(one: Document) -> dict[str, float | None]:
    """Mean tokens of a request as sent: options give the ends of a range at best."""
    completed = one.number("completed")
    totals = {name: one.number(f"total_{name}") for name in ("input_tokens", "output_tokens")}
    return {name: per_request(total, completed) for name, total in totals.items()}


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        setup = Setup(
            model=one.name("model_id") or None,
            # any OpenAI-like server can be behind the other back ends
            engine="vllm" if one.name("backend") == "vllm" else None,
            measured_on=one.date("date"),
            **lengths(one),  # type: ignore[arg-type]
            **arrivals(one),  # type: ignore[arg-type]
        )
        yield results(one, setup, e2e="e2el")


FORMAT = Format("vllm bench serve", _recognises, _read)
