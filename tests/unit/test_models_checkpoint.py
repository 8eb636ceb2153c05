"""Number formats read from ``quantization_config``."""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.errors import InputError
from moeplan.files.catalog.models.checkpoint import checkpoint_format
from moeplan.files.catalog.models.fields import Fields
from moeplan.spec.model import CheckpointFormat


def weights(bits: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind, **more}}}}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4_g32"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8_wo"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "compressed-tensors", **weights(8, "float", strategy="channel")}, "fp8"),
        ({"quant_method": "compressed-tensors", **weights(8, "float", strategy="block")}, "fp8_block"),
        ({"quant_method": "compressed-tensors", **weights(4, "float", group_size=16)}, "nvfp4"),
        ({"quant_method": "compressed-tensors", **weights(4, "int", group_size=128)}, "int4"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["gate", "lm_head"]}, "fp8"),
    ],
)
def test_all_linear_weights(quantization: dict[str, Any], expected: str) -> None:
    found = checkpoint_format(Fields({"torch_dtype": "bfloat16", "quantization_config": quantization}, "f"))
    assert found == CheckpointFormat(experts=expected, attention=expected, dense=expected, embedding="bf16")


@pytest.mark.parametrize(
    "ignore", [["re:.*self_attn.*"], ["model.layers.*.self_attn"], ["*self_attn*"], ["model.layers.7.self_attn"]]
)
def test_an_ignored_component_keeps_its_dtype(ignore: list[str]) -> None:
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ignore}
    found = checkpoint_format(Fields({"dtype": "float16", "quantization_config": quantization}, "f"))
    assert found == CheckpointFormat(experts="nvfp4", attention="fp16", dense="nvfp4", embedding="fp16")


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "awq", "bits": 3},
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "compressed-tensors", **weights(2, "float")},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        {"quant_method": "fp8", "ignore": "lm_head"},
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["re:("]},
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["re:(.+)+x"]},  # would run for hours
        {},
    ],
)
def test_not_understood(quantization: dict[str, Any]) -> None:
    fields = Fields({"quantization_config": quantization}, "f")
    checkpoint_format(fields)
    with pytest.raises(InputError, match="quantization_config"):
        fields.raise_problems()
