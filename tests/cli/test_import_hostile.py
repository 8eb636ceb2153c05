"""`moeplan import` against planted keys in every text, odd numbers, whole listings, cuts anywhere, endless files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from import_cases import AIPERF, GUIDELLM, INFERENCEX, LLMPERF, SGLANG, VLLM

from moeplan.cli import main
from moeplan.errors import InputError
from moeplan.files.runs.imports import table
from moeplan.files.runs.imports.document import documents
from moeplan.files.runs.imports.row import Setup

ALL = {"vllm": VLLM, "sglang": SGLANG, "aiperf": AIPERF, "guidellm": GUIDELLM, "llmperf": LLMPERF, "x": INFERENCEX}
STATED = ("--hardware", "h200-sxm", "--engine", "vllm", "--model", "Qwen3-30B-A3B")
# A key that looks like a date, a name and a version, and would colour a terminal.
PLANTED = ("2026-\x1b[31mkey", "2026-01-sk-planted", "sk-planted", "img:v1.0 sk-planted", "=cmd|' /C calc'!A0")

KEPT = (
    "unit", "model", "model_id", "model_names", "type_", "request_rate", "hw", "results_number_output_tokens_min",
)  # fmt: skip


def run(*args: object):
    return CliRunner().invoke(main, ["import", *map(str, args)])


def texts_replaced(node: Any, planted: str, kept: tuple[str, ...] = ()) -> Any:
    """``node`` with every text changed, except under ``kept`` keys: units, and what tells a format."""
    if isinstance(node, dict):
        return {k: v if k in kept else texts_replaced(v, planted, kept) for k, v in node.items()}
    if isinstance(node, list):
        return [texts_replaced(one, planted, kept) for one in node]
    return planted if isinstance(node, str) else node


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", ALL)
def test_a_key_in_every_text_comes_out_nowhere(name: str, planted: str, tmp_path: Path) -> None:
    path, out = tmp_path / "r.json", tmp_path / "o.csv"
    path.write_text(json.dumps(texts_replaced(ALL[name], planted, KEPT)))
    stated = STATED[2:4] if name == "x" else (*STATED[: 6 if name == "sglang" else 4], "--n-gpus", "1")
    result = run(path, "--out", out, *stated)
    assert result.exit_code == 0, result.stderr
    said = out.read_text() + result.stdout + result.stderr
    assert "planted" not in said
    assert "\x1b" not in said
    assert "calc" not in said
    assert "2026-01-sk" not in said


@pytest.mark.parametrize("name", ["../../etc/passwd.json", "=1+1.json", "\x1b[31m.json", "-rf.json", "a b'\".json"])
def test_file_names_are_made_harmless(name: str, tmp_path: Path) -> None:
    path, out = tmp_path / name.replace("/", "_"), tmp_path / "o.csv"
    path.write_text(json.dumps(VLLM))
    result = run("--out", out, *STATED[:2], "--n-gpus", "1", "--", path)
    assert result.exit_code == 0, result.stderr
    source = pd.read_csv(out)["source"][0]
    assert source[0] not in "=+-@."
    assert "\x1b" not in out.read_text() + result.stdout


@pytest.mark.parametrize("digits", [400, 5000])
def test_whole_numbers_beyond_floats(digits: int, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(VLLM).replace('"duration": 50.0', '"duration": ' + "9" * digits))
    result = run(path, "--out", tmp_path / "o.csv", *STATED[:2], "--n-gpus", "1")
    assert result.exit_code == 2
    assert f"{path}:1: " in result.stderr
    assert len(result.stderr) < 600


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(VLLM), encoding="utf-8-sig")
    assert run(path, "--out", tmp_path / "o.csv", *STATED[:2], "--n-gpus", "1").exit_code == 0


def listing(**changes: Any) -> dict[str, Any]:
    """A row of InferenceX's public listing: one engine of eight GPUs stands there as both sides."""
    return {
        "hardware": "h200", "framework": "vllm", "model": "deepseek-ai/DeepSeek-R1", "precision": "FP8",
        "spec_method": "none", "disagg": False, "is_multinode": False, "prefill_tp": 8, "prefill_ep": 2,
        "decode_tp": 8, "decode_ep": 2, "num_prefill_gpu": 8, "num_decode_gpu": 8, "isl": 1024, "osl": 1024,
        "conc": 64, "image": "vllm/vllm-openai:v0.11.0", "date": "2026-01-02", "run_url": "http://sk-planted",
        "metrics": {"output_tput_per_gpu": 250.0, "mean_ttft": 0.5, "mean_tpot": 0.03, "mean_e2el": 31.0},
    } | changes  # fmt: skip


