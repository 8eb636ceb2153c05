"""Every catalog entry against the reference counts and the published sizes beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moeplan.errors import InputError
from moeplan.files.catalog.model_catalog import (
    count_notes,
    load_model,
    model_names,
    model_record,
    unusable_models,
)
from moeplan.files.catalog.models.fields import HARMLESS
from moeplan.files.locate import data_folder
from moeplan.spec.model import MoeMlp
from moeplan.spec.precision import FORMATS

# Entries whose own count is better than the reference; provenance.csv says why in ``remark``.
EXPLAINED = {"Granite-3.0-1B-A400M", "Granite-3.0-3B-A800M", "GLM-5.2"}


def shared_folder() -> Path:
    return Path(os.environ.get("MOEPLAN_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def test_catalog_is_complete() -> None:
    files = {path.stem for path in data_folder("models").glob("*.json")}
    unusable = {record.name for record in unusable_models()}
    assert len(files) == 87
    assert files == set(model_names()) | unusable
    assert unusable == {"Inkling-2-Small", "Qwen4-Exp"}
    assert all(record.remark for record in unusable_models())


@pytest.mark.parametrize("name", model_names())
def test_counts_agree_with_the_reference(name: str) -> None:
    model, record = load_model(name), model_record(name)
    assert record.source
    assert record.grade
    for ours, reference in (
        (model.n_params_total, record.computed_total),
        (model.n_params_active, record.computed_active),
    ):
        if reference is None:
            continue
        if record.formula.startswith("exact-form") and name not in EXPLAINED:
            assert ours == pytest.approx(reference, rel=0.005)
        elif ours != pytest.approx(reference, rel=0.005):
            assert record.remark
            assert any("counted elsewhere" in note for note in count_notes(name))
    if record.computed_mtp is not None:
        assert model.n_params_mtp == pytest.approx(record.computed_mtp, rel=0.005)


@pytest.mark.parametrize("name", model_names())
def test_published_size_is_met_or_the_difference_is_said(name: str) -> None:
    record = model_record(name)
    if record.published_total is None:
        return
    difference = abs(load_model(name).n_params_total - record.published_total)
    said = [note for note in count_notes(name) if "published" in note]
    assert bool(said) == (difference > record.published_total_step / 2)
    assert difference / record.published_total < 0.055  # largest: Nemotron-3-Nano, 31.6 B called 30 B


@pytest.mark.parametrize("name", model_names())
def test_model_is_consistent(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert 0 < model.n_params_active <= model.n_params_total
    assert (model.n_params_active == model.n_params_total) == (not model.is_moe)
    assert sum(count for _, count in model.unique_layers()) == model.n_layers
    for block in model.moe_blocks:
        assert 1 <= block.top_k <= block.n_experts
        assert block.n_params >= block.n_experts * block.n_params_per_expert + block.n_router_params
        assert block.n_experts % block.n_group == 0
    formats = model.checkpoint
    assert {formats.experts, formats.attention, formats.dense, formats.embedding} <= set(FORMATS)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("qwen3-30b-a3b", "Qwen3-30B-A3B"),
        ("Qwen/Qwen3-30B-A3B", "Qwen3-30B-A3B"),
        ("openai/GPT-OSS-20B", "gpt-oss-20b"),
    ],
)
def test_names_ignore_case_and_owner(given: str, name: str) -> None:
    assert load_model(given) == load_model(name)


def test_path_to_file_and_folder(tmp_path: Path) -> None:
    config = (data_folder("models") / "OLMoE-1B-7B.json").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(config)
    by_file = load_model("mine/config.json", tmp_path)
    by_folder = load_model("mine", tmp_path)
    assert by_file == by_folder
    assert by_file.name == "mine"
    assert by_file.layers == load_model("OLMoE-1B-7B").layers


def test_a_path_may_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="leaves the folder"):
        load_model("../config.json", tmp_path / "inner")


def test_unknown_name_offers_near_ones() -> None:
    with pytest.raises(InputError, match="Mixtral-8x7B"):
        load_model("mixtral-8x7")
    with pytest.raises(InputError, match="indexer_n_heads"):
        load_model("Qwen4-Exp")


@pytest.mark.parametrize(
    ("name", "experts", "attention", "dense", "embedding"),
    [
        ("DeepSeek-V3", "fp8_block", "fp8_block", "fp8_block", "bf16"),
        ("gpt-oss-120b", "mxfp4", "bf16", "bf16", "bf16"),
        ("Kimi-K2.5", "int4_g32", "bf16", "bf16", "bf16"),
        ("Kimi-K3", "mxfp4", "bf16", "bf16", "bf16"),
        ("DeepSeek-V4-Pro", "mxfp4", "fp8_block", "fp8_block", "bf16"),
        ("Qwen3-30B-A3B", "bf16", "bf16", "bf16", "bf16"),
    ],
)
def test_published_number_formats(name: str, experts: str, attention: str, dense: str, embedding: str) -> None:
    found = load_model(name).checkpoint
    assert (found.experts, found.attention, found.dense, found.embedding) == (experts, attention, dense, embedding)


def test_routing_fields() -> None:
    v3 = next(block for block in load_model("DeepSeek-V3").moe_blocks if isinstance(block, MoeMlp))
    assert (v3.scoring, v3.n_group, v3.topk_group, v3.n_shared_experts) == ("sigmoid", 8, 4, 1)
    longcat = load_model("LongCat-Flash").moe_blocks[0]
    assert (longcat.n_zero_experts, longcat.n_experts, longcat.top_k) == (256, 512, 12)
    nano = load_model("Nemotron-3-Super-120B-A12B").moe_blocks[0]
    assert (nano.expert_hidden_size, nano.n_matrices) == (1024, 2)


def test_harmless_words_hold_no_size() -> None:
    sizes = {"hidden_size", "num_hidden_layers", "head_dim", "vocab_size", "num_experts", "attention_bias"}
    assert not sizes & HARMLESS


def test_reading_needs_no_numeric_library() -> None:
    code = (
        "import sys; from moeplan.files.catalog.model_catalog import load_model; load_model('DeepSeek-V3');"
        "print(sorted({'numpy', 'numba', 'scipy', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.shared
@pytest.mark.parametrize("path", sorted(shared_folder().glob("measured/*/model_configs/*.json")), ids=lambda p: p.stem)
def test_measured_models_equal_the_catalog(path: Path) -> None:
    ours = load_model(next(name for name in model_names() if name.casefold() == path.stem))
    assert load_model(str(path)).layers == ours.layers
    assert json.loads(path.read_text())["vocab_size"] == ours.vocab_size
