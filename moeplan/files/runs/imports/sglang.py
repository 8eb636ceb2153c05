"""`python -m sglang.bench_serving`: JSON lines, appended run by run. Names no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.row import Benchmark, Setup
from moeplan.files.runs.imports.vllm import arrivals, lengths, results


def _recognises(value: Object) -> bool:
    return {"dataset_name", "total_output_tokens_retokenized", "mean_e2e_latency_ms"} <= value.keys()


_ENGINES = {"sglang": "sglang", "vllm": "vllm", "trt": "trtllm"}  # by how its back ends' names begin


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        replayed = one.value.get("request_rate") == "trace"
        backend = one.name("backend")
        setup = Setup(
            engine=next((ours for theirs, ours in _ENGINES.items() if backend.startswith(theirs)), None),
            **lengths(one),  # type: ignore[arg-type]
            **({} if replayed else arrivals(one)),  # type: ignore[arg-type]
        )
        yield results(one, setup, e2e="e2e_latency", note="arrivals replayed from a trace" if replayed else "")


FORMAT = Format("sglang bench_serving", _recognises, _read)
