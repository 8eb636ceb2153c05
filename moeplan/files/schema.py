"""The scenario file as the user writes it. After validation every quantity is in SI units.

The description of a field is its documentation: ``moeplan schema`` and docs/reference/scenario.md are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from moeplan import units
from moeplan.files.schema_types import (
    BudgetLimit,
    Bytes,
    CacheFormat,
    Count,
    CountOrZero,
    Degree,
    Duration,
    DurationOrZero,
    EnergyPrice,
    ExchangeRate,
    Flag,
    Fraction,
    GpuHourPrice,
    Money,
    MonthlyMoney,
    Number,
    PositiveFraction,
    Power,
    Rate,
    Section,
    Text,
    Tokens,
    WeightFormat,
    choice,
    quantity,
    reject,
    whole,
)

KINDS = ("serving", "training", "lifecycle")
ENGINES = ("vllm", "sglang", "trtllm", "llama.cpp")


def _one_of(section: Any, *keys: str) -> None:
    """Raise unless exactly one of ``keys`` is set."""
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        what = f"only one of these may be set: {', '.join(given)}" if given else "one of these keys is needed"
        raise reject(what, ", ".join(keys))


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
        default=None, description="Time per request before it can be scheduled (tokenising, transport)."
    )
    cuda_graphs: Flag | None = Field(
        default=None, description="Replay captured graphs instead of launching each kernel."
    )
    eager_layer: DurationOrZero | None = Field(
        default=None, description="Host time per layer of an iteration outside captured graphs."
    )
    async_scheduling: Flag | None = Field(
        default=None, description="Compose an iteration while the one before it runs."
    )
    cuda_graph_max_tokens: CountOrZero | None = Field(
        default=None, description="Largest iteration that has a graph [tokens]."
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
        _one_of(self, *self.exclusive)
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
    offline: Flag = Field(default=False, description="All requests are there at time zero (batch work).")
    requests: Count | None = Field(
        default=None,
        description="Requests simulated. Default: the whole trace; 2000 of a Poisson stream; 12 per user of a closed "
        "loop; 1000 offline.",
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


class LoraFile(Section):
    """LoRA adapter; with a 4-bit `base_precision` it is QLoRA."""

    rank: Annotated[int, whole(1, 65536)] = Field(
        default=16, description="Rank of the adapter matrices (estimate: common recipes use 8 to 64)."
    )
    targets: Annotated[str, choice("attention", "all_linear")] = Field(
        default="attention",
        description="Layers with an adapter: attention projections, or every linear layer with the experts.",
    )
    base_precision: WeightFormat = Field(default="native", description="Format of the frozen base weights.")


class ReliabilityFile(Section):
    """Failures and checkpoints of a long run; defaults and their sources are in moeplan/data/reliability.yaml."""

    failures_per_gpu_day: Annotated[float, quantity("count", least=0.0, most=1.0)] | None = Field(
        default=None, description="Unexpected interruptions per GPU and day."
    )
    restart: DurationOrZero | None = Field(default=None, description="From a failure until the job runs again.")
    checkpoint_interval: Duration | None = Field(default=None, description="Time between checkpoints.")
    checkpoint_write: DurationOrZero | None = Field(
        default=None, description="Training stands still for one checkpoint."
    )


class TrainingLayoutFile(Section):
    """Parallel degrees of a training job; GPUs = tp x cp x pp x dp."""

    tp: Degree = Field(default=1, description="Tensor-parallel degree.")
    pp: Degree = Field(default=1, description="Pipeline stages.")
    vpp: Degree = Field(default=1, description="Virtual stages per pipeline rank (interleaved schedule).")
    cp: Degree = Field(default=1, description="Context-parallel degree.")
    dp: Degree = Field(default=1, description="Data-parallel degree.")
    ep: Degree = Field(default=1, description="Expert-parallel degree; ep x etp divides tp x cp x dp.")
    etp: Degree = Field(default=1, description="Tensor parallelism inside an expert.")
    zero: Annotated[int, whole(0, 3)] = Field(
        default=1,
        description="ZeRO stage: 0 nothing sharded over dp, 1 optimizer, 2 gradients too, 3 weights too (FSDP).",
    )
    sequence_parallel: Flag = Field(default=True, description="Shard norms and dropout over tp along the sequence.")


class TrainingFile(Section):
    """A training run."""

    method: Annotated[str, choice("pretrain", "full_finetune", "lora")] = Field(description="What is trained.")
    tokens: Annotated[float, quantity("tokens", above=0.0, most=1e18)] = Field(
        description="Tokens the run processes, all epochs."
    )
    sequence_length: Tokens = Field(description="Tokens of one sequence.")
    global_batch: Count = Field(description="Sequences of one optimizer step.")
    micro_batch: Count = Field(default=1, description="Sequences of one forward pass on one data-parallel rank.")
    precision: Annotated[str, choice("bf16", "fp16", "fp8", "fp8_block", "mxfp8", "nvfp4", "fp32")] = Field(
        default="bf16", description="Arithmetic of the matrix products."
    )
    optimizer: Annotated[str, choice("adamw", "adamw_bf16", "adamw_8bit", "muon")] = Field(
        default="adamw",
        description="adamw: two fp32 states; adamw_bf16: two bf16; adamw_8bit: two 8-bit; muon: one fp32.",
    )
    master_weights: Flag = Field(default=True, description="Keep an fp32 copy of 16-bit weights.")
    gradients: Annotated[str, choice("fp32", "bf16")] = Field(
        default="fp32", description="Gradient accumulation format (Megatron-Core accumulates in fp32 by default)."
    )
    recompute: Annotated[str, choice("none", "selective", "full")] = Field(
        default="selective",
        description="Activation recomputation (arXiv:2205.05198): none, core attention only, whole layers.",
    )
    packing: PositiveFraction = Field(
        default=1.0, description="Share of positions that hold real tokens rather than padding."
    )
    overlap: Fraction = Field(
        default=0.8, description="Share of data- and expert-parallel traffic hidden behind computation (estimate)."
    )
    lora: LoraFile | None = Field(default=None, description="The adapter, for method lora.")
    reliability: ReliabilityFile = Field(default=ReliabilityFile(), description="Failures and checkpoints.")
    layout: TrainingLayoutFile = Field(default=TrainingLayoutFile(), description="Parallel degrees.")


class RoutingFile(Section):
    """How uneven tokens spread over the routed experts."""

    zipf: Annotated[float, quantity("count", least=0.0, most=4.0)] = Field(
        default=0.3,
        description="Expert popularity ~ rank^-zipf; 0 is balanced. 0.3 is an estimate for models trained with a "
        "balancing loss.",
    )


class OwnFile(Section):
    """Bought hardware: purchase spread over its life, plus electricity."""

    purchase: Money = Field(description="Purchase price per GPU with its share of server and network.")
    lifetime: Duration = Field(description="Time over which the purchase is written off.")
    residual: Fraction = Field(default=0.0, description="Share of the price recovered at the end.")
    electricity: EnergyPrice = Field(description="Price of energy.")
    power: Power | None = Field(
        default=None,
        description="Draw per GPU with its host's share; default: the profile's all-in figure.",
    )
    pue: Annotated[float, quantity("count", least=1.0, most=5.0)] = Field(
        default=1.0, description="Facility power over IT power, applied to `power` when that is stated."
    )
    hosting: MonthlyMoney = Field(default=0.0, description="Rack space and maintenance per GPU.")


class PriceFile(Section):
    """What a GPU hour costs: a dated offer of the catalogue, a price of the user's own, or bought hardware."""

    exclusive = ("offer", "per_gpu_hour", "own")
    offer: Text | None = Field(default=None, description="Name in `moeplan catalog prices`.")
    per_gpu_hour: GpuHourPrice | None = Field(default=None, description="A price you were quoted.")
    own: OwnFile | None = Field(default=None, description="Bought hardware.")
    date: Text | None = Field(default=None, description="Date of the quote.")
    term: Annotated[str, choice("on_demand", "spot")] = Field(
        default="on_demand", description="Kind of the quoted price."
    )
    gpus_per_instance: Degree = Field(
        default=1, description="Smallest number of GPUs that can be rented (quoted price)."
    )

    @classmethod
    def shorthand_key(cls, value: Any) -> str | None:
        """A number with a unit is a price; any other text is the name of an offer."""
        return "per_gpu_hour" if str(value)[:1] in tuple("0123456789+-.$") else "offer"

    @model_validator(mode="after")
    def _one(self) -> PriceFile:
        _one_of(self, *self.exclusive)
        return self


