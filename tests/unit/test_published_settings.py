"""Settings of published benchmarks: read, applied in order, only where the run names the benchmark."""

from __future__ import annotations

import math

import pytest

from moeplan.calibrate.published_settings import _benchmarks, published_settings
from moeplan.files.catalog.engine_defaults import ENGINE_FIELDS

ROW = {
    "notes": "InferenceX random dataset",
    "engine": "sglang",
    "model": "DeepSeek-R1",
    "hardware": "b200-sxm",
    "weight_precision": "fp4",
    "concurrency": 8.0,
    "tp": 8.0,
    "dp": math.nan,
    "input_tokens": 1024.0,
    "output_tokens": 1024.0,
}


def test_later_settings_win():
    few, many = published_settings(ROW), published_settings(ROW | {"concurrency": 16.0})
    assert (few["receive_iterations"], many["receive_iterations"]) == (10, 30)
    assert few["max_num_batched_tokens"] == 16384
    assert published_settings(ROW | {"weight_precision": "fp8"})["max_num_batched_tokens"] == 32768


def test_prompts_size_what_the_generator_sizes_by_them():
    row = ROW | {"notes": "gemm=nan moe=nan", "model": "Llama-3.1-8B", "input_tokens": 2000.0}
    assert published_settings(row | {"engine": "trtllm"})["max_num_batched_tokens"] == 4012
    old, new = (published_settings(row | {"engine_version": version}) for version in ("0.5.1.post1", "0.5.6.post2"))
    assert (old, new["prefill_first"]) == ({}, False)
    assert "prefill_first" not in published_settings(row | {"notes": "gemm=nan; InferenceX", "engine_version": "0.5.9"})


def test_the_command_line_a_run_quotes_counts():
    notes = (
        "1000 requests; cmd: vllm serve openai/gpt-oss-20b --async-scheduling --max-num-batched-tokens 4096 --max-num"
    )
    assert published_settings(ROW | {"notes": notes}) == {"async_scheduling": True, "max_num_batched_tokens": 4096}


def test_runs_of_nobody_known_have_none():
    assert published_settings(ROW | {"notes": "gemm=fp8"}) == {}
    assert published_settings({k: v for k, v in ROW.items() if k != "notes"}) == {}


@pytest.mark.parametrize(("tp", "waits"), [(4.0, 20), (8.0, None)])
def test_numbers_are_compared(tp, waits):
    row = ROW | {"engine": "trtllm", "model": "Llama-3.1-70B", "tp": tp}
    assert published_settings(row).get("batch_wait_iterations") == waits


def test_every_setting_has_a_source_and_a_meaning():
    known = set(ENGINE_FIELDS) | {"kv_cache", "weights", "requests_per_user"}
    for benchmark in _benchmarks():
        for entry in benchmark["settings"]:
            assert entry["source"]
            assert set(entry["set"]) <= known
