"""The `serving` section of a scenario file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from moeplan.files.schema_types import (
    Bytes,
    CacheFormat,
    Count,
    CountOrZero,
    Degree,
    Duration,
    DurationOrZero,
    Flag,
    Fraction,
    PositiveFraction,
    Rate,
    Section,
    Text,
    Tokens,
    WeightFormat,
    choice,
    one_of,
    quantity,
    reject,
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


class UniformFile(Section):
    """Whole numbers, each equally likely."""

    low: Tokens = Field(description="Smallest length [tokens].")
    high: Tokens = Field(description="Largest length [tokens].")

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return {"low": value[0], "high": value[1]} if isinstance(value, list) and len(value) == 2 else value

    @model_validator(mode="after")
    def _ordered(self) -> UniformFile:
        if self.low > self.high:
            raise reject("low is above high", hint="write the smaller number first")
        return self


class LognormalFile(Section):
    """Log-normal lengths, the usual shape of chat prompts and answers."""

    mean: Tokens = Field(description="Mean length before clipping [tokens].")
    sigma: Annotated[float, quantity("count", above=0.0, most=5.0)] = Field(
        description="Standard deviation of ln(length)."
    )
    min: Tokens = Field(default=1, description="Shorter draws are raised to this [tokens].")
    max: Tokens | None = Field(
        default=None, description="Longer draws are cut to this [tokens]; default: half of the longest request allowed."
    )

    @model_validator(mode="after")
    def _ordered(self) -> LognormalFile:
        if self.max is not None and self.min > self.max:
            raise reject("min is above max")
        return self


class LengthFile(Section):
    """How long prompts or answers are: a number, or a distribution."""

    shorthand = "fixed"
    exclusive = ("fixed", "uniform", "lognormal")
    fixed: Tokens | None = Field(default=None, description="Every one has this length [tokens].")
    uniform: UniformFile | None = Field(default=None, description="[low, high], each length equally likely.")
    lognormal: LognormalFile | None = Field(default=None, description="Log-normal with mean and sigma.")

    @model_validator(mode="after")
    def _one(self) -> LengthFile:
        one_of(self, *self.exclusive)
        return self


class TraceFile(Section):
    """Recorded requests: arrival times and lengths from a CSV file, plain or .gz."""

    shorthand = "file"
    file: Text = Field(description="Path relative to the file that names it; must lie in the scenario's folder.")
    format: Annotated[str, choice("auto", "azure", "csv")] = Field(
        default="auto",
        description="`azure`: TIMESTAMP,ContextTokens,GeneratedTokens; `csv`: arrival_s,input_tokens,output_tokens; "
        "`auto`: told by the header.",
    )
    attribution: Text | None = Field(default=None, description="Whom to credit for the data.")


class TrafficFile(Section):
    """The requests: recorded (`trace`), or drawn (token lengths with `rate`, `users` or `offline`)."""

    exclusive = ("rate", "users", "offline")
    trace: TraceFile | None = Field(default=None, description="Recorded requests.")
    rate: Rate | None = Field(
        default=None,
        description="Mean arrivals at the whole deployment: Poisson, or the trace stretched to this rate.",
    )
    users: Count | None = Field(
        default=None, description="Closed loop: this many users, each sends its next request when the last one ended."
    )
    think_time: DurationOrZero | None = Field(
        default=None, description="Closed loop: mean pause of a user before its next request (exponential)."
    )
    offline: Flag = Field(default=False, description="All requests are there at time zero (batch work).")
    requests: Count | None = Field(
        default=None,
        description="Requests simulated. Default: the whole trace; 2000 or two minutes of a Poisson stream, up to "
        "500000; 12 per user of a closed loop; 1000 offline.",
    )
    warmup_requests: CountOrZero | None = Field(
        default=None,
        description="First requests left out of the percentiles. Default: a tenth of a Poisson stream, 2 per user of a "
        "closed loop, otherwise none.",
    )
    input_tokens: LengthFile | None = Field(
        default=None, description="Prompt lengths (with a trace: instead of its own)."
    )
    output_tokens: LengthFile | None = Field(
        default=None, description="Answer lengths (with a trace: instead of its own)."
    )

    @model_validator(mode="after")
    def _complete(self) -> TrafficFile:
        if self.users is not None and (self.rate is not None or self.offline):
            raise reject("`users` is a closed loop and excludes `rate` and `offline`")
        if self.think_time is not None and self.users is None:
            raise reject("`think_time` belongs to a closed loop", "state `users`")
        if self.offline and self.rate is not None:
            raise reject("`offline` has every request at time zero and excludes `rate`")
        if self.trace is None:
            missing = [key for key in ("input_tokens", "output_tokens") if getattr(self, key) is None]
            if missing:
                raise reject(f"missing {' and '.join(missing)}", hint="state them, or give a `trace`")
            if self.rate is None and self.users is None and not self.offline:
                raise reject("no load is stated", "rate, users, offline: true, or trace")
        return self


class SloFile(Section):
    """Latency targets at a percentile of the requests."""

    ttft: Duration | None = Field(default=None, description="Time to first token.")
    tpot: Duration | None = Field(default=None, description="Time per output token after the first.")
    e2e: Duration | None = Field(default=None, description="Whole request.")
    percentile: Annotated[float, quantity("count", above=0.0, most=99.9)] = Field(
        default=90.0, description="Percentile the targets hold at."
    )


class ServingFile(Section):
    """A serving deployment under a traffic."""

    engine: EngineFile = Field(default=EngineFile(), description="Engine name or settings.")
    precision: PrecisionFile = Field(default=PrecisionFile(), description="Weight format, or one by part.")
    layout: ServingLayoutFile = Field(default=ServingLayoutFile(), description="Parallel degrees and replicas.")
    traffic: TrafficFile = Field(description="What is asked of it.")
    slo: SloFile = Field(default=SloFile(), description="Latency targets; none by default.")
