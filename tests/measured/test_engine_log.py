"""A real engine's log, replayed with nothing fitted to it (vLLM 0.24 on one H200, measured for this project)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from moeplan.calibrate.engine_log import compare, is_engine_log
from moeplan.cli import main

LOG = Path(__file__).parents[2] / "hardware_profiles" / "h200-sxm" / "measured" / "vllm-0.24.0"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The log's windows at 20 requests/s, and the engine that sized its own KV cache."""
    folder = tmp_path_factory.mktemp("log")
    shutil.copytree(LOG / "model_configs", folder / "model_configs")
    engines = json.loads((LOG / "engines.json").read_text())
    (folder / "engines.json").write_text(json.dumps({k: v for k, v in engines.items() if k.startswith("qwen3")}))
    steps = pd.read_csv(LOG / "steps.csv.gz")
    steps[steps["window"] == "traffic rate 20"].to_csv(folder / "steps.csv.gz", index=False)
    requests = pd.read_csv(LOG / "traffic_requests.csv.gz")
    requests[requests["rate_req_s"] == 20].to_csv(folder / "traffic_requests.csv.gz", index=False)
    return folder


def test_iterations_and_requests_agree_with_the_real_engine(small):
    found = {(one.run, one.quantity): one for one in compare(small, "h200-sxm", lambda _: None)}
    capacity = found["qwen3-30b-a3b", "KV capacity [tokens]"]
    assert capacity.predicted == pytest.approx(capacity.measured, rel=0.03)

    def ratio(quantity: str) -> float:
        one = found["qwen3-30b-a3b-graph8k", quantity]
        return one.predicted / one.measured

    assert found["qwen3-30b-a3b-graph8k", "iteration, median error"].predicted < 0.06
    for quantity in ("iterations", "mean running", "TPOT p50 [ms]", "TPOT p90 [ms]", "E2E p50 [ms]"):
        assert ratio(quantity) == pytest.approx(1.0, abs=0.05), quantity
    for quantity in ("TTFT p50 [ms]", "TTFT p90 [ms]", "KV peak"):
        assert ratio(quantity) == pytest.approx(1.0, abs=0.12), quantity
    assert found["qwen3-30b-a3b-graph8k", "E2E by request, median error"].predicted < 0.05


def test_the_command_knows_a_log_from_tables(small, tmp_path):
    assert is_engine_log(small)
    assert not is_engine_log(tmp_path)
    result = CliRunner().invoke(main, ["accuracy", str(small), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["comparisons"]
    assert {row["run"] for row in rows} == {"qwen3-30b-a3b", "qwen3-30b-a3b-graph8k"}
    assert all(row["measured"] is None or np.isfinite(row["measured"]) for row in rows)
