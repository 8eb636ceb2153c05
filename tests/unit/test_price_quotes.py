"""The user's own quotes, named by line and column where they are wrong; which hosted offers serve a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moeplan.cli import main
from moeplan.files.catalog import price_catalog as prices
from moeplan.files.catalog.model_catalog import load_model
from moeplan.files.catalog.price_match import serves

GPU = "name,hardware,n_gpus,term,value,unit,price_date,source\n"
GOOD = GPU + "mycloud/h200,h200-sxm,8,on_demand,2.10,USD/GPU/h,2026-11-20,mail from sales\n"
API = "name,model,input,output,unit,price_date,source\n"


@pytest.fixture(autouse=True)
def _own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def update(tmp_path: Path, text: str | bytes) -> Result:
    path = tmp_path / "quotes.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(main, ["catalog", "prices", "--update", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_quote_can_be_named_and_replaced(tmp_path: Path) -> None:
    assert update(tmp_path, GOOD).exit_code == 0
    assert prices.load_offer("mycloud/h200").usd_per_gpu_hour == 2.10
    assert "mycloud/h200" in {offer.name for offer in prices.offers_for("h200-sxm")}
    assert update(tmp_path, GOOD.replace("2.10", "1.90")).exit_code == 0
    assert prices.load_offer("mycloud/h200").usd_per_gpu_hour == 1.90
    assert prices.load_offer("aws/p5.48xlarge/us-east-1").usd_per_gpu_hour == pytest.approx(6.88)


def test_a_hosted_model_can_be_quoted(tmp_path: Path) -> None:
    row = "me/gpt-oss-20b,gpt-oss-20b,0.02,0.08,USD/M tokens,2026-11-20,contract\n"
    assert update(tmp_path, API + row).exit_code == 0
    assert prices.load_api_offer("me/gpt-oss-20b").usd_per_output_token == pytest.approx(0.08e-6)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (GOOD.replace("2.10", "-2.10"), "2:35: value", "must not be negative"),
        (GOOD.replace("2.10", "0"), "2:35: value", "must not be zero"),
        (GOOD.replace("2026-11-20", ""), "2:50: price_date", "no value"),
        (GOOD.replace("2026-11-20", "last week"), "2:50: price_date", "expected a date"),
        (GOOD.replace("h200-sxm", "h200-smx"), "2:14: hardware", "did you mean h200-sxm"),
        (GOOD.replace("on_demand", "rented"), "2:25: term", "unknown value"),
        (GOOD.replace("on_demand", ""), "2:25: term", "no value"),
        (GOOD.replace("USD/GPU/h", "USD"), "2:35: value", "expected a price per GPU and hour"),
        (GOOD.replace(",8,", ",0,"), "2:23: n_gpus", "expected a count"),
        (GOOD.replace(",source\n", "\n"), "1:1: source", "missing column"),
        (GOOD.replace("source\n", "sauce\n"), "1:1: sauce", "unknown column"),
        (GOOD + GOOD.splitlines()[1] + "\n", "3:1: name", "a second quote of this name"),
        (GOOD + "a,b\n", "3:1:", "wrong number of fields"),
        (API + "me/x,gpt-oss-20b,0.02,,USD/M tokens,2026-11-20,contract\n", "2:23: output", "no value"),
        (GPU, "", "no quotes below the heading"),
        ("", "", "no rows"),
        (b"\xff\xfe\x00", "", "not a UTF-8 text file"),
        (b'name,"hardware\n\x00', "", "missing column"),
    ],
)  # fmt: skip
def test_bad_quotes_are_named_and_nothing_is_kept(text: str | bytes, place: str, words: str, tmp_path: Path) -> None:
    result = update(tmp_path, text)
    assert result.exit_code == 2
    assert f"quotes.csv:{place}" in result.output
    assert words in result.output
    assert not (tmp_path / "data").exists()


def test_update_belongs_to_prices(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["catalog", "models", "--update", str(tmp_path / "x.csv")])
    assert result.exit_code == 2
    assert "belongs to" in result.output
    assert update(tmp_path, GOOD).output.startswith("1 quotes of GPU hours taken into")


@pytest.mark.parametrize(
    ("offer", "model", "same"),
    [
        ("cloudflare/@cf/qwen/qwen3-30b-a3b-fp8", "Qwen3-30B-A3B", True),
        ("novita/qwen/qwen3-coder-30b-a3b-instruct", "Qwen3-30B-A3B", False),
        ("lambda_ai/deepseek-r1-671b", "DeepSeek-R1", True),
        ("novita/deepseek/deepseek-r1-0528-qwen3-8b", "DeepSeek-R1", False),
        ("llamagate/deepseek-r1-8b", "DeepSeek-R1", False),
        ("fireworks_ai/accounts/fireworks/models/glm-5p2", "GLM-5.2", True),
        ("tencent/kimi-k2.8-preview", "Kimi-K2", False),
        ("us-gov.openai.gpt-oss-120b-1:0", "gpt-oss-120b", True),
        ("azure_ai/Llama-4-Maverick-17B-128E-Instruct-FP8", "Llama-4-Maverick", True),
        ("vertex_ai/meta/llama-4-maverick-17b-16e-instruct-maas", "Llama-4-Maverick", False),
        ("deepinfra/NousResearch/Hermes-3-Llama-3.1-405B", "Llama-3.1-405B", False),
        ("meta.llama3-1-405b-instruct-v1:0", "Llama-3.1-405B", True),
    ],
)  # fmt: skip
def test_an_offer_of_a_relative_is_not_the_model(offer: str, model: str, same: bool) -> None:
    assert serves(offer, load_model(model)) is same
