"""llmperf summary JSON. Times in seconds; its inter-token latency spreads the first token over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.row import Benchmark, Latency, Setup


def _recognises(value: Object) -> bool:
    return {"version", "mean_input_tokens"} <= value.keys() and any(str(key).startswith("results_") for key in value)


def _latency(one: Document, name: str) -> Latency:
    mean, *quantiles = (
        one.number(f"results_{name}_s_{kind}", scale=1e3)
        for kind in ("mean", "quantiles_p50", "quantiles_p90", "quantiles_p99")
    )
    return Latency(mean, *quantiles)


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        ttft, e2e = _latency(one, "ttft"), _latency(one, "end_to_end_latency")
        n_output = one.number("results_number_output_tokens_mean")
        tpot = None
        if e2e.mean is not None and ttft.mean is not None and n_output is not None and n_output > 1.0:
            tpot = (e2e.mean - ttft.mean) / (n_output - 1.0)
        yield Benchmark(
            line=one.line,
            setup=Setup(
                model=one.name("model") or None,
                load="closed_loop",
                concurrency=one.number("num_concurrent_requests"),
                input_tokens=one.number("results_number_input_tokens_mean", "mean_input_tokens"),
                output_tokens=n_output,
            ),
            ttft=ttft,
            tpot=Latency(tpot),
            e2e=e2e,
            output_tokens_per_s=one.number("results_mean_output_throughput_token_per_s"),
            completed=one.number("results_num_completed_requests"),
            failed=one.number("results_number_errors"),
            note="" if tpot is None else "time per output token from the means of end to end, first token and tokens",
        )


FORMAT = Format("llmperf", _recognises, _read)
