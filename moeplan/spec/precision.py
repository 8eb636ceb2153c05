"""Number formats: what a stored weight weighs and which arithmetic it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ComputeType = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"]


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A storage format with the arithmetic the kernels use for it.

    ``bits`` is the mean storage per value [bit], block scales included.
    ``compute`` is the preferred arithmetic; ``fallback`` the one used when the device lacks it
    (weight-only formats dequantise to bf16, or to fp16 on a device without it).
    """

    name: str
    bits: float
    compute: ComputeType
    fallback: ComputeType | None
    source: str

    @property
    def bytes_per_value(self) -> float:
        return self.bits / 8.0


_HALF_BLOCK = "scale bits: block layout of the format; "

FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        NumberFormat("fp32", 32.0, "fp32", None, "IEEE 754"),
        NumberFormat("bf16", 16.0, "bf16", "fp32", "bfloat16 storage"),
        NumberFormat("fp16", 16.0, "fp16", "fp32", "IEEE 754"),
        NumberFormat("fp8", 8.0, "fp8", "bf16", "OCP FP8, per-tensor or per-channel scales (negligible)"),
        NumberFormat(
            "fp8_block",
            8.0 + 32.0 / (128 * 128),
            "fp8",
            "bf16",
            _HALF_BLOCK + "128x128 blocks, fp32 scale (DeepSeek-V3 report, section 3.3)",
        ),
        NumberFormat("int8", 8.0, "int8", "bf16", "W8A8, per-channel scales (negligible)"),
        NumberFormat(
            "int8_wo", 8.0 + 16.0 / 128, "bf16", "fp16", _HALF_BLOCK + "W8A16, groups of 128 with a 16-bit scale"
        ),
        NumberFormat(
            "int4",
            4.0 + (16.0 + 4.0) / 128,
            "bf16",
            "fp16",
            _HALF_BLOCK + "W4A16 (AWQ/GPTQ), groups of 128: 16-bit scale, 4-bit zero",
        ),
        NumberFormat(
            "int4_g32",
            4.0 + 16.0 / 32,
            "bf16",
            "fp16",
            _HALF_BLOCK + "W4A16 symmetric, groups of 32: 16-bit scale (Kimi-K2.5)",
        ),
        NumberFormat(
            "mxfp4",
            4.0 + 8.0 / 32,
            "fp4",
            "bf16",
            _HALF_BLOCK + "OCP Microscaling v1.0: 32 values share an 8-bit scale",
        ),
        NumberFormat(
            "w4a16_mxfp4",
            4.0 + 8.0 / 32,
            "bf16",
            "fp16",
            _HALF_BLOCK + "MXFP4 weights dequantised in the kernel, 16-bit activations (gpt-oss on Hopper)",
        ),
        NumberFormat(
            "w4a8_mxfp4_mxfp8",
            4.0 + 8.0 / 32,
            "fp8",
            "bf16",
            _HALF_BLOCK + "MXFP4 weights, MXFP8 activations (gpt-oss on Blackwell)",
        ),
        NumberFormat("nvfp4", 4.0 + 8.0 / 16, "fp4", "bf16", _HALF_BLOCK + "NVFP4: 16 values share an 8-bit scale"),
        NumberFormat(
            "mxfp8",
            8.0 + 8.0 / 32,
            "fp8",
            "bf16",
            _HALF_BLOCK + "OCP Microscaling v1.0: 32 values share an 8-bit scale",
        ),
        NumberFormat(
            "q8_0",
            8.0 + 16.0 / 32,
            "bf16",
            "fp16",
            _HALF_BLOCK + "llama.cpp block_q8_0: 32 values, one 16-bit scale",
        ),
        NumberFormat("q6_k", 6.5625, "bf16", "fp16", "llama.cpp block_q6_K: 210 bytes per 256 values"),
        NumberFormat("q5_k_m", 5.69, "bf16", "fp16", "llama.cpp quantize table, mean over tensors of a mixed file"),
        NumberFormat("q4_k_m", 4.85, "bf16", "fp16", "llama.cpp quantize table, mean over tensors of a mixed file"),
        NumberFormat(
            "q4_0",
            4.0 + 16.0 / 32,
            "bf16",
            "fp16",
            _HALF_BLOCK + "llama.cpp block_q4_0: 32 values, one 16-bit scale",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Precision:
    """Number format of each part of a served or trained model (keys of ``FORMATS``)."""

    experts: str
    attention: str
    dense: str  # dense and shared-expert FFN
    embedding: str  # embedding, output head, norms, router
    kv_cache: str
