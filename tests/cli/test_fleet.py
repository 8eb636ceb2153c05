"""Fleet and prefill keys of a scenario, and the serving part of a plan with all its names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenario_files import SERVING, run, with_line

from moeplan.files.load import load

BAD = {
    "unknown dispatch": ("fleet: {dispatch: best}", "serving.fleet.dispatch: unknown value"),
    "no target": ("fleet: {autoscaling: {max_replicas: 4}}", "one of these keys is needed"),
    "two targets": ("fleet: {autoscaling: {max_replicas: 4, queue: 2, in_flight: 9}}", "only one of these may be set"),
    "more than most": ("fleet: {autoscaling: {min_replicas: 5, max_replicas: 4, queue: 2}}", "is above max_replicas"),
    "begins outside": (
        "fleet: {autoscaling: {min_replicas: 2, max_replicas: 4, queue: 2}}", "the replicas to begin with are outside"),
    "target zero": ("fleet: {autoscaling: {max_replicas: 4, queue: 0}}", "must not be zero"),
    "more than there are": ("fleet: {autoscaling: {max_replicas: 9, queue: 2}}", "need 9 GPUs"),
    "fails always": ("fleet: {failures: {mtbf_per_gpu: 0 s}}", "must not be zero"),
    "no bandwidth": ("fleet: {cold_start: {weights_rate: 0 GB/s}}", "must not be zero"),
    "rollback first": ("fleet: {update: {at: 2 h, rollback_at: 1 h}}", "the rollback comes before the update"),
    "never preempted": ("fleet: {spot: 0 req/d}", "must not be zero"),
    "prefill does not divide": ("prefill: {tp: 3}", "serving.prefill.tp: tp does not divide"),
    "prefill with failures": ("prefill: {}\n  fleet: {failures: {}}", "the number of replicas stays"),
    "both pools too large": ("prefill: {tp: 4, replicas: 2}", "need 9 GPUs"),
}  # fmt: skip


def _scenario(folder: Path, serving: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(with_line(SERVING, 13, f"  {serving}"), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_fleet(name: str, tmp_path: Path) -> None:
    serving, message = BAD[name]
    result = run("check", _scenario(tmp_path, serving))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith(f"{tmp_path / 's.yaml'}:")


def test_a_fleet_states_where_its_defaults_come_from(tmp_path: Path) -> None:
    scenario = load(_scenario(tmp_path, "fleet: {autoscaling: {max_replicas: 4, queue: 2}, failures: {}, spot: 1/d}"))
    fleet = scenario.serving.fleet
    assert fleet.cold_start.weights_bytes_per_s == 2.4e9
    assert (fleet.autoscaling.interval_s, fleet.autoscaling.cooldown_s) == (15.0, 300.0)
    assert fleet.failures.failures_per_gpu_s * 86_400.0 == pytest.approx(4.74e-4, rel=0.05)  # Llama 3, all causes
    assert fleet.spot.preemptions_per_replica_s == pytest.approx(1 / 86_400.0)
    for name in ("cold_start.engine_s", "autoscaling.interval_s", "failures.repair_s", "spot.notice_s", "retries"):
        origin = scenario.origins[f"serving.fleet.{name}"]
        assert origin.how == "default"
        assert origin.where.startswith("data/")
        assert origin.note


SMALL = "requests: 300\n    conversation: {turns: 3, think_time: 1 s}\n    classes: [{name: chat, share: 1}]"


@pytest.mark.parametrize(
    "serving",
    [
        "fleet: {autoscaling: {max_replicas: 3, in_flight: 20}, failures: {mtbf_per_gpu: 60 s, repair: 5 s}}",
        "prefill: {}",
    ],
    ids=["fleet", "apart"],
)
def test_the_plan_has_all_its_names(serving: str, tmp_path: Path) -> None:
    text = with_line(with_line(SERVING, 13, f"  {serving}"), 10, f"    rate: 4 req/s\n    {SMALL}")
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    result = run("simulate", path, "--json")
    assert result.exit_code in (0, 3)
    found = json.loads(result.stdout)["serving"]
    assert set(found["itl_s"]) == {"mean", "p50", "p90", "p95", "p99"}
    outcomes = found["outcomes"]
    assert set(outcomes) == {"completed", "rejected", "timed_out", "lost", "retried"}
    unanswered = outcomes["rejected"] + outcomes["timed_out"] + outcomes["lost"]
    assert outcomes["completed"] + unanswered == found["n_requests_simulated"]
    assert sum(found["reasons"].values()) == unanswered
    assert found["classes"]["chat"]["outcomes"] == outcomes
    assert {len(column) for column in found["timeline"].values()} == {len(found["timeline"]["time_s"])}
    assert 0 < len(found["timeline"]["time_s"]) <= 400
    assert {len(column) for column in found["latency_cdf"].values()} == {101}
    assert sum(found["batch_size"]["time_frac"]) == pytest.approx(1.0)
    usage = found["usage"]
    assert usage["gpu_hours"] == pytest.approx(usage["gpu_hours_per_month"] / 730.0 * usage["span_hours"])
    n_gpus = 2 if "prefill" in serving else usage["replica_hours"] / usage["span_hours"]
    assert usage["gpu_hours"] == pytest.approx(n_gpus * usage["span_hours"])


def test_interrupted_it_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moeplan.simulate import fleet

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet.FleetRun, "_sample", interrupt)
    out = tmp_path / "plan.json"
    result = run("simulate", _scenario(tmp_path, "slo: {ttft: 1 s}"), "--out", out)
    assert result.exit_code != 0
    assert list(tmp_path.iterdir()) == [tmp_path / "s.yaml"]


@pytest.mark.parametrize("target", ["ttft", "tpot", "e2e"])
def test_a_target_of_zero_is_an_error(target: str, tmp_path: Path) -> None:
    result = run("check", _scenario(tmp_path, f"slo: {{{target}: 0 s}}"))
    assert (result.exit_code, f"serving.slo.{target}: must not be zero" in result.stderr) == (2, True)


def test_requests_that_never_fit_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,9000,5\n2,10,5\n")
    text = with_line(with_line(with_line(SERVING, 10, "    trace: t.csv"), 11, ""), 12, "")
    (tmp_path / "s.yaml").write_text(text)
    result = run("simulate", tmp_path / "s.yaml", "--json")
    assert result.exit_code == 3
    plan = json.loads(result.stdout)
    assert plan["serving"]["reasons"] == {"rejected: longer than the context": 1}
    load_check = next(v for v in plan["verdicts"] if v["check"] == "load")
    assert "1 of 3 requests were not answered: 1 rejected: longer than the context" in load_check["text"]
