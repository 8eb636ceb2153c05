"""What one iteration of a serving engine runs and how long each part takes; `steps.compiled` puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeplan.costs import routing as expert_routing
from moeplan.costs.energy import sustained_stretch
from moeplan.costs.expert_exchange import copies_by_link, exchanges_by_all_to_all, n_domains
from moeplan.costs.projections import Projection, dense_shard, kv_heads_per_gpu, mixer_shard, shared_expert_shard, split
from moeplan.costs.roofline import activation_bytes_per_value
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout
from moeplan.spec.model import DenseMlp, LatentAttention, Mixer, ModelArchitecture, MoeMlp, SoftmaxAttention
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.scenario import RoutingAssumption
from moeplan.spec.workload import Engine
from moeplan.steps.mixers import decode_mixer_s, prefill_mixer_s
from moeplan.steps.operations import ACTIVATION_BYTES, Operations
from moeplan.steps.power import Arithmetic, Traffic, prefill_attention_arithmetic_s

Array = npt.NDArray[np.float64]

# Bytes the sampler moves per logit: to fp32 (2 + 4), temperature (4 + 4), softmax (4 + 4), noise (4),
# division (8 + 4), argmax (4).
SAMPLER_BYTES_PER_LOGIT = 42.0
_CLOCKED = frozenset({"projections", "dense", "router", "experts"})  # parts that slow down with the clock


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one attention data-parallel rank runs in one iteration."""

    decode_batch: float = 0.0  # sequences that emit one token each
    decode_context_tokens: float = 0.0  # their mean context
    prompts: tuple[tuple[float, float], ...] = ()  # (new tokens, cached tokens) of each prompt or chunk
    head_rows: float | None = None  # sequences that reach the head; default: all

    @property
    def n_tokens(self) -> float:
        return self.decode_batch + sum(new for new, _ in self.prompts)


