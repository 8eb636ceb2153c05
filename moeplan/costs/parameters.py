"""Which parameters an operation uses: the device's own fit, else the nearest of the device, else an estimate."""

from __future__ import annotations

from collections.abc import Mapping

from moeplan.costs import (
    attention,
    collectives,
    elementwise,
    expert_exchange,
    experts,
    gemm,
    host,
    latent_attention,
    recurrent,
)
from moeplan.costs.transfer import ESTIMATE_LOG_RESIDUAL
from moeplan.provenance import Tier
from moeplan.spec.hardware import Hardware, OpParameters

# Every operation of the cost model with its stated estimates; an operation that is measured has the name of its table.
ESTIMATES: Mapping[str, Mapping[str, float]] = {
    "gemm": gemm.DEFAULTS,
    "moe": experts.DEFAULTS,
    "wideep_moe": experts.DEFAULTS,
    "elementwise": elementwise.DEFAULTS,
    "attention_prefill": attention.PREFILL_DEFAULTS,
    "attention_decode": attention.DECODE_DEFAULTS,
    "mla_prefill": latent_attention.MLA_PREFILL_DEFAULTS,
    "mla_decode": latent_attention.MLA_DECODE_DEFAULTS,
    "mla_absorb": latent_attention.MLA_ABSORB_DEFAULTS,
    "mla_prefill_module": latent_attention.MLA_MODULE_DEFAULTS,
    "mla_decode_module": latent_attention.MLA_MODULE_DEFAULTS,
    "linear_attention": recurrent.RECURRENT_DEFAULTS,
    "state_space": recurrent.RECURRENT_DEFAULTS,
    **collectives.DEFAULTS,
    **expert_exchange.DEFAULTS,
    **host.DEFAULTS,
}

# Formats in the order in which one may stand for another: same arithmetic first, then same width.
_NEAREST: dict[str, tuple[str, ...]] = {
    "fp8": ("fp8_block", "mxfp8"),
    "fp8_kv": ("fp8",),
    "fp8_block": ("fp8", "mxfp8"),
    "mxfp8": ("fp8_block", "fp8"),
    "int8": ("fp8", "fp8_block"),
    "nvfp4": ("w4a8_mxfp4_mxfp8", "mxfp4", "fp8_block", "fp8"),
    "mxfp4": ("w4a8_mxfp4_mxfp8", "w4a16_mxfp4", "nvfp4", "int4"),
    "w4a8_mxfp4_mxfp8": ("nvfp4", "mxfp4", "w4a16_mxfp4", "fp8_block"),
    "w4a16_mxfp4": ("int4", "mxfp4", "int8_wo"),
    "int4": ("w4a16_mxfp4", "int8_wo"),
    "int4_g32": ("int4", "w4a16_mxfp4", "int8_wo"),
    "int8_wo": ("int4",),
    "q8_0": ("int8_wo", "int4"),
    "q6_k": ("int8_wo", "int4"),
    "q5_k_m": ("int4", "int8_wo"),
    "q4_k_m": ("int4", "int8_wo"),
    "q4_0": ("int4", "int8_wo"),
}
_ENGINES = ("vllm", "sglang", "trtllm")
# Latent attention: vLLM runs FlashMLA and the expanded prefill, as TensorRT-LLM does; SGLang on Hopper runs an absorbed
# FlashAttention-3 that reads an fp8 cache at a tenth of the bandwidth.
_ENGINES_OF_OP = {"mla_decode": ("trtllm", "vllm", "sglang"), "mla_prefill": ("trtllm", "vllm", "sglang")}


def lookup(hardware: Hardware, op: str, engine: str, dtype: str) -> OpParameters:
    """Parameters of ``op`` on ``hardware`` under ``engine`` for number format ``dtype`` (key of ``precision.FORMATS``).

    The order: the same engine and format; the same format under another engine; the nearest format under the same
    engine, then under another; bf16 under any engine; the estimates of the cost module. Fits of this device and those
    transferred to it when the hardware was loaded are both in ``hardware.efficiency``.

    Raises:
        KeyError: no cost module has estimates for ``op``.
    """
    estimates = ESTIMATES[op]
    known = hardware.efficiency.parameters
    exact = known.get((op, engine, dtype))
    if exact is not None:
        return exact
    # "engine/kernel" is a kernel the engine runs for some shapes only.
    engines = (
        engine,
        engine.partition("/")[0],
        *(e for e in _ENGINES_OF_OP.get(op, _ENGINES) if e != engine),
        *sorted({e for o, e, _ in known if o == op}),
    )
    for candidate in (dtype, *_NEAREST.get(dtype, ()), "bf16"):
        for name in engines:
            found = known.get((op, name, candidate))
            if found is not None:
                return found
    return OpParameters(
        op=op,
        engine=engine,
        dtype=dtype,
        values=estimates,
        tier=Tier.ESTIMATE,
        log_residual=ESTIMATE_LOG_RESIDUAL,
        source=f"estimate declared in moeplan/costs for {op}",
    )