class BudgetFile(Section):
    """What may be spent, and by when a training run must end."""

    shorthand = "limit"
    limit: BudgetLimit = Field(
        description="`3000 USD/month` for serving, `60000 USD` for a training run or a lifecycle."
    )
    deadline: Duration | None = Field(default=None, description="Longest wall-clock time of the training run.")


class CostsFile(Section):
    """Money beside the GPUs; nothing by default."""

    people: MonthlyMoney = Field(default=0.0, description="Staff.")
    storage: MonthlyMoney = Field(default=0.0, description="Checkpoints, datasets, images.")
    egress: MonthlyMoney = Field(default=0.0, description="Network traffic that is charged.")
    tax: Annotated[float, quantity("fraction", least=0.0, most=2.0)] = Field(
        default=0.0, description="Share added to everything."
    )


class TrainingPlaceFile(Section):
    """Where a lifecycle trains, when that is not where it serves."""

    hardware: Text | None = Field(default=None, description="Catalogue name or profile path.")
    price: PriceFile | None = Field(default=None, description="As `price`.")


class LifecycleFile(Section):
    """Train once, then serve."""

    duration: Duration = Field(description="Time in service after training.")
    training: TrainingPlaceFile = Field(
        default=TrainingPlaceFile(), description="Hardware and price of the training part."
    )


