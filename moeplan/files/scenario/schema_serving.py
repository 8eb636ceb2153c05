"""The `serving` section of a scenario file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moeplan.files.scenario.schema_fleet import FleetFile, PrefillFile
from moeplan.files.scenario.schema_traffic import SloFile, TrafficFile
from moeplan.files.scenario.schema_types import (
    Bytes,
    CacheFormat,
    Count,
    CountOrZero,
    Degree,
    DurationOrZero,
    Flag,
    Fraction,
    PositiveFraction,
    Section,
    Tokens,
    WeightFormat,
    choice,
)

ENGINES = ("vllm", "sglang", "trtllm", "llama.cpp")


class EngineFile(Section):
    """Serving engine and its settings; what is not set is the engine's own default (moeplan/data/engines)."""

    shorthand = "name"
    name: Annotated[str, choice(*ENGINES)] = Field(default="vllm", description="Serving engine.")
    max_num_seqs: Count | None = Field(default=None, description="Most sequences in one iteration of a replica.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Most tokens in one iteration of a replica.")
    max_model_len: Tokens | None = Field(
        default=None, description="Longest prompt plus answer [tokens]; default: the model's own limit."
    )
    memory_utilization: PositiveFraction | None = Field(
        default=None, description="Share of GPU memory the engine may take."
    )
    chunked_prefill: Flag | None = Field(default=None, description="Split long prompts over iterations.")
    kv_block_tokens: Count | None = Field(default=None, description="Tokens of one KV-cache block.")
    reserve: Bytes | None = Field(default=None, description="Memory kept outside weights, KV cache and activations.")
    step_overhead: DurationOrZero | None = Field(
        default=None, description="Host time per iteration that the GPU waits for."
    )
    host_step: DurationOrZero | None = Field(
        default=None,
        description="Host work of an iteration: beside the GPU with async_scheduling, else between iterations.",
    )
    host_sequence: DurationOrZero | None = Field(
        default=None, description="More of it for each sequence that gets a token."
    )
    request_overhead: DurationOrZero | None = Field(
        default=None, description="Time per request on its way to the scheduler that others do not share."
    )
    front_request: DurationOrZero | None = Field(
        default=None, description="Work of a replica's one front end for a request (HTTP, tokenising)."
    )
    front_token: DurationOrZero | None = Field(
        default=None, description="Work of the front end for a token streamed to its user."
    )
    cuda_graphs: Flag | None = Field(
        default=None, description="Replay captured graphs instead of launching each kernel."
    )
    eager_layer: DurationOrZero | None = Field(
        default=None, description="Host time per layer of an iteration outside captured graphs."
    )
    eager_experts: DurationOrZero | None = Field(
        default=None, description="More of it for a layer with routed experts."
    )
    async_scheduling: Flag | None = Field(
        default=None, description="Compose an iteration while the one before it runs."
    )
    cuda_graph_max_tokens: CountOrZero | None = Field(
        default=None, description="Largest iteration that has a graph [tokens]."
    )
    prefill_first: Flag | None = Field(
        default=None, description="Prompts pause decoding instead of joining its iterations."
    )
    output_reserve: Fraction | None = Field(
        default=None,
        description="Share of the KV cache that running requests' outputs still need, kept free when another is "
        "admitted with its own output whole; 0: nothing is kept, not even for its own.",
    )
    output_reserve_end: Fraction | None = Field(default=None, description="What that share falls to.")
    output_reserve_iterations: Count | None = Field(default=None, description="Iterations in which it does.")
    receive_iterations: Count | None = Field(
        default=None, description="Decode iterations between looks at new requests (SGLang scheduler-recv-interval)."
    )
    dp_balance_iterations: CountOrZero | None = Field(
        default=None,
        description="Attention data-parallel ranks start prompts together, or after so many iterations "
        "(TensorRT-LLM attention_dp_config enable_balance, timeout_iters); 0: each on its own.",
    )
    batch_wait_iterations: CountOrZero | None = Field(
        default=None,
        description="Iterations for which prompts wait for company (TensorRT-LLM batch_wait_timeout_iters).",
    )
    batch_wait_tokens: Fraction | None = Field(
        default=None, description="Share of max_num_batched_tokens that ends the wait (batch_wait_max_tokens_ratio)."
    )
    prefix_caching: Flag | None = Field(
        default=None, description="Keep the KV of prompts for others that start alike, until its room is needed."
    )
    priority_scheduling: Flag | None = Field(
        default=None,
        description="Requests wait in order of their class's priority, and the least important is preempted first.",
    )
    swap_space: Bytes | None = Field(
        default=None, description="Host memory per GPU for preempted sequences; without, they are recomputed."
    )
    kv_offload: Bytes | None = Field(
        default=None, description="Host memory per GPU for prefixes that lose their room on the GPU."
    )
    kv_link_overlap: Flag | None = Field(
        default=None, description="KV moves over the host link while an iteration runs; else before it."
    )
    draft_tokens: CountOrZero | None = Field(
        default=None, description="Speculative decoding: drafts verified in an iteration."
    )
    draft_acceptance: Fraction | None = Field(
        default=None, description="Chance that a draft is accepted when all before it are; state it with draft_tokens."
    )
    drafts: Annotated[str, choice("mtp", "ngram")] | None = Field(
        default=None, description="Drafts by the model's multi-token-prediction module, or looked up in the prompt."
    )
    cuda_graph_padding: Flag | None = Field(
        default=None,
        description="Pad an iteration to the next captured size. Off by default: the fitted overheads contain it.",
    )
    weight_offload: Fraction | None = Field(
        default=None, description="Share of attention and dense weights in host memory, streamed every iteration."
    )
    expert_offload: Fraction | None = Field(default=None, description="Share of routed experts in host memory.")
    expert_offload_on: Annotated[str, choice("gpu", "host")] | None = Field(
        default=None, description="Experts in host memory are streamed to the GPU when chosen, or computed by the CPU."
    )


