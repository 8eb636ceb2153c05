"""Small models and machines shared by the tests of memory and steps."""

from __future__ import annotations

from dataclasses import replace

from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import (
    DenseMlp,
    LatentAttention,
    Layer,
    LinearAttention,
    ModelArchitecture,
    MoeMlp,
    SoftmaxAttention,
)
from moeplan.spec.precision import Precision
from moeplan.spec.scenario import RoutingAssumption
from moeplan.spec.workload import Engine, TrainingWork

BF16 = Precision("bf16", "bf16", "bf16", "bf16", "bf16")
UNIFORM = RoutingAssumption(0.0, "")
HIDDEN = 2048


def attention(n_heads: int = 32, n_kv_heads: int = 8, window: int | None = None) -> SoftmaxAttention:
    n_params = HIDDEN * 128 * (2 * n_heads + 2 * n_kv_heads)
    pattern = "sliding" if window else "full"
    return SoftmaxAttention(n_heads, n_kv_heads, 128, 128, n_params, pattern, window)


def latent() -> LatentAttention:
    heads, q_rank, rank, nope, rope, value = 32, 768, 512, 128, 64, 128
    matrices = HIDDEN * (q_rank + rank + rope) + q_rank * heads * (nope + rope) + rank * heads * (nope + value)
    return LatentAttention(heads, q_rank, rank, nope, rope, value, matrices + heads * value * HIDDEN)


def linear() -> LinearAttention:
    keys, values = 16 * 128, 32 * 128
    n_params = HIDDEN * (2 * keys + values) + HIDDEN * (values + 64) + values * HIDDEN
    return LinearAttention("gated_delta", 16, 32, 128, 128, 4, n_params)


def moe(n_experts: int = 64, top_k: int = 8, width: int = 768, shared: int = 0) -> MoeMlp:
    per_expert, router = 3 * HIDDEN * width, HIDDEN * n_experts
    total = n_experts * per_expert + router + 3 * HIDDEN * shared
    return MoeMlp(n_experts, top_k, width, 3, int(shared > 0), shared, total, per_expert, router, HIDDEN)


def dense(width: int = 6144) -> DenseMlp:
    return DenseMlp(width, 3, 3 * HIDDEN * width)


def model(mixer=None, feed_forward=None, n_layers: int = 16, tied: bool = False) -> ModelArchitecture:
    layer = Layer((mixer or attention(), feed_forward or moe()), 2 * HIDDEN)
    return ModelArchitecture("test", "test", HIDDEN, 32768, 32768, (layer,) * n_layers, (), tied, HIDDEN)


def hardware(name: str = "h100-sxm") -> Hardware:
    return load_hardware(name)


def faster(machine: Hardware, factor: float) -> Hardware:
    """The same machine with every rate of the device multiplied."""
    device = machine.device
    rates = {kind: rate * factor for kind, rate in device.dense_flop_per_s.items()}
    return replace(
        machine,
        device=replace(device, memory_bytes_per_s=device.memory_bytes_per_s * factor, dense_flop_per_s=rates),
    )


def engine(**changes) -> Engine:
    base = Engine(
        name="vllm",
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        chunked_prefill=True,
        kv_block_tokens=16,
        memory_utilization_frac=0.9,
        reserve_bytes=1.6 * 2**30,
        step_overhead_s=3e-4,
        request_overhead_s=3e-3,
        cuda_graphs=True,
        cuda_graph_max_tokens=512,
        eager_layer_s=1.2e-3,
    )
    return replace(base, **changes)


def work(**changes) -> TrainingWork:
    base = TrainingWork(
        method="full_finetune",
        n_tokens=1e9,
        sequence_tokens=4096,
        global_batch_sequences=64,
        micro_batch_sequences=1,
        compute_format="bf16",
        optimizer="adamw",
        master_weights=True,
        gradient_bytes_per_param=4.0,
        adapter=None,
        packing_frac=1.0,
        overlap_comm_frac=0.8,
    )
    return replace(base, **changes)
