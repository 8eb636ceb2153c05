"""Wrong routing input: every problem is located, exit 2."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from scenario_files import SERVING, TRAINING, run, with_line

MOE = with_line(SERVING, 7, "  precision: native").replace("layout: {tp: 1, replicas: 1}", "layout: {tp: 8, ep: 8}")
OLMOE = MOE.replace("Qwen3-30B-A3B", "OLMoE-1B-7B").replace("8192", "4096")
LINE = len(SERVING.splitlines())  # of routing, the last one

BAD = {
    "preset": ("routing: {preset: deepsek}", "routing.preset", ("unknown preset", "did you mean deepseek-v3?")),
    "two laws": ("routing: {zipf: 0.3, preset: deepseek-v3}", "routing", ("only one of these may be set",)),
    "no value": ("routing: {popularity: lognormal}", "routing.popularity", ("lognormal needs a value",)),
    "zero dirichlet": (
        "routing: {popularity: {law: dirichlet, value: 0}}",
        "routing.popularity",
        ("out of range", "0.01 to 1000"),
    ),
    "group spread": (
        "routing: {popularity: {law: lognormal, value: 0.3, group_spread: 0.4}}",
        "routing.popularity.group_spread",
        ("at most 0.3",),
    ),
    "infinite weights": (
        "routing: {popularity: {law: lognormal, value: 500}}",
        "routing.popularity.value",
        ("out of range", "0 to 4"),
    ),
    "many topics": (
        "routing: {correlation: {topics: 100000, spread: 1, tokens: 4}}",
        "routing.correlation.topics",
        ("1 to 256",),
    ),
    "negative": ("routing: {popularity: {law: zipf, value: -1}}", "routing.popularity", ("must not be negative",)),
    "capacity": ("routing: {capacity_factor: 0.5}", "routing.capacity_factor", ("too small", "at least 1")),
    "copies": ("routing: {redundant_experts: 3, placement: greedy}", "routing.redundant_experts", ("do not divide",)),
    "unbalanced copies": ("routing: {redundant_experts: 8}", "routing", ("need a balanced placement",)),
    "map rows": ("routing: {placement_map: [[0, 1]]}", "routing.placement_map", ("one row per GPU",)),
    "topics": ("routing: {correlation: {topics: 0, spread: 1, tokens: 4}}", "routing.correlation.topics", ("zero",)),
    "nothing to renew": ("routing: {rebalance: 10}", "routing.rebalance", ("drift_half_life",)),
    "nothing to balance": (
        "routing: {placement: contiguous, drift_half_life: 5, rebalance: 10}",
        "routing.rebalance",
        ("a balanced `placement`",),
    ),
    "no gate": ("routing: {router: hash, balance: loss_free}", "routing.balance", ("no gate to balance",)),
    "no training": ("routing: {balance: aux_loss}", "routing.balance", ("acts while training",)),
    "no half-life": ("routing: {drift_half_life: 0}", "routing.drift_half_life", ("must not be zero",)),
    "hash": ("routing: {router: hsh}", "routing.router", ("unknown value", "did you mean hash?")),
    "missing file": ("routing: {popularity: {histogram: none.csv}}", "routing.popularity.histogram", ("no such",)),
    "outside": ("routing: {popularity: {histogram: ../x.csv}}", "routing.popularity.histogram", ("outside",)),
}


def check(tmp_path, routing, text=MOE):
    path = tmp_path / "s.yaml"
    path.write_text(text.replace("routing: {zipf: 0.3}", routing))
    return run("check", path)


@pytest.mark.parametrize("name", BAD)
def test_located(tmp_path, name):
    routing, path, words = BAD[name]
    result = check(tmp_path, routing)
    assert result.exit_code == 2
    assert f"s.yaml:{LINE}:" in result.output
    assert path in result.output
    for word in words:
        assert word in result.output


HISTOGRAMS = {
    "length": ("0,{e},1\n", 100, "layer 0 has 100 experts, the model has 128"),
    "too many": ("0,{e},1\n", 129, "the model has 128 experts"),
    "all zero": ("0,{e},0\n", 128, "no selection at all"),
    "negative": ("0,{e},-1\n", 128, "must not be negative"),
    "text": ("0,{e},many\n", 128, "not a number"),
    "infinite": ("0,{e},inf\n", 128, "not a number"),
    "twice": ("0,5,1\n", 2, "twice"),
    "layers": ("{e},0,1\n", 3, "layer 0 has 1 experts"),
}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_histogram_lines(tmp_path, name):
    row, n, words = HISTOGRAMS[name]
    (tmp_path / "h.csv").write_text("layer,expert,count\n" + "".join(row.format(e=e) for e in range(n)))
    result = check(tmp_path, "routing: {popularity: {histogram: h.csv}}")
    assert result.exit_code == 2
    assert "h.csv:" in result.output
    assert words in result.output


def test_histogram_header(tmp_path):
    (tmp_path / "h.csv").write_text("a,b\n1,2\n")
    result = check(tmp_path, "routing: {popularity: {histogram: h.csv}}")
    assert result.exit_code == 2
    assert "missing columns" in result.output


def test_good_histogram(tmp_path):
    rows = "".join(f"0,{e},{e + 1}\n" for e in range(128))
    (tmp_path / "h.csv").write_text("layer,expert,count\n" + rows)
    assert check(tmp_path, "routing: {popularity: {histogram: h.csv}}").exit_code == 0


def test_expert_placed_nowhere(tmp_path):
    rows = [[(rank * 16 + i) % 127 for i in range(16)] for rank in range(8)]
    result = check(tmp_path, f"routing: {{placement_map: {json.dumps(rows)}}}")
    assert result.exit_code == 2
    assert "1 experts are placed nowhere: 127" in result.output


def test_a_training_run_keeps_one_of_each_expert(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(TRAINING + "routing: {placement: greedy, redundant_experts: 8}\n")
    result = run("check", path)
    assert result.exit_code == 2
    assert "copies of experts are for serving" in result.output


@pytest.mark.parametrize("change", [{"num_experts_per_tok": 300}, {"n_group": 7}, {"topk_group": 9}])
def test_gate_of_a_config(tmp_path, change):
    """k > experts and groups that do not divide are problems of the model's own file."""
    config = json.loads((files("moeplan") / "data/models/DeepSeek-V3.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    result = check(tmp_path, "routing: {zipf: 0.3}", MOE.replace("model: Qwen3-30B-A3B", "model: ./config.json"))
    assert result.exit_code == 2
    assert "config.json:1:1: " in result.output


@pytest.mark.parametrize("preset", ["deepseek-v3", "mixtral-8x7b", "qwen1.5-moe-a2.7b", "aux-loss-training"])
def test_presets_are_read(tmp_path, preset):
    assert check(tmp_path, f"routing: {preset}").exit_code == 0


def test_measured_preset_belongs_to_its_model(tmp_path):
    assert check(tmp_path, "routing: olmoe-1b-7b").exit_code == 2
    assert check(tmp_path, "routing: olmoe-1b-7b", OLMOE).exit_code == 0
