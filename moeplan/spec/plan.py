"""The answer: a plan, frozen, every estimate with its 90 % interval. Field names are the stable JSON keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moeplan.spec.plan_money import (
    AdviceResult,
    AlternativesResult,
    BudgetResult,
    CostResult,
    EnergyResult,
    LifecycleResult,
)
from moeplan.spec.quantity import Q as Q


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check with what it needs and what there is, in ``unit``."""

    check: str
    ok: bool
    need: float | None
    have: float | None
    unit: str
    text: str


@dataclass(frozen=True, slots=True)
class Percentiles:
    mean: Q
    p50: Q
    p90: Q
    p95: Q
    p99: Q


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the requests that count. ``retried`` ones are among the others: sent again after a failure."""

    completed: int
    rejected: int
    timed_out: int
    lost: int
    retried: int


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class of requests, judged by its own targets."""

    outcomes: Outcomes
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    e2e_s: Percentiles | None
    goodput_requests_per_s: Q | None
    slo_met_frac: Q | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The deployment over simulated time, at most 400 instants."""

    time_s: tuple[float, ...]
    waiting: tuple[float, ...]  # requests
    running: tuple[float, ...]
    kv_used_frac: tuple[float, ...]
    replicas: tuple[float, ...]  # that take requests


@dataclass(frozen=True, slots=True)
class LatencyCdf:
    """Quantiles at 0, 1, ... 100 % of the predicted run; empty where no request has the latency."""

    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    e2e_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Share of an attention rank's iteration time by the number of sequences it runs."""

    size: tuple[int, ...]
    time_frac: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Hardware held during the simulated run, cold starts and draining included."""

    span_hours: float
    replica_hours: float
    gpu_hours: float
    gpu_hours_per_month: float  # at the same pace
    held_over_start: float  # GPU hours over those of the deployment to begin with, had it stayed


@dataclass(frozen=True, slots=True)
class ServingResult:
    requests_per_s: Q
    input_tokens_per_s: Q
    output_tokens_per_s: Q
    output_tokens_per_s_per_gpu: Q
    ttft_s: Percentiles | None  # None where no request got that far
    tpot_s: Percentiles | None  # None where no answer has a second token
    e2e_s: Percentiles | None
    utilization_frac: Q
    capacity_requests_per_s: Q | None  # the most the deployment could serve
    n_requests_simulated: int
    n_requests_rejected: int
    slo_met_frac: Q | None  # share of requests inside every latency target
    saturated: bool  # the queue grew to the end of the simulated window
    itl_s: Percentiles | None  # between consecutive tokens of an answer, over all tokens
    goodput_requests_per_s: Q | None  # of requests inside every target
    outcomes: Outcomes
    reasons: Mapping[str, int]  # why requests were not answered
    classes: Mapping[str, ClassResult]
    timeline: Timeline
    latency_cdf: LatencyCdf
    batch_size: BatchSize
    usage: Usage


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The run in calendar time, simulated many times with failures (`simulate.training_run`)."""

    wall_time_s: Mapping[str, float]  # percentiles p5 to p95 over failures and the uncertainty of the step time
    goodput_frac: Q  # share of wall time that is progress; the interval is over runs
    n_failures: Q
    failures_by_cause: Mapping[str, float]  # mean counts
    time_s: Mapping[str, float]  # mean wall time by what it is spent on; adds up
    checkpoint_bytes: float
    checkpoint_interval_s: float
    checkpoint_stall_s: float
    optimal_interval_s: float | None  # Daly's; None without failures or where checkpoints cost nothing
    optimal_goodput_frac: float | None  # at that interval
    deadline_probability: float | None  # None: no deadline
    n_gpus_held: int  # spares included
    n_runs_simulated: int


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase of a run: a sequence length, a batch, a layout."""

    n_tokens: float
    sequence_tokens: int
    global_batch_sequences: int
    n_steps: int
    step_time_s: Q
    tokens_per_s_per_gpu: Q
    mfu_frac: Q
    work_s: Q  # without failures


@dataclass(frozen=True, slots=True)
class TrainingResult:
    step_time_s: Q
    tokens_per_s: Q
    tokens_per_s_per_gpu: Q
    tflop_per_s_per_gpu: Q
    mfu_frac: Q
    wall_time_s: Q
    gpu_hours: Q
    goodput_frac: Q
    n_steps: int
    hfu_frac: Q  # as the MFU, with what is recomputed
    peak_memory_bytes: Q  # of the fullest GPU
    hidden_s: Mapping[str, float]  # communication of a step behind computation, on top of ``time_breakdown``
    phases: tuple[PhaseResult, ...]  # the figures above are the first one's, wall time and GPU hours of all
    run: TrainingRun


@dataclass(frozen=True, slots=True)
class MemoryResult:
    per_gpu_bytes: float
    capacity_bytes: float
    breakdown: Mapping[str, float]
    kv_capacity_tokens: float | None


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """Routing of the mean decode step (serving) or of a micro-batch (training), percentiles over steps."""

    imbalance_max_over_mean: Q  # fullest expert over the mean expert
    straggler_over_mean: Percentiles  # busiest expert-parallel GPU over the mean GPU, by token-expert pairs
    dropped_frac: Q
    padding_frac: float
    all_to_all_bytes_per_token: float
    distinct_experts_per_decode_step: Q | None
    n_steps_simulated: int
    path: str  # "tokens": routed one by one; "counts": drawn at once


@dataclass(frozen=True, slots=True)
class Plan:
    """Result of ``simulate``. All top-level keys are always in the JSON, null where they do not apply."""

    moeplan: str
    scenario: str
    kind: Literal["serving", "training", "lifecycle"]
    seed: int
    feasible: bool
    verdicts: tuple[Verdict, ...]
    serving: ServingResult | None
    training: TrainingResult | None
    memory: MemoryResult
    routing: RoutingResult | None
    cost: CostResult
    budget: BudgetResult | None
    energy: EnergyResult | None  # None where the plan does not run, or the profile states no power limit
    alternatives: AlternativesResult | None  # serving: rent, buy or API
    lifecycle: LifecycleResult | None
    advice: AdviceResult | None  # training: what published scaling laws suggest
    time_breakdown: Mapping[str, float]
    provenance: Mapping[str, Any]