class CompareFile(Section):
    """Another model that the user states to be in the same quality class, under the same traffic and price."""

    model: Text = Field(description="Catalogue name or path of a Hugging Face config.json.")
    quality_note: Text = Field(description="Why the two are called equal, with a source.")
    precision: PrecisionFile | None = Field(default=None, description="Default: as `serving.precision`.")
    layout: ServingLayoutFile | None = Field(
        default=None, description="Default: as `serving.layout`, without ep for dense models."
    )


class ReferenceFile(Section):
    """A published figure shown beside the plan's."""

    quantity: Text = Field(description="Path in the plan's JSON, for example training.gpu_hours.")
    value: Number = Field(description="The figure in the unit of that path.")
    source: Text = Field(description="Where it is published.")


class ScenarioFile(Section):
    """One question about cost and capacity."""

    name: Text | None = Field(default=None, description="Name in reports; default: the file's name.")
    description: Text | None = Field(default=None, description="The decision behind it, for readers.")
    extends: Text | None = Field(
        default=None, description="Another scenario in this folder or below whose values this one changes."
    )
    kind: Annotated[str, choice(*KINDS)] | None = Field(
        default=None, description="Default: told by the sections present."
    )
    seed: Annotated[int, whole(0, 2**63 - 1)] = Field(default=0, description="Seed of everything random.")
    model: Text = Field(description="Catalogue name or path of a Hugging Face config.json.")
    hardware: Text = Field(description="Catalogue name or path of a profile.")
    gpus: Degree | None = Field(default=None, description="GPUs there are; the layout may not need more.")
    serving: ServingFile | None = Field(default=None, description="A deployment to plan.")
    training: TrainingFile | None = Field(default=None, description="A training run to plan.")
    routing: RoutingFile = Field(default=RoutingFile(), description="Expert popularity.")
    price: PriceFile | None = Field(
        default=None,
        description="Price of a GPU hour. Needed: no price is assumed; without one `check` lists the known offers.",
    )
    budget: BudgetFile | None = Field(default=None, description="Spending limit.")
    costs: CostsFile = Field(default=CostsFile(), description="Other costs.")
    lifecycle: LifecycleFile | None = Field(default=None, description="Train, then serve.")
    compare_with: CompareFile | None = Field(default=None, description="A second model at equal quality.")
    references: list[ReferenceFile] = Field(default_factory=list, max_length=100, description="Published figures.")
    exchange_rates: dict[str, ExchangeRate] = Field(
        default_factory=dict, description="Value of one unit of another currency, for example {EUR: 1.08 USD}."
    )

    @field_validator("exchange_rates", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise reject("expected a mapping of currency codes to rates", "{EUR: 1.08 USD}")
        return value


def parse_exchange_rate(code: str, text: object) -> float:
    """US dollars per unit of a currency. Raises units.UnitError."""
    if len(code) != 3 or not code.isascii() or not code.isupper() or code == "USD":
        raise units.UnitError("not a currency code", "three capitals other than USD, for example EUR")
    rate = units.parse(text, "usd")
    if rate <= 0.0:
        raise units.UnitError("an exchange rate must be above zero")
    return rate
