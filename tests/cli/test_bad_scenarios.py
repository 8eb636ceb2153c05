# ruff: noqa: E501  (a table of cases, one a line)
"""Every mistake a user can make in a scenario: exit code 2, place, message, no traceback."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import pytest
from scenario_files import SERVING, TRAINING, run, with_line


class Case(NamedTuple):
    """Line ``number`` of a base text becomes ``line``; the report stands at ``place`` about ``path``, with ``parts``."""

    id: str
    number: int
    line: str
    place: str
    path: str
    parts: tuple[str, ...]


SERVING_CASES = [
    Case("unknown-key", 16, "ruoting: {zipf: 0.3}", "16:1", "ruoting", ("unknown key", "did you mean routing?")),
    Case("unknown-nested-key", 8, "  layout: {tpp: 1}", "8:12", "serving.layout.tpp", ("unknown key", "did you mean")),
    Case("missing-unit", 10, "    rate: 4", "10:11", "serving.traffic.rate", ("missing unit", "4 req/s")),
    Case("missing-unit-text", 10, "    rate: '4'", "10:11", "serving.traffic.rate", ("missing unit",)),
    Case("wrong-dimension", 13, "  slo: {ttft: 500 GB}", "13:15", "serving.slo.ttft", ("GB is a size in bytes", "expected a duration")),
    Case("unknown-unit", 13, "  slo: {ttft: 500 msec}", "13:15", "serving.slo.ttft", ("unknown unit 'msec'",)),
    Case("bits-for-bytes", 6, "  engine: {reserve: 16 Gb}", "6:21", "serving.engine.reserve", ("bits where bytes are expected", "16 Gb = 2 GB")),
    Case("negative-quantity", 13, "  slo: {ttft: -1 s}", "13:15", "serving.slo.ttft", ("must not be negative", "got -1 s")),
    Case("zero-quantity", 10, "    rate: 0 req/s", "10:11", "serving.traffic.rate", ("must not be zero",)),
    Case("negative-count", 11, "    input_tokens: -5", "11:19", "serving.traffic.input_tokens", ("must not be negative",)),
    Case("zero-count", 12, "    output_tokens: 0", "12:20", "serving.traffic.output_tokens", ("must not be zero",)),
    Case("fractional-count", 4, "gpus: 1.5", "4:7", "gpus", ("expected a whole number", "got 1.5")),
    Case("huge-count", 4, "gpus: 99999999999", "4:7", "gpus", ("too large",)),
    Case("boolean-for-number", 4, "gpus: true", "4:7", "gpus", ("expected a whole number",)),
    Case("nan", 16, "routing: {zipf: .nan}", "16:17", "routing.zipf", ("not a finite number", "got .nan")),
    Case("nan-in-quantity", 10, "    rate: nan req/s", "10:11", "serving.traffic.rate", ("not a finite number",)),
    Case("infinite", 16, "routing: {zipf: .inf}", "16:17", "routing.zipf", ("not a finite number",)),
    Case("infinite-in-quantity", 15, "budget: inf USD/month", "15:9", "budget", ("not a finite number",)),
    Case("1e400", 16, "routing: {zipf: 1e400}", "16:17", "routing.zipf", ("number too large", "got 1e400")),
    Case("1e400-in-quantity", 14, "price: 1e400 USD/h", "14:8", "price", ("number too large",)),
    Case("overflow-by-prefix", 6, "  engine: {reserve: 1e308 TB}", "6:21", "serving.engine.reserve", ("number too large",)),
    Case("duplicate-key", 16, "gpus: 4", "16:1", "gpus", ("duplicate key", "first set in line 4")),
    Case("tab-indentation", 10, "\trate: 4 req/s", "10:1", "", ("tab used for indentation", "indent with spaces")),
    Case("not-yaml", 8, "  layout: {tp: 1", "9:10", "", ("not valid YAML",)),
    Case("colon-in-value", 1, "name: a: b", "1:8", "", ("not valid YAML",)),
    Case("tag-python", 1, "name: !!python/object/apply:os.system [ls]", "1:7", "name", ("YAML tags are not allowed",)),
    Case("tag-int", 4, "gpus: !!int '8'", "4:7", "gpus", ("YAML tags are not allowed",)),
    Case("merge-key", 16, "<<: {zipf: 1}", "16:1", "<<", ("merge keys are not supported", "extends")),
    Case("undefined-alias", 1, "name: *nothing", "1:7", "name", ("alias without an earlier complete anchor",)),
    Case("list-as-key", 16, "? [a, b]\n: 1", "16:3", "", ("a key must be plain text",)),
    Case("second-document", 16, "---\nname: other", "16:1", "", ("a second document",)),
    Case("deep-nesting", 1, "name: " + "[" * 100 + "]" * 100, "1:37", "", ("nested deeper than 30 levels",)),
    Case("empty-value", 16, "routing:", "16:9", "routing", ("no value", "remove the key")),
    Case("null-value", 4, "gpus: null", "4:7", "gpus", ("no value",)),
    Case("section-is-text", 8, "  layout: tp4", "8:11", "serving.layout", ("expected a mapping",)),
    Case("section-is-list", 9, "  traffic: [1]\n  x:", "9:3", "serving.traffic", ("expected a mapping",)),
    Case("text-is-number", 1, "name: 12", "1:7", "name", ("expected text", "quote it")),
    Case("text-is-empty", 1, "name: ''", "1:7", "name", ("must not be empty",)),
    Case("text-too-long", 1, "name: " + "x" * 3000, "1:7", "name", ("text too long",)),
    Case("yes-is-no-boolean", 6, "  engine: {chunked_prefill: yes}", "6:29", "serving.engine.chunked_prefill", ("expected true or false", "got yes")),
    Case("sexagesimal", 13, "  slo: {e2e: 12:30}", "13:14", "serving.slo.e2e", ("unknown unit ':30'",)),
    Case("unknown-model", 2, "model: Qwen3-30B-A4B", "2:8", "model", ("no such model", "Qwen3-30B-A3B")),
    Case("unknown-hardware", 3, "hardware: h100", "3:11", "hardware", ("unknown hardware", "h100-sxm")),
    Case("unknown-offer", 14, "price: aws/h100/on-demnd", "14:8", "price", ("unknown offer",)),
    Case("unknown-engine", 6, "  engine: vlm", "6:11", "serving.engine", ("unknown value", "did you mean vllm?")),
    Case("unknown-precision", 7, "  precision: fp6", "7:14", "serving.precision", ("unknown value", "fp8")),
    Case("unknown-kind", 1, "kind: severing", "1:7", "kind", ("unknown value", "did you mean serving?")),
    Case("kind-contradicts", 1, "kind: training", "1:1", "training", ("a training scenario needs a `training` section",)),
    Case("tp-heads", 8, "  layout: {tp: 3}", "8:16", "serving.layout.tp", ("tp does not divide the attention heads", "1, 2, 4, 8")),
    Case("ep-experts", 8, "  layout: {tp: 6, ep: 6}", "8:23", "serving.layout.ep", ("ep does not divide the experts", "got 6")),
    Case("ep-group", 8, "  layout: {tp: 2, ep: 4}", "8:23", "serving.layout.ep", ("does not divide tp x dp = 2",)),
    Case("too-many-gpus", 8, "  layout: {tp: 4, replicas: 3}", "8:3", "serving.layout", ("the layout needs 12 GPUs", "at most gpus = 8")),
    Case("too-many-stages", 8, "  layout: {pp: 64}", "8:16", "serving.layout.pp", ("more pipeline stages than layers",)),
    Case("zero-degree", 8, "  layout: {tp: 0}", "8:16", "serving.layout.tp", ("must not be zero",)),
    Case("context-too-long", 6, "  engine: {max_model_len: 999999}", "6:27", "serving.engine.max_model_len", ("longer than Qwen3-30B-A3B was made for",)),
    Case("requests-too-long", 11, "    input_tokens: 8100", "11:19", "serving.traffic.input_tokens", ("8300 tokens, more than the context", "at most 8192")),
    Case("tokens-below-seqs", 6, "  engine: {max_num_seqs: 64, max_num_batched_tokens: 32}", "6:54", "serving.engine.max_num_batched_tokens", ("fewer tokens than sequences",)),
    Case("fraction-above-one", 6, "  engine: {memory_utilization: 90}", "6:32", "serving.engine.memory_utilization", ("too large", "20 %")),
    Case("no-load", 10, "    requests: 10", "9:3", "serving.traffic", ("no load is stated", "rate, rates, users")),
    Case("two-loads", 10, "    rate: 4 req/s\n    users: 5", "9:3", "serving.traffic", ("only one load", "rate, users")),
    Case("no-lengths", 11, "    requests: 5", "9:3", "serving.traffic", ("missing input_tokens",)),
    Case("two-distributions", 11, "    input_tokens: {fixed: 5, uniform: [1, 2]}", "11:5", "serving.traffic.input_tokens", ("only one of these",)),
    Case("uniform-reversed", 11, "    input_tokens: {uniform: [9, 2]}", "11:20", "serving.traffic.input_tokens.uniform", ("low is above high",)),
    Case("lognormal-mean", 11, "    input_tokens: {lognormal: {mean: 500, sigma: 1, max: 100}}", "11:38", "serving.traffic.input_tokens.lognormal.mean", ("mean outside min and max",)),
    Case("lognormal-no-sigma", 11, "    input_tokens: {lognormal: {mean: 500}}", "11:20", "serving.traffic.input_tokens.lognormal.sigma", ("missing key",)),
    Case("only-warmup", 10, "    rate: 1 req/s\n    requests: 10\n    warmup_requests: 10", "12:22", "serving.traffic.warmup_requests", ("no request is left",)),
    Case("percentile-100", 13, "  slo: {percentile: 100}", "13:21", "serving.slo.percentile", ("too large",)),
    Case("budget-currency", 15, "budget: 3000 XYZ/month", "15:9", "budget", ("unknown currency XYZ", "exchange_rates")),
    Case("budget-no-unit", 15, "budget: 3000", "15:9", "budget", ("missing unit", "8000 USD")),
    Case("price-no-unit", 14, "price: 3", "14:8", "price", ("missing unit", "3.5 USD/h")),
    Case("rate-no-unit", 16, "exchange_rates: {EUR: 1.1}", "16:23", "exchange_rates.EUR", ("missing unit",)),
    Case("rates-no-mapping", 16, "exchange_rates: [EUR]", "16:1", "exchange_rates", ("expected a mapping of currency codes",)),
    Case("kv-cache-format", 7, "  precision: {kv_cache: q4_k_m}", "7:25", "serving.precision.kv_cache", ("unknown value", "fp8")),
    Case("seed-too-large", 1, "seed: 9223372036854775808", "1:7", "seed", ("too large",)),
    Case("price-currency", 14, "price: 3 EUR/h", "14:8", "price", ("unknown currency EUR",)),
    Case("budget-dollar-sign", 15, "budget: $3000", "15:9", "budget", ("3000 USD",)),
    Case("budget-thousands", 15, "budget: '3,000 USD/month'", "15:9", "budget", ("a comma in a number",)),
    Case("budget-no-period", 15, "budget: 3000 USD", "15:9", "budget", ("its budget needs a period",)),
    Case("budget-negative", 15, "budget: -3000 USD/month", "15:9", "budget", ("must not be negative",)),
    Case("rate-of-nonsense", 16, "exchange_rates: {Euro: 1 USD}", "16:24", "exchange_rates.Euro", ("not a currency code",)),
    Case("rate-not-money", 16, "exchange_rates: {EUR: 3 GB}", "16:23", "exchange_rates.EUR", ("GB is a size",)),
    Case("two-prices", 14, "price: {offer: x, per_gpu_hour: 3 USD/h}", "14:1", "price", ("only one of these",)),
    Case("own-incomplete", 14, "price: {own: {purchase: 30000 USD}}", "14:9", "price.own.lifetime", ("missing key",)),
    Case("deadline-serving", 15, "budget: {limit: 3 USD/month, deadline: 3 d}", "15:40", "budget.deadline", ("a deadline applies to a training run",)),
    Case("model-outside", 2, "model: ../secret/config.json", "2:8", "model", ("path outside the scenario's folder",)),
    Case("model-absolute", 2, "model: /etc/config.json", "2:8", "model", ("path outside the scenario's folder",)),
    Case("model-file-missing", 2, "model: ./none/config.json", "2:8", "model", ("no such model file",)),
    Case("hardware-outside", 3, "hardware: ../profile.yaml", "3:11", "hardware", ("path outside the scenario's folder",)),
    Case("environment", 2, "model: ${HOME}", "2:8", "model", ("no such model", "${HOME}")),
    Case("compare-unknown", 16, "compare_with: {model: Nonsense-7B, quality_note: x}", "16:23", "compare_with.model", ("no such model",)),
    Case("reference-no-source", 16, "references:\n  - {quantity: serving.requests_per_s, value: 3}", "17:5", "references[0].source", ("missing key",)),
    Case("references-no-list", 16, "references: 3", "16:13", "references", ("expected a list",)),
    Case("terminal-escape", 2, 'model: "\\e[31mred"', "2:8", "model", ("no such model", "\\x1b[31mred")),
]  # fmt: skip

TRAINING_CASES = [
    Case("batch-divisibility", 9, "  global_batch: 60", "9:17", "training.global_batch", ("not a multiple of dp x micro_batch = 8", "56, 64")),
    Case("precision-of-device", 10, "  precision: fp8", "10:14", "training.precision", ("has no fp8 arithmetic", "bf16")),
    Case("recompute-module", 10, "  recompute_modules: [norms]", "10:23", "training.recompute_modules[0]", ("unknown value", "did you mean norm?")),
    Case("graphs-not-a-flag", 10, "  cuda_graphs: 3", "10:16", "training.cuda_graphs", ("expected true or false",)),
    Case("dualpipe-one-stage", 11, "  layout: {dp: 8, ep: 8, schedule: dualpipe}", "11:36", "training.layout.schedule", ("even number of stages",)),
    Case("lora-missing", 6, "  method: lora", "6:11", "training.method", ("needs a `lora` section",)),
    Case("lora-extra", 10, "  lora: {rank: 8}", "6:11", "training.method", ("`lora` needs method lora",)),
    Case("virtual-stages", 11, "  layout: {dp: 8, vpp: 2}", "11:24", "training.layout.vpp", ("virtual stages need a pipeline",)),
    Case("too-deep-pipeline", 11, "  layout: {pp: 8, vpp: 4}", "11:16", "training.layout.pp", ("more pipeline stages than layers",)),
    Case("experts", 11, "  layout: {dp: 8, ep: 3}", "11:23", "training.layout.ep", ("ep does not divide the experts",)),
    Case("folding", 11, "  layout: {dp: 4, ep: 8}", "11:23", "training.layout.ep", ("does not divide tp x cp x dp",)),
    Case("gpus", 11, "  layout: {dp: 16, ep: 8}", "11:3", "training.layout", ("the layout needs 16 GPUs",)),
    Case("context", 8, "  sequence_length: 65536", "8:20", "training.sequence_length", ("longer than OLMoE-1B-7B was made for",)),
    Case("odd-context-parallel", 8, "  sequence_length: 1001\n  x_: 1", "9:3", "training.x_", ("unknown key",)),
    Case("too-few-tokens", 7, "  tokens: 1000", "7:11", "training.tokens", ("fewer tokens than one optimizer step",)),
    Case("zero-stage", 11, "  layout: {dp: 8, zero: 4}", "11:25", "training.layout.zero", ("too large", "0 to 3")),
    Case("tokens-unit", 7, "  tokens: 1 GB", "7:11", "training.tokens", ("GB is a size in bytes",)),
    Case("never-ends", 10, "  reliability: {failures_per_gpu_day: 1, restart: 300 d}", "10:3", "training.reliability", ("the run never ends", "checkpoint_interval")),
    Case("slow-checkpoint", 10, "  reliability: {checkpoint_write: 4 h}", "10:16", "training.reliability.checkpoint_interval", ("longer than the interval",)),
    Case("failures-twice", 10, "  reliability: {failures_per_gpu_day: 0.001, gpu_mtbf: 10 years}", "10:39", "training.reliability.failures_per_gpu_day", ("contradict",)),
    Case("budget-per-month", 13, "budget: 100 USD/month", "13:9", "budget", ("a training run ends",)),
    Case("missing-method", 6, "  micro_batch: 1", "5:1", "training.method", ("missing key",)),
    Case("stray-lifecycle", 13, "lifecycle: {duration: 12 months}", "1:1", "serving", ("needs a `serving` section",)),
]  # fmt: skip


def _reported(output: str, head: str, parts: tuple[str, ...]) -> bool:
    return any(line.startswith(head) and all(part in line for part in parts) for line in output.splitlines())


@pytest.mark.parametrize("case", SERVING_CASES, ids=lambda case: case.id)
def test_serving(case: Case, tmp_path: Path) -> None:
    _check(with_line(SERVING, case.number, case.line), case, tmp_path)


@pytest.mark.parametrize("case", TRAINING_CASES, ids=lambda case: case.id)
def test_training(case: Case, tmp_path: Path) -> None:
    _check(with_line(TRAINING, case.number, case.line), case, tmp_path)


def _check(text: str, case: Case, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    result = run("check", path)
    assert result.exit_code == 2, result.output
    head = f"{path}:{case.place}: " + (f"{case.path}: " if case.path else "")
    assert _reported(result.stderr, head, case.parts), result.stderr
    assert result.stdout == ""
    assert "\x1b" not in result.output


def test_bases_are_good(tmp_path: Path) -> None:
    """The cases above fail for their own reason only."""
    for name, text in (("s.yaml", SERVING), ("t.yaml", TRAINING)):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        result = run("check", path)
        assert result.exit_code == 0, result.output


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    text = with_line(SERVING, 2, "model: Qwen3-30B-A4B")
    text = with_line(text, 4, "gpus: -1")
    text = with_line(text, 10, "    rate: 4")
    text = with_line(text, 16, "ruoting: 1")
    path.write_text(text, encoding="utf-8")
    lines = run("check", path).stderr.splitlines()
    assert [line.split(": ")[0].removeprefix(f"{path}:") for line in lines] == ["2:8", "4:7", "10:11", "16:1"]


def test_a_faulty_value_brings_no_second_report(tmp_path: Path) -> None:
    """What follows from a value that was refused is not reported beside it; what does not follow is."""
    text = with_line(SERVING, 8, "  layout: {tp: x4, ep: 4}")
    text = with_line(text, 11, "    input_tokens: 9000")
    text = with_line(text, 14, "price: 3 GB")
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    lines = run("check", path).stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["serving.layout.tp", "serving.traffic.input_tokens", "price"]


def test_all_meaning_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    text = with_line(SERVING, 8, "  layout: {tp: 3, replicas: 9}")
    text = with_line(text, 11, "    input_tokens: 9000")
    text = with_line(text, 15, "budget: 3000 EUR/month")
    path.write_text(text, encoding="utf-8")
    stderr = run("check", path).stderr
    for part in ("8:16: serving.layout.tp", "27 GPUs", "11:19: serving.traffic.input_tokens", "unknown currency EUR"):
        assert part in stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"# nothing but a comment\n", "no content"),
        (b"- a\n- b\n", "expected a scenario: a mapping"),
        (b"just text\n", "expected a scenario: a mapping"),
        (b"\x00\x01\x02\x7fELF", "binary file"),
        (b"name: \xff\xfe\n", "not UTF-8 text: byte 0xff"),
        ("name: t\n".encode("utf-16"), "UTF-8"),
        (b"name: \x07bell\n", "does not allow"),
        (b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
         + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 10)) for c in b"abcdefgh"),
         "once aliases are expanded"),
        (b"[" * 100_000, "nest"),
        (b"{" * 100_000, "nest"),
        (b"name: " + b"x" * 2_000_000, "file too large"),
    ],
    ids=["empty", "comment", "list", "text", "binary", "latin", "utf16", "bell", "alias-bomb", "brackets", "braces", "2MB"],
)  # fmt: skip
def test_not_a_scenario(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    result = run("check", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(str(path))
    assert message in result.stderr
    assert len(result.stderr) < 5000


def test_file_of_100_mb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # sparse: costs no disk

    def read(self: Path) -> bytes:
        raise AssertionError("a file above the limit must not be read")

    monkeypatch.setattr(Path, "read_bytes", read)
    result = run("check", path)
    assert result.exit_code == 2
    assert "file too large (got 100000000 bytes)" in result.stderr


def test_directory_and_missing_file(tmp_path: Path) -> None:
    result = run("check", tmp_path)
    assert (result.exit_code, "is a directory" in result.stderr) == (2, True)
    result = run("check", tmp_path / "none.yaml")
    assert (result.exit_code, "no such scenario file" in result.stderr) == (2, True)


TRACE_HEADER = "arrival_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty trace"),
        (TRACE_HEADER, "empty trace: a header but no requests"),
        (TRACE_HEADER + "0,10,5\n2,10,5\n1,10,5\n", "t.csv:4: unsorted"),
        (TRACE_HEADER + "0,10,5\n1,-3,5\n", "t.csv:3: negative token count"),
        (TRACE_HEADER + "0,10,0\n", "t.csv:2: a request that generates no token"),
        (TRACE_HEADER + "-1,10,5\n", "t.csv:2: negative arrival time"),
        (TRACE_HEADER + "nan,10,5\n", "t.csv:2: arrival time is not a finite number"),
        (TRACE_HEADER + "0,1.5,5\n", "t.csv:2: a token count is not a whole number"),
        (TRACE_HEADER + "0,10\n", "t.csv:2: too few columns"),
        ("arrival_s,input_tokens\n0,1\n", "not a known trace"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,3,4\n", "t.csv:2: not a date and time"),
        (TRACE_HEADER + "0,9000,5\n", "the shortest request has 9005 tokens, more than the context"),
        ("\x00\x00", "binary file"),
    ],
)
def test_bad_trace(content: str, message: str, tmp_path: Path) -> None:
    result = _with_trace(tmp_path, content.encode())
    assert result.exit_code == 2
    assert message in result.stderr


def _with_trace(folder: Path, content: bytes, name: str = "t.csv"):
    (folder / name).write_bytes(content)
    path = folder / "s.yaml"
    traffic = f"    trace: {name}"
    text = with_line(with_line(with_line(SERVING, 10, traffic), 11, "    requests: 1"), 12, "    warmup_requests: 0")
    path.write_text(text, encoding="utf-8")
    return run("check", path)


def test_trace_good_plain_and_gzip(tmp_path: Path) -> None:
    content = (TRACE_HEADER + "0,10,5\n1,10,5\n").encode()
    assert _with_trace(tmp_path, content).exit_code == 0
    assert _with_trace(tmp_path, gzip.compress(content), "t.csv.gz").exit_code == 0
    broken = _with_trace(tmp_path, gzip.compress(content)[:-12], "t.csv.gz")
    assert (broken.exit_code, "cannot read the trace" in broken.stderr) == (2, True)


@pytest.mark.parametrize("name", ["../t.csv", "/etc/passwd", "missing.csv", ".", "link.csv"])
def test_trace_path(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "scenario"
    folder.mkdir()
    (tmp_path / "t.csv").write_text(TRACE_HEADER + "0,10,5\n")
    (folder / "link.csv").symlink_to(tmp_path / "t.csv")
    path = folder / "s.yaml"
    text = with_line(with_line(with_line(SERVING, 10, f"    trace: {name}"), 11, "    requests: 1"), 12, "")
    path.write_text(text, encoding="utf-8")
    result = run("check", path)
    assert result.exit_code == 2
    assert f"{path}:10:12: serving.traffic.trace: " in result.stderr
    wanted = {"missing.csv": "no such trace file", ".": "is a directory"}.get(
        name, "path outside the scenario's folder"
    )
    assert wanted in result.stderr


def test_extends_cycle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    result = run("check", tmp_path / "a.yaml")
    assert result.exit_code == 2
    assert "extends runs in a circle (got a.yaml -> b.yaml -> a.yaml)" in result.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing.yaml", "no such scenario file"),
        ("../outside.yaml", "path outside the scenario's folder"),
        ("/etc/hostname", "path outside the scenario's folder"),
        ("3", "expected the path of another scenario"),
        ("self.yaml", "circle"),
    ],
)
def test_extends_target(target: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "scenario"
    folder.mkdir()
    (tmp_path / "outside.yaml").write_text(SERVING)
    path = folder / "self.yaml"
    path.write_text(f"extends: {target}\n")
    result = run("check", path)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serving.layout.tp=3", "--set: serving.layout.tp: tp does not divide"),
        ("serving.layout.tpp=3", "--set: serving.layout.tpp: unknown key"),
        ("serving.traffic.rate=5", "--set: serving.traffic.rate: missing unit"),
        ("gpus", "--set: expected PATH=VALUE (got gpus)"),
        ("=3", "expected PATH=VALUE"),
        ("a..b=3", "expected PATH=VALUE"),
        ("gpus=[1", "--set:2:1: not valid YAML"),
        ("extends=other.yaml", "extends cannot be set here"),
        ("gpus=!!int 3", "YAML tags are not allowed"),
        ("gpus=", "expected a whole number"),
    ],
)
def test_bad_override(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SERVING)
    result = run("check", path, "--set", override)
    assert result.exit_code == 2
    assert message in result.stderr, result.stderr


def test_no_price_lists_offers(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(with_line(SERVING, 14, ""))
    result = run("check", path)
    assert result.exit_code == 2
    assert "no price stated for h100-sxm" in result.stderr
    assert "USD/GPU/h" in result.stderr


def test_offer_of_other_hardware(tmp_path: Path) -> None:
    from moeplan.files.catalog.price_catalog import offers_for

    path = tmp_path / "s.yaml"
    path.write_text(with_line(SERVING, 14, f"price: {offers_for('h200-sxm')[0].name}"))
    result = run("check", path)
    assert result.exit_code == 2
    assert "this offer is for h200-sxm" in result.stderr
