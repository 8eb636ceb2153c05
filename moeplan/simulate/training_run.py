"""A training run in calendar time: checkpoints, failures, spares, slow nodes, preemption; an event each in simpy.

Between two events the run's progress is arithmetic, so a run of months costs as much as its failures are many.
Equations and oracles: docs/method/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from moeplan.costs.reliability import NODE_LOST, failure_rates_per_s
from moeplan.spec.workload import Reliability

# What a run's wall time is made of; adds up to it.
LEDGER = ("work", "checkpoints", "lost_work", "detection", "restart", "waiting_for_nodes", "slow_nodes")
FAILURES_SIMULATED = 30_000  # over all repetitions, so that a plan's cost does not grow with the run
FEWEST_RUNS, MOST_RUNS = 16, 400


@dataclass(frozen=True, slots=True)
class RunSample:
    """Repetitions of one run. Arrays of shape (n_runs,)."""

    wall_s: np.ndarray
    ledger_s: dict[str, np.ndarray]  # by LEDGER
    failures: dict[str, np.ndarray]  # counts by cause

    @property
    def n_failures(self) -> np.ndarray:
        return np.sum(list(self.failures.values()), axis=0)


@dataclass(slots=True)
class _Job:
    """Work done, and where in the cycle of work and checkpoint the job is. All in seconds of work at full speed."""

    r: Reliability
    work_s: float
    done_s: float = 0.0
    taken_s: float = 0.0  # work in the last checkpoint taken ...
    taken_at_s: float = -math.inf  # ... the end of its stall
    durable_s: float = 0.0  # work in the one before, durable for certain
    stall_left_s: float = 0.0
    ledger: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEDGER, 0.0))

    def left_s(self, slowdown: float) -> float:
        """Time to the end of the run without interruption; no checkpoint is written at the very end."""
        left = self.work_s - self.done_s
        first = self.r.checkpoint_interval_s - (self.done_s - self.taken_s)
        n_stalls = 0.0
        if left > first:
            n_stalls = 1.0 + math.floor((left - first) / self.r.checkpoint_interval_s * (1.0 - 1e-12))
        return self.stall_left_s + left * slowdown + n_stalls * self.r.checkpoint_stall_s

    def advance(self, now_s: float, lasts_s: float, slowdown: float) -> None:
        """Run for ``lasts_s`` from ``now_s`` on."""
        interval, stall = self.r.checkpoint_interval_s, self.r.checkpoint_stall_s
        end_s = now_s + lasts_s
        if self.stall_left_s > 0.0:
            stalled = min(lasts_s, self.stall_left_s)
            self._stalled(stalled, now_s + stalled)
            lasts_s -= stalled
        while lasts_s > 0.0:
            need = (interval - (self.done_s - self.taken_s)) * slowdown
            cycle = interval * slowdown + stall
            if lasts_s > need + stall + cycle and self.taken_at_s > -math.inf and need >= interval * slowdown:
                whole = math.floor(lasts_s / cycle) - 1  # many alike: in one step
                self._worked(whole * interval, slowdown)
                self.ledger["checkpoints"] += whole * stall
                self.taken_s = self.done_s
                self.durable_s = self.taken_s - interval
                lasts_s -= whole * cycle
                self.taken_at_s = end_s - lasts_s
                continue
            worked = min(lasts_s, need)
            self._worked(worked / slowdown, slowdown)
            lasts_s -= worked
            if worked < need or self.done_s >= self.work_s:
                return
            self.durable_s = self.taken_s
            self.taken_s = self.done_s
            self.taken_at_s = math.inf
            self.stall_left_s = stall
            stalled = min(lasts_s, stall)
            lasts_s -= stalled
            self._stalled(stalled, end_s - lasts_s)

    def _worked(self, work_s: float, slowdown: float) -> None:
        self.done_s += work_s
        self.ledger["work"] += work_s
        self.ledger["slow_nodes"] += work_s * (slowdown - 1.0)

    def _stalled(self, stalled_s: float, now_s: float) -> None:
        self.ledger["checkpoints"] += stalled_s
        self.stall_left_s -= stalled_s
        if self.stall_left_s <= 1e-9:
            self.stall_left_s, self.taken_at_s = 0.0, now_s

    def fall_back(self, now_s: float, *, saved: bool) -> None:
        """Lose what no durable checkpoint holds; ``saved``: there was notice enough to write one."""
        late_s = self.r.checkpoint_write_s - self.r.checkpoint_stall_s
        durable = self.taken_at_s + late_s <= now_s + 1e-9
        kept = self.done_s if saved else self.taken_s if durable else self.durable_s
        self.ledger["work"] -= self.done_s - kept
        self.ledger["lost_work"] += self.done_s - kept
        self.done_s = self.taken_s = self.durable_s = kept
        self.taken_at_s, self.stall_left_s = -math.inf, 0.0


def simulate_runs(work_s: float, n_gpus: int, n_gpus_per_node: int, reliability: Reliability, seed: int) -> RunSample:
    """Repetitions of a run that needs ``work_s`` without interruption; more of them the fewer failures there are."""
    rates = failure_rates_per_s(n_gpus, n_gpus_per_node, reliability)
    slow_per_s = math.ceil(n_gpus / n_gpus_per_node) * reliability.slow_nodes_per_s
    expected = work_s * (sum(rates.values()) + slow_per_s)
    n_runs = int(min(MOST_RUNS, max(FEWEST_RUNS, FAILURES_SIMULATED / (1.0 + expected))))
    if expected == 0.0:
        n_runs = 1
    wall_s = np.empty(n_runs)
    ledger = {name: np.empty(n_runs) for name in LEDGER}
    failures = {cause: np.zeros(n_runs) for cause in rates}
    for i, stream in enumerate(np.random.SeedSequence(seed).spawn(n_runs)):
        job = _Job(reliability, work_s)
        env = simpy.Environment()
        counts = dict.fromkeys(rates, 0)
        env.run(env.process(_run(env, job, rates, slow_per_s, np.random.default_rng(stream), counts)))
        wall_s[i] = env.now
        for name, value in job.ledger.items():
            ledger[name][i] = value
        for cause, count in counts.items():
            failures[cause][i] = count
    return RunSample(wall_s, ledger, failures)


def _run(
    env: simpy.Environment,
    job: _Job,
    rates: dict[str, float],
    slow_per_s: float,
    rng: np.random.Generator,
    counts: dict[str, int],
) -> Generator[Any, Any, None]:
    """The job until its work is done."""
    r = job.r
    causes, total = list(rates), sum(rates.values())
    cumulative = np.cumsum(list(rates.values()))
    spares = None if r.n_spare_nodes is None else simpy.Container(env, init=r.n_spare_nodes)
    slow_until_s = 0.0
    while True:
        slowdown = r.slow_factor if env.now < slow_until_s else 1.0
        left_s = job.left_s(slowdown)
        change_s = slow_until_s - env.now if slowdown > 1.0 else _next_s(rng, slow_per_s)
        failure_s = _next_s(rng, total)  # memoryless: drawn anew after every event
        lasts_s = min(left_s, change_s, failure_s)
        began_s = env.now
        yield env.timeout(lasts_s)
        job.advance(began_s, lasts_s, slowdown)
        if lasts_s == left_s:
            return
        if lasts_s == change_s:
            slow_until_s = began_s if slowdown > 1.0 else env.now + r.slow_s
            continue
        cause = causes[int(np.searchsorted(cumulative, rng.random() * total, side="right"))]
        counts[cause] += 1
        yield from _recover(env, job, cause, spares)


def _recover(
    env: simpy.Environment, job: _Job, cause: str, spares: simpy.Container | None
) -> Generator[Any, Any, None]:
    """From a failure until the job works again."""
    r = job.r
    announced = cause == "preemption" and r.preemption_notice_s >= r.checkpoint_write_s
    if announced:
        yield env.timeout(r.checkpoint_write_s)
        job.ledger["checkpoints"] += r.checkpoint_write_s
    job.fall_back(env.now, saved=announced)
    detection_s = 0.0 if cause == "preemption" else r.detection_s
    yield env.timeout(detection_s)
    job.ledger["detection"] += detection_s
    if spares is not None and cause in NODE_LOST:
        began_s = env.now
        env.process(_repair(env, spares, r.node_repair_s))
        yield spares.get(1)
        job.ledger["waiting_for_nodes"] += env.now - began_s
    yield env.timeout(r.restart_s)
    job.ledger["restart"] += r.restart_s


def _repair(env: simpy.Environment, spares: simpy.Container, lasts_s: float) -> Generator[Any, Any, None]:
    yield env.timeout(lasts_s)
    yield spares.put(1)


def _next_s(rng: np.random.Generator, rate_per_s: float) -> float:
    return float(rng.exponential(1.0 / rate_per_s)) if rate_per_s > 0.0 else math.inf
