"""What the host does (launches, an optimizer, products of weights it keeps), and clocks that fall under long load.

The numbers below stand where nothing was fitted; `moeplan/data/training_fits.yaml` holds what was, with its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

# ``expert_s`` is fitted to ranks that hold 1 to 32 experts of a layer, whose frameworks launch each one. Who holds more
# runs grouped kernels (OLMoE's 64 on an H200: at most 0.15 ms each), so the count stops there.
MOST_LAUNCHED_EXPERTS = 32

DEFAULTS: Mapping[str, Mapping[str, float]] = {
    # Host time for one micro batch, forward and backward. ``layer_s``: about 100 launches of a layer at the 10 us one
    # takes on an H200 host; ``expert_s``: more of them for each expert held; ``sync_s``: waiting for the router's
    # counts before the experts' products can be sized. Estimates. ``optimizer_params_per_s``: AdamW on a GPU's share of
    # the host's cores, from the step time of Qwen3-30B-A3B with 0 to 100 % of the optimizer offloaded on H100
    # (Megatron-Bridge, CPU offloading card: 2.1 G parameters a rank take 3.2 s, copies included).
    "training_host": {
        "layer_s": 1.0e-3,
        "expert_s": 4.0e-4,
        "sync_s": 1.0e-3,
        "optimizer_params_per_s": 7.2e8,
    },
    # ``sustained_frac``: kernel tables are measured in bursts. A GEMM repeated for minutes on an H200 falls from 799 to
    # 675 TFLOP/s as the power cap takes the clock from 1980 to about 1500 MHz (hardware_profiles/h200-sxm); elsewhere
    # an estimate. ``optimizer_stream_frac``: a fused multi-tensor optimizer against one plain stream; AdamW over 3.56 G
    # parameters takes 18.4 ms on an H200 where its bytes alone take 13.0 ms.
    "training_device": {"sustained_frac": 0.85, "optimizer_stream_frac": 0.7},
    # Share of the host's memory bandwidth that products of quantised weights reach on its cores. An estimate:
    # llama.cpp's reach about three quarters of STREAM.
    "host_products": {"memory_frac": 0.75},
}


def launch_time_s(n_layers: int, n_experts: int, *, p: Mapping[str, float]) -> float:
    """Host time [s] to launch one micro batch through a stage; the GPU may be busy meanwhile, but is never ahead.

    ``n_experts`` counts the experts this rank launches in all of the layers, `MOST_LAUNCHED_EXPERTS` each at most.
    """
    return n_layers * p["layer_s"] + n_experts * p["expert_s"]


def products_bytes_per_s(host_bytes_per_s: float, *, p: Mapping[str, float]) -> float:
    """Bytes of weights a second that the host's cores multiply with, given their share of its memory's bandwidth."""
    return host_bytes_per_s * p["memory_frac"]
