"""Predict measured serving runs: one row of the table is one deployment, judged by what the planner says of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from moeplan import metrics
from moeplan.calibrate.disaggregated_runs import is_disaggregated, pool_layout, with_prefill
from moeplan.calibrate.published_settings import published_settings
from moeplan.errors import InputError
from moeplan.files.catalog.engine_defaults import ENGINE_FIELDS, default_engine
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.files.catalog.model_catalog import load_model
from moeplan.files.catalog.model_data import default_routing
from moeplan.files.runs.measured_runs import text_of
from moeplan.planner.serving import situation_of, tables_at_ends, tier_of
from moeplan.planner.serving_result import latency_interval, rate_interval
from moeplan.provenance import Tier
from moeplan.simulate.deployment import Deployment
from moeplan.spec.layout import ServingLayout
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.plan import Q
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.scenario import Serving
from moeplan.spec.uncertainty import ANY, ModelError, situation
from moeplan.spec.workload import Arrivals, Engine, LengthDistribution, Slo, Traffic

Row = Mapping[str, Any]

# How the sources run a closed loop: so many requests per user, the first of all users at once. Warm-up requests, where
# there are any, end before (InferenceX: benchmark_serving.py --num-prompts 10 x users).
REQUESTS_PER_USER = 10
# Lengths stated as fixed, by a source that does not describe its load generator, spread by this much. An assumption:
# were they equal, users whose answers end together would stay together, and with engines that mix prompts into
# decoding TTFT would be two to four times what 575 such runs show (vLLM: 2.0 times; with the spread 1.0 times). Runs of
# SGLang 0.5.1, which lets prompts go first and so keeps users together, do show it, and are left as stated.
NOMINAL_RATIO = 0.95
OFFLINE_ROUNDS, OFFLINE_MOST = 4, 3000  # an offline run is this many full batches, at most so many requests

_PRECISION = {"fp4": "nvfp4", "fp16": "bf16"}  # names of the table that are not formats
_FLOODS = ("offline", "burst", "static")  # loads that come all at once
_PARTS = ("experts", "attention", "dense")
# stated name, format of the published checkpoint: the row means the checkpoint
_NATIVE = {("fp8", "fp8_block"), ("fp4", "mxfp4"), ("fp8", "mxfp4")}


@dataclass(frozen=True, slots=True)
class Answer:
    """Prediction of one metric of one row, in the table's unit."""

    metric: str
    truth: float
    predicted: Q


@dataclass(frozen=True, slots=True)
class RowResult:
    """What the planner says of one row, and why it says nothing of some metrics."""

    run_id: str
    tier: Tier
    answers: tuple[Answer, ...]
    unanswered: tuple[tuple[str, str], ...]  # (metric, why)
    situation: str = situation(ANY, ANY)
    representative: bool = True  # false: its source says that its times are not those of a tuned run


def predict_row(row: Row, error: ModelError) -> RowResult:
    """Predictions of every metric the row states."""
    stated = stated_metrics(row)
    try:
        deployment = deployment_as_run(row)
        fit = deployment.fit()
        if not fit.fits:
            why = f"memory: needs {fit.need_bytes / 1e9:.1f} GB of {fit.available_bytes / 1e9:.1f} GB per GPU"
            return RowResult(text_of(row, "run_id"), Tier.ESTIMATE, (), tuple((m, why) for m in stated))
        tier, error = tier_of(deployment), error.where(situation_of(deployment))
        logs = [deployment.run(table, fit) for table in tables_at_ends(deployment, error, tier)]
    except (InputError, ValueError) as problem:
        why = str(problem).splitlines()[0]
        return RowResult(text_of(row, "run_id"), Tier.ESTIMATE, (), tuple((m, why) for m in stated))
    found = [metrics.serving_metrics(log, deployment.serving.traffic.arrivals.warmup_requests) for log in logs]
    answers, missing = [], []
    for metric, (column, truth) in stated.items():
        q = _value(metric, column, row, found, error, tier)
        if q is None:
            missing.append((metric, "no request of the simulated run has it"))
        else:
            answers.append(Answer(metric, truth, q))
    return RowResult(text_of(row, "run_id"), tier, tuple(answers), tuple(missing), error.situation)


def stated_metrics(row: Row) -> dict[str, tuple[str, float]]:
    """Metric -> (column, truth) for what the row states; forms of one quantity pool (docs/reference/accuracy.md)."""
    found: dict[str, tuple[str, float]] = {}
    for metric, columns in (
        ("ttft", ("ttft_ms", "ttft_ms_median")),
        ("tpot", ("tpot_ms", "tpot_ms_median", "itl_ms")),
        ("e2e", ("e2e_ms", "e2e_ms_median")),
        ("output_throughput", ("output_tokens_per_s", "output_tokens_per_s_per_gpu")),
    ):
        for column in columns:
            value = float(row.get(column, math.nan))
            if value > 0.0:
                found[metric] = (column, value * (row["n_gpus"] if column.endswith("_per_gpu") else 1.0))
                break
    return found


