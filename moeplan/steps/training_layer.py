"""Forward and backward time of one layer for one micro batch on one GPU of a training job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moeplan.costs import attention, expert_exchange, recurrent
from moeplan.costs import routing as expert_routing
from moeplan.costs.projections import (
    Projection,
    dense_shard,
    kv_heads_per_gpu,
    mixer_shard,
    shared_expert_shard,
    split,
)
from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import (
    Block,
    DenseMlp,
    LatentAttention,
    LinearAttention,
    Mixer,
    MoeMlp,
    SoftmaxAttention,
    StateSpace,
)
from moeplan.spec.precision import FORMATS
from moeplan.spec.routing import RoutingAssumption
from moeplan.spec.workload import TrainingWork
from moeplan.steps.mixers import recurrent_mixer_s, softmax_prefill_s
from moeplan.steps.operations import ACTIVATION_BYTES, Operations

# Whose measured kernels stand for a training framework's: SGLang's products are PyTorch's (cuBLAS), DeepGEMM's and
# CUTLASS's, as those of training frameworks are (an assumption; only serving engines are measured).
KERNELS = "sglang"


@dataclass(frozen=True, slots=True)
class Passes:
    """Bytes that elementwise work moves forward and backward per value it is applied to."""

    forward: float
    backward: float


# One kernel each (Transformer Engine, compiled PyTorch): residual and norm read two and write two; backward reads three
# more and writes one. Rotary reads and writes. A gated activation reads two and writes one, its gradient reads three
# and writes two. The loss reads bf16, writes and reads fp32 twice; its gradient reads fp32 and writes bf16.
FUSED: Mapping[str, Passes] = {
    "norm": Passes(8, 10),
    "rotary": Passes(4, 4),
    "gated": Passes(6, 10),
    "plain": Passes(4, 20 / 3),
    "loss": Passes(14, 6),
}
# Each expert's output bias times its tokens' probabilities, added expert by expert: no grouped kernel does it, in
# Megatron-Core (TEGroupedMLP._apply_bias, read 2026-11) it is a product in fp32 (writes 4), a sum (6, 4), a
# concatenation (4, 4) and a cast (4, 2); backward two casts and a concatenation (6, 6, 4), gradients of the
# probabilities (4, 4, 4) and of the bias (4, 4, 4).
EXPERT_BIAS = Passes(28, 40)
# Scores written by the first product, read and written by the softmax, read by the second product; as much twice over
# for the gradient (the kernels that FlashAttention, arXiv:2205.14135, replaced).
SCORES = Passes(8, 16)
# Plain PyTorch modules, a kernel an operation, counted from the operations of the usual RMS norm (cast to fp32, square,
# mean, scale, cast, weight), rotate-half, SiLU and product, and float cross entropy.
PLAIN: Mapping[str, Passes] = {
    "norm": Passes(42, 70),
    "rotary": Passes(18, 18),
    "gated": Passes(10, 16),
    "plain": Passes(4, 6),
    "loss": Passes(14, 18),
}


@dataclass(slots=True)
class Pass:
    """Seconds by part of a forward and a backward pass, of what is recomputed, and of hidden traffic."""

    forward: dict[str, float] = field(default_factory=dict)
    backward: dict[str, float] = field(default_factory=dict)
    recompute: float = 0.0
    weight_gradient: float = 0.0  # the part of ``backward`` that no earlier stage waits for
    hidden: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, forward_s: float, backward_s: float) -> None:
        self.forward[part] = self.forward.get(part, 0.0) + forward_s
        self.backward[part] = self.backward.get(part, 0.0) + backward_s

    def add_traffic(self, part: str, forward_s: float, backward_s: float, hidden_frac: float) -> None:
        """Communication of which ``hidden_frac`` runs behind computation."""
        self.add(part, forward_s * (1.0 - hidden_frac), backward_s * (1.0 - hidden_frac))
        self.hidden[part] = self.hidden.get(part, 0.0) + (forward_s + backward_s) * hidden_frac

    def merge(self, other: Pass, times: float = 1.0) -> None:
        for part in other.forward:
            self.add(part, times * other.forward[part], times * other.backward[part])
        for part, seconds in other.hidden.items():
            self.hidden[part] = self.hidden.get(part, 0.0) + times * seconds
        self.recompute += times * other.recompute
        self.weight_gradient += times * other.weight_gradient

    @property
    def forward_s(self) -> float:
        return sum(self.forward.values())

    @property
    def input_gradient_s(self) -> float:
        """Backward time up to the gradient that the stage before waits for."""
        return sum(self.backward.values()) + self.recompute - self.weight_gradient

    @property
    def total_s(self) -> float:
        return self.forward_s + sum(self.backward.values()) + self.recompute

    def parts(self) -> dict[str, float]:
        """Forward and backward together, by part, with ``recompute``."""
        found = {part: self.forward[part] + self.backward[part] for part in self.forward}
        found["recompute"] = self.recompute
        return found


@dataclass(frozen=True, slots=True)
class TrainingBlocks:
    """Times of the blocks of one model under one layout; a micro batch at a time."""

    hardware: Hardware
    hidden_size: int
    layout: TrainingLayout
    work: TrainingWork
    routing: RoutingAssumption

    @property
    def key(self) -> object:
        """All that a block's times depend on, the machine and the model aside."""
        layout, work = self.layout, self.work
        return (
            layout.tp, layout.cp, layout.ep, layout.etp, layout.sequence_parallel, layout.recompute,
            layout.recompute_modules, work.micro_batch_sequences, work.sequence_tokens, work.compute_format,
            work.adapter, work.expert_overlap_frac, work.cuda_graphs, work.fused_kernels, work.flash_attention,
            work.offload_activations_frac,
        )  # fmt: skip

    @property
    def ops(self) -> Operations:
        return Operations(self.hardware, KERNELS)

    @property
    def sustained_frac(self) -> float:
        """Rate of long computation over that of the bursts the kernels are measured in."""
        return self.ops.parameters("training_device", "bf16")["sustained_frac"]

    @property
    def tokens(self) -> float:
        """Positions of a micro batch on one context-parallel rank."""
        return self.work.micro_batch_sequences * self.work.sequence_tokens / self.layout.cp

    @property
    def own_tokens(self) -> float:
        """Positions one GPU keeps outside the tensor-parallel regions."""
        return self.tokens / (self.layout.tp if self.layout.sequence_parallel else 1)

    def block(self, block: Block) -> Pass:
        """One block with its norm, its collectives and its recomputation."""
        found = Pass()
        if isinstance(block, MoeMlp):
            self._moe(found, block)
        elif isinstance(block, DenseMlp):
            self._gemms(
                found,
                "dense",
                dense_shard(block, self.hidden_size, self.layout.tp).projections,
                adapted=self._ffn_adapted,
            )
            self._activation(found, split(block.intermediate_size, self.layout.tp), block.n_matrices, self.tokens)
            self._tensor_parallel(found)
        else:
            self._mixer(found, block)
            self._tensor_parallel(found)
        self._norm(found)
        module = {DenseMlp: "mlp", MoeMlp: "moe"}.get(type(block))
        if self.layout.recompute == "full" or (module is not None and self._repeats(module)):
            found.recompute = found.forward_s
        return found

    def _repeats(self, module: str) -> bool:
        """Whether selective recomputation repeats a part of the layer."""
        return self.layout.recompute == "selective" and module in self.layout.recompute_modules

    def head(self, vocab_size: int) -> Pass:
        """Output head and cross entropy."""
        found = Pass()
        share = split(vocab_size, self.layout.tp)
        forward = self._gemm_s(self.tokens, share, self.hidden_size, "bf16")
        if self.work.adapter is None:
            found.weight_gradient = self._weight_gradient_s(share, self.hidden_size, "bf16")
        found.add("head", forward, forward + found.weight_gradient)
        found.add("head", *self._elementwise_s("loss", self.tokens * share))
        return found

    def _elementwise_s(self, kind: str, n_values: float) -> tuple[float, float]:
        """Forward and backward time of elementwise work on ``n_values``."""
        return self._moved_s((FUSED if self.work.fused_kernels else PLAIN)[kind], n_values)

    def _moved_s(self, passes: Passes, n_values: float) -> tuple[float, float]:
        forward, backward = (float(self.ops.elementwise_s(n_values * n)) for n in (passes.forward, passes.backward))
        return forward, backward

    @property
    def _ffn_adapted(self) -> bool:
        return self.work.adapter is not None and self.work.adapter.targets == "all_linear"

    def _gemms(
        self,
        found: Pass,
        part: str,
        projections: tuple[Projection, ...],
        *,
        adapted: bool,
        tokens: float | None = None,
        fmt: str | None = None,
    ) -> None:
        """GEMMs forward, for data and (where trained) weight gradients, with low-rank adapters beside them."""
        fmt, m = fmt or self.work.compute_format, self.tokens if tokens is None else tokens
        adapter = self.work.adapter
        for p in projections:
            forward = self._gemm_s(m, p.n, p.k, fmt)
            backward = self._gemm_s(m, p.k, p.n, fmt)
            if adapter is None:
                gradient = self._weight_gradient_s(p.n, p.k, fmt, m)
                found.weight_gradient += gradient
                backward += gradient
            else:
                dequantise = self._dequantise_s(p.n_weights)
                forward, backward = forward + dequantise, backward + dequantise
                if adapted:
                    low_rank = float(
                        self.ops.gemm_s(m, adapter.rank, p.k, "bf16") + self.ops.gemm_s(m, p.n, adapter.rank, "bf16")
                    )
                    found.add("adapter", low_rank, 2.0 * low_rank)
            found.add(part, forward, backward)

    def _weight_gradient_s(self, n: float, k: float, fmt: str, tokens: float | None = None) -> float:
        """The (n, k) gradient: a GEMM that sums over tokens. Both its inputs are narrow since the other two GEMMs."""
        ops = replace(self.ops, fused_quantization=(fmt,))
        return float(ops.gemm_s(n, k, self.tokens if tokens is None else tokens, fmt)) / self.sustained_frac

    def _gemm_s(self, m: float, n: float, k: float, fmt: str) -> float:
        return float(self.ops.gemm_s(m, n, k, fmt)) / self.sustained_frac

    def _dequantise_s(self, n_weights: float) -> float:
        """Unpacking a quantised frozen base to 16 bit (QLoRA, arXiv:2305.14314, section 3)."""
        adapter = self.work.adapter
        if adapter is None or FORMATS[adapter.base_format].bits >= 16.0:
            return 0.0
        return float(
            self.ops.elementwise_s(n_weights * (FORMATS[adapter.base_format].bytes_per_value + ACTIVATION_BYTES))
        )

    def _activation(self, found: Pass, width: float, n_matrices: int, tokens: float) -> None:
        """Activation function of a feed-forward of ``width``; gated with three matrices."""
        forward, backward = self._elementwise_s("gated" if n_matrices == 3 else "plain", tokens * width)
        found.add("elementwise", forward, backward)
        if self._repeats("activation"):
            found.recompute += forward

    def _norm(self, found: Pass) -> None:
        """Residual and norm."""
        forward, backward = self._elementwise_s("norm", self.own_tokens * self.hidden_size)
        found.add("elementwise", forward, backward)
        if self._repeats("norm"):
            found.recompute += forward

    def _tensor_parallel(self, found: Pass) -> None:
        """Gather into and scatter out of a block, or one all-reduce; as much backward (arXiv:2205.05198, 4.2.2)."""
        if self.layout.tp == 1:
            return
        n_bytes = self.tokens * self.hidden_size * ACTIVATION_BYTES
        if self.layout.sequence_parallel:
            gather = float(self.ops.all_gather_s(n_bytes, self.layout.tp))
            found.add("tensor_parallel", 2 * gather, 2 * gather)
            # the input is gathered again for the weight gradient, behind the data gradient
            found.hidden["tensor_parallel"] = found.hidden.get("tensor_parallel", 0.0) + gather
        else:
            reduce = float(self.ops.all_reduce_s(n_bytes, self.layout.tp))
            found.add("tensor_parallel", reduce, reduce)

    def _mixer(self, found: Pass, block: Mixer) -> None:
        shard = mixer_shard(block, self.hidden_size, self.layout.tp)
        self._gemms(found, "projections", shard.projections, adapted=self.work.adapter is not None)
        if isinstance(block, LatentAttention) and self._repeats("latent_up"):
            for p in shard.projections:
                if p.name in ("q_up", "kv_up"):
                    found.recompute += self._gemm_s(self.tokens, p.n, p.k, self.work.compute_format)
        if isinstance(block, LinearAttention | StateSpace):
            scan = float(
                recurrent_mixer_s(
                    block,
                    self.work.micro_batch_sequences,
                    self.work.sequence_tokens / self.layout.cp,
                    tp=self.layout.tp,
                    ops=self.ops,
                )
            )
            found.add("attention", scan, recurrent.BACKWARD * scan)
            return
        core = self._attention_s(block)
        found.add("attention", core, attention.BACKWARD * core)
        scores_s = self._scores_s(block)
        found.add("attention", *scores_s)
        if self._repeats("attention"):
            found.recompute += core + scores_s[0]
        if isinstance(block, SoftmaxAttention):
            rotated = (split(block.n_heads, self.layout.tp) + kv_heads_per_gpu(block, self.layout.tp)) * block.head_dim
        else:
            rotated = (split(block.n_heads, self.layout.tp) + 1) * block.qk_rope_head_dim
        found.add("elementwise", *self._elementwise_s("rotary", self.tokens * rotated))
        self._context_parallel(found, block, core)

    def _attention_s(self, block: SoftmaxAttention | LatentAttention) -> float:
        """Causal attention over whole sequences; context-parallel ranks share it evenly."""
        whole = softmax_prefill_s(
            block,
            self.work.micro_batch_sequences,
            self.work.sequence_tokens,
            0.0,
            tp=self.layout.tp,
            kv="bf16",
            ops=self.ops,
        )
        return float(whole) / self.layout.cp / self.sustained_frac

    def _scores_s(self, block: SoftmaxAttention | LatentAttention) -> tuple[float, float]:
        """Traffic of attention scores, forward and backward, where the kernel does not keep them on the chip."""
        if self.work.flash_attention:
            return 0.0, 0.0
        n_scores = self.tokens * self.work.sequence_tokens * split(block.n_heads, self.layout.tp)
        return self._moved_s(SCORES, n_scores)

    def _context_parallel(self, found: Pass, block: SoftmaxAttention | LatentAttention, core_s: float) -> None:
        """Ring attention (arXiv:2310.01889): keys and values visit every rank while the previous block is computed."""
        cp = self.layout.cp
        if cp == 1:
            return
        if isinstance(block, SoftmaxAttention):
            width = kv_heads_per_gpu(block, self.layout.tp) * (block.head_dim + block.v_head_dim)
        else:
            width = split(block.n_heads, self.layout.tp) * (
                block.qk_nope_head_dim + block.qk_rope_head_dim + block.v_head_dim
            )
        same = self.layout.tp * cp <= self.hardware.n_gpus_scale_up
        ring = (cp - 1) * float(self.ops.send_s(self.tokens * width * ACTIVATION_BYTES, same_domain=same))
        for direction, factor in ((found.forward, 1.0), (found.backward, 2.0)):
            compute = core_s * (1.0 if factor == 1.0 else attention.BACKWARD)
            exposed = max(0.0, factor * ring - compute)
            direction["context_parallel"] = direction.get("context_parallel", 0.0) + exposed
            found.hidden["context_parallel"] = found.hidden.get("context_parallel", 0.0) + factor * ring - exposed

    def _moe(self, found: Pass, block: MoeMlp) -> None:
        layout, own = self.layout, self.tokens / self.layout.tp
        hidden, adapted = self.hidden_size, self._ffn_adapted
        self._gemms(found, "dense", shared_expert_shard(block, hidden, layout.tp).projections, adapted=adapted)
        if block.shared_intermediate_size:
            self._activation(found, split(block.shared_intermediate_size, layout.tp), block.n_matrices, self.tokens)
            self._tensor_parallel(found)
        router = (Projection("router", hidden, block.n_experts + block.n_zero_experts),)
        self._gemms(found, "router", router, adapted=False, tokens=self.own_tokens, fmt="bf16")

        group_tokens = own * layout.ep * layout.etp
        nodes = expert_exchange.n_domains(layout.ep, self.hardware)
        loads = expert_routing.rank_loads(block, group_tokens, layout.ep, self.routing, n_nodes=nodes)
        assignments, distinct = float(loads.assignments), float(loads.distinct)
        self._expert_products(found, block, assignments, distinct)
        sent = expert_routing.token_copies(block, layout.ep, self.routing, n_nodes=nodes)
        copies = expert_exchange.copies_by_link(sent.n_ranks, sent.n_nodes, layout.ep, hardware=self.hardware)
        self._expert_exchange(found, block, own, assignments, float(loads.mean_assignments), copies)

    def _expert_products(self, found: Pass, block: MoeMlp, assignments: float, distinct: float) -> None:
        """Products of the busiest rank's experts, one GEMM after another over each expert's tokens.

        Training frameworks run them through the library of their dense products (grouped GEMM), not through the fused
        kernels that serving engines measure. Tokens are copied into the order of the experts and back.
        """
        width, hidden = split(block.expert_intermediate_size, self.layout.etp), block.expert_hidden_size
        each = Pass()
        up = Projection("gate_up", hidden, (block.n_matrices - 1) * width)
        projections = (up, Projection("down", width, hidden))
        self._gemms(each, "experts", projections, adapted=self._ffn_adapted, tokens=assignments / distinct)
        found.merge(each, distinct)
        self._activation(found, width, block.n_matrices, assignments)
        if block.biased_experts:
            found.add("elementwise", *self._moved_s(EXPERT_BIAS, assignments * hidden))
        copied = 2.0 * float(self.ops.elementwise_s(assignments * hidden * 2 * ACTIVATION_BYTES))
        found.add("permutation", copied, copied)

    def _expert_exchange(
        self, found: Pass, block: MoeMlp, own: float, assignments: float, mean: float, copies: expert_exchange.Copies
    ) -> None:
        layout = self.layout
        if layout.ep > 1:
            if not self.work.cuda_graphs:
                sync_s = self.ops.parameters("training_host", "bf16")["sync_s"]
                found.add("host", sync_s / 2, sync_s / 2)
            one_way = self._one_way_s(block, own, assignments / mean, copies)
            found.add_traffic("all_to_all", one_way, one_way, self.work.expert_overlap_frac)
            taken = expert_exchange.COMMUNICATION_SMS_FRAC * one_way * self.work.expert_overlap_frac
            found.add("all_to_all", taken, taken)
        if layout.etp > 1:
            n_bytes = assignments * block.expert_hidden_size * ACTIVATION_BYTES
            gather = 2 * float(self.ops.all_gather_s(n_bytes, layout.etp))
            found.add("tensor_parallel", gather, gather)
        elif layout.tp > 1 and not layout.sequence_parallel:
            gather = float(self.ops.all_gather_s(self.tokens * self.hidden_size * ACTIVATION_BYTES, layout.tp))
            found.add("tensor_parallel", gather, gather)

    def _one_way_s(self, block: MoeMlp, own: float, imbalance: float, copies: expert_exchange.Copies) -> float:
        """Dispatch and combine of one direction, by the faster of the two kinds of kernel that are measured.

        Both travel in 16 bit: Megatron-Core's dispatchers quantise after the exchange.
        """
        times = [
            float(
                time_s(
                    own,
                    block.expert_hidden_size,
                    block.top_k,
                    n_experts=block.n_experts,
                    ep=self.layout.ep,
                    bytes_per_value=ACTIVATION_BYTES,
                    hardware=self.hardware,
                    p=self.ops.parameters(f"{kernels}_{way}", "bf16"),
                    imbalance=imbalance,
                    copies=copies,
                )
            )
            for kernels in ("moe", "nvlink")
            for way, time_s in (
                ("dispatch", expert_exchange.moe_dispatch_time_s),
                ("combine", expert_exchange.moe_combine_time_s),
            )
        ]
        return min(times[0] + times[1], times[2] + times[3])
