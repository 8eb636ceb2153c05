"""Measured modules of latent attention: `mla_prefill_module` and `mla_decode_module`.

A module is what a step runs for one layer: its projections, the absorbed products or the expansion of the latent, and
its attention, put together as `steps` does with the costs that the other tables fitted. Of its own it has only the
small kernels in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from moeplan.calibrate.op_model import FORMAT_OF_DTYPE, Array, Inputs, OpModel, Place, dtype_column, parameters
from moeplan.calibrate.ops.mla import KV_LORA_RANK, NOPE_DIM, ROPE_DIM, V_DIM
from moeplan.costs.latent_attention import MLA_MODULE_DEFAULTS, mla_glue_time_s
from moeplan.costs.projections import mixer_shard
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import LatentAttention
from moeplan.steps.mixers import decode_mixer_s, prefill_mixer_s
from moeplan.steps.operations import Operations

# DeepSeek-V3 technical report (arXiv:2412.19437), section 4.2.
_HIDDEN, _Q_LORA_RANK = 7168, 1536
_LATENT_DIM = _Q_LORA_RANK + KV_LORA_RANK + ROPE_DIM
_COLUMNS = ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "gemm_type")


def _block(n_heads: int) -> LatentAttention:
    """The heads one rank holds; the down-projections are whole on every rank."""
    sizes = (int(x) for x in (KV_LORA_RANK, NOPE_DIM, ROPE_DIM, V_DIM))
    return LatentAttention(n_heads, _Q_LORA_RANK, *sizes, n_params=0)


def _inputs(frame: pd.DataFrame, hardware: Hardware, fmt: str, *, decode: bool) -> Inputs:
    """``parts_s`` holds what the costs of the parts add up to."""
    ops = Operations(hardware, str(frame["engine"].iloc[0]))
    batch, new, old = (frame[name].to_numpy(np.float64) for name in ("batch_size", "isl", "step"))
    tokens = batch if decode else batch * new
    cache = frame["kv_cache_dtype"].map(FORMAT_OF_DTYPE)
    parts_s = np.zeros(len(frame))
    for (n_heads, kv), rows in frame.groupby([frame["num_heads"], cache]).indices.items():
        block = _block(int(n_heads))
        products = tuple(p for p in mixer_shard(block, _HIDDEN, 1).projections if p.name != "kv_up")
        common = {"tp": 1, "fmt": fmt, "kv": str(kv), "ops": ops}
        mixer_s = (
            decode_mixer_s(block, batch[rows], (new + old)[rows], **common)
            if decode
            else prefill_mixer_s(block, batch[rows], new[rows], old[rows], **common)
        )
        parts_s[rows] = ops.projections_s(tokens[rows], products, fmt) + mixer_s
    return {"parts_s": parts_s, "n_tokens": tokens, "n_heads": frame["num_heads"].to_numpy(np.float64)}


def _time_s(inputs: Inputs, hardware: Hardware, _fmt: str, values: Mapping[str, float]) -> Array:
    glue_s = mla_glue_time_s(
        inputs["n_tokens"], n_heads=inputs["n_heads"], latent_dim=_LATENT_DIM, head_dim=NOPE_DIM + ROPE_DIM,
        device=hardware.device, p=values,
    )  # fmt: skip
    return np.asarray(inputs["parts_s"] + glue_s)


def _regime(frame: pd.DataFrame, _place: Place, *, decode: bool) -> pd.Series:
    """By the tokens of the projections, and the cache's type."""
    tokens = frame["batch_size"] * (1 if decode else frame["isl"])
    size = np.select([tokens <= 16, tokens <= 1024], ["tiny", "small"], "large")
    return pd.Series(size, index=frame.index) + " " + frame["kv_cache_dtype"].map(FORMAT_OF_DTYPE) + " cache"


def _model(phase: str) -> OpModel:
    decode = phase == "decode"
    return OpModel(
        op=f"mla_{phase}_module",
        tables=(f"mla_{phase}_module",),
        columns=_COLUMNS,
        latency=("latency_ms", 1e-3),
        shape_columns=("batch_size", "isl", "step", "num_heads"),
        parameters=parameters(MLA_MODULE_DEFAULTS, {"launch_s": (1e-7, 1e-3), "passes": (0.1, 100.0)}),
        format_of=dtype_column("gemm_type"),
        inputs=partial(_inputs, decode=decode),
        time_s=_time_s,
        regime_of=partial(_regime, decode=decode),
        composed=True,
    )


MODELS = (_model("prefill"), _model("decode"))