def _value(
    metric: str, column: str, row: Row, found: list[metrics.ServingMetrics], error: ModelError, tier: Tier
) -> Q | None:
    if metric == "output_throughput":
        if _decode_only(row):  # llama-bench times generation apart from the prompt
            n = float(row["concurrency"])
            rates = [n / m.tpot.mean for m in found if m.tpot.n]
        else:
            rates = [m.output_tokens_per_s for m in found]
        if not rates or not all(map(math.isfinite, rates)):
            return None
        return rate_interval(rates, error, tier, flat_out=text_of(row, "load") in _FLOODS)
    rows = [getattr(m, metric) for m in found]
    if rows[0].n == 0:
        return None
    statistic = "p50" if column.endswith("_median") and not _unstated_statistic(row) else "mean"
    q = latency_interval(metric, [getattr(r, statistic) for r in rows], rows[0].standard_error[statistic], error, tier)
    return q.scaled(1e3)


def _unstated_statistic(row: Row) -> bool:
    """Whether the source is the one that does not say what its numbers are; they behave as means.

    In a closed loop all users start at once: TTFT of that wave grows with the users, and so does the stated number,
    the same for answers of 1,024 and 8,192 tokens. A median would not see one request in ten.
    """
    return "silicon_sample" in text_of(row, "source")


def _decode_only(row: Row) -> bool:
    return text_of(row, "load") == "static" and text_of(row, "engine").startswith("llama.cpp")


def deployment_as_run(row: Row) -> Deployment:
    """The deployment a row describes, or the nearest that fits: the run exists, so its operator made it fit.

    By giving the engine all memory or, where the row does not say what the weights are, taking 8-bit ones. Raises as
    `deployment_of`; where nothing fits, the last tried is returned.
    """
    deployment = deployment_of(row)
    if deployment.fit().fits:
        return deployment
    changes: list[Callable[[Deployment], Deployment]] = [_with_all_memory]
    if not text_of(row, "weight_precision"):
        changes.append(_with_narrow_weights)
    for change in changes:
        deployment = change(deployment)
        if deployment.fit().fits:
            break
    return deployment


