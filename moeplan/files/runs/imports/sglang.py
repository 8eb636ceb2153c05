"""`python -m sglang.bench_serving`: JSON lines, appended run by run. Names no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.row import Benchmark, Setup, per_request
from moeplan.files.runs.imports.vllm import arrivals, latency_ms


def _recognises(value: Object) -> bool:
    return {"dataset_name", "total_output_tokens_retokenized", "mean_e2e_latency_ms"} <= value.keys()


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        completed = one.number("completed")
        replayed = one.value.get("request_rate") == "trace"
        engine = one.name("backend")
        setup = Setup(
            engine=next((known for known in ("sglang", "vllm", "trt") if engine.startswith(known)), None),
            # the flags give the ends of a range of lengths, the totals what was sent
            input_tokens=per_request(one.number("total_input_tokens"), completed),
            output_tokens=per_request(one.number("total_output_tokens"), completed),
            **({} if replayed else arrivals(one)),  # type: ignore[arg-type]
        )
        yield Benchmark(
            line=one.line,
            setup=setup,
            ttft=latency_ms(one, "ttft"),
            tpot=latency_ms(one, "tpot"),
            itl=latency_ms(one, "itl"),
            e2e=latency_ms(one, "e2e_latency"),
            output_tokens_per_s=one.number("output_throughput"),
            input_tokens_per_s=one.number("input_throughput"),
            duration_s=one.number("duration"),
            completed=completed,
            note="arrivals replayed from a trace" if replayed else "",
        )


FORMAT = Format("sglang bench_serving", _recognises, _read)
