"""Traffic keys of a scenario: what they resolve to, and every mistake with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_files import SERVING, run, with_line

from moeplan.files.load import load

BAD = {
    "rates and rate": ("rates: [[1 min, 2 req/s]]\n    rate: 1 req/s", "only one load may be stated: rate, rates"),
    "rate zero": ("rate: 0 req/s", "must not be zero"),
    "rate infinite": ("rate: inf req/s", "not a finite number"),
    "no rate at all": ("rates: [[1 min, 0 req/s]]", "`rates` has no request at all"),
    "a step of no time": ("rates: [[0 s, 1 req/s]]", "must not be zero"),
    "negative rate": ("rates: [[1 s, -1 req/s]]", "must not be negative"),
    "tide without mean": ("users: 5\n    diurnal: 50 %", "`diurnal` is the shape of a mean rate"),
    "tide too high": ("rate: 1 req/s\n    diurnal: 150 %", "too large"),
    "a day too long": ("rate: 1000 req/s\n    diurnal: 50 %", "a cycle has 86400000 requests"),
    "bursty users": ("users: 5\n    burstiness: 2", "`burstiness` belongs to open arrivals"),
    "no share": ("rate: 1 req/s\n    classes: [{name: a}, {name: b}]", "no class has a share"),
    "twice": ("rate: 1 req/s\n    classes: [{name: a, share: 1}, {name: a, share: 1}]", "two classes of one name"),
    "class too long": (
        "rate: 1 req/s\n    classes: [{name: a, share: 1, input_tokens: 9000}]", "the longest request has 9200 tokens"),
    "class slo zero": ("rate: 1 req/s\n    classes: [{name: a, share: 1, slo: {ttft: 0 s}}]", "must not be zero"),
    "empty list": ("rate: 1 req/s\n    classes: []", "classes"),
    "seen nothing": ("rate: 1 req/s\n    classes: [{name: a, share: 1, input_tokens: {empirical: []}}]", "values"),
    "no such table": (
        "rate: 1 req/s\n    classes: [{name: a, share: 1, input_tokens: {empirical: none.csv}}]", "no such"),
}  # fmt: skip


def _scenario(folder: Path, traffic: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(with_line(SERVING, 10, f"    {traffic}"), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_traffic(name: str, tmp_path: Path) -> None:
    traffic, message = BAD[name]
    result = run("check", _scenario(tmp_path, traffic))
    assert result.exit_code == 2
    assert message in result.stderr
    assert ":10:" in result.stderr or ":11:" in result.stderr or ":9:" in result.stderr


def test_rates_resolve_to_their_mean_and_one_cycle(tmp_path: Path) -> None:
    arrivals = load(_scenario(tmp_path, "rates: [[10 min, 2 req/s], [5 min, 8 req/s]]")).serving.traffic.arrivals
    assert (arrivals.kind, arrivals.rate_per_s, arrivals.n_requests) == ("open", 4.0, 3600)
    assert arrivals.warmup_requests == 0


def test_a_tide_keeps_its_mean(tmp_path: Path) -> None:
    arrivals = load(
        _scenario(tmp_path, "rate: 1 req/s\n    diurnal: {amplitude: 60 %, peak: 6 h}")
    ).serving.traffic.arrivals
    assert arrivals.n_requests == 86_400
    assert arrivals.rate_per_s == pytest.approx(1.0)
    rates = [step.rate_per_s for step in arrivals.rate_steps]
    assert (max(rates), min(rates)) == pytest.approx((1.6, 0.4), rel=1e-3)


def test_classes_inherit_targets_and_seen_lengths_are_counted(tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text("tokens,count\n10,3\n20,1\n10,1\n")
    traffic = (
        "rate: 1 req/s\n    classes: [{name: a, share: 3, input_tokens: {empirical: seen.csv}}, "
        "{name: b, share: 1, output_tokens: {empirical: [5, 5, 7]}, slo: {e2e: 9 s}, priority: 3}]"
    )
    one, two = load(_scenario(tmp_path, traffic)).serving.traffic.classes
    assert (one.input_tokens.values_tokens, one.input_tokens.weights) == ((10, 20), (4.0, 1.0))
    assert one.input_tokens.mean_tokens == 12.0
    assert (one.slo.ttft_s, one.slo.e2e_s) == (0.5, None)
    assert (two.slo.ttft_s, two.slo.e2e_s, two.priority) == (None, 9.0, 3)
    assert two.output_tokens.weights == (2.0, 1.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "empty file"),
        ("length\n1\n", "missing column tokens"),
        ("tokens\n", "no lengths"),
        ("tokens\n0\n1.5\nx\n", "seen.csv:4: tokens: not usable"),
        ("tokens,count\n5,-1\n", "seen.csv:2: count: not usable"),
        ("tokens,count\n5,0\n", "no lengths"),
    ],
)
def test_bad_length_table(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text(table)
    traffic = "rate: 1 req/s\n    classes: [{name: a, share: 1, input_tokens: {empirical: seen.csv}}]"
    result = run("check", _scenario(tmp_path, traffic))
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_trace_may_name_its_classes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens,class\n0,1,1,chat\n1,2,2,batch\n")
    text = with_line(with_line(SERVING, 11, "    classes: [{name: batch}, {name: chat}]"), 12, "")
    path = tmp_path / "s.yaml"
    path.write_text(with_line(text, 10, "    trace: t.csv"))
    assert load(path).serving.traffic.trace.class_id.tolist() == [1, 0]
    path.write_text(with_line(text.replace("{name: chat}", "{name: talk}"), 10, "    trace: t.csv"))
    result = run("check", path)
    assert "the trace has a class that is not described (got chat)" in result.stderr
