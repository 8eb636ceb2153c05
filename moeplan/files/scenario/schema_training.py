"""The `training` section of a scenario file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moeplan.files.scenario.pipeline_layout import check_pipeline_layout
from moeplan.files.scenario.schema_serving import EngineFile, PrecisionFile, ServingLayoutFile
from moeplan.files.scenario.schema_traffic import LengthFile
from moeplan.files.scenario.schema_types import (
    Bandwidth,
    Count,
    CountOrZero,
    Degree,
    Duration,
    DurationOrZero,
    Flag,
    Fraction,
    PositiveFraction,
    Rule,
    Section,
    Tokens,
    WeightFormat,
    choice,
    quantity,
    whole,
)
from moeplan.spec.layout import StagePlan

RecomputeModule = Annotated[str, choice("norm", "activation", "latent_up", "attention", "mlp", "moe")]


PipelineLayout = Annotated[
    tuple[StagePlan, ...],
    Rule(check_pipeline_layout, "a pipeline layout as in Megatron-Core: Et*15|t*16|t*16|t*14L", {"type": "string"}),
]


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
    """What interrupts a long run and how it recovers; sources of the defaults: moeplan/data/reliability.yaml."""

    failures_per_gpu_day: Annotated[float, quantity("count", least=0.0, most=1.0)] | None = Field(
        default=None,
        description="Unexpected interruptions of all causes per GPU and day, instead of the four mean times below; the "
        "causes keep their shares.",
    )
    gpu_mtbf: Duration | None = Field(default=None, description="Mean time between failures of one GPU.")
    node_mtbf: Duration | None = Field(default=None, description="Mean time between failures of one node's host.")
    network_mtbf: Duration | None = Field(default=None, description="The same for one GPU's links, NIC and switches.")
    software_mtbf: Duration | None = Field(default=None, description="The same for software faults, per GPU.")
    detection: DurationOrZero = Field(
        default=0.0, description="From a failure until it is noticed, where the restart below does not include it."
    )
    restart: DurationOrZero | None = Field(default=None, description="From then until the job runs again.")
    checkpoint: Annotated[str, choice("sync", "async")] = Field(
        default="sync",
        description="sync: training waits until a checkpoint is written; async: until it is copied to host memory.",
    )
    checkpoint_interval: Duration | None = Field(default=None, description="Work between two checkpoints.")
    checkpoint_write: DurationOrZero | None = Field(
        default=None, description="Until a checkpoint is durable; left away: its size over storage_bandwidth."
    )
    storage_bandwidth: Bandwidth | None = Field(
        default=None, description="Rate at which the whole job writes a checkpoint."
    )
    spare_nodes: CountOrZero | None = Field(
        default=None, description="Nodes held ready and paid for; left away: the provider replaces a node at once."
    )
    node_repair: DurationOrZero | None = Field(default=None, description="Until a lost node is a spare again.")
    preemptions_per_node_day: Annotated[float, quantity("count", least=0.0, most=100.0)] = Field(
        default=0.0, description="Spot nodes taken back, per node and day."
    )
    preemption_notice: DurationOrZero | None = Field(
        default=None, description="Warning before; long enough for a checkpoint, it saves the work."
    )
    slow_nodes_per_node_day: Annotated[float, quantity("count", least=0.0, most=100.0)] = Field(
        default=0.0, description="How often a node becomes slow and holds up all others, per node and day."
    )
    slow_factor: Annotated[float, quantity("count", least=1.0, most=100.0)] = Field(
        default=1.0, description="How many times as long a step then takes."
    )
    slow_duration: DurationOrZero = Field(default=0.0, description="Until a slow node is found and replaced.")


class TrainingLayoutFile(Section):
    """Parallel degrees of a training job; GPUs = tp x cp x pp x dp."""

    tp: Degree = Field(default=1, description="Tensor-parallel degree.")
    pp: Degree = Field(default=1, description="Pipeline stages.")
    vpp: Degree = Field(default=1, description="Virtual stages per pipeline rank (interleaved schedule).")
    cp: Degree = Field(default=1, description="Context-parallel degree.")
    dp: Degree = Field(default=1, description="Data-parallel degree.")
    ep: Degree = Field(default=1, description="Expert-parallel degree; ep x etp divides tp x cp x dp.")
    etp: Degree = Field(default=1, description="Tensor parallelism inside an expert.")
    schedule: Annotated[str, choice("1f1b", "zero_bubble", "dualpipe")] = Field(
        default="1f1b",
        description="Pipeline schedule: 1f1b (interleaved where vpp is above 1), zero_bubble (ZB-H1), dualpipe (two "
        "copies of the weights, both ends feed micro batches).",
    )
    zero: Annotated[int, whole(0, 3)] = Field(
        default=1,
        description="ZeRO stage: 0 nothing sharded over dp, 1 optimizer, 2 gradients too, 3 weights too (FSDP).",
    )
    stages: PipelineLayout | None = Field(
        default=None,
        description="What each of the pp x vpp stages holds, in the order a micro-batch passes them, separated by `|`: "
        "E embedding, t a layer, m an MTP module, L head and loss; `t*4` and `(t|)*4` repeat. Left away: balanced "
        "by arithmetic.",
    )
    sequence_parallel: Flag = Field(default=True, description="Shard norms and dropout over tp along the sequence.")


class RolloutFile(Section):
    """Reinforcement learning: every step answers all prompts with the model as it is, then learns from the answers."""

    prompts: Count = Field(description="Prompts of one step.")
    samples: Count = Field(default=1, description="Answers to each prompt (the group of GRPO).")
    prompt_length: LengthFile = Field(description="Tokens of a prompt.")
    response_length: LengthFile = Field(description="Tokens of an answer; the longest of a step is waited for.")
    engine: EngineFile = Field(default=EngineFile(), description="Engine that generates.")
    precision: PrecisionFile = Field(default=PrecisionFile(), description="Its weight format, or one by part.")
    layout: ServingLayoutFile = Field(default=ServingLayoutFile(), description="Its parallel degrees and replicas.")
    reference_model: Flag = Field(
        default=True, description="Log probabilities of a frozen reference model too, one more forward pass."
    )
    placement: Annotated[str, choice("colocated", "separate")] = Field(
        default="colocated",
        description="colocated: on the training GPUs, in turn with the update; separate: on GPUs of its own, one step "
        "ahead of the update.",
    )


class PhaseFile(Section):
    """What changes in a later phase of the run; the rest stays."""

    tokens: Annotated[float, quantity("tokens", above=0.0, most=1e18)] = Field(description="Tokens of this phase.")
    sequence_length: Tokens | None = Field(default=None, description="Tokens of one sequence.")
    global_batch: Count | None = Field(default=None, description="Sequences of one optimizer step.")
    micro_batch: Count | None = Field(default=None, description="Sequences of one forward pass.")
    layout: TrainingLayoutFile | None = Field(default=None, description="Parallel degrees, on as many GPUs.")


class TrainingFile(Section):
    """A training run."""

    method: Annotated[str, choice("pretrain", "full_finetune", "lora", "rl")] = Field(
        description="What is trained; continued pretraining is `pretrain`, rl needs a `rollout`."
    )
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
        description="Activation recomputation (arXiv:2205.05198): none, the recompute_modules, whole layers.",
    )
    packing: PositiveFraction = Field(
        default=1.0, description="Share of positions that hold real tokens rather than padding."
    )
    recompute_modules: list[RecomputeModule] = Field(
        default=["activation", "latent_up", "norm"],
        description="What selective recomputation repeats: norms, activation functions, up-projections of latent "
        "attention, the attention kernel, dense feed-forward blocks, expert blocks with their exchange.",
    )
    overlap: Fraction = Field(
        default=0.8, description="Share of data-parallel traffic hidden behind computation (estimate)."
    )
    expert_overlap: Fraction = Field(
        default=0.0,
        description="Share of the experts' all-to-all hidden behind computation: 0 as in Megatron-Core by default, "
        "about 0.8 (estimate) where micro batches are overlapped (1F1B overlap, DualPipe).",
    )
    cuda_graphs: Flag = Field(
        default=False,
        description="Replay the whole iteration from CUDA graphs: the host launches nothing and waits for no router.",
    )
    fused_kernels: Flag = Field(
        default=True,
        description="Norm, rotary, activation and loss run as one kernel each (Transformer Engine, compiled PyTorch); "
        "false for plain modules of a model's own code: slower, and more activations are kept.",
    )
    flash_attention: Flag = Field(
        default=True, description="Attention that keeps its scores on the chip; false for frameworks before 2022."
    )
    fp8_activation_inputs: Flag = Field(
        default=False,
        description="Keep what activation functions read in 8 bits (arXiv:2412.19437, section 3.3.3; Megatron-Core's "
        "activation_func_fp8_input_store).",
    )
    offload_optimizer: Fraction = Field(
        default=0.0, description="Share of the optimizer's state kept and updated in host memory."
    )
    offload_activations: Fraction = Field(
        default=0.0, description="Share of saved activations sent to host memory and fetched for the backward pass."
    )
    lora: LoraFile | None = Field(default=None, description="The adapter, for method lora.")
    rollout: RolloutFile | None = Field(default=None, description="How sequences are made, for method rl.")
    phases: list[PhaseFile] = Field(
        default=[],
        description="Later phases, as a longer context or a larger batch; `tokens` above is the first's.",
    )
    reliability: ReliabilityFile = Field(default=ReliabilityFile(), description="Failures and checkpoints.")
    layout: TrainingLayoutFile = Field(default=TrainingLayoutFile(), description="Parallel degrees.")