def test_rows_of_the_public_listing(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.json", tmp_path / "o.csv"
    path.write_text(json.dumps([listing(), listing(disagg=True, is_multinode=True, conc=128)]))
    assert run(path, "--out", out).exit_code == 0
    frame = pd.read_csv(out)
    assert frame["n_gpus"].tolist() == [8, 16]
    assert frame["output_tokens_per_s"].tolist() == [2000, 2000]
    assert (frame["tp"][0], frame["ep"][0], frame["weight_precision"][0]) == (8, 2, "fp8")
    assert (frame["prefill_tp"][1], frame["decode_workers"][1], frame["measured_on"][1]) == (8, 1, "2026-01-02")


def test_pipelined_workers_count_all_their_gpus(tmp_path: Path) -> None:
    row = {k: v for k, v in listing(disagg=True).items() if not k.startswith("num_")}
    row |= {"prefill_num_workers": 2, "prefill_pp": 2, "decode_num_workers": 1}
    path, out = tmp_path / "rows.json", tmp_path / "o.csv"
    path.write_text(json.dumps(row))
    assert run(path, "--out", out).exit_code == 0
    assert pd.read_csv(out)["n_gpus"].tolist() == [2 * 8 * 2 + 8]


def test_how_several_gpus_share_the_model_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(VLLM))
    result = run(path, "--out", tmp_path / "o.csv", *STATED[:2], "--n-gpus", "4")
    assert result.exit_code == 2
    assert "--tp" in result.stderr


@pytest.mark.parametrize(
    ("where", "seconds"),
    [
        ({"duration": 30.0}, 30.0),
        ({"start_time": 1_000.0, "end_time": 1_040.0}, 40.0),
        ({"scheduler_metrics": {"measure_start_time": 1_005.0, "measure_end_time": 1_035.0}, "start_time": 1.0}, 30.0),
    ],
)
def test_guidellm_durations_of_all_versions(where: dict[str, Any], seconds: float, tmp_path: Path) -> None:
    path, out = tmp_path / "r.json", tmp_path / "o.csv"
    path.write_text(json.dumps(GUIDELLM | {"benchmarks": [GUIDELLM["benchmarks"][0] | where]}))
    assert run(path, "--out", out, *STATED[:4], "--n-gpus", "1").exit_code == 0
    assert pd.read_csv(out)["duration_s"].tolist() == [seconds]


@pytest.mark.parametrize("name", ALL)
def test_cut_anywhere(name: str, tmp_path: Path) -> None:
    """Never anything but a located refusal; a stride that meets every kind of place."""
    text, path = json.dumps(ALL[name]).encode(), tmp_path / "cut.json"
    for end in range(1, len(text), 17):
        path.write_bytes(text[:end])
        with pytest.raises(InputError) as refused:
            list(documents(path))
        assert refused.value.problems[0].file == str(path)


def lines(n: int) -> Iterator[str]:
    return (json.dumps(SGLANG | {"max_concurrency": i + 1}) + "\n" for i in range(n))


def test_files_of_endless_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_RUNS", 50)
    path = tmp_path / "many.jsonl"
    path.write_text("".join(lines(60)))
    stated = Setup("Qwen3-30B-A3B", "h200-sxm", 1.0)
    with pytest.raises(InputError, match="too many runs"):
        table.import_file(path, stated)
    path.write_text("".join(lines(50)))
    assert len(table.import_file(path, stated).rows) == 50


def test_problems_of_an_endless_file_are_not_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(lines(5_000)))
    with pytest.raises(InputError) as refused:
        table.import_file(path, Setup())
    assert len(refused.value.problems) < 200
