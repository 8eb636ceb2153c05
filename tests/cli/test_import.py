"""`moeplan import`: every format to the row it means, nothing private copied, everything bad refused whole."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from import_cases import (
    AIPERF,
    GUIDELLM,
    INFERENCEX,
    INFERENCEX_POOLS,
    LLMPERF,
    SECRET,
    SGLANG,
    VLLM,
    aiperf_request,
)

from moeplan.cli import main

HERE = ("--hardware", "h200-sxm", "--n-gpus", "1", "--tp", "1")
MODEL = ("--model", "Qwen3-30B-A3B")
ENGINE = ("--engine", "vllm")


def run(*args: object):
    return CliRunner().invoke(main, ["import", *map(str, args)])


def imported(tmp_path: Path, text: str | bytes | Any, *args: str) -> pd.DataFrame:
    """Rows that the program writes for a file."""
    path, out = tmp_path / "result.json", tmp_path / "runs.csv"
    if not isinstance(text, str | bytes):
        text = json.dumps(text)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    result = run(path, "--out", out, *args)
    assert result.exit_code == 0, result.stderr
    written = out.read_text()
    assert SECRET not in written
    assert SECRET not in result.stdout
    assert "private" not in written
    return pd.read_csv(out)


def cell(frame: pd.DataFrame, **wanted: object) -> None:
    """The one row has these values."""
    assert len(frame) == 1
    row = frame.iloc[0]
    assert {name: row[name] for name in wanted} == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in wanted.items()
    }


def test_vllm(tmp_path: Path) -> None:
    frame = imported(tmp_path, VLLM, *HERE)
    cell(
        frame, model="Qwen3-30B-A3B", model_as_named="Qwen/Qwen3-30B-A3B-Instruct-2507", hardware="h200-sxm",
        engine="vllm", load="closed_loop", concurrency=16, input_tokens=1024, output_tokens=256, ttft_ms=80.0,
        ttft_ms_median=75.0, ttft_ms_p99=190.0, tpot_ms=12.0, tpot_ms_median=11.5, itl_ms=12.1, duration_s=50.0,
        output_tokens_per_s=512.0, measured_on="2026-01-10", source_format="vllm bench serve",
    )  # fmt: skip


def test_vllm_open_arrivals_and_bursts(tmp_path: Path) -> None:
    cell(imported(tmp_path, VLLM | {"request_rate": 10.0}, *HERE), load="poisson", requests_per_s=10)
    (tmp_path / "runs.csv").unlink()
    cell(imported(tmp_path, VLLM | {"max_concurrency": None}, *HERE), load="burst", concurrency=100)


def test_vllm_appended_results(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(VLLM | {"max_concurrency": n}) for n in (1, 2, 4)) + "\n"
    assert imported(tmp_path, lines, *HERE)["concurrency"].tolist() == [1, 2, 4]


def test_another_server_behind_the_openai_client_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(VLLM | {"backend": "openai"}))
    result = run(path, "--out", tmp_path / "o.csv", *HERE)
    assert result.exit_code == 2
    assert "--engine" in result.stderr


def test_sglang_lengths_are_what_was_sent(tmp_path: Path) -> None:
    """The flags say 1024 and 512; lengths were uniform from half of that."""
    cell(
        imported(tmp_path, json.dumps(SGLANG) + "\n", *HERE, *MODEL), engine="sglang", load="poisson",
        requests_per_s=4, input_tokens=768, output_tokens=384, e2e_ms=5000.0, tpot_ms_median=12.8,
    )  # fmt: skip


def test_sglang_client_of_tensorrt_llm_with_a_cap(tmp_path: Path) -> None:
    """The client's name of a back end is not the engine's; a cap on requests in flight is told."""
    frame = imported(tmp_path, json.dumps(SGLANG | {"backend": "trt", "max_concurrency": 8}) + "\n", *HERE, *MODEL)
    cell(frame, engine="trtllm", load="poisson", notes="at most 8 requests in flight")


def test_sglang_infinite_rate_as_python_writes_it(tmp_path: Path) -> None:
    text = json.dumps(SGLANG | {"request_rate": float("inf"), "max_concurrency": 32})
    cell(imported(tmp_path, text + "\n", *HERE, *MODEL), load="closed_loop", concurrency=32)


def test_aiperf_reads_units(tmp_path: Path) -> None:
    cell(
        imported(tmp_path, AIPERF, *HERE, *ENGINE), ttft_ms=90.0, e2e_ms=2500.0, e2e_ms_median=2400.0, tpot_ms=9.5,
        tpot_ms_median=9.4, load="closed_loop", concurrency=8, completed=200, failed=3, duration_s=60.0,
        measured_on="2026-02-03",
    )  # fmt: skip


def test_aiperf_unknown_unit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(AIPERF | {"time_to_first_token": {"unit": "fortnights", "avg": 1.0}}))
    result = run(path, "--out", tmp_path / "o.csv", *HERE, *ENGINE)
    assert result.exit_code == 2
    assert "time_to_first_token.unit" in result.stderr
    assert not (tmp_path / "o.csv").exists()


def test_aiperf_requests(tmp_path: Path) -> None:
    """100 requests a second apart; warm-up, failed and cancelled ones do not count."""
    requests = [aiperf_request(i) for i in range(100)]
    requests.insert(0, aiperf_request(-50, metadata={"benchmark_phase": "warmup"}))
    requests += [aiperf_request(500, error={"code": 500}), aiperf_request(501, metadata={"was_cancelled": True})]
    text = "\n".join(map(json.dumps, requests))
    frame = imported(tmp_path, text, *HERE, *MODEL, *ENGINE, "--load", "poisson", "--requests-per-s", "1")
    cell(
        frame, completed=100, failed=2, input_tokens=500, output_tokens=100, ttft_ms=99.5, tpot_ms=10.0,
        duration_s=100.05, output_tokens_per_s=100 * 100 / 100.05,
    )  # fmt: skip
    row = frame.iloc[0]
    assert row["ttft_ms_median"] == pytest.approx(99.0, rel=0.01)
    assert row["ttft_ms_p90"] == pytest.approx(139.0, rel=0.01)


def test_guidellm_takes_the_latency_without_the_first_token(tmp_path: Path) -> None:
    frame = imported(tmp_path, GUIDELLM, *HERE, *ENGINE)
    assert frame["tpot_ms"].tolist() == [15.2, 14.0]
    assert frame["e2e_ms"].tolist() == [2000.0, 1900.0]
    assert frame["load"].tolist() == ["closed_loop", "poisson"]
    assert frame["failed"].tolist()[0] == 1


def test_llmperf(tmp_path: Path) -> None:
    """3.2 s end to end, 0.2 s to the first of 151 tokens: 20 ms a token."""
    cell(
        imported(tmp_path, LLMPERF, *HERE, *ENGINE), ttft_ms=200.0, tpot_ms=20.0, e2e_ms=3200.0, concurrency=5,
        input_tokens=548, output_tokens=151,
    )  # fmt: skip


def test_inferencex_states_its_hardware(tmp_path: Path) -> None:
    cell(
        imported(tmp_path, [INFERENCEX]), model="DeepSeek-R1", hardware="h200-sxm", n_gpus=8, tp=8, dp=1,
        engine_version="0.11.0", weight_precision="fp8", ttft_ms=500.0, ttft_ms_median=450.0, tpot_ms=30.0,
        e2e_ms=31000.0, output_tokens_per_s=2000.0, concurrency=64,
    )  # fmt: skip


def test_inferencex_pools(tmp_path: Path) -> None:
    """The old schema divides the output rate by the decoding GPUs, the new one by all."""
    frame = imported(tmp_path, INFERENCEX_POOLS)
    cell(
        frame, n_gpus=16, prefill_workers=2, prefill_tp=4, prefill_dp=4, decode_workers=1, decode_ep=8,
        output_tokens_per_s=2000.0,
    )  # fmt: skip
    (tmp_path / "runs.csv").unlink()
    newer = INFERENCEX_POOLS | {"output_tput_per_decode_gpu": 500.0}
    cell(imported(tmp_path, newer), output_tokens_per_s=4000.0)


def test_sidecar_and_options(tmp_path: Path) -> None:
    sidecar = tmp_path / "run.yaml"
    sidecar.write_text("hardware: h100-sxm\nn_gpus: 2\ntp: 2\nlicence: own\n")
    frame = imported(tmp_path, VLLM, "--sidecar", str(sidecar), "--hardware", "h200-sxm")
    cell(frame, hardware="h200-sxm", n_gpus=2, licence="own")


def test_bad_sidecar_is_located(tmp_path: Path) -> None:
    sidecar, path = tmp_path / "run.yaml", tmp_path / "r.json"
    sidecar.write_text("hardware: h100-sxm\nn_gpu: 2\n")
    path.write_text(json.dumps(VLLM))
    result = run(path, "--out", tmp_path / "o.csv", "--sidecar", sidecar)
    assert result.exit_code == 2
    assert "run.yaml:2:1: n_gpu: unknown key" in result.stderr
    assert "did you mean n_gpus" in result.stderr


def test_everything_missing_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(VLLM))
    result = run(path, "--out", tmp_path / "o.csv")
    assert result.exit_code == 2
    assert "--hardware" in result.stderr
    assert "--n-gpus" in result.stderr
    assert not (tmp_path / "o.csv").exists()


def test_what_the_file_says_is_not_overruled(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(INFERENCEX))
    result = run(path, "--out", tmp_path / "o.csv", "--n-gpus", "4")
    assert result.exit_code == 2
    assert "n_gpus: the file says 8.0, you say 4.0" in result.stderr


def test_another_architecture_is_not_taken_for_its_namesake(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(VLLM | {"model_id": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"}))
    result = run(path, "--out", tmp_path / "o.csv", *HERE)
    assert result.exit_code == 2
    assert "model: not a catalog name" in result.stderr


def test_append_adds_each_run_once(tmp_path: Path) -> None:
    first = imported(tmp_path, VLLM, *HERE)
    path, out = tmp_path / "again.json", tmp_path / "runs.csv"
    path.write_text("\n".join(json.dumps(VLLM | {"max_concurrency": n}) for n in (16, 32)))
    assert run(path, "--out", out, *HERE).exit_code == 2  # exists
    assert run(path, "--out", out, "--append", *HERE).exit_code == 0
    frame = pd.read_csv(out)
    assert frame["concurrency"].tolist() == [16, 32]
    assert frame["run_id"].tolist()[0] == first["run_id"].tolist()[0]


def test_the_table_is_one_that_accuracy_reads(tmp_path: Path) -> None:
    imported(tmp_path, VLLM, *HERE)
    result = CliRunner().invoke(main, ["accuracy", str(tmp_path / "runs.csv"), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["metrics"]["tpot"]["answered_frac"] == 1.0


ALL = {"vllm": VLLM, "sglang": SGLANG, "aiperf": AIPERF, "guidellm": GUIDELLM, "llmperf": LLMPERF, "x": INFERENCEX}


@pytest.mark.parametrize("name", ALL)
def test_a_file_cut_off_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    text, path, out = json.dumps(ALL[name], indent=1), tmp_path / "cut.json", tmp_path / "o.csv"
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_text(text[: int(len(text) * share)])
        result = run(path, "--out", out, *HERE, *MODEL, *ENGINE)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{path}:")
        assert not out.exists()


@pytest.mark.parametrize("bad", [float("nan"), -1.0, "fast", [1], True, 1e400])
@pytest.mark.parametrize(("name", "key"), [("vllm", "mean_ttft_ms"), ("sglang", "duration"), ("x", "mean_tpot")])
def test_a_number_that_is_none_is_located(name: str, key: str, bad: object, tmp_path: Path) -> None:
    path, out = tmp_path / "bad.json", tmp_path / "o.csv"
    path.write_text(json.dumps(ALL[name] | {key: bad}))
    result = run(path, "--out", out, *(HERE if name != "x" else ()), *(MODEL if name == "sglang" else ()))
    assert result.exit_code == 2
    assert f"bad.json:1: {key}: not a finite number" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\n\n", "not JSON"),
        (b"[]", "no benchmark results"),
        (b"[1, 2]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b"{}", "no known benchmark format"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"avg_latency": 1, "latencies": [], "percentiles": {}}', "vllm bench latency"),
        (b'{"prediction_provenance": {}, "mean_ttft_ms": 1}', "predictions, not measurements"),
    ],
)
def test_what_is_no_result_says_so(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    result = run(path, "--out", tmp_path / "o.csv", *HERE)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_formats_do_not_mix_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(SGLANG) + "\n" + json.dumps(VLLM) + "\n")
    result = run(path, "--out", tmp_path / "o.csv", *HERE, *MODEL)
    assert result.exit_code == 2
    assert "r.jsonl:2: not an object of the format the file begins with" in result.stderr


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "\x1b[31mred", "<script>alert(1)</script>", "a\nb", "x" * 5000])
def test_hostile_model_names_come_out_nowhere(name: str, tmp_path: Path) -> None:
    path, out = tmp_path / "r.json", tmp_path / "o.csv"
    path.write_text(json.dumps(VLLM | {"model_id": name}))
    assert run(path, "--out", out, *HERE, *MODEL).exit_code == 0
    assert name not in out.read_text()


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(tmp_path: Path) -> None:
    """A file four times as long takes no more memory."""
    from moeplan.files.runs.imports.row import Setup
    from moeplan.files.runs.imports.table import import_file

    stated = Setup("Qwen3-30B-A3B", "h200-sxm", 1.0, engine="vllm", load="poisson", requests_per_s=1.0)
    peaks = []
    for n in (5_000, 20_000):
        path = tmp_path / f"{n}.jsonl"
        with path.open("w") as stream:
            stream.writelines(json.dumps(aiperf_request(i)) + "\n" for i in range(n))
        tracemalloc.start()
        import_file(path, stated)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
