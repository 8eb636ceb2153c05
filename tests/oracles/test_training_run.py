"""The run in calendar time against renewal theory, published checkpoints and published goodput."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moeplan.costs.model_state import checkpoint_bytes
from moeplan.costs.reliability import daly_interval_s, failure_rates_per_s, goodput_frac, young_interval_s
from moeplan.files.catalog.model_catalog import load_model
from moeplan.simulate.training_run import LEDGER, RunSample, simulate_runs
from moeplan.spec.workload import Reliability, TrainingWork

DAY_S = 86400.0
PLAIN = Reliability(
    gpu_failures_per_s=3e-4 / DAY_S, node_failures_per_s=4e-4 / DAY_S, network_failures_per_s=5e-5 / DAY_S,
    software_failures_per_s=6e-5 / DAY_S, restart_s=660.0, checkpoint_interval_s=3600.0, checkpoint_write_s=40.0,
    checkpoint_stall_s=40.0,
)  # fmt: skip


def runs(reliability: Reliability, n_gpus: int = 8192, days: float = 20.0, seed: int = 7) -> RunSample:
    return simulate_runs(days * DAY_S, n_gpus, 8, reliability, seed)


def goodput(sample: RunSample, days: float = 20.0) -> tuple[float, float]:
    """Mean and its standard error."""
    values = days * DAY_S / sample.wall_s
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


@pytest.mark.parametrize("n_gpus", [64, 1024, 16384])
@pytest.mark.parametrize("interval_s", [300.0, 3600.0])
def test_synchronous_checkpoints_follow_renewal_theory(n_gpus: int, interval_s: float) -> None:
    reliability = replace(PLAIN, checkpoint_interval_s=interval_s)
    found, error = goodput(runs(reliability, n_gpus))
    assert found == pytest.approx(goodput_frac(n_gpus, 8, reliability), abs=4 * error + 1e-3)


def test_asynchronous_checkpoints_to_first_order() -> None:
    reliability = replace(PLAIN, checkpoint_stall_s=2.0, checkpoint_write_s=600.0)
    found, error = goodput(runs(reliability, 1024))
    assert found == pytest.approx(goodput_frac(1024, 8, reliability), abs=4 * error + 2e-3)
    at_once = goodput_frac(1024, 8, replace(reliability, checkpoint_write_s=2.0))
    assert goodput_frac(1024, 8, reliability) < at_once


def test_failures_come_as_often_as_their_rates_say() -> None:
    sample = runs(PLAIN)
    rates = failure_rates_per_s(8192, 8, PLAIN)
    running_s = sample.wall_s - sample.ledger_s["restart"]
    for cause in ("gpu", "node", "network", "software"):
        expected = rates[cause] * running_s.mean()
        noise = np.sqrt(expected / len(running_s))
        assert sample.failures[cause].mean() == pytest.approx(expected, abs=5 * noise)


def test_goodput_of_the_reliability_paper() -> None:
    """arXiv:2410.21680, section 5: 1 - N r (u + d / 2) to first order, 6.5 failures per 1000 node-days."""
    reliability = Reliability(6.5e-3 / 8 / DAY_S, 0.0, 0.0, 0.0, 300.0, 3600.0, 0.0, 0.0)
    by_hand = 1 - 2048 * (6.5e-3 / 8 / DAY_S) * (300 + 1800)
    assert goodput_frac(2048, 8, reliability) == pytest.approx(by_hand, rel=2e-3)


def test_goodput_falls_with_gpus_to_nothing() -> None:
    values = [goodput_frac(n, 8, PLAIN) for n in (1, 1000, 100_000, 100_000_000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0.0


@pytest.mark.parametrize(("stall_s", "n_gpus"), [(5.0, 512), (40.0, 8192), (300.0, 16384)])
def test_optimal_interval_is_the_best_there_is(stall_s: float, n_gpus: int) -> None:
    """Young's and Daly's formulas against a search over the renewal expression, whose optimum they approximate."""
    reliability = replace(PLAIN, checkpoint_stall_s=stall_s, checkpoint_write_s=stall_s)
    mean_s = 1.0 / sum(failure_rates_per_s(n_gpus, 8, reliability).values())
    grid = np.geomspace(stall_s, 100 * young_interval_s(stall_s, mean_s), 4000)
    values = [goodput_frac(n_gpus, 8, replace(reliability, checkpoint_interval_s=float(t))) for t in grid]
    best = max(values)
    daly = replace(reliability, checkpoint_interval_s=daly_interval_s(stall_s, mean_s))
    young = replace(reliability, checkpoint_interval_s=young_interval_s(stall_s, mean_s))
    assert goodput_frac(n_gpus, 8, daly) == pytest.approx(best, rel=1e-4)
    assert goodput_frac(n_gpus, 8, young) == pytest.approx(best, rel=1e-2)
    assert daly_interval_s(stall_s, mean_s) == pytest.approx(float(grid[int(np.argmax(values))]), rel=0.03)


def test_without_failures_only_checkpoints_cost() -> None:
    calm = replace(
        PLAIN, gpu_failures_per_s=0.0, node_failures_per_s=0.0, network_failures_per_s=0.0, software_failures_per_s=0.0
    )
    sample = simulate_runs(10 * 3600.0, 8192, 8, calm, 1)
    assert sample.wall_s.tolist() == [10 * 3600.0 + 9 * 40.0]  # none at the very end
    assert sample.ledger_s["checkpoints"].tolist() == [9 * 40.0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpoint_stall_s": 2.0, "checkpoint_write_s": 900.0},
        {"n_spare_nodes": 1, "node_repair_s": 6 * 3600.0},
        {"slow_nodes_per_s": 2e-3 / DAY_S, "slow_factor": 1.5, "slow_s": 7200.0},
        {"preemptions_per_s": 2e-3 / DAY_S, "preemption_notice_s": 120.0},
        {"detection_s": 600.0},
    ],
)
def test_the_ledger_is_the_wall_time(changes: dict[str, float]) -> None:
    sample = runs(replace(PLAIN, **changes))
    assert set(sample.ledger_s) == set(LEDGER)
    assert sum(sample.ledger_s.values()) == pytest.approx(sample.wall_s, rel=1e-9)
    assert sample.ledger_s["work"] == pytest.approx(20 * DAY_S, rel=1e-9)
    assert all((seconds >= 0.0).all() for seconds in sample.ledger_s.values())


def test_what_recovery_is_worth() -> None:
    base, _ = goodput(runs(PLAIN))
    few = replace(PLAIN, n_spare_nodes=1, node_repair_s=DAY_S)
    many = replace(few, n_spare_nodes=1000)
    assert goodput(runs(few))[0] < base - 0.01
    assert goodput(runs(many))[0] == pytest.approx(base, abs=1e-12)  # the same luck, a spare for every failure
    spot = replace(PLAIN, preemptions_per_s=5e-3 / DAY_S)
    warned = replace(spot, preemption_notice_s=120.0)
    assert goodput(runs(spot))[0] < goodput(runs(warned))[0] < base
    slow = replace(PLAIN, slow_nodes_per_s=1e-3 / DAY_S, slow_factor=2.0, slow_s=3600.0)
    # a share of rate x duration of the time at half speed
    onset = 1024 * 1e-3 / DAY_S * 3600.0
    assert goodput(runs(slow))[0] == pytest.approx(base / (1 + onset / (1 + onset)), rel=0.02)


def test_same_seed_same_run() -> None:
    assert runs(PLAIN).wall_s.tolist() == runs(PLAIN).wall_s.tolist()
    assert runs(PLAIN).wall_s.tolist() != runs(PLAIN, seed=8).wall_s.tolist()


@pytest.mark.parametrize(
    ("name", "published_tib", "source"),
    [
        ("BLOOM-176B", 2.3, "bigscience chronicles, iteration 12695"),
        ("Nemotron-4-340B", 4.4, "dgxc-benchmarking nemotron README"),
        ("Nemotron-4-15B", 0.204 * 1000 / 1024, "the same, printed as 204 GB"),
    ],
)
def test_checkpoint_sizes_as_published(name: str, published_tib: float, source: str) -> None:
    """Printed as TB, meant as TiB: 14 bytes a parameter (16-bit weights, fp32 copy, two fp32 moments) fit all three."""
    work = TrainingWork("full_finetune", 1e9, 2048, 2048, 1, "bf16", "adamw", True, 4.0, None, 1.0, 0.8)
    assert checkpoint_bytes(load_model(name), work) == pytest.approx(published_tib * 2**40, rel=0.03), source
