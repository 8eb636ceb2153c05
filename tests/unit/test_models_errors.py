"""Configurations that must be refused, with the field named; nothing but InputError may come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import InputError
from moeplan.files.catalog.model_catalog import load_model, model_names
from moeplan.files.catalog.models.reader import read_model
from moeplan.files.locate import data_folder

DROP = object()


def config(name: str = "Qwen3-30B-A3B", **changes: Any) -> dict[str, Any]:
    values = json.loads((data_folder("models") / f"{name}.json").read_text())
    values.update(changes)
    return {key: value for key, value in values.items() if value is not DROP}


@pytest.mark.parametrize(
    ("name", "changes", "path"),
    [
        ("Qwen3-30B-A3B", {"hidden_size": DROP}, "hidden_size"),
        ("Qwen3-30B-A3B", {"num_experts": DROP}, "num_local_experts"),
        ("Qwen3-30B-A3B", {"vocab_size": None}, "vocab_size"),
        ("Qwen3-30B-A3B", {"max_position_embeddings": DROP}, "max_position_embeddings"),
        ("Qwen3-30B-A3B", {"model_type": DROP}, "model_type"),
        ("Qwen3-30B-A3B", {"model_type": 7}, "model_type"),
        ("Qwen3-30B-A3B", {"model_type": "qwen9_moe"}, "model_type"),
        ("Qwen3-30B-A3B", {"hidden_size": -2048}, "hidden_size"),
        ("Qwen3-30B-A3B", {"hidden_size": 0}, "hidden_size"),
        ("Qwen3-30B-A3B", {"hidden_size": "2048"}, "hidden_size"),
        ("Qwen3-30B-A3B", {"hidden_size": 2048.5}, "hidden_size"),
        ("Qwen3-30B-A3B", {"hidden_size": True}, "hidden_size"),
        ("Qwen3-30B-A3B", {"hidden_size": float("inf")}, "hidden_size"),
        ("Qwen3-30B-A3B", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("Qwen3-30B-A3B", {"vocab_size": 10**400}, "vocab_size"),
        ("Qwen3-30B-A3B", {"num_experts_per_tok": 129}, "num_experts_per_tok"),
        ("Qwen3-30B-A3B", {"num_key_value_heads": 5}, "num_key_value_heads"),
        ("Qwen3-30B-A3B", {"head_dim": DROP, "hidden_size": 2050}, "head_dim"),
        ("Qwen3-30B-A3B", {"attention_bias": "no"}, "attention_bias"),
        ("Qwen3-30B-A3B", {"extra_expert_width": 12}, "extra_expert_width"),
        ("Qwen3-30B-A3B", {"num_local_experts": 64}, "num_experts"),
        ("Qwen3-30B-A3B", {"torch_dtype": "float7"}, "torch_dtype"),
        ("Qwen3-30B-A3B", {"quantization_config": {"quant_method": "magic"}}, "quantization_config.quant_method"),
        ("Qwen3-30B-A3B", {"quantization_config": "fp8"}, "quantization_config"),
        ("DeepSeek-V3", {"n_group": 7}, "n_group"),
        ("DeepSeek-V3", {"kv_lora_rank": "512"}, "kv_lora_rank"),
        ("DeepSeek-V3", {"v_head_dim": DROP}, "v_head_dim"),
        ("DeepSeek-V3", {"scoring_func": "dice"}, "scoring_func"),
        ("DeepSeek-V3.2", {"index_n_heads": DROP}, "index_n_heads"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gpt-oss-20b", {"layer_types": ["circular"] * 24}, "layer_types[0]"),
        ("gpt-oss-20b", {"sliding_window": None}, "sliding_window"),
        ("Nemotron-3-Nano-30B-A3B", {"hybrid_override_pattern": "MX"}, "layers_block_type"),
        ("Nemotron-3-Nano-30B-A3B", {"num_hidden_layers": 51}, "num_hidden_layers"),
        ("DeepSeek-V4-Flash", {"compress_ratios": [3] * 44}, "compress_ratios"),
        ("DBRX", {"attn_config": DROP}, "attn_config.kv_n_heads"),
    ],
)
def test_refused_with_the_field_named(name: str, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError) as caught:
        read_model(config(name, **changes), "config.json", name)
    assert path in {problem.path for problem in caught.value.problems}
    assert all(problem.file == "config.json" for problem in caught.value.problems)


def test_every_problem_at_once() -> None:
    broken = config(hidden_size=-1, vocab_size="many", num_experts=DROP, strange_dim=3)
    with pytest.raises(InputError) as caught:
        read_model(broken, "config.json", "x")
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {"hidden_size", "vocab_size", "num_local_experts", "strange_dim"}


def test_unknown_architecture_names_its_unknown_fields() -> None:
    with pytest.raises(InputError) as caught:
        read_model(config("Qwen3-Next-80B-A3B", model_type="qwen5_next"), "config.json", "x")
    paths = {problem.path for problem in caught.value.problems}
    assert {"model_type", "linear_num_key_heads", "full_attention_interval"} <= paths


def test_absent_and_harmless_extras_are_accepted() -> None:
    plain = read_model(config(), "f", "x")
    extras = {"new_expert_trick": False, "index_width": None, "_private": 5, "router_aux_loss_coef": 1, "tint": "red"}
    dressed = read_model(config(**extras), "f", "x")
    assert dressed.layers == plain.layers
    assert dressed.notes == ("field tint is not used",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1, 2]", "must hold a JSON object"),
        (b"3", "must hold a JSON object"),
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"hidden_size": 1' + b"0" * 5000 + b"}", "digits"),
        (b" " * (9 * 2**20), "too large"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model("config.json", tmp_path)


@pytest.mark.parametrize("name", ["./no.json", "/dev/zero", "a\0b.json", "x" * 5000, "", "~nobody-here/x.json", "."])
def test_unusable_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        load_model(name)
    with pytest.raises(InputError):
        load_model(name, tmp_path)


def test_position_of_a_syntax_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 1,\n  oops}')
    with pytest.raises(InputError) as caught:
        load_model("config.json", tmp_path)
    problem = caught.value.problems[0]
    assert (problem.line, problem.col) == (2, 3)


BAD = [None, -1, 0, float("inf"), float("nan"), "x", [], {}, True, 1.5, 10**12, 10**400, [1], [None], {"a": 1}]


@given(data=st.data())
def test_any_damaged_value_gives_a_model_or_an_input_error(data: st.DataObject) -> None:
    values: dict[str, Any] = config(data.draw(st.sampled_from(model_names())))
    place = values
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(BAD))
    try:
        model = read_model(values, "config.json", "x")
    except InputError:
        return
    assert model.n_params_total > 0
