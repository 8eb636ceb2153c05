"""What a training job keeps of a model beside its activations: parameters by kind, optimizer state, checkpoints.

Loads no numeric library: reading a scenario needs the size of a checkpoint. Equations: docs/method/memory.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moeplan.costs.projections import mixer_shard, split
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import DenseMlp, Layer, ModelArchitecture, MoeMlp
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.workload import Adapter, TrainingWork

# Optimizer bytes per trained parameter, master copy apart (ZeRO, arXiv:1910.02054, section 3.1: two fp32 moments;
# 8-bit: arXiv:2110.02861, two bytes and their block scales; Muon: one fp32 momentum, arXiv:2502.16982).
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_bf16": 4.0, "adamw_8bit": 2.0 + 2 * 4.0 / 2048, "muon": 4.0}
MASTER_BYTES = 4.0


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters one GPU holds, by what they are stored and synchronised as."""

    attention: float = 0.0  # token mixers
    dense: float = 0.0  # dense and shared-expert feed-forward
    experts: float = 0.0  # routed experts
    embedding: float = 0.0  # embedding, output head, norms, router

    def __add__(self, other: Params) -> Params:
        return Params(
            self.attention + other.attention,
            self.dense + other.dense,
            self.experts + other.experts,
            self.embedding + other.embedding,
        )

    def times(self, count: int) -> Params:
        """As much ``count`` times."""
        return Params(self.attention * count, self.dense * count, self.experts * count, self.embedding * count)

    @property
    def total(self) -> float:
        return self.attention + self.dense + self.experts + self.embedding

    @property
    def replicated_over_data(self) -> float:
        """All but the routed experts: one copy per data-parallel rank."""
        return self.total - self.experts

    def stored_bytes(self, precision: Precision) -> dict[str, float]:
        """Bytes by component, quantisation scales included."""
        return {
            "attention": self.attention * FORMATS[precision.attention].bytes_per_value,
            "dense": self.dense * FORMATS[precision.dense].bytes_per_value,
            "experts": self.experts * FORMATS[precision.experts].bytes_per_value,
            "embedding": self.embedding * FORMATS[precision.embedding].bytes_per_value,
        }


def adapter_params(
    model: ModelArchitecture, layers: Iterable[Layer], adapter: Adapter, layout: TrainingLayout
) -> Params:
    """LoRA parameters on one GPU: rank (k + n) per adapted matrix (arXiv:2106.09685, section 4.1), rank not split."""
    attention = dense = experts = 0.0
    for layer in layers:
        for block in layer.blocks:
            if isinstance(block, MoeMlp):
                pair = block.expert_hidden_size + block.expert_intermediate_size / layout.etp
                experts += adapter.rank * block.n_matrices * pair * split(block.n_experts, layout.ep)
                if block.shared_intermediate_size:
                    dense += (
                        adapter.rank
                        * block.n_matrices
                        * (model.hidden_size + block.shared_intermediate_size / layout.tp)
                    )
            elif isinstance(block, DenseMlp):
                dense += adapter.rank * block.n_matrices * (model.hidden_size + block.intermediate_size / layout.tp)
            else:
                attention += adapter.rank * sum(
                    p.k + p.n for p in mixer_shard(block, model.hidden_size, layout.tp).projections
                )
    if adapter.targets == "attention":
        return Params(attention=attention)
    return Params(attention=attention, dense=dense, experts=experts)


def checkpoint_bytes(model: ModelArchitecture, work: TrainingWork) -> float:
    """Size of one checkpoint of the whole job [bytes]: 16-bit weights of what is trained, and its optimizer's state."""
    n_params: float = model.n_params_total + (model.n_params_mtp if work.method == "pretrain" else 0)
    if work.adapter is not None:
        n_params = adapter_params(model, model.layers, work.adapter, TrainingLayout()).total
    state = OPTIMIZER_BYTES[work.optimizer] + (MASTER_BYTES if work.master_weights else 0.0)
    return n_params * (2.0 + state)
