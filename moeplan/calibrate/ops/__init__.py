"""Every measured operation. A new one is a module with a ``MODEL`` (or several) and a line here."""

from __future__ import annotations

from moeplan.calibrate.op_model import OpModel
from moeplan.calibrate.ops import attention, collectives, copies, gemm, mla, mla_module, moe

OP_MODELS: tuple[OpModel, ...] = (
    gemm.MODEL,
    moe.MODEL,
    moe.WIDE_MODEL,
    attention.PREFILL,
    attention.DECODE,
    mla.PREFILL,
    mla.DECODE,
    mla.ABSORB,
    *mla_module.MODELS,
    *collectives.MODELS,
    copies.MEMORY,
    copies.HOST,
)
