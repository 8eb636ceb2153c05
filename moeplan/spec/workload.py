"""What a model is asked to do: requests to serve, tokens to train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # reading and checking a scenario loads no numeric library
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Token counts of a prompt or an answer, or another whole number of a distribution."""

    kind: Literal["fixed", "uniform", "lognormal", "empirical"]
    mean_tokens: float
    low_tokens: int  # fixed: the value; uniform: lower end; lognormal: clip
    high_tokens: int
    sigma_log: float = 0.0  # lognormal: standard deviation of ln(tokens)
    values_tokens: tuple[int, ...] = ()  # empirical: what was seen ...
    weights: tuple[float, ...] = ()  # ... and how often, any scale


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Recorded requests. Arrays of shape (n_requests,)."""

    name: str
    arrival_s: npt.NDArray[np.float64]  # non-decreasing, starts at 0
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    attribution: str
    class_id: npt.NDArray[np.int64] | None = None  # index into Traffic.classes, where the trace tells
    # Blocks of ``block_tokens`` prompt tokens with equal ids hold equal text: those of request i are
    # ``block_id[block_start[i] : block_start[i + 1]]``, from the first token on. None: no prompt is like another.
    block_tokens: int = 0
    block_start: npt.NDArray[np.int64] | None = None
    block_id: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class RateStep:
    """A stretch of time with a constant mean rate."""

    duration_s: float
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come.

    trace: the trace's own times, scaled to ``rate_per_s`` when that is set; open: independent gaps of the mean rate;
    closed_loop: ``n_users`` users who all send at time zero, and each again ``think_s`` (mean of an exponential) after
    its last answer; all_at_once: everything at time zero.
    """

    kind: Literal["trace", "open", "closed_loop", "all_at_once"]
    rate_per_s: float | None  # mean over all rate steps
    n_users: int | None
    n_requests: int  # simulated
    warmup_requests: int  # not counted in the percentiles
    think_s: float = 0.0
    gap_cv: float = 1.0  # open: standard deviation of a gap over its mean; 1: Poisson, 0: even, above 1: bursty
    rate_steps: tuple[RateStep, ...] = ()  # open: the rate over time, again from the first after the last


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency targets [s] at a percentile; None = not asked."""

    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    percentile: float  # 0..100

    @property
    def asked(self) -> bool:
        """Whether there is any target."""
        return any(target is not None for target in (self.ttft_s, self.tpot_s, self.e2e_s))


@dataclass(frozen=True, slots=True)
class RequestClass:
    """A kind of request within a traffic."""

    name: str
    share_frac: float  # of the requests (of the conversations); unused where the trace tells the class
    input_tokens: LengthDistribution | None  # None: as the traffic's
    output_tokens: LengthDistribution | None
    slo: Slo
    priority: int = 0  # the smaller goes first
    timeout_s: float | None = None  # a user gives up a request not finished by then


@dataclass(frozen=True, slots=True)
class Conversations:
    """Requests that continue each other: a prompt holds the shared prefix, all turns before it, and its own tokens."""

    turns: LengthDistribution  # requests of a conversation
    think_s: float  # mean of an exponential, from an answer to the next turn
    prefix_tokens: int = 0  # text in front of every first turn (system prompt), one of ``n_prefixes``
    n_prefixes: int = 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """A stream of requests: from a trace, or drawn from distributions."""

    arrivals: Arrivals
    trace: Trace | None
    input_tokens: LengthDistribution | None  # None when the trace gives them
    output_tokens: LengthDistribution | None
    classes: tuple[RequestClass, ...] = ()
    conversations: Conversations | None = None
    timeout_s: float | None = None  # as of a class, where there is none


@dataclass(frozen=True, slots=True)
class Engine:
    """Settings of the serving engine; overheads come from a preset data file."""

    name: str  # "vllm", "sglang", "trtllm", "llama.cpp"
    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill: bool
    kv_block_tokens: int
    memory_utilization_frac: float
    reserve_bytes: float  # runtime context, graphs, workspace kept outside weights and KV
    step_overhead_s: float  # host time per iteration not hidden behind the GPU
    request_overhead_s: float  # per request before its first scheduling (transport), others unhindered
    cuda_graphs: bool
    cuda_graph_max_tokens: int
    eager_layer_s: float = 0.0  # host time per layer of an iteration outside captured graphs
    eager_experts_s: float = 0.0  # more for a layer with routed experts
    # Host work of an iteration (scheduling, inputs, sampled tokens) and more for each of its sequences: beside the
    # device under asynchronous scheduling, else between iterations.
    host_step_s: float = 0.0
    host_sequence_s: float = 0.0
    front_request_s: float = 0.0  # work of the one front end of a replica for a request (HTTP, tokenising) ...
    front_token_s: float = 0.0  # ... and for a token streamed to its user
    async_scheduling: bool = False  # an iteration is composed while the one before it runs
    prefill_first: bool = False  # prompts pause decoding instead of joining its iterations
    # Share of the KV blocks that outputs of running requests still need, kept free when another is admitted (with its
    # own output whole); it falls from the first to the second over so many iterations. 0: nothing is kept.
    output_reserve_frac: float = 0.0
    output_reserve_end_frac: float = 0.0
    output_reserve_iterations: int = 1
    receive_iterations: int = 1  # decode iterations between looks at new requests
    dp_balance_iterations: int = 0  # data-parallel ranks start prompts together, or after so long; 0: each on its own
    batch_wait_iterations: int = 0  # prompts wait so long for company while others decode ...
    batch_wait_tokens_frac: float = 0.0  # ... unless the iteration has this share of max_num_batched_tokens
    prefix_caching: bool = False  # KV of shared prefixes is kept until its room is needed
    priority_scheduling: bool = False  # requests wait in order of their priority, the least important is preempted
    swap_bytes: float = 0.0  # host memory per GPU for preempted sequences; without room they are recomputed
    kv_offload_bytes: float = 0.0  # host memory per GPU for idle blocks of the prefix cache
    kv_link_overlap: bool = False  # KV moves over the host link while an iteration runs; else before it
    draft_tokens: int = 0  # speculative decoding: drafts verified in an iteration
    draft_acceptance_frac: float = 0.0  # chance that a draft is accepted when all before it are
    drafts: Literal["mtp", "ngram"] = "mtp"  # by the model's multi-token-prediction module, or looked up
    cuda_graph_padding: bool = False  # an iteration is padded to the next captured size
    weight_offload_frac: float = 0.0  # share of attention and dense weights in host memory, streamed every iteration
    expert_offload_frac: float = 0.0  # share of routed experts in host memory ...
    expert_offload_on: Literal["gpu", "host"] = "gpu"  # ... streamed to the device when chosen, or computed by the host
    fused_quantization: tuple[str, ...] = ()  # formats whose activations are quantised by the kernel before the GEMM
    window_cache: str = "trimmed"  # layers with a window keep it only, or "whole": all tokens of the sequence
    expert_kernels: tuple[str, ...] = ()  # other kernels of the routed experts the engine picks where they are faster
    # How data-parallel ranks bring tokens to experts inside a domain: every token to all ranks, or each to its experts.
    expert_exchange: Literal["gather", "all_to_all"] = "gather"
    kv_cache_16_bit: str = "bf16"  # format of an unquantised cache
    kv_cache_narrow: str = ""  # format of the cache under published fp8 and fp4 checkpoints, where it is another

    @property
    def verified_tokens(self) -> int:
        """Tokens of a decoding sequence that an iteration computes."""
        return 1 + self.draft_tokens

    @property
    def tokens_gained(self) -> float:
        """Mean tokens a decoding sequence gets in an iteration (arXiv:2211.17192, equation 1)."""
        return float(sum(self.draft_acceptance_frac**i for i in range(self.verified_tokens)))


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA adapter: rank and what it is attached to."""

    rank: int
    targets: Literal["attention", "all_linear"]
    base_format: str  # key of precision.FORMATS; QLoRA has a 4-bit base


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """One training run."""

    method: Literal["pretrain", "full_finetune", "lora", "rl"]
    n_tokens: float
    sequence_tokens: int
    global_batch_sequences: int
    micro_batch_sequences: int
    compute_format: str  # "bf16", "fp8", ...
    optimizer: Literal["adamw", "adamw_bf16", "adamw_8bit", "muon"]
    master_weights: bool
    gradient_bytes_per_param: float
    adapter: Adapter | None
    packing_frac: float  # share of positions that hold real tokens
    overlap_comm_frac: float  # share of data-parallel traffic hidden behind computation
    expert_overlap_frac: float = 0.0  # share of the experts' all-to-all hidden behind computation
    cuda_graphs: bool = False  # the whole step is replayed from graphs: the host launches nothing
    fused_kernels: bool = True  # norms, rotary, activation and loss in one kernel each; false: plain PyTorch modules
    flash_attention: bool = True  # attention scores never leave the chip; false: they are written and kept
    fp8_activation_inputs: bool = False  # what activation functions read is kept in 8 bit
    offload_optimizer_frac: float = 0.0  # share of the optimizer's state kept and updated in host memory
    offload_activations_frac: float = 0.0  # share of saved activations sent to host memory and back