class PrecisionFile(Section):
    """Number format of the weights, as one name or by part; ``native`` is what the published checkpoint has."""

    shorthand = "weights"
    weights: WeightFormat = Field(
        default="native",
        description="Format of experts, attention and dense layers. Embeddings, head and router keep the checkpoint's "
        "format, except under llama.cpp formats (q*), whose mean covers the whole file.",
    )
    experts: WeightFormat | None = Field(default=None, description="Routed experts; default: as `weights`.")
    attention: WeightFormat | None = Field(
        default=None, description="Attention and other mixers; default: as `weights`."
    )
    dense: WeightFormat | None = Field(
        default=None, description="Dense and shared-expert layers; default: as `weights`."
    )
    embedding: WeightFormat | None = Field(default=None, description="Embedding, head, norms, router.")
    kv_cache: CacheFormat = Field(
        default="auto", description="KV cache; `auto` is 16 bit (bf16; fp16 under llama.cpp)."
    )


class ServingLayoutFile(Section):
    """Parallel degrees of one replica and the number of replicas; GPUs = tp x pp x dp x replicas."""

    tp: Degree = Field(default=1, description="Tensor-parallel degree.")
    pp: Degree = Field(default=1, description="Pipeline stages.")
    dp: Degree = Field(default=1, description="Attention data-parallel ranks inside a replica.")
    ep: Degree = Field(default=1, description="GPUs over which routed experts are spread whole; divides tp x dp.")
    replicas: Degree = Field(default=1, description="Independent copies behind a load balancer.")


class ServingFile(Section):
    """A serving deployment under a traffic."""

    engine: EngineFile = Field(default=EngineFile(), description="Engine name or settings.")
    precision: PrecisionFile = Field(default=PrecisionFile(), description="Weight format, or one by part.")
    layout: ServingLayoutFile = Field(default=ServingLayoutFile(), description="Parallel degrees and replicas.")
    traffic: TrafficFile = Field(description="What is asked of it.")
    slo: SloFile = Field(default=SloFile(), description="Latency targets; none by default.")
    fleet: FleetFile = Field(
        default=FleetFile(), description="Dispatch, autoscaling, failures, spot capacity, updates of the replicas."
    )
    prefill: PrefillFile | None = Field(
        default=None, description="Prefill replicas apart from those of `layout`, which then only decode."
    )