def deployment_of(row: Row) -> Deployment:
    """The deployment a row describes. Raises InputError for unknown names, ValueError for a contradictory row."""
    model, hardware = _model(text_of(row, "model")), _hardware(text_of(row, "hardware"))
    apart = is_disaggregated(row)
    layout = pool_layout(row, "decode") if apart else _layout(row)
    engine = default_engine(
        text_of(row, "engine").split()[0], hardware.device, layout.tp, text_of(row, "engine_version")
    )
    traffic = _traffic(row, engine)
    most_users = traffic.arrivals.n_users or 0
    most = max(engine.max_num_seqs, most_users)
    if text_of(row, "load") in ("burst", "static"):
        most = max(most, traffic.arrivals.n_requests if text_of(row, "load") == "static" else 0)
    longest_prompt = _longest(traffic.input_tokens)
    longest = longest_prompt + _longest(traffic.output_tokens)
    settings = published_settings(row)
    kv, weights = settings.pop("kv_cache", None), settings.pop("weights", None)
    settings.pop("requests_per_user", None)
    changes: dict[str, Any] = {ENGINE_FIELDS[key]: value for key, value in settings.items()}
    engine = replace(engine, **{"max_num_seqs": most, **changes})
    # Without chunks an iteration must hold a prompt beside all decoding sequences: operators size it so (InferenceX).
    whole = 0 if engine.chunked_prefill else -(-(longest_prompt + most_users + 64) // 64) * 64
    engine = replace(engine, max_num_batched_tokens=max(engine.max_num_batched_tokens, most, whole))
    precision = _precision({**row, "weight_precision": weights} if weights else row, model, engine)
    serving = Serving(
        layout,
        precision if kv is None else replace(precision, kv_cache=kv),
        engine,
        traffic,
        Slo(None, None, None, 90.0),
        longest,  # benchmarks limit the context to their requests (--max-model-len, --max_seq_len)
    )
    stated = Deployment(model, hardware, serving, default_routing(model), 0)
    if apart:
        return with_prefill(stated, row, longest_prompt)
    if "enable_attention_dp" in text_of(row, "notes") and model.moe_blocks and layout.dp == 1:
        # The source's recipe for MoE models: "TPn" is n attention ranks. Where that does not fit, it was not what ran.
        ranks = replace(layout, tp=1, dp=layout.tp, ep=1)
        spread = replace(stated, serving=replace(serving, layout=ranks))
        return spread if spread.fit().fits else stated
    return stated


_model = lru_cache(maxsize=None)(load_model)
_hardware = lru_cache(maxsize=None)(load_hardware)


def _longest(lengths: LengthDistribution | None) -> int:
    return 0 if lengths is None else lengths.high_tokens


def _layout(row: Row) -> ServingLayout:
    tp, pp, dp, ep = (_degree(row, key) for key in ("tp", "pp", "dp", "ep"))
    n_gpus = int(row["n_gpus"])
    if dp > 1 and tp * pp == n_gpus:  # dp counts attention ranks inside tp (README of the measured runs)
        tp //= dp
    if tp * pp * dp == 2 * n_gpus and tp % 2 == 0:  # chips of two devices (tpu-v7) are one here
        tp //= 2
    if tp * pp * dp != n_gpus:
        raise ValueError(f"tp {tp} x pp {pp} x dp {dp} is not the {n_gpus} GPUs stated")
    return ServingLayout(tp, pp, dp, ep if (tp * dp) % ep == 0 else 1)


def _degree(row: Row, key: str) -> int:
    value = float(row.get(key, math.nan))
    return int(value) if value >= 1 else 1


def _precision(row: Row, model: ModelArchitecture, engine: Engine) -> Precision:
    """Stated precision, or the checkpoint's; the KV format is the engine's default, as nobody states it."""
    native = model.checkpoint
    stated = text_of(row, "weight_precision").lower()
    name = _PRECISION.get(stated, stated)
    if name and name not in FORMATS:
        raise ValueError(f"weight precision {stated} is no known format")
    narrow = name in ("fp8", "nvfp4", "mxfp4")
    if not name or name == native.experts or (stated, native.experts) in _NATIVE:
        parts = {part: getattr(native, part) for part in _PARTS}  # the published checkpoint is that narrow already
    else:
        parts = dict.fromkeys(_PARTS, name)
    embedding = name if name.startswith("q") else native.embedding
    kv = engine.kv_cache_narrow if narrow and engine.kv_cache_narrow else engine.kv_cache_16_bit
    return Precision(**parts, embedding=embedding, kv_cache=kv)


def _traffic(row: Row, engine: Engine) -> Traffic:
    load, n = text_of(row, "load"), float(row.get("concurrency", math.nan))
    count = int(n) if n >= 1 else 0
    if load == "closed_loop":
        if not count:
            raise ValueError("a closed loop without its number of users")
        stated = re.search(r"means over (\d+) requests", text_of(row, "notes"))
        per_user = published_settings(row).get("requests_per_user", REQUESTS_PER_USER)
        total = int(stated[1]) if stated else per_user * count
        arrivals = Arrivals("closed_loop", None, count, max(total, count), 0)
    elif load in ("burst", "static"):
        count = count or _requests_in_notes(row)
        arrivals = Arrivals("all_at_once", None, None, count, 0)
    elif load == "offline":
        count = count or engine.max_num_seqs
        arrivals = Arrivals("all_at_once", None, None, min(OFFLINE_ROUNDS * count, OFFLINE_MOST), 0)
    elif load == "poisson":
        rate = float(row.get("requests_per_s", math.nan))
        if not rate > 0.0:
            raise ValueError("open arrivals without their rate")
        arrivals = Arrivals("open", rate, None, 1000, 100)
    else:
        raise ValueError(f"load {load!r} is not known")
    prompt, answer = (_lengths(row, row[key]) for key in ("input_tokens", "output_tokens"))
    return Traffic(arrivals, None, prompt, answer)


def _requests_in_notes(row: Row) -> int:
    first = text_of(row, "notes").split(" requests", 1)[0]
    if not first.isdigit():
        raise ValueError("neither a concurrency nor a number of requests is stated")
    return int(first)


def _lengths(row: Row, tokens: float) -> LengthDistribution:
    if "range-ratio default 0" in text_of(row, "notes"):  # means of lengths between nothing and the nominal one
        return LengthDistribution("uniform", tokens, 1, max(1, round(2.0 * tokens)))
    ratio = float(row.get("length_ratio", math.nan))
    if not ratio > 0.0:
        ratio = 1.0
    if ratio == 1.0 and _unstated_statistic(row) and not text_of(row, "engine").startswith("sglang"):
        ratio = NOMINAL_RATIO
    high = max(1, round(tokens))
    low = max(1, round(ratio * high))
    if low == high:
        return LengthDistribution("fixed", float(high), high, high)
    return LengthDistribution("uniform", (low + high) / 2.0, low, high)


def _with_all_memory(deployment: Deployment) -> Deployment:
    engine = replace(deployment.serving.engine, memory_utilization_frac=1.0)
    return replace(deployment, serving=replace(deployment.serving, engine=engine))


def _with_narrow_weights(deployment: Deployment) -> Deployment:
    precision = replace(deployment.serving.precision, **dict.fromkeys(_PARTS, "fp8"))
    return replace(deployment, serving=replace(deployment.serving, precision=precision))
