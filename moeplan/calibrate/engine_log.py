"""Logs of a real engine, every iteration and every request, against the planner's own step times and scheduler.

Three comparisons of one traffic window: the time of each logged iteration against the prediction for the batch it held;
the iterations of a simulated replay of the same arrivals; its requests. Nothing is fitted to the log. The engine ran
without an HTTP server, so the front end is left out. Format: the README of the measured runs, `h200_vllm`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moeplan import metrics
from moeplan.errors import input_error
from moeplan.files.catalog.engine_defaults import default_engine
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.files.catalog.model_catalog import load_model
from moeplan.files.catalog.model_data import default_routing
from moeplan.simulate.deployment import Deployment
from moeplan.simulate.serving import EventLog, simulate_serving
from moeplan.spec.layout import ServingLayout
from moeplan.spec.precision import Precision
from moeplan.spec.scenario import Serving
from moeplan.spec.workload import Arrivals, LengthDistribution, Slo, Trace, Traffic
from moeplan.steps.serving import ServingStep

Floats = npt.NDArray[np.float64]
_BLOCK = 4  # iterations summed: the log books an iteration's time one off now and then, sums are right
_BF16 = Precision("bf16", "bf16", "bf16", "bf16", "bf16")
FILES = ("engines.json", "steps.csv.gz", "traffic_requests.csv.gz")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of one window, measured and predicted."""

    run: str
    rate_per_s: float  # inf: all at once
    quantity: str
    measured: float
    predicted: float

    def as_json(self) -> dict[str, str | float | None]:
        """Plain values; null where a number does not apply (all at once, an error that has no measured side)."""
        rate, measured = (None if not np.isfinite(x) else x for x in (self.rate_per_s, self.measured))
        return {
            "run": self.run, "rate_per_s": rate, "quantity": self.quantity, "measured": measured,
            "predicted": self.predicted,
        }  # fmt: skip


def as_frame(found: Sequence[Comparison]) -> pd.DataFrame:
    """A row per comparison."""
    return pd.DataFrame([asdict(one) for one in found])


def is_engine_log(folder: Path) -> bool:
    """Whether the folder holds logs of an engine rather than tables of operations."""
    return folder.is_dir() and all((folder / name).is_file() for name in FILES)


def compare(folder: Path, hardware: str, say: Callable[[str], None]) -> list[Comparison]:
    """Every traffic window of the folder, and the KV capacity of engines that sized their own cache.

    Raises InputError where a run names a model without a configuration.
    """
    engines: dict[str, Any] = json.loads((folder / "engines.json").read_text(encoding="utf-8"))
    steps = pd.read_csv(folder / "steps.csv.gz")
    requests = pd.read_csv(folder / "traffic_requests.csv.gz").sort_values("arrival_s", kind="stable")
    found: list[Comparison] = []
    for run, facts in engines.items():
        mine = requests[requests["run"] == run]
        if mine.empty:
            continue
        deployment = _deployment(folder, run, facts, hardware)
        found += _kv_capacity(run, facts, deployment)
        for rate, real in mine.groupby("rate_req_s"):
            rate_per_s = float(str(rate))
            say(f"{run} at {rate_per_s:g} requests/s")
            window = steps[(steps["run"] == run) & (steps["window"] == _window(rate_per_s))]
            found += _window_rows(run, rate_per_s, deployment, facts, window, real)
    return found


def _window(rate_per_s: float) -> str:
    return f"traffic rate {0.0 if np.isinf(rate_per_s) else rate_per_s:g}"


