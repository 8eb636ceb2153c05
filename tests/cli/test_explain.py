"""Every number of a plan can be explained, and the explanation is true of the plan."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from moeplan.cli import main
from moeplan.files.load import load
from moeplan.planner.answers.explain import NOISE, Explainer
from moeplan.planner.answers.explanations import RULES

OTHERS = ("own-moe-60k.yaml", "lifecycle-finetune-serve.yaml")
ROOT = Path(__file__).parents[2]


@cache
def explainer(name: str) -> Explainer:
    return Explainer(load(ROOT / "scenarios" / name))


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", ["quickstart.yaml", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_every_leaf_is_explained(name: str) -> None:
    known = explainer(name)
    leaves = list(known.leaves())
    assert len(leaves) > 200
    for path in leaves:
        found = known.explain(path, shares=False)
        assert found.formula, path
        assert path.startswith(found.path)
        node = known._node(path)
        assert node in (found.value, found.low, found.high), path


def test_method_pages_and_sections_exist() -> None:
    for rule in RULES:
        page, _, section = rule.method.partition("#")
        file = ROOT / "docs/method" / page
        assert file.exists(), rule.method
        assert not section or section in anchors(file), rule.method


@pytest.mark.slow
def test_rules_name_paths_and_values_that_exist() -> None:
    seen: set[str] = set()
    for name in ("quickstart.yaml", *OTHERS):
        known = explainer(name)
        for path in known.leaves():
            seen.add(path)
    for rule in RULES:
        for text in rule.inputs:
            if text[0] not in "@!#%":
                assert any(p == text or p.startswith(text + ".") for p in seen), text


def test_cost_per_token_leads_to_the_price_with_its_source_and_date() -> None:
    found = explainer("quickstart.yaml").explain("cost.usd_per_million_output_tokens")
    price = next(link for link in found.chain if link.path == "money.offer.usd_per_gpu_hour")
    assert (price.value, price.unit, price.date) == ("3.5", "USD/h", "2025-11")
    assert "nebius" in price.source
    tiers = {link.tier for link in found.chain if link.kind == "fitted"}
    assert tiers == {"fitted"}
    peak = next(link for link in found.chain if link.path.endswith("memory.bandwidth"))
    assert peak.kind == "datasheet"
    assert peak.date


def test_shares_of_a_latency_add_up_and_name_what_was_learnt() -> None:
    found = explainer("quickstart.yaml").explain("serving.tpot_s.p90")
    assert sum(share.share_frac for share in found.shares) == pytest.approx(1.0, abs=2e-3)
    assert found.shares[0].cause == "step"
    assert found.shares[0].n_runs > 100
    assert {share.cause for share in found.shares} <= {"step", "ttft", "throughput", NOISE}


def test_an_exact_number_has_no_shares() -> None:
    found = explainer("quickstart.yaml").explain("cost.usd_per_month.high")
    assert found.shares == ()
    assert found.low == found.high == found.value == 2555.0


def test_command_prints_the_chain_and_its_json() -> None:
    path = str(ROOT / "scenarios/quickstart.yaml")
    text = CliRunner().invoke(main, ["explain", path, "memory.kv_capacity_tokens"])
    assert text.exit_code == 0
    assert "docs/method/memory.md#serving" in text.stdout
    found = CliRunner().invoke(main, ["explain", path, "memory.kv_capacity_tokens", "--json"])
    assert json.loads(found.stdout)["unit"] == "tokens"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("cost.usd_per_mont", "did you mean cost.usd_per_month"),
        ("cost", "cost.{usd_per_hour"),
        ("..", "no such number"),
    ],
)
def test_a_path_that_leads_nowhere_is_said_to(path: str, said: str) -> None:
    result = CliRunner().invoke(main, ["explain", str(ROOT / "scenarios/quickstart.yaml"), path])
    assert result.exit_code == 2
    assert said in result.stderr
