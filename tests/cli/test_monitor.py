"""`moeplan monitor`: simulated histories with known causes, every input format, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from moeplan.cli import main
from moeplan.files.plan_json import read_plan
from moeplan.planner.watch.monitor import planned_values


def run(*args: object):
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert run("simulate", "scenarios/quickstart.yaml", "--out", path).exit_code == 0
    return path


def history(plan: Path, n: int = 240, seed: int = 0) -> pd.DataFrame:
    """Five-minute windows of a system that does what the plan says."""
    rng = np.random.default_rng(seed)
    planned = planned_values(read_plan(plan))
    mean = {name: q.value for name, q in planned.items()}
    noisy = {name: mean[name] * np.exp(rng.normal(0.0, 0.05, n)) for name in ("requests_per_s", "output_tokens")}
    frame = pd.DataFrame(noisy)
    frame["input_tokens"] = mean["input_tokens"] * np.exp(rng.normal(0.0, 0.05, n))
    for name in ("ttft", "tpot"):
        frame[f"{name}_ms"] = 1e3 * mean[f"{name}_s"] * np.exp(rng.normal(0.0, 0.08, n))
    frame.insert(0, "time", pd.date_range("2026-11-01", periods=n, freq="5min").strftime("%Y-%m-%dT%H:%M:%SZ"))
    return frame


def watch(plan: Path, frame: pd.DataFrame, tmp_path: Path) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "observed.csv"
    frame.to_csv(path, index=False)
    result = run("monitor", plan, path, "--json")
    assert result.exit_code in (0, 3), result.stderr
    return result.exit_code, json.loads(result.stdout)


def test_as_planned(plan: Path, tmp_path: Path) -> None:
    code, report = watch(plan, history(plan), tmp_path)
    assert code == 0
    assert report["findings"] == []
    assert {one["state"] for one in report["watched"]} == {"in plan"}


def test_false_alarms_over_all_metrics(plan: Path, tmp_path: Path) -> None:
    """40 histories of 240 windows at one alarm in 10,000 windows: about one is expected."""
    alarms = [watch(plan, history(plan, seed=seed), tmp_path)[0] == 3 for seed in range(40)]
    assert sum(alarms) <= 4


def test_a_release_that_slows_decoding(plan: Path, tmp_path: Path) -> None:
    frame = history(plan, seed=1)
    frame.loc[150:, "tpot_ms"] *= 1.25
    code, report = watch(plan, frame, tmp_path)
    assert code == 3
    (finding,) = report["findings"]
    assert finding["cause"] == "the system regressed"
    assert finding["metric"] == "tpot_s"
    began = pd.Timestamp(finding["since_s"], unit="s", tz="UTC")
    assert abs(began - pd.Timestamp(frame["time"][150])) <= pd.Timedelta("10min")
    assert "roll back" in finding["advice"]


def test_more_traffic_is_the_world(plan: Path, tmp_path: Path) -> None:
    """Latency that rises with the traffic is no regression."""
    frame = history(plan)
    frame.loc[150:, "requests_per_s"] *= 1.8
    frame.loc[150:, ["ttft_ms", "tpot_ms"]] *= 1.3
    code, report = watch(plan, frame, tmp_path)
    assert code == 3
    (finding,) = report["findings"]
    assert finding["cause"] == "the world changed"
    rate = float(finding["advice"].partition("'")[2].split()[0])
    assert rate == pytest.approx(planned_values(read_plan(plan))["requests_per_s"].value * 1.8, rel=0.02)


def test_latency_that_follows_the_hours_is_no_regression(plan: Path, tmp_path: Path) -> None:
    """One day is too short for a pattern, but the traffic on both sides of each change can be looked at."""
    for seed in range(5):
        frame = history(plan, n=288, seed=seed)
        hours = 1.0 + 0.6 * np.sin(np.arange(288) / 288 * 2 * np.pi)
        frame["requests_per_s"] *= hours
        frame[["ttft_ms", "tpot_ms"]] = frame[["ttft_ms", "tpot_ms"]].mul(hours**0.3, axis=0)
        _, report = watch(plan, frame, tmp_path)
        assert {f["cause"] for f in report["findings"]} <= {"the world changed"}
        assert all("time of day" in f["text"] for f in report["findings"])


def test_longer_answers_are_the_world(plan: Path, tmp_path: Path) -> None:
    frame = history(plan)
    frame["output_tokens"] *= 1.5
    code, report = watch(plan, frame, tmp_path)
    assert code == 3
    assert [(f["cause"], f["metric"]) for f in report["findings"]] == [("the world changed", "output_tokens")]


def test_slow_from_the_first_day_is_the_model(plan: Path, tmp_path: Path) -> None:
    frame = history(plan)
    q = planned_values(read_plan(plan))["tpot_s"]
    frame["tpot_ms"] *= 1.3 * q.high / q.value
    code, report = watch(plan, frame, tmp_path)
    assert code == 3
    (finding,) = report["findings"]
    assert finding["cause"] == "the model was wrong"
    assert finding["since_s"] is None
    assert "calibrate" in finding["advice"]


def test_faster_is_told_and_no_alarm(plan: Path, tmp_path: Path) -> None:
    frame = history(plan)
    frame.loc[150:, "tpot_ms"] *= 0.7
    code, report = watch(plan, frame, tmp_path)
    assert code == 0
    assert [f["cause"] for f in report["findings"]] == ["the system improved"]


def test_dollars_follow_from_the_bill_and_the_tokens(plan: Path, tmp_path: Path) -> None:
    frame = history(plan)[["time"]].assign(output_tokens_per_s=1000.0, usd_per_hour=7.2)
    _, report = watch(plan, frame, tmp_path)
    (cost,) = [one for one in report["watched"] if one["name"] == "usd_per_million_output_tokens"]
    assert cost["now"] == pytest.approx(2.0)


def scrapes(n: int, engine: str, tpot_s: float = 0.02) -> list[dict[str, float]]:
    """Cumulative counters at n times: 10 requests of 1,000 and 200 tokens between two of them."""
    tpot = f"{engine}:{'inter_token_latency' if engine == 'vllm' else 'time_per_output_token'}_seconds"
    done = "vllm:request_success_total" if engine == "vllm" else "sglang:num_requests_total"
    return [
        {
            done: 10.0 * i,
            f"{engine}:prompt_tokens_total": 10_000.0 * i,
            f"{engine}:generation_tokens_total": 2_000.0 * i,
            f"{engine}:time_to_first_token_seconds_sum": 1.2 * i,
            f"{engine}:time_to_first_token_seconds_count": 10.0 * i,
            f"{tpot}_sum": 1_990.0 * tpot_s * i,
            f"{tpot}_count": 1_990.0 * i,
        }
        for i in range(1, n + 1)
    ]


def as_text(counters: list[dict[str, float]], stamps: bool) -> str:
    lines = []
    for i, scrape in enumerate(counters):
        for name, value in scrape.items():
            lines.append(f'{name}{{model_name="m"}} {value}' + (f" {(1_000 + 60 * i) * 1000}" if stamps else ""))
    return "# HELP some text\n" + "\n".join(lines) + "\n"


def as_json(counters: list[dict[str, float]]) -> str:
    answers = [
        {
            "status": "success",
            "data": {
                "resultType": "matrix",
                "result": [
                    {
                        "metric": {"__name__": name, "instance": "a"},
                        "values": [[1_000 + 60 * i, str(scrape[name])] for i, scrape in enumerate(counters)],
                    }
                ],
            },
        }
        for name in counters[0]
    ]
    return json.dumps(answers)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_metrics_of_engines(engine: str, form: str, plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    counters = scrapes(20, engine)
    path.write_text(as_text(counters, stamps=True) if form == "text" else as_json(counters))
    result = run("monitor", plan, path, "--json")
    now = {one["name"]: one["now"] for one in json.loads(result.stdout)["watched"]}
    assert now == pytest.approx(
        {
            "requests_per_s": 10 / 60, "input_tokens": 1000.0, "output_tokens": 200.0, "ttft_s": 0.12, "tpot_s": 0.02,
            "output_tokens_per_s": 2000 / 60,
        }
    )  # fmt: skip


def test_one_scrape_has_means_but_no_rates(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(as_text(scrapes(1, "vllm"), stamps=False))
    report = json.loads(run("monitor", plan, path, "--json").stdout)
    assert {one["name"] for one in report["watched"]} == {"input_tokens", "output_tokens", "ttft_s", "tpot_s"}
    assert {one["n_windows"] for one in report["watched"]} == {1}


def test_a_restart_is_a_gap_not_a_negative_rate(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(as_json([*scrapes(10, "vllm"), *scrapes(10, "vllm")]))
    report = json.loads(run("monitor", plan, path, "--json").stdout)
    (rate,) = [one for one in report["watched"] if one["name"] == "requests_per_s"]
    assert rate["n_windows"] == 18
    assert rate["now"] == pytest.approx(10 / 60)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"time,tpot_ms\n", "no rows"),
        (b"tpot_ms\n5\n", "column time missing"),
        (b"time,tpot\n1,5\n", "did you mean tpot_"),
        (b"time,tpot_ms\n1,5\n2,fast\n", "observed:3: tpot_ms: not a finite number"),
        (b"time,tpot_ms\n1,nan\n", "observed:2: tpot_ms: not a finite number"),
        (b"time,tpot_ms\n1,-5\n", "observed:2: tpot_ms: not a finite number"),
        (b"time,tpot_ms\nyesterday,5\n", "observed:2: time: not a time"),
        (b"time,tpot_ms\n2,5\n1,5\n", "observed:3: time: earlier than the window before"),
        (b"time,tpot_ms\n1,5,7,9\n2,5\n", "observed"),
        (b'time,tpot_ms\n1,"5\n', "not a readable CSV table"),
        (b"time,tpot_ms\n1,\xff\n", "not a readable CSV table"),
        (b"{", "observed:1:2: not JSON"),
        (b'{"data": {"resultType": "vector", "result": []}}', "not the answer of a range query"),
        (b'{"data": {"resultType": "matrix", "result": [{"metric": {}, "values": []}]}}', "has no __name__"),
        (b'[{"data": {"resultType": "matrix", "result": []}}]', "no metric of vLLM or SGLang"),
        (b"# HELP x y\nup 1\n", "no metric of vLLM or SGLang"),
        (b"vllm:prompt_tokens_total one\n", "not Prometheus text"),
        (b"vllm:prompt_tokens_total 1\nvllm:prompt_tokens_total 2\n", "stands twice at one time"),
    ],
)
def test_bad_telemetry(content: bytes, message: str, plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "observed"
    path.write_bytes(content)
    result = run("monitor", plan, path)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.parametrize(("content", "message"), [("{}", "not a plan of this version"), ("nonsense", "not a plan")])
def test_bad_plan(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    result = run("monitor", path, path)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_plan_that_serves_nothing(tmp_path: Path) -> None:
    path, observed = tmp_path / "plan.json", tmp_path / "o.csv"
    assert run("simulate", "scenarios/pretrain-olmoe.yaml", "--out", path).exit_code in (0, 3)
    observed.write_text("time,tpot_ms\n1,5\n")
    result = run("monitor", path, observed)
    assert result.exit_code == 2
    assert "serves nothing" in result.stderr
