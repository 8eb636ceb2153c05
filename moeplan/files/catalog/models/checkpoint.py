"""Number formats of the published weights, from ``quantization_config`` or the dtype field."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import replace

from moeplan.files.catalog.models.fields import Fields
from moeplan.spec.model import CheckpointFormat

DTYPES = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32",
    "torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32",
}  # fmt: skip

# Modules that stand for a component when an ignore list is read.
PROBES = {
    "attention": ("model.layers.7.self_attn.q_proj", "model.layers.7.self_attn.o_proj"),
    "dense": ("model.layers.7.mlp.gate_proj", "model.layers.7.mlp.shared_experts.gate_proj"),
    "experts": ("model.layers.7.mlp.experts.3.gate_proj",),
}

# The file is data from anywhere: only expressions that cannot run away are evaluated.
SIMPLE_PATTERN = re.compile(r"(?:\.\*|\\d\+|\\[.d_-]|[\w.^$|()?:-])*")
MAX_REPEATS = 4
MAX_CHOICES = 8


def checkpoint_format(f: Fields) -> CheckpointFormat:
    """Formats of the weights as published; bf16 where the file states no dtype."""
    base = DTYPES.get(str(f.raw("torch_dtype", "dtype") or "bfloat16"))
    if base is None:
        f.problem("torch_dtype", "unknown dtype", f.raw("torch_dtype", "dtype"), ", ".join(DTYPES))
        base = "bf16"
    plain = CheckpointFormat(experts=base, attention=base, dense=base, embedding=base)
    expert_dtype = f.word("expert_dtype", ("fp4", "fp8", "bf16"), "")
    q = f.section("quantization_config")
    if q is None:
        return plain
    linear = _linear_format(q)
    if linear is None:
        return plain
    ignored = _ignored_components(q)
    quantised = replace(plain, **{part: linear for part in PROBES if part not in ignored})
    if q.raw("quant_method") == "mxfp4":  # this method stores the experts only (gpt-oss)
        quantised = replace(plain, experts="mxfp4")
    if expert_dtype == "fp4":  # DeepSeek-V4: MXFP4 experts beside fp8 linear weights
        quantised = replace(quantised, experts="mxfp4")
    return quantised


def _linear_format(q: Fields) -> str | None:
    """Format of the quantised linear weights; records a problem and returns None when it is not understood."""
    method = q.raw("quant_method", "quant_library")
    algo = str(q.raw("quant_algo") or "").upper()
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8_block" if q.raw("weight_block_size") else "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method in ("awq", "gptq", "gptq_marlin", "awq_marlin", "auto-round"):
        return _integer(q, q.size("bits", "w_bit"), q.size("group_size", "q_group_size", default=128, low=-1))
    if method == "modelopt" and algo in ("NVFP4", "FP8"):
        return {"NVFP4": "nvfp4", "FP8": "fp8"}[algo]
    if method == "compressed-tensors":
        return _compressed_tensors(q)
    q.problem(
        "quant_method", "quantisation not understood", f"{method} {algo}".strip(),
        "fp8, mxfp4, awq, gptq, modelopt NVFP4 or FP8, compressed-tensors",
    )  # fmt: skip
    return None


def _compressed_tensors(q: Fields) -> str | None:
    groups = q.section("config_groups")
    formats = set()
    for name in groups.values if groups else ():
        group = groups.section(name) if groups else None
        weights = group.section("weights") if group else None
        if weights is None:
            continue
        bits, kind = weights.size("num_bits"), weights.raw("type")
        group_size = weights.size("group_size", default=-1, low=-1)
        if kind == "int":
            activations = group.raw("input_activations") if group else None
            formats.add("int8" if bits == 8 and activations else _integer(weights, bits, group_size))
        elif kind == "float" and bits == 8:
            formats.add("fp8_block" if weights.raw("strategy") == "block" else "fp8")
        elif kind == "float" and bits == 4:
            formats.add({32: "mxfp4", 16: "nvfp4"}.get(group_size))
        else:
            formats.add(None)
    if len(formats) == 1 and None not in formats:
        return formats.pop()
    q.problem("config_groups", "one understood weight format expected", sorted(map(str, formats)))
    return None


def _integer(q: Fields, bits: int, group_size: int) -> str | None:
    if bits == 8:
        return "int8_wo"
    if bits == 4:
        return "int4_g32" if group_size == 32 else "int4"
    q.problem("bits", "no such weight format", bits, "4, 8")
    return None


def _ignored_components(q: Fields) -> set[str]:
    """Components that the ignore list leaves in the base dtype (a component counts when all its probes are matched)."""
    patterns: list[str] = []
    for key in ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers"):
        value = q.raw(key) or []
        if not isinstance(value, list):
            q.problem(key, "must be a list of module names", value)
            continue
        for entry in map(str, value):
            if _understood(entry):
                patterns.append(entry)
            else:
                q.problem(key, "pattern not understood", entry, "names, *, and simple expressions with .* and (a|b)")
    return {part for part, probes in PROBES.items() if all(any(_matches(p, m) for p in patterns) for m in probes)}


def _understood(pattern: str) -> bool:
    if not pattern.startswith("re:"):
        return True
    repeats = sum(pattern.count(sign) for sign in "*+?")
    if not SIMPLE_PATTERN.fullmatch(pattern[3:]) or repeats > MAX_REPEATS or pattern.count("|") > MAX_CHOICES:
        return False
    try:
        re.compile(pattern[3:])
    except re.error:
        return False
    return True


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if "*" in pattern:
        return fnmatch.fnmatch(module, pattern) or fnmatch.fnmatch(module, pattern + ".*")
    return f".{pattern}." in f".{module}."  # whole names: "gate" is not "gate_proj"