def _deployment(folder: Path, run: str, facts: Mapping[str, Any], hardware: str) -> Deployment:
    configs = sorted((folder / "model_configs").glob("*.json"), key=lambda path: len(path.stem))
    matching = [path for path in configs if run.startswith(path.stem)]
    if not matching:
        raise input_error(folder, "no model configuration", got=run, allowed="model_configs/<model>.json")
    machine, model = load_hardware(hardware), load_model(str(matching[-1]))
    engine = replace(
        default_engine("vllm", machine.device, 1),
        max_num_seqs=int(facts["max_num_seqs"]),
        max_num_batched_tokens=int(facts["max_num_batched_tokens"]),
        kv_block_tokens=int(facts["block_size"]),
        memory_utilization_frac=float(facts["gpu_memory_utilization"]),
        cuda_graph_max_tokens=max(facts["capture_sizes"]),
        async_scheduling=bool(facts["async_scheduling"]),
        request_overhead_s=0.0,
        front_request_s=0.0,
        front_token_s=0.0,
    )
    context = int(facts["engine_args"]["max_model_len"])
    half = LengthDistribution("fixed", context / 2, context // 2, context // 2)
    traffic = Traffic(Arrivals("all_at_once", None, None, 1, 0), None, half, half)
    serving = Serving(ServingLayout(), _BF16, engine, traffic, Slo(None, None, None, 90.0), context)
    return Deployment(model, machine, serving, default_routing(model), 0)


def _kv_capacity(run: str, facts: Mapping[str, Any], deployment: Deployment) -> list[Comparison]:
    if facts.get("available_kv_GiB") is None:
        return []  # its size was set by hand
    tokens = facts["num_gpu_blocks"] * facts["block_size"]
    return [Comparison(run, np.nan, "KV capacity [tokens]", tokens, deployment.fit().kv_capacity_tokens)]


def _window_rows(
    run: str, rate_per_s: float, deployment: Deployment, facts: Mapping[str, Any], steps: pd.DataFrame,
    real: pd.DataFrame,
) -> list[Comparison]:  # fmt: skip
    log = _replay(deployment, facts, real)
    wall_s, predicted_s = _iteration_times(deployment.step, steps)
    rows = {
        "iteration [ms]": (np.mean(wall_s) * 1e3, np.mean(predicted_s) * 1e3),
        "iteration, median error": (np.nan, np.median(np.abs(predicted_s / wall_s - 1.0))),
        "iterations": (len(steps), log.replica_iterations[0]),
        "mean running": (
            np.average(steps["running"], weights=steps["step_ms"]), log.running_time_s / log.replica_busy_s[0]
        ),
        "KV peak": (steps["kv_usage"].max(), log.kv_peak_frac),
    }  # fmt: skip
    for name, truth_s, mine_s in (
        ("queued", real["scheduled_s"], log.scheduled_s - log.arrival_s),
        ("TTFT", real["first_token_s"], metrics.ttft_s(log)),
        ("TPOT", real["tpot_ms"] / 1e3, metrics.tpot_s(log)),
        ("E2E", real["last_token_s"], metrics.e2e_s(log)),
    ):
        truth = truth_s.to_numpy(np.float64)
        for percent in (50, 90, 99):
            values = (np.nanpercentile(truth, percent) * 1e3, np.nanpercentile(mine_s, percent) * 1e3)
            rows[f"{name} p{percent} [ms]"] = values
        if name != "queued":
            rows[f"{name} by request, median error"] = (np.nan, np.nanmedian(np.abs(mine_s / truth - 1.0)))
    return [Comparison(run, rate_per_s, name, float(a), float(b)) for name, (a, b) in rows.items()]


def _replay(deployment: Deployment, facts: Mapping[str, Any], real: pd.DataFrame) -> EventLog:
    """The same arrivals and lengths through the planner's engine, with the blocks the real one had."""
    arrival_s = real["arrival_s"].to_numpy(np.float64)
    lengths = (real[name].to_numpy(np.int64) for name in ("prompt", "output"))
    trace = Trace("engine log", arrival_s - arrival_s.min(), *lengths, "")
    traffic = Traffic(Arrivals("trace", None, None, len(real), 0), trace, None, None)
    return simulate_serving(
        deployment.table(),
        traffic,
        deployment.serving.engine,
        deployment.serving.layout,
        facts["num_gpu_blocks"] * facts["block_size"],
        seed=0,
    )


def _iteration_times(step: ServingStep, steps: pd.DataFrame) -> tuple[Floats, Floats]:
    """Logged and predicted times [s], summed over `_BLOCK` iterations each."""
    done_s = steps["t_done_s"].to_numpy(np.float64)
    wall_s = done_s - np.maximum(np.concatenate([[-np.inf], done_s[:-1]]), steps["t_sched_s"].to_numpy(np.float64))
    prompt, n_prompts = (steps[name].to_numpy(np.float64) for name in ("prefill_tokens", "prefill_reqs"))
    batch, context = (steps[name].to_numpy(np.float64) for name in ("decode_tokens", "decode_ctx_sum"))
    cached = steps["prefill_ctx_before"].to_numpy(np.float64)
    tokens, some, any_prompt = prompt + batch, np.maximum(batch, 1.0), np.maximum(n_prompts, 1.0)
    device_s = np.sum(list(step.linear_parts_s(tokens).values()), axis=0)
    device_s = device_s + np.where(batch > 0, step.decode_mixers_s(some, np.maximum(context / some, 1.0)), 0.0)
    each = np.maximum(prompt / any_prompt, 1.0)
    device_s = device_s + np.where(prompt > 0, n_prompts * step.prefill_mixers_s(each, cached / any_prompt), 0.0)
    device_s = device_s + step.head_s(np.maximum(batch + n_prompts, 1.0))
    engine = step.engine
    host_s = engine.host_step_s + engine.host_sequence_s * (batch + n_prompts)
    host_s = host_s + np.where(tokens > engine.cuda_graph_max_tokens, step.eager_floor_s, 0.0)
    predicted_s = np.maximum(device_s, host_s) + engine.step_overhead_s
    n = len(wall_s) // _BLOCK * _BLOCK
    return wall_s[:n].reshape(-1, _BLOCK).sum(axis=1), predicted_s[:n].reshape(-1, _BLOCK).sum(axis=1)
