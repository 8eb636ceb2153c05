"""``moeplan sweep``: designs, results that outlive a kill, failures by the point, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from scenario_files import SERVING, TRAINING, run

from moeplan.errors import InputError
from moeplan.files.load import load
from moeplan.files.plan_row import plan_digest
from moeplan.files.scenario.question import ask
from moeplan.files.scenario.vary import read_factors
from moeplan.planner.plan import simulate
from moeplan.planner.search.design import design_points, unit_cube
from moeplan.planner.search.sweep import sweep

DENSE = TRAINING.replace("OLMoE-1B-7B", "Qwen2.5-7B").replace(", ep: 8", "").replace("1B tokens", "100M tokens")
VARY = ("training.overlap=0,0.25,0.5,1", "training.layout.zero=2,3")


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Plans of dense training take milliseconds."""
    path = tmp_path / "train.yaml"
    path.write_text(DENSE)
    return path


def test_a_row_asked_again_alone_gives_the_same_bytes(training: Path) -> None:
    found = sweep(training, VARY, overrides=["seed=3"])
    assert len(found.points) == 8
    assert not found.failed
    for point in found.points:
        again = simulate(load(training, point.overrides))
        assert plan_digest(again) == point.row["plan_sha256"]
        assert again.training.step_time_s.value == point.row["training.step_time_s.value"]


def test_executors_give_the_same_rows(training: Path) -> None:
    alone = sweep(training, VARY)
    with ThreadPoolExecutor(3) as executor:
        assert sweep(training, VARY, executor=executor) == alone
    assert run("sweep", training, *vary(VARY), "--json").stdout == run("sweep", training, *vary(VARY), "--json").stdout
    shown = json.loads(run("sweep", training, *vary(VARY), "--json").stdout)
    assert [dict(p.row) for p in alone.points] == [p["row"] for p in shown["points"]]


