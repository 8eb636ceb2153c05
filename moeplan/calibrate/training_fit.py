"""Fit what the kernels do not explain of measured training runs: sustained clocks, and the framework's host time.

Two steps, so that neither explains the other: clocks from dense runs, where the host is hidden; then the host from
mixture-of-experts runs on those devices. Equations: docs/method/training.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

from moeplan.calibrate.training_runs import (
    Row,
    family_of,
    hardware_of,
    meant_to_be_fast,
    model_of,
    routing_of,
    stated_metrics,
    training_of,
)
from moeplan.costs.host import DEFAULTS, MOST_LAUNCHED_EXPERTS
from moeplan.costs.parameters import lookup
from moeplan.costs.projections import split
from moeplan.errors import InputError
from moeplan.files.runs.measured_runs import text_of
from moeplan.steps.training import training_step
from moeplan.steps.training_layer import KERNELS

# Parts of a step that the clock stretches; the others wait for memory or links.
_COMPUTE = ("projections", "attention", "dense", "experts", "router", "head", "adapter", "recompute")
_ONCE = ("data_parallel", "optimizer")
LEAST_ROWS = 5
# Its kernels and schedule are those of 2021 and 2022: judged, but nothing is learnt there.
LEFT_OUT = ("Megatron-DeepSpeed",)
# Of 2023: a device's clock is learnt there only where nothing newer was published of the device.
OLD = ("LLM-Foundry",)
_HOST = ("expert_s", "sync_s")  # fitted; ``layer_s`` stays an estimate, dense runs hide it


@dataclass(frozen=True, slots=True)
class Fact:
    """One run: what it took, and what its step is made of without host time at the burst clock [s]."""

    run_id: str
    family: str
    device: str
    configuration: tuple[str, ...]
    is_moe: bool
    graphs: bool
    framework: str
    architecture: str
    truth_s: float
    compute_s: float
    other_s: float  # memory and links, once per micro batch
    once_s: float
    n_micro: int
    n_layers: float  # of one stage
    n_moe_layers: float
    n_local_experts: float

    @property
    def old(self) -> bool:
        return self.framework.startswith(OLD)


def facts(rows: Iterable[Row]) -> list[Fact]:
    """The pretraining runs that can be predicted and were meant to be fast.

    Left out: fine-tuning (padding and packing are not stated), runs that call themselves functional or short, rows
    without a step time or throughput, and those `training_of` refuses.
    """
    found = []
    for row in rows:
        if "fine" in text_of(row, "kind") or not meant_to_be_fast(row):
            continue
        if text_of(row, "framework").startswith(LEFT_OUT):
            continue
        try:
            fact = _fact(row)
        except (InputError, ValueError):
            continue
        if fact is not None:
            found.append(fact)
    return found


def _fact(row: Row) -> Fact | None:
    stated = stated_metrics(row)
    training, model, hardware = training_of(row), model_of(row), hardware_of(row)
    step = training_step(model, hardware, training.layout, training.work, routing_of(row))
    if "tokens_per_s" in stated:
        truth_s = step.n_tokens / step.n_gpus / stated["tokens_per_s"]
    elif "step_time" in stated:
        truth_s = stated["step_time"]
    else:
        return None
    clock = lookup(hardware, "training_device", KERNELS, "bf16").values["sustained_frac"]
    compute_s = clock * sum(step.breakdown.get(part, 0.0) for part in _COMPUTE)
    once_s = sum(step.breakdown[part] for part in _ONCE)
    other_s = sum(s for part, s in step.breakdown.items() if part not in (*_COMPUTE, *_ONCE, "host"))
    layout, experts = training.layout, model.moe_blocks
    return Fact(
        run_id=text_of(row, "run_id"),
        family=family_of(model.name),
        device=text_of(row, "hardware"),
        configuration=(model.name, text_of(row, "hardware"), training.work.compute_format),
        is_moe=bool(experts) and layout.ep > 1,
        graphs=training.work.cuda_graphs,
        framework=text_of(row, "framework"),
        architecture=hardware.device.architecture,
        truth_s=truth_s,
        compute_s=compute_s,
        other_s=other_s,
        once_s=once_s,
        n_micro=step.n_micro_batches,
        n_layers=model.n_layers / layout.pp,
        n_moe_layers=len(experts) / layout.pp,
        n_local_experts=min(split(experts[0].n_experts, layout.ep), MOST_LAUNCHED_EXPERTS) if experts else 0,
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """Facts as arrays, one weight for each configuration however often it was measured."""

    facts: list[Fact]

    def column(self, name: str) -> npt.NDArray[np.float64]:
        return np.array([getattr(f, name) for f in self.facts], np.float64)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        keys = [f.configuration for f in self.facts]
        return np.array([1.0 / keys.count(key) for key in keys])

    def step_s(self, clocks: dict[str, float], host: dict[str, float]) -> npt.NDArray[np.float64]:
        default = DEFAULTS["training_device"]["sustained_frac"]
        clock = np.array([clocks.get(f.device, default) for f in self.facts])
        busy_s = self.column("compute_s") / clock + self.column("other_s")
        n_micro, moe_layers = self.column("n_micro"), self.column("n_moe_layers")
        per_moe_layer_s = self.column("n_local_experts") * host["expert_s"]
        launch_s = n_micro * (self.column("n_layers") * host["layer_s"] + moe_layers * per_moe_layer_s)
        sync_s = n_micro * moe_layers * host["sync_s"] * self.column("is_moe")
        eager = self.column("graphs") == 0.0
        step_s: npt.NDArray[np.float64] = np.where(eager, np.maximum(busy_s, launch_s) + sync_s, busy_s)
        return step_s + self.column("once_s")

    def log_errors(self, clocks: dict[str, float], host: dict[str, float]) -> npt.NDArray[np.float64]:
        """ln(measured / predicted)."""
        return np.log(self.column("truth_s") / self.step_s(clocks, host))


def _of_device(dense: list[Fact], device: str) -> list[Fact]:
    """Runs that say something about a device's clock."""
    mine = [f for f in dense if f.device == device]
    return [f for f in mine if not f.old] or mine