@dataclass(frozen=True, slots=True)
class Reliability:
    """What interrupts a long run and how it recovers; defaults come from ``data/reliability.yaml`` with their sources.

    Failures of each cause are a Poisson process while the run works. A failure is noticed after ``detection_s``, takes
    the run back to its last durable checkpoint, and ``restart_s`` later it works again: on a spare node if the cause
    took one away, on the next repaired node if no spare is left.
    """

    gpu_failures_per_s: float  # per GPU
    node_failures_per_s: float  # per node: host, power, maintenance
    network_failures_per_s: float  # per GPU: links, NICs, switches
    software_failures_per_s: float  # per GPU; takes no node away
    restart_s: float  # rescheduling and loading
    checkpoint_interval_s: float  # of work between two checkpoints
    checkpoint_write_s: float  # until a checkpoint is durable
    checkpoint_stall_s: float  # training stands still: all of the writing, or the copy to host memory
    checkpoint_bytes: float = 0.0
    detection_s: float = 0.0
    preemptions_per_s: float = 0.0  # per node: spot instances taken back
    preemption_notice_s: float = 0.0
    n_spare_nodes: int | None = None  # None: the provider replaces a node within the restart
    node_repair_s: float = 0.0  # until a lost node is a spare again
    slow_nodes_per_s: float = 0.0  # per node: onset of a node that holds up all others
    slow_factor: float = 1.0  # how much longer a step takes then
    slow_s: float = 0.0  # until it is found and replaced


# A run that nothing interrupts and that saves nothing: what a benchmark measures.
UNINTERRUPTED = Reliability(0.0, 0.0, 0.0, 0.0, 0.0, 1e12, 0.0, 0.0)
