"""Limits a training framework adds to its kernels: host time to launch them.

And clocks that fall under sustained load.
"""

from __future__ import annotations

from collections.abc import Mapping

# Host time of one layer for one micro batch, forward and backward, launched kernel by kernel. The MoE figures are what
# Megatron-Bridge runs of Qwen3-30B-A3B take at 4096 tokens per GPU, where halving the work no longer helps: 20.2 s for
# 64 micro batches of 48 layers on H100 in bf16, 28 to 30 s in fp8 (NVIDIA Megatron-Bridge performance summary). Dense:
# an estimate, about 100 launches at the 10 us one takes on an H200 host.
HOST_DEFAULTS: Mapping[str, float] = {"dense_layer_s": 1.0e-3, "moe_layer_s": 6.0e-3, "narrow_factor": 1.4}

# Kernel tables are measured in bursts. A GEMM repeated for minutes on an H200 falls from 799 to 675 TFLOP/s as the
# power cap takes the clock from 1980 to about 1500 MHz (hardware_profiles/h200-sxm); elsewhere an estimate.
SUSTAINED_FRAC = 0.85

# A fused multi-tensor optimizer against one plain stream: AdamW over 3.56 G parameters takes 18.4 ms on an H200 where
# its bytes alone take 13.0 ms.
OPTIMIZER_STREAM_FRAC = 0.7


def training_host_time_s(n_dense_layers: int, n_moe_layers: int, *, narrow: bool, p: Mapping[str, float]) -> float:
    """Host time [s] to launch one micro batch through these layers.

    ``narrow`` arithmetic launches quantisations too.
    """
    layers_s = n_dense_layers * p["dense_layer_s"] + n_moe_layers * p["moe_layer_s"]
    return layers_s * (p["narrow_factor"] if narrow else 1.0)