@dataclass(frozen=True, slots=True)
class ServingStep:
    """A model on a machine under an engine: everything the time of an iteration depends on."""

    model: ModelArchitecture
    hardware: Hardware
    layout: ServingLayout
    precision: Precision
    engine: Engine
    routing: RoutingAssumption
    operations: type[Operations] = Operations  # what the composition adds up: costs, or the use of the device

    @property
    def ops(self) -> Operations:
        engine = self.engine
        return self.operations(self.hardware, engine.name, engine.fused_quantization, engine.expert_kernels)

    def linear_parts_s(self, n_tokens: Array) -> dict[str, Array]:
        """What depends on the number of tokens of a rank only, all layers, by part [s]; each like ``n_tokens``.

        The products run at the clocks the power limit allows an iteration of so many tokens, see `steps.power`.
        """
        parts = self._burst_parts_s(n_tokens)
        arithmetic_s, memory_s = self.used_s(n_tokens)
        stretch = sustained_stretch(_total_s(parts), arithmetic_s, memory_s, device=self.hardware.device)
        return {name: time_s * stretch if name in _CLOCKED else time_s for name, time_s in parts.items()}

    def used_s(self, n_tokens: Array) -> tuple[Array, Array]:
        """What the parts of `linear_parts_s` take at the dense peak, and at the datasheet's bandwidth [s]."""
        arithmetic, memory = self.used_parts_s(n_tokens)
        return _total_s(arithmetic), _total_s(memory)

    def used_parts_s(self, n_tokens: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """`used_s` by part."""
        arithmetic, memory = (replace(self, operations=kind)._burst_parts_s(n_tokens) for kind in (Arithmetic, Traffic))
        return arithmetic, memory

    def _burst_parts_s(self, n_tokens: Array) -> dict[str, Array]:
        """`linear_parts_s` at burst clocks."""
        parts: dict[str, Array] = {}

        def add(found: Mapping[str, Array], times: float) -> None:
            for name, time_s in found.items():
                parts[name] = parts.get(name, np.zeros_like(n_tokens)) + times * time_s

        for layer, count in self.model.unique_layers():
            for block in layer.blocks:
                if isinstance(block, MoeMlp):
                    add(self._moe_s(block, n_tokens), count)
                elif isinstance(block, DenseMlp):
                    add(self._dense_s(block, n_tokens), count)
                else:
                    add(self._projections_s(block, n_tokens), count)
        lookup = n_tokens * self.model.hidden_size * 2 * ACTIVATION_BYTES
        add({"elementwise": self.ops.elementwise_s(lookup)}, 1)
        add({"pipeline": self._pipeline_s(n_tokens)}, 1)
        return parts

    def decode_mixers_s(self, batch: Array, context: Array) -> Array:
        """Attention and recurrence of all layers for one new token in each of ``batch`` sequences [s]."""
        total = np.zeros(np.broadcast(batch, context).shape)
        for block, count in self.mixers():
            total = total + count * decode_mixer_s(
                block,
                batch,
                context,
                tp=self.layout.tp,
                fmt=self.precision.attention,
                kv=self.precision.kv_cache,
                ops=self.ops,
            )
        return total

    def prefill_mixers_s(self, query: Array, cached: Array) -> Array:
        """Attention and recurrence of all layers for one prompt or chunk of it [s].

        Its share of an iteration filled with its like: the kernels take all prompts of an iteration at once, so a short
        prompt does not pay a launch of its own.
        """
        batch = np.maximum(1.0, np.floor(self.engine.max_num_batched_tokens / query))
        total = arithmetic_s = np.zeros(np.broadcast(query, cached).shape)
        for block, count in self.mixers():
            total = total + count * prefill_mixer_s(
                block,
                batch,
                query,
                cached,
                tp=self.layout.tp,
                fmt=self.precision.attention,
                kv=self.precision.kv_cache,
                ops=self.ops,
            )
            arithmetic_s = arithmetic_s + count * prefill_attention_arithmetic_s(
                block, batch, query, cached, tp=self.layout.tp, kv=self.precision.kv_cache, ops=self.ops
            )
        return total / batch * sustained_stretch(total, arithmetic_s, 0.0, device=self.hardware.device)

    def head_s(self, rows: Array) -> Array:
        """Output head, gathering the logits over tp, and sampling for ``rows`` sequences [s]."""
        vocab = self.model.vocab_size
        time_s = self.ops.gemm_s(rows, split(vocab, self.layout.tp), self.model.hidden_size, self.precision.embedding)
        time_s = time_s + self.ops.all_gather_s(rows * vocab * ACTIVATION_BYTES, self.layout.tp)
        return time_s + self.ops.elementwise_s(rows * vocab * SAMPLER_BYTES_PER_LOGIT)

    def mixers(self) -> list[tuple[Mixer, int]]:
        """Attention and recurrence blocks, each with the number of layers that have it."""
        counts: dict[Mixer, int] = {}
        for layer, count in self.model.unique_layers():
            for block in layer.blocks:
                if not isinstance(block, DenseMlp | MoeMlp):
                    counts[block] = counts.get(block, 0) + count
        return list(counts.items())

    def _norm_s(self, n_tokens: Array) -> Array:
        """Residual sum and norm in one kernel: two reads and two writes of the hidden state."""
        return self.ops.elementwise_s(n_tokens * self.model.hidden_size * 4 * ACTIVATION_BYTES)

    def _tp_all_reduce_s(self, n_tokens: Array) -> Array:
        return self.ops.all_reduce_s(n_tokens * self.model.hidden_size * ACTIVATION_BYTES, self.layout.tp)

    def _projections_s(self, block: Mixer, n_tokens: Array) -> dict[str, Array]:
        projections = mixer_shard(block, self.model.hidden_size, self.layout.tp).projections
        if isinstance(block, LatentAttention):  # the up-projection of the latent belongs to the attention of each phase
            projections = tuple(p for p in projections if p.name != "kv_up")
        position = self._position_bytes(block)
        elementwise = self._norm_s(n_tokens) + (self.ops.elementwise_s(n_tokens * position) if position else 0.0)
        if isinstance(block, SoftmaxAttention) and block.qk_norm:
            for heads in (split(block.n_heads, self.layout.tp), kv_heads_per_gpu(block, self.layout.tp)):
                # Slices of one product: copied out, then normalised, each reading and writing them.
                elementwise = elementwise + 2 * self.ops.elementwise_s(
                    n_tokens * 2 * ACTIVATION_BYTES * heads * block.head_dim
                )
        return {
            "projections": self.ops.projections_s(n_tokens, projections, self.precision.attention),
            "elementwise": elementwise,
            "all_reduce": self._tp_all_reduce_s(n_tokens),
        }

    def _position_bytes(self, block: Mixer) -> float:
        """Bytes per token of the rotary embedding (read and write) and of writing the cache."""
        if isinstance(block, SoftmaxAttention):
            kv = kv_heads_per_gpu(block, self.layout.tp)
            rotated = (split(block.n_heads, self.layout.tp) + kv) * block.head_dim
            return 2 * ACTIVATION_BYTES * rotated + 2 * ACTIVATION_BYTES * kv * (block.head_dim + block.v_head_dim)
        if isinstance(block, LatentAttention):
            rotated = (split(block.n_heads, self.layout.tp) + 1) * block.qk_rope_head_dim
            return 2 * ACTIVATION_BYTES * (rotated + block.kv_lora_rank + block.qk_rope_head_dim)
        return 0.0

    def _mlp_s(self, projections: tuple[Projection, ...], n_tokens: Array) -> tuple[Array, Array]:
        """GEMMs and activation function of a dense or shared feed-forward."""
        gemms = self.ops.projections_s(n_tokens, projections, self.precision.dense)
        if not projections:
            return gemms, np.zeros_like(n_tokens)
        up, down = projections
        return gemms, self.ops.elementwise_s(n_tokens * (up.n + down.k) * ACTIVATION_BYTES)

    def _dense_s(self, block: DenseMlp, n_tokens: Array) -> dict[str, Array]:
        gemms, activation = self._mlp_s(
            dense_shard(block, self.model.hidden_size, self.layout.tp).projections, n_tokens
        )
        return {
            "dense": gemms,
            "elementwise": self._norm_s(n_tokens) + activation,
            "all_reduce": self._tp_all_reduce_s(n_tokens),
        }

    def _moe_s(self, block: MoeMlp, n_tokens: Array) -> dict[str, Array]:
        hidden, layout = self.model.hidden_size, self.layout
        shared, activation = self._mlp_s(shared_expert_shard(block, hidden, layout.tp).projections, n_tokens)
        # softmax and top-k read fp32 scores and write them once
        choose = self.ops.elementwise_s(n_tokens * block.n_experts * 8.0)
        router = self.ops.gemm_s(n_tokens, block.n_experts + block.n_zero_experts, hidden, self.precision.embedding)
        return {
            "dense": shared,
            "elementwise": self._norm_s(n_tokens) + activation + choose,
            "router": router,
            "experts": self._experts_s(block, n_tokens),
            "all_to_all": self._expert_exchange_s(block, n_tokens),
            "all_reduce": self._tp_all_reduce_s(n_tokens)
            if not self._exchanges_by_all_to_all
            else np.zeros_like(n_tokens),
        }

    @property
    def _exchanges_by_all_to_all(self) -> bool:
        return exchanges_by_all_to_all(self.layout, self.engine, self.hardware)

    def expert_loads(self, block: MoeMlp, n_tokens: Array) -> expert_routing.RankLoads:
        """Tokens of the whole replica meet in the experts.

        No more of them than sequences may run are taken to decode: each is of a text of its own. More hold prompts.
        """
        tokens, ep, nodes = n_tokens * self.layout.dp, self.layout.ep, self._n_expert_nodes
        loads = expert_routing.rank_loads(block, tokens, ep, self.routing, n_nodes=nodes)
        if self.routing.correlation.burst_tokens == 1:
            return loads
        decoding = expert_routing.rank_loads(block, tokens, ep, self.routing.one_by_one(), n_nodes=nodes)
        return decoding.where(n_tokens <= self.engine.max_num_seqs, loads)

    def _experts_s(self, block: MoeMlp, n_tokens: Array) -> Array:
        layout = self.layout
        tokens, loads = n_tokens * layout.dp, self.expert_loads(block, n_tokens)
        assignments = loads.assignments
        # gathered, every rank sees all tokens and masks the pairs of remote experts
        gathered = not self._exchanges_by_all_to_all
        return self.ops.experts_s(
            tokens if gathered else np.minimum(tokens, assignments),
            routed_pairs=np.maximum(assignments, tokens * block.top_k) if gathered else None,
            assignments=assignments,
            distinct=loads.distinct,
            max_load=loads.max_load,
            n_local_experts=split(block.n_experts + self.routing.n_redundant_experts, layout.ep),
            hidden_size=block.expert_hidden_size,
            intermediate_size=block.expert_intermediate_size / layout.expert_tp,
            n_matrices=block.n_matrices,
            fmt=self.precision.experts,
        )

    @property
    def _n_expert_nodes(self) -> int:
        """Scale-up domains over which the experts of a replica spread."""
        return n_domains(self.layout.ep, self.hardware)

    def _expert_exchange_s(self, block: MoeMlp, n_tokens: Array) -> Array:
        """Tokens of all data-parallel ranks to the experts and back; nothing where there is one rank."""
        layout, width = self.layout, block.expert_hidden_size
        if layout.dp == 1:
            return np.zeros_like(n_tokens)
        if not self._exchanges_by_all_to_all:
            gathered = n_tokens * layout.dp * width * ACTIVATION_BYTES
            local = max(1, self.hardware.n_gpus_scale_up // layout.tp)
            return 2 * self.ops.all_gather_s(gathered, layout.dp, min(layout.dp, local))
        loads = self.expert_loads(block, n_tokens)
        sent = expert_routing.token_copies(block, layout.ep, self.routing, n_nodes=self._n_expert_nodes)
        mine = n_tokens / layout.tp
        return self.ops.expert_exchange_s(
            mine,
            hidden_size=width,
            top_k=block.top_k,
            n_experts=block.n_experts,
            ep=layout.ep,
            dispatch_bytes=activation_bytes_per_value(FORMATS[self.precision.experts], self.hardware.device),
            imbalance=loads.assignments / loads.mean_assignments,
            copies=copies_by_link(sent.n_ranks, sent.n_nodes, layout.ep, hardware=self.hardware),
        )

    def _pipeline_s(self, n_tokens: Array) -> Array:
        """Each of ``pp`` stages sends the hidden state on; the last returns the sampled tokens."""
        pp = self.layout.pp
        if pp == 1:
            return np.zeros_like(n_tokens)
        same = self.layout.n_gpus_per_replica <= self.hardware.n_gpus_scale_up
        hidden = self.ops.send_s(
            n_tokens * self.model.hidden_size * ACTIVATION_BYTES / self.layout.tp, same_domain=same
        )
        return pp * hidden

    @property
    def eager_floor_s(self) -> float:
        """Host time of an iteration that runs outside captured graphs."""
        blocks = [block for layer in self.model.layers for block in layer.blocks]
        n_moe = sum(isinstance(block, MoeMlp) for block in blocks)
        # Latent attention and recurrences take about twice the launches of softmax attention and its MLP.
        n_long = sum(not isinstance(block, SoftmaxAttention | DenseMlp | MoeMlp) for block in blocks)
        layers_s = self.engine.eager_layer_s * (self.model.n_layers + n_long)
        return layers_s + self.engine.eager_experts_s * n_moe


def _total_s(parts: Mapping[str, Array]) -> Array:
    return np.sum(list(parts.values()), axis=0)
