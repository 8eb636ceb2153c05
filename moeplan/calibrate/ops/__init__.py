"""Every measured operation. A new one is a module with a ``MODEL`` (or several) and a line here."""

from __future__ import annotations

from moeplan.calibrate.op_model import OpModel
from moeplan.calibrate.ops import gemm

OP_MODELS: tuple[OpModel, ...] = (gemm.MODEL,)
