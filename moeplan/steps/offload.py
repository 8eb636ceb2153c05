"""Weights in host memory: what an iteration needs of them comes over the host link, or is multiplied where it lies.

Streaming (vLLM ``--cpu-offload-gb``, ``--offload``): a layer's weights move while the layer before it computes, so an
iteration takes the longer of both. On the host (llama.cpp ``--n-cpu-moe``): the CPU reads the experts at its memory's
bandwidth while the device waits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeplan.costs.host import products_bytes_per_s
from moeplan.costs.projections import split
from moeplan.spec.model import MoeMlp
from moeplan.spec.precision import FORMATS
from moeplan.steps.memory import stage_weight_bytes
from moeplan.steps.serving import ServingStep

Array = npt.NDArray[np.float64]


def touched_host_bytes(step: ServingStep, n_tokens: Array) -> tuple[Array, Array]:
    """Bytes in host memory that one iteration of a GPU needs: (dense weights, experts), each like ``n_tokens``.

    Of the experts only those that some token of the iteration chose.
    """
    engine, layout = step.engine, step.layout
    weights = stage_weight_bytes(step.model, layout, step.precision)
    dense = np.full_like(n_tokens, engine.weight_offload_frac * (weights["attention"] + weights["dense"]))
    experts = np.zeros_like(n_tokens)
    for layer, count in step.model.unique_layers():
        for block in layer.blocks:
            if isinstance(block, MoeMlp) and engine.expert_offload_frac > 0.0:
                each = block.n_params_per_expert / layout.expert_tp * FORMATS[step.precision.experts].bytes_per_value
                local = split(block.n_experts, layout.ep)
                distinct = np.minimum(step.expert_loads(block, n_tokens).distinct, local)
                experts = experts + count / layout.pp * each * distinct
    return dense, engine.expert_offload_frac * experts


def offload_time_s(step: ServingStep, n_tokens: Array, device_s: Array) -> Array:
    """What weights in host memory add to an iteration whose other work takes ``device_s`` [s].

    Raises ValueError when the profile does not state the link, or the host's memory bandwidth.
    """
    engine = step.engine
    if engine.weight_offload_frac == 0.0 and engine.expert_offload_frac == 0.0:
        return np.zeros_like(n_tokens)
    dense, experts = touched_host_bytes(step, n_tokens)
    if engine.expert_offload_on == "gpu":
        return np.asarray(np.maximum(step.layout.pp * step.ops.host_copy_s(dense + experts) - device_s, 0.0))
    host_bytes_per_s = step.hardware.host.memory_bytes_per_s
    if host_bytes_per_s is None:
        raise ValueError(f"{step.hardware.slug}: the profile states no bandwidth of the host's memory")
    share = host_bytes_per_s / min(step.layout.n_gpus_per_replica, step.hardware.n_gpus_per_node)
    p = step.ops.parameters("host_products", step.precision.experts)
    computed_s = step.layout.pp * experts / products_bytes_per_s(share, p=p)
    streamed_s = step.layout.pp * step.ops.host_copy_s(dense) if engine.weight_offload_frac > 0.0 else 0.0
    return np.asarray(computed_s + np.maximum(streamed_s - device_s, 0.0))
