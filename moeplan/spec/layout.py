"""How a model is spread over GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ServingLayout:
    """Parallel degrees of one serving replica, and the number of replicas.

    One replica has ``tp * pp * dp`` GPUs: ``dp`` attention data-parallel ranks of ``tp`` GPUs, ``pp`` stages. Routed
    experts are spread over ``ep`` of the ``tp * dp`` GPUs of a stage; the rest is expert tensor parallelism.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    replicas: int = 1

    @property
    def n_gpus_per_replica(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def n_gpus(self) -> int:
        return self.n_gpus_per_replica * self.replicas

    @property
    def expert_tp(self) -> int:
        return self.tp * self.dp // self.ep


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one (virtual) pipeline stage holds, where the user places it: Megatron-Core's pipeline layout."""

    n_layers: int
    embedding: bool = False
    n_mtp: int = 0  # multi-token-prediction modules
    head: bool = False  # output head and loss


# Parts of a layer that selective recomputation can repeat (Megatron-Core: layernorm, moe_act, mla_up_proj, core_attn,
# mlp, moe)
RECOMPUTE_MODULES: Mapping[str, str] = {
    "norm": "norms",
    "activation": "activation functions of the feed-forward",
    "latent_up": "up-projections of latent attention",
    "attention": "the attention kernel",
    "mlp": "dense feed-forward blocks",
    "moe": "expert blocks, their exchange included",
}


@dataclass(frozen=True, slots=True)
class TrainingLayout:
    """Parallel degrees of a training job with expert parallelism folded over tp x cp x dp (Megatron-Core MoE folding).

    GPUs = tp * cp * pp * dp; experts use ep * etp * edp = tp * cp * dp.
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1  # virtual pipeline stages per rank
    cp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 1
    sequence_parallel: bool = True
    zero_stage: Literal[0, 1, 2, 3] = 1
    recompute: Literal["none", "selective", "full"] = "selective"
    # what ``selective`` repeats: keys of `RECOMPUTE_MODULES`
    recompute_modules: tuple[str, ...] = ("activation", "latent_up", "norm")
    schedule: Literal["1f1b", "zero_bubble", "dualpipe"] = "1f1b"  # 1f1b is interleaved where vpp > 1
    # pp * vpp stages in the order a micro batch passes them, rank by rank; empty: balanced by arithmetic
    stages: tuple[StagePlan, ...] = ()

    @property
    def n_gpus(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def edp(self) -> int:
        """Data-parallel copies of each expert shard."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)
