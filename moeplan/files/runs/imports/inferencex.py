"""InferenceX (InferenceMAX) results: `agg_*.json`, arrays of them, and rows of its public listing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from moeplan.files.runs.imports.document import Document, Format, Object
from moeplan.files.runs.imports.row import Benchmark, Latency, Pool, Setup
from moeplan.files.runs.imports.vllm import latency_ms

_VERSION = re.compile(r":v?(\d+\.\d+[A-Za-z0-9.]*)")
_PRECISION = re.compile(r"(nv|mx)?(fp|bf|int)\d{1,2}")
_TRUE = (True, "true", "True")


def _recognises(value: Object) -> bool:
    return "infmax_model_prefix" in value or {"tput_per_gpu", "conc", "isl"} <= value.keys() or _is_listing(value)


def _is_listing(value: Object) -> bool:
    return {"hardware", "spec_method", "metrics", "isl", "osl"} <= value.keys()


def _engine(one: Document) -> str | None:
    framework = one.name("framework").casefold()
    return next((ours for theirs, ours in _ENGINES.items() if theirs in framework), None)


_ENGINES = {"sglang": "sglang", "vllm": "vllm", "trt": "trtllm", "atom": "atom"}


def _read(documents: Iterable[Document]) -> Iterator[Benchmark]:
    for one in documents:
        disaggregated = one.value.get("disagg") in _TRUE
        pools = disaggregated or one.value.get("is_multinode") in _TRUE
        prefill, decode = (_pool(one, "prefill"), _pool(one, "decode")) if pools else (None, None)
        setup = _setup(one, prefill, decode)
        yield Benchmark(
            line=one.line,
            setup=setup,
            ttft=_seconds(one, "ttft"),
            tpot=_seconds(one, "tpot"),
            itl=_seconds(one, "itl"),
            e2e=_seconds(one, "e2el"),
            output_tokens_per_s=_output_rate(one, setup.n_gpus, pools),
            prefill=prefill if disaggregated else None,
            decode=decode if disaggregated else None,
            note="" if one.name("spec_decoding", "spec_method") in ("", "none", "None") else "speculative decoding",
        )


def _metrics(one: Document) -> Document:
    return one.within("metrics") if _is_listing(one.value) else one


def _seconds(one: Document, name: str) -> Latency:
    return latency_ms(_metrics(one), name, scale=1e3, suffix="")


def _setup(one: Document, prefill: Pool | None, decode: Pool | None) -> Setup:
    version = _VERSION.search(str(one.value.get("image", "")))
    if prefill is not None and decode is not None:
        layout: dict[str, float | None] = {
            "n_gpus": _pool_gpus(one, "prefill", prefill) + _pool_gpus(one, "decode", decode)
        }
    else:
        # rows of the listing state one engine twice, as its prefill and as its decode side
        tp, pp, context = (one.number(name, f"decode_{name}") or 1.0 for name in ("tp", "pp", "pcp_size"))
        # attention data parallelism splits the ranks of a tensor-parallel group
        split = one.value.get("dp_attention", one.value.get("decode_dp_attention"))
        dp = tp if split in _TRUE else 1.0
        layout = {"n_gpus": tp * pp * context, "tp": tp, "pp": pp, "dp": dp, "ep": one.number("ep", "decode_ep")}
    return Setup(
        model=one.name("model", "infmax_model_prefix") or None,
        hardware=one.name("hw", "hardware", "device") or None,
        weight_precision=_precision(one),
        engine=_engine(one),
        engine_version=version.group(1) if version else None,
        load="closed_loop",
        concurrency=one.number("conc"),
        input_tokens=one.number("isl"),
        output_tokens=one.number("osl"),
        measured_on=one.date("date"),
        **layout,  # type: ignore[arg-type]
    )


def _precision(one: Document) -> str | None:
    found = one.name("precision").casefold()
    return found if _PRECISION.fullmatch(found) else None


def _pool(one: Document, name: str) -> Pool:
    tp = one.number(f"{name}_tp") or 1.0
    dp = tp if one.value.get(f"{name}_dp_attention") in _TRUE else 1.0
    workers = one.number(f"{name}_num_workers") or (one.number(f"num_{name}_gpu") or 0.0) / _worker_gpus(one, name)
    return Pool(max(workers, 1.0), tp, dp, one.number(f"{name}_ep") or 1.0)


def _worker_gpus(one: Document, name: str) -> float:
    tp, pp, context = (one.number(f"{name}_{size}") or 1.0 for size in ("tp", "pp", "pcp_size"))
    return tp * pp * context


def _pool_gpus(one: Document, name: str, pool: Pool) -> float:
    """GPUs of one side; none where the row says nothing of it."""
    stated = one.number(f"num_{name}_gpu")
    said = one.number(f"{name}_num_workers", f"{name}_tp") is not None
    return stated if stated is not None else (pool.workers * _worker_gpus(one, name) if said else 0.0)


def _output_rate(one: Document, n_gpus: float | None, pools: bool) -> float | None:
    """Output tokens/s of all GPUs. With pools the old schema divides by the decoding GPUs, the new one by all."""
    metrics = _metrics(one)
    per_gpu = metrics.number("output_tput_per_gpu")
    if per_gpu is None or n_gpus is None:
        return None
    decoding = one.number("num_decode_gpu")
    if pools and decoding and metrics.value.get("output_tput_per_decode_gpu") is None:
        return per_gpu * decoding
    return per_gpu * n_gpus


FORMAT = Format("InferenceX", _recognises, _read)