def fit_clocks(known: list[Fact]) -> dict[str, float]:
    """Sustained share of the burst rate by device, from dense runs: least weighted mean absolute log error."""
    dense = [f for f in known if not f.is_moe]
    found = {}
    for device in sorted({f.device for f in dense}):
        table = _Table(_of_device(dense, device))
        if len(table.facts) < LEAST_ROWS or len({f.configuration[0] for f in table.facts}) < 2:
            continue

        def loss(clock: float, table: _Table = table, device: str = device) -> float:
            errors = table.log_errors({device: clock}, dict(DEFAULTS["training_host"]))
            return float(np.average(np.abs(errors), weights=table.weights))

        found[device] = float(minimize_scalar(loss, bounds=(0.4, 1.2), method="bounded").x)
    return found


def fit_host(known: list[Fact], clocks: dict[str, float]) -> dict[str, float]:
    """Host times from mixture-of-experts runs without full-iteration graphs on devices whose clock is known."""
    table = _Table([f for f in known if f.is_moe and not f.graphs and f.device in clocks])
    start = DEFAULTS["training_host"]

    def host(x: npt.NDArray[np.float64]) -> dict[str, float]:
        return {**start, **dict(zip(_HOST, np.exp(x).tolist(), strict=True))}

    def loss(x: npt.NDArray[np.float64]) -> float:
        return float(np.average(np.abs(table.log_errors(clocks, host(x))), weights=table.weights))

    starts = [np.log([start[name] * factor for name in _HOST]) for factor in (0.5, 1.0, 2.0)]
    best = min((minimize(loss, x0, method="Nelder-Mead") for x0 in starts), key=lambda found: found.fun)
    return host(best.x)


def held_out(known: list[Fact]) -> dict[str, npt.NDArray[np.float64]]:
    """ln(measured / predicted) by model family, everything fitted to the other families."""
    found = {}
    for family in sorted({f.family for f in known}):
        rest = [f for f in known if f.family != family]
        clocks = fit_clocks(rest)
        mine = [f for f in known if f.family == family and f.device in clocks and not f.old]
        if mine:
            found[family] = _Table(mine).log_errors(clocks, fit_host(rest, clocks))
    return found


def fitted_document(rows: Iterable[Row], source: str) -> dict[str, Any]:
    """What `files.catalog.training_fits` reads, with held-out errors by family. ``source`` names the table."""
    known = facts(rows)
    clocks = fit_clocks(known)
    host = fit_host(known, clocks)
    errors = held_out(known)
    pooled = np.concatenate(list(errors.values()))

    def entry(values: dict[str, float], used: list[Fact], residual: npt.NDArray[np.float64]) -> dict[str, Any]:
        models = ", ".join(sorted({f.configuration[0] for f in used}))
        frameworks = ", ".join(sorted({f.framework for f in used}))
        return {
            "values": {name: float(f"{value:.3g}") for name, value in values.items()},
            "n_rows": len(used),
            "n_models": len({f.configuration[0] for f in used}),
            "log_residual": [float(f"{q:.3g}") for q in np.quantile(residual, (0.05, 0.5, 0.95))],
            "source": f"fitted to {len(used)} {source} ({frameworks}): {models}",
        }

    moe = [f for f in known if f.is_moe and not f.graphs and f.device in clocks]
    devices = {}
    for device, clock in clocks.items():
        dense = _of_device([f for f in known if not f.is_moe], device)
        fitted = entry({"sustained_frac": clock}, dense, _Table(dense).log_errors(clocks, host))
        devices[device] = {"architecture": dense[0].architecture, **fitted}
    summary: Callable[[npt.NDArray[np.float64]], dict[str, float]] = lambda e: {  # noqa: E731
        "n": len(e), "mdape": float(f"{np.median(np.abs(np.expm1(-e))):.3g}"), "bias": float(f"{np.median(-e):.3g}"),
    }  # fmt: skip
    return {
        "kind": "fitted",
        "fitted_on": datetime.date.today().isoformat(),
        "host": {
            **entry({name: host[name] for name in _HOST}, moe, pooled),
            "heldout": {"all": summary(pooled), **{family: summary(e) for family, e in errors.items()}},
        },
        "devices": devices,
    }
