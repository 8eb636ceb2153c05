"""``moeplan catalog``: lists, single entries, JSON, and its errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moeplan.cli import main


def run(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(main, ["catalog", *args], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def as_json(*args: str) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("args", [("hardware",), ("hardware", "dgx-h100"), ("prices",), ("prices", "h200-sxm"),
                                  ("prices", "aws/p5.48xlarge/us-east-1"), ("prices", "gpt-oss-120b"), ("models",),
                                  ("models", "Qwen3-30B-A3B"), ("runs",)])  # fmt: skip
def test_tables_fit_80_columns_and_hold_no_control_codes(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "\x1b" not in result.stdout


def test_hardware_list() -> None:
    listed = {entry["name"]: entry for entry in as_json("hardware")["hardware"]}
    assert len(listed) >= 45
    assert listed["h200-sxm"]["memory_bytes"] == 143771 * 2**20
    assert listed["dgx-h200"]["device"] == "h200-sxm"
    assert "h200-sxm" in run("hardware").stdout


def test_hardware_entry_shows_the_source_of_every_value() -> None:
    data = as_json("hardware", "dgx-h100")
    assert data["extends"] == ["h100-sxm"]
    bandwidth = data["values"]["memory.bandwidth"]
    assert bandwidth["stated"] == "3350 GB/s"
    assert bandwidth["value"] == 3.35e12
    assert bandwidth["unit"] == "B/s"
    assert all(v["source"] and v["date"] and v["kind"] and v["basis"] for v in data["values"].values())
    assert data["disagreements"]
    text = run("hardware", "dgx-h100", columns=200).stdout
    for stated in data["values"].values():
        assert stated["source"] in text or len(stated["source"]) > 100


def test_brackets_in_sources_are_text(tmp_path: Any) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: h100-sxm\nname: '[red]mine[/red]'\n", encoding="utf-8")
    assert "[red]mine[/red]" in run("hardware", str(profile)).stdout


def test_prices_of_a_system_are_those_of_its_device() -> None:
    data = as_json("prices", "dgx-h100")
    assert {offer["hardware"] for offer in data["offers"]} == {"h100-sxm"}
    assert all(offer["source"] and offer["date"] for offer in data["offers"])
    assert any(entry["why_not_an_offer"].startswith("modelled") for entry in data["reference_prices"])
    assert any(cost["category"] == "gpu purchase" for cost in data["other_costs"])


def test_hardware_without_an_offer_says_so() -> None:
    assert "state a price of your own" in run("prices", "dgx-spark").stdout
    assert as_json("prices", "dgx-spark")["offers"] == []


def test_one_offer() -> None:
    data = as_json("prices", "aws/p5.48xlarge/us-east-1")
    assert data["usd_per_gpu_hour"] == 6.88
    assert data["kind"] == "list price"
    assert "55.04" in data["stated"]["basis"]


def test_hosted_model() -> None:
    data = as_json("prices", "GPT-OSS-120B")
    assert len(data["api_offers"]) > 30
    assert data["api_offers"][0]["kind"] == "list price"


def test_price_overview() -> None:
    data = as_json("prices")
    assert len(data["offers"]) > 250
    assert any(cost["category"] == "pue" for cost in data["other_costs"])


def test_models() -> None:
    assert "Qwen3-30B-A3B" in as_json("models")["models"]
    data = as_json("models", "qwen3-30b-a3b")
    assert data["n_params_total"] == pytest.approx(30.5e9, rel=0.01)
    assert data["provenance"]["source"]


def test_runs_are_said_to_be_none() -> None:
    assert as_json("runs") == {"runs": []}
    assert "No measured runs" in run("runs").stdout


@pytest.mark.parametrize(("args", "message"), [
    (("hardware", "h200-smx"), "did you mean h200-sxm"),
    (("hardware", "./nothing.yaml"), "no such hardware profile file"),
    (("prices", "nonsense"), "moeplan catalog prices lists all offers"),
    (("prices", "daytona/rtx-4090/2026-10-20"), "not an offer"),
    (("models", "no-such-model"), "no-such-model"),
    (("runs", "mine"), "no measured runs are shipped"),
    (("engines",), "engines"),
])  # fmt: skip
def test_errors_exit_2_without_traceback(args: tuple[str, ...], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
