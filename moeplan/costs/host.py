"""What a training framework adds to its kernels: host time to launch them, clocks that fall under sustained load."""

from __future__ import annotations

from collections.abc import Mapping

# Host time of one layer for one micro batch, forward and backward. ``layer_s``: about 100 launches at the 10 us one
# takes on an H200 host, an estimate; work on the GPU hides it. ``routing_s`` and ``expert_s`` are not hidden: where
# tokens change ranks the host waits for the router's counts, then launches products and casts of each local expert
# while the GPU idles. Both fitted (median of log errors) to 98 published Megatron-Bridge and NeMo runs without
# full-iteration graphs on H100, B200, GB200 and GB300; runs of the same recipes with such graphs need neither.
HOST_DEFAULTS: Mapping[str, float] = {"layer_s": 1.0e-3, "routing_s": 1.1e-3, "expert_s": 3.2e-4}

# Kernel tables are measured in bursts. A GEMM repeated for minutes on an H200 falls from 799 to 675 TFLOP/s as the
# power cap takes the clock from 1980 to about 1500 MHz (hardware_profiles/h200-sxm); elsewhere an estimate.
SUSTAINED_FRAC = 0.85

# A fused multi-tensor optimizer against one plain stream: AdamW over 3.56 G parameters takes 18.4 ms on an H200 where
# its bytes alone take 13.0 ms.
OPTIMIZER_STREAM_FRAC = 0.7


def launch_time_s(n_layers: int, *, p: Mapping[str, float]) -> float:
    """Host time [s] to launch one micro batch through ``n_layers``; a step takes at least that long."""
    return n_layers * p["layer_s"]


def routing_stall_s(n_local_experts: int, *, p: Mapping[str, float]) -> float:
    """Time [s] the GPU waits for the host in one MoE layer of one micro batch, forward and backward."""
    return p["routing_s"] + p["expert_s"] * n_local_experts