def vary(texts: tuple[str, ...]) -> list[str]:
    return [part for text in texts for part in ("--vary", text)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_results_file_holds_every_point_once(training: Path, suffix: str) -> None:
    out = training.with_suffix(suffix)
    assert run("sweep", training, *vary(VARY), "--out", out).exit_code == 0
    first = out.read_bytes()
    frame = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert list(frame["index"]) == list(range(8))
    assert frame["training.step_time_s.value"].gt(0).all()
    assert json.loads(frame["overrides"][7]) == ["training.overlap=1", "training.layout.zero=3"]
    told: list[tuple[int, int]] = []
    sweep(training, VARY, out=out, progress=lambda done, total: told.append((done, total)))
    assert told == [(8, 8)], "finished points are not computed again"
    assert out.read_bytes() == first


def test_a_journal_cut_at_any_byte_loses_at_most_the_cut_point(training: Path) -> None:
    out = training.with_suffix(".csv")
    sweep(training, VARY, out=out)
    journal, whole = out.with_name(out.name + ".journal"), out.read_bytes()
    data = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for cut in (0, ends[0] // 2, ends[0], ends[0] + 1, ends[3] - 1, ends[3], ends[5] + 7, len(data) - 1):
        journal.write_bytes(data[:cut])
        finished = max(sum(end <= cut for end in ends) - 1, 0)
        told: list[tuple[int, int]] = []
        sweep(training, VARY, out=out, progress=lambda done, _total, told=told: told.append(done))
        assert told[0] == finished
        assert out.read_bytes() == whole


def test_results_of_another_sweep_are_refused(training: Path) -> None:
    out = training.with_suffix(".csv")
    sweep(training, VARY, out=out)
    kept = out.read_bytes()
    for arguments in (["--set", "seed=9"], ["--vary", "training.packing=50 %, 1"]):
        result = run("sweep", training, *vary(VARY), *arguments, "--out", out)
        assert (result.exit_code, "results of another sweep" in result.stderr) == (2, True), result.output
    training.write_text(DENSE.replace("global_batch: 64", "global_batch: 128"))
    assert "results of another sweep" in run("sweep", training, *vary(VARY), "--out", out).stderr
    assert out.read_bytes() == kept
    strange = training.with_name("mine.csv")
    strange.write_text("a,b\n1,2\n")
    assert "has no journal" in run("sweep", training, *vary(VARY), "--out", strange).stderr
    (training.with_name("x.csv.journal")).write_text("hello\n")
    result = run("sweep", training, *vary(VARY), "--out", training.with_name("x.csv"))
    assert (result.exit_code, "not the journal of a sweep" in result.stderr) == (2, True)


def test_a_local_file_the_scenario_names_belongs_to_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,10\n1,10,10\n")
    path = tmp_path / "s.yaml"
    lines = "    rate: 4 req/s\n    input_tokens: 1024\n    output_tokens: 200\n"
    path.write_text(SERVING.replace(lines, "    trace: t.csv\n"))
    before = ask(path).sha256()
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,10\n1,10,11\n")
    assert ask(path).sha256() != before


def test_failures_are_rows(training: Path) -> None:
    result = run("sweep", training, "--vary", "training.micro_batch=2,3,8", "--json")
    assert result.exit_code == 0
    points = json.loads(result.stdout)["points"]
    assert [p["error"] is None for p in points] == [True, False, True]
    assert "not a multiple of dp x micro_batch" in points[1]["error"]


def test_a_sweep_of_no_scenario_at_all_touches_no_file(training: Path, tmp_path: Path) -> None:
    """A mistake in the factor, as a unit left out, must not make the mended command another sweep's."""
    out = tmp_path / "none.csv"
    nothing = run("sweep", training, "--vary", "training.micro_batch=3,5", "--out", out)
    assert (nothing.exit_code, "not a multiple of dp x micro_batch" in nothing.stderr) == (2, True)
    assert not list(tmp_path.glob("none*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("serving.traffik.rate=1,2", "unknown key (got traffik)"),
        ("hardware=1..4", "not a number, it has no range"),
        ("serving.traffic.rate=4..1 req/s", "an empty range"),
        ("serving.traffic.rate=1 req/s..2 req/min:3", "a range in two units"),
        ("serving.traffic.rate=1..4 req/s", "a grid over a range needs a number of steps"),
        ("serving.traffic.rate=0..4 req/s:3:log", "logarithmic"),
        ("serving.layout.tp=1,,2", "an empty value"),
        ("serving.layout.tp=2,2", "listed twice"),
        ("serving.layout.tp", "expected PATH=VALUES"),
        ("serving.layout.tp.x=1,2", "single value"),
        ("serving.layout.tp=1..x", "not a range"),
    ],
)
def test_what_cannot_be_varied_is_said_before_any_work(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SERVING)
    result = run("sweep", path, "--vary", text)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_contradictory_factors(training: Path) -> None:
    twice = run("sweep", training, "--vary", "seed=1,2", "--vary", "seed=3,4")
    assert "varied twice" in twice.stderr
    inside = run("sweep", training, "--vary", "training.layout={dp: 8}", "--vary", "training.layout.ep=1,2")
    assert "contradicts --vary training.layout" in inside.stderr
    assert "nothing to vary" in run("sweep", training).stderr
    assert "needs a number of points" in run("sweep", training, *vary(VARY), "--design", "lhs").stderr
    assert "powers of two" in run("sweep", training, *vary(VARY), "--design", "sobol", "--points", "6").stderr
    assert "a grid has" in run("sweep", training, *vary(VARY), "--points", "6").stderr


@pytest.mark.parametrize("design", ["random", "lhs", "sobol"])
def test_samples_fill_their_ranges_and_repeat(training: Path, design: str) -> None:
    factors = read_factors(ask(training), ["training.overlap=0..1", "training.layout.tp=1,2,4,8", "seed=1..16"])
    points = design_points(factors, design, 64, 5)
    assert points == design_points(factors, design, 64, 5)
    assert points != design_points(factors, design, 64, 6)
    overlaps = sorted(float(p[0].partition("=")[2]) for p in points)
    assert 0.0 <= overlaps[0] < 0.1 < 0.9 < overlaps[-1] <= 1.0
    assert {p[1] for p in points} == {f"training.layout.tp={n}" for n in (1, 2, 4, 8)}
    if design != "random":  # one point in each of 64 equal slices of every axis
        cube = unit_cube(design, 64, 3, 5)
        assert all(sorted((cube[:, j] * 64).astype(int)) == list(range(64)) for j in range(3))


def test_whole_numbers_stay_whole_and_log_ranges_are_even_in_the_logarithm(training: Path) -> None:
    (batch,) = read_factors(ask(training), ["training.global_batch=64..1024:5:log"])
    assert [text.partition("=")[2] for text in batch.grid()] == ["64", "128", "256", "512", "1024"]
    (ep,) = read_factors(ask(training), ["training.layout.ep=1..4"])
    assert [ep.at(q)[-1] for q in (0.0, 0.24, 0.26, 0.5, 0.76, 1.0)] == ["1", "1", "2", "3", "4", "4"]


def test_unreachable_scheduler_and_no_processes(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("sweep", training, *vary(VARY), "--scheduler", "nonsense://x")
    assert (result.exit_code, "no Dask scheduler answers" in result.stderr) == (2, True), result.output
    assert run("sweep", training, *vary(VARY), "--jobs", "0").exit_code == 2
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "moeplan[cluster]" in run("sweep", training, *vary(VARY), "--scheduler", "tcp://127.0.0.1:1").stderr


def test_full_disk_keeps_what_is_finished(training: Path) -> None:
    """A limit on file size stands for a full disk: the write fails half way through a line."""
    out = training.with_suffix(".csv")
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))\n"
        "from moeplan.cli import main\n"
        "main()\n"
    )
    arguments = ["sweep", str(training), *vary(VARY), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "points finished before are kept" in done.stderr
    assert not out.exists()
    told: list[int] = []
    sweep(training, VARY, out=out, progress=lambda n, _total: told.append(n))
    assert 0 < told[0] < 8
    assert told[-1] == 8
    with pytest.raises(InputError, match="cannot be written"):
        sweep(training, VARY, out="/nowhere/at/all.csv")


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    path, out = tmp_path / "s.yaml", tmp_path / "r.csv"
    path.write_text(SERVING)
    rates = "serving.traffic.rate=" + ",".join(f"{r / 4} req/s" for r in range(4, 28))
    command = [sys.executable, "-m", "moeplan", "sweep", str(path), "--vary", rates, "--out", str(out), "--jobs", "2"]
    journal = out.with_name("r.csv.journal")
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes().count(b"\n") - 1
    assert 4 <= kept < 24
    told: list[int] = []
    resumed = sweep(path, [rates], out=out, jobs=1, progress=lambda n, _total: told.append(n))
    assert told[0] >= kept
    assert resumed.points == sweep(path, [rates], jobs=1).points


@pytest.mark.slow
def test_dask_cluster_survives_a_killed_worker(tmp_path: Path) -> None:
    from distributed import LocalCluster

    path = tmp_path / "s.yaml"
    path.write_text(SERVING)
    rates = "serving.traffic.rate=" + ",".join(f"{r / 4} req/s" for r in range(4, 36))
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killed: list[int] = []

        def told(done: int, _total: int) -> None:
            if done == 4 and not killed:
                process = cluster.workers[0].process.process
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

        found = sweep(path, [rates], scheduler=cluster.scheduler_address, progress=told)
    assert killed
    assert not found.failed
    assert found.points == sweep(path, [rates], jobs=1).points
