"""What a benchmark says, in the project's units, and its row in a table of measured runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency [ms] over the requests; None where the file does not say."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run ran on and how. Files state some of it, the user the rest. None: not stated."""

    model: str | None = None  # as the source names it
    hardware: str | None = None
    n_gpus: float | None = None
    weight_precision: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    tp: float | None = None
    pp: float | None = None
    dp: float | None = None
    ep: float | None = None
    load: str | None = None  # closed_loop, poisson, burst, offline, static
    concurrency: float | None = None
    requests_per_s: float | None = None  # offered
    input_tokens: float | None = None
    output_tokens: float | None = None
    length_ratio: float | None = None
    measured_on: str | None = None
    licence: str | None = None

    def with_stated(self, stated: Setup) -> Setup:
        """``self`` with what is missing taken from ``stated``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Setup(**{name: getattr(stated, name) if value is None else value for name, value in values.items()})

    def contradictions(self, stated: Setup) -> list[str]:
        """Names that both state, differently."""
        both = ((f.name, getattr(self, f.name), getattr(stated, f.name)) for f in fields(self) if f.name != "model")
        return [name for name, mine, theirs in both if mine is not None and theirs is not None and mine != theirs]


@dataclass(frozen=True, slots=True)
class Pool:
    """Prefill or decode workers of a disaggregated run."""

    workers: float
    tp: float
    dp: float
    ep: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One run of a benchmark."""

    line: int
    setup: Setup
    ttft: Latency = field(default_factory=Latency)
    tpot: Latency = field(default_factory=Latency)  # (last - first token) / (tokens - 1)
    itl: Latency = field(default_factory=Latency)  # between tokens, over all tokens
    e2e: Latency = field(default_factory=Latency)
    output_tokens_per_s: float | None = None
    input_tokens_per_s: float | None = None
    duration_s: float | None = None
    completed: float | None = None
    failed: float | None = None
    prefill: Pool | None = None
    decode: Pool | None = None
    note: str = ""

    def has_results(self) -> bool:
        """Whether there is any number to compare a prediction with."""
        latencies = (self.ttft.mean, self.ttft.p50, self.tpot.mean, self.tpot.p50, self.itl.mean, self.e2e.mean)
        return any(x is not None for x in (*latencies, self.output_tokens_per_s))


# Setup as columns of the table, in its order; without these a row cannot be understood.
NEEDED = ("model", "hardware", "n_gpus", "engine", "load", "input_tokens", "output_tokens")


def columns(run: Benchmark, setup: Setup) -> dict[str, Any]:
    """Cells of the run's row, except those that identify it."""
    cells: dict[str, Any] = {f.name: getattr(setup, f.name) for f in fields(setup)}
    for pool, one in (("prefill", run.prefill), ("decode", run.decode)):
        if one is not None:
            cells |= {f"{pool}_{f.name}": getattr(one, f.name) for f in fields(one)}
    cells |= {
        "ttft_ms": run.ttft.mean,
        "ttft_ms_median": run.ttft.p50,
        "tpot_ms": run.tpot.mean,
        "tpot_ms_median": run.tpot.p50,
        "itl_ms": run.itl.mean,
        "e2e_ms": run.e2e.mean,
        "e2e_ms_median": run.e2e.p50,
        "output_tokens_per_s": run.output_tokens_per_s,
        "input_tokens_per_s": run.input_tokens_per_s,
        "duration_s": run.duration_s,
        "completed": run.completed,
        "failed": run.failed,
    }
    for name, latency in (("ttft", run.ttft), ("tpot", run.tpot), ("itl", run.itl), ("e2e", run.e2e)):
        cells |= {f"{name}_ms_p90": latency.p90, f"{name}_ms_p99": latency.p99}
    return cells | {"notes": run.note}


def per_request(total: float | None, completed: float | None) -> float | None:
    """Mean tokens of a request; None where nothing completed."""
    return total / completed if total is not None and completed else None


def setup_of(values: Mapping[str, Any]) -> Setup:
    """A ``Setup`` of the fields that ``values`` has."""
    return Setup(**{f.name: values[f.name] for f in fields(Setup) if values.get(f.name) not in (None, "")})
