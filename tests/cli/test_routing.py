"""``moeplan routing``."""

from __future__ import annotations

import json

import pytest
from scenario_files import SERVING, TRAINING, run

MOE = SERVING.replace("layout: {tp: 1, replicas: 1}", "layout: {tp: 8, ep: 8}")
PLACED = "routing: {zipf: 0.6, placement: greedy, redundant_experts: 8}"


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "s.yaml"

    def write(text):
        path.write_text(text)
        return path

    return write


def test_before_and_after(scenario):
    path = scenario(MOE.replace("routing: {zipf: 0.3}", PLACED))
    found = json.loads(run("routing", path, "--json", "--steps", "4", "--batch", "32").stdout)
    assert [s["name"] for s in found["steps"]] == ["decode", "prefill"]
    for kind in found["steps"]:
        before, after = kind["in_order"], kind["placed"]
        assert before["n_steps"] == after["n_steps"] == 4
        assert after["straggler_over_mean"]["mean"] < before["straggler_over_mean"]["mean"]
        assert len(after["traffic_tokens"]) == 8


def test_same_bytes(scenario):
    path = scenario(MOE)
    first, second = (run("routing", path, "--json", "--steps", "2", "--batch", "8").stdout for _ in range(2))
    assert first == second


def test_training(scenario):
    result = run("routing", scenario(TRAINING), "--steps", "2")
    assert result.exit_code == 0
    assert "training micro-batch" in result.stdout


def test_drops(scenario):
    path = scenario(TRAINING + "routing: {training_zipf: 0.5, capacity_factor: 1}\n")
    found = json.loads(run("routing", path, "--json", "--steps", "2").stdout)
    assert found["steps"][0]["in_order"]["dropped_frac"]["mean"] > 0.05


def test_table_of_one_gpu(scenario):
    result = run("routing", scenario(SERVING), "--steps", "2", "--batch", "8")
    assert result.exit_code == 0
    assert "busiest GPU over mean" in result.stdout


def test_dense_model_is_refused(scenario):
    path = scenario(SERVING.replace("Qwen3-30B-A3B", "Qwen3-8B").replace("routing: {zipf: 0.3}\n", ""))
    result = run("routing", path)
    assert result.exit_code == 2
    assert "routes nothing" in result.output


def test_no_such_file():
    assert run("routing", "nowhere.yaml").exit_code == 2
