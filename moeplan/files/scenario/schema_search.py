"""The `optimize` and `variants` sections of a scenario file: what may be chosen, and what is compared."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from moeplan.files.scenario.schema_types import (
    CacheFormat,
    Count,
    CountOrZero,
    Degree,
    Flag,
    Rule,
    Section,
    Text,
    WeightFormat,
    choice,
    reject,
    whole,
)

OBJECTIVES = ("cost", "latency", "throughput_per_dollar", "time")
_MAX_LISTED = 1000
AnyValue = Annotated[Any, Rule(lambda value, _info: value, "mapping of paths to scenario values")]
RecomputeChoice = Annotated[str, choice("none", "selective", "full")]
ZeroStage = Annotated[int, whole(0, 3)]


def _some(what: str, default: str) -> Any:
    return Field(default=None, min_length=1, max_length=_MAX_LISTED, description=f"{what}; default: {default}.")


class OptimizeFile(Section):
    """What `moeplan optimize` and `moeplan compare` may choose, and the limits beside `slo` and `budget`."""

    by: Annotated[str, choice(*OBJECTIVES)] = Field(
        default="cost",
        description="What is best: least cost, least latency (end to end, at the percentile of `slo`), most output "
        "tokens per dollar, or least time (of a training run; of a batch of requests).",
    )
    gpus: Degree | None = Field(
        default=None, description="Most GPUs; default: `gpus`, else one node, or the layout's own if that is more."
    )
    models: list[Text] | None = _some("Allowed models, equal in quality by your word", "`model`")
    hardware: list[Text] | None = _some("Hardware to choose from", "`hardware`")
    offers: list[Text] | None = _some("Offers to choose from", "`price` on `hardware`, elsewhere the catalog's")
    spot: Flag = Field(default=False, description="Also the catalog's spot offers.")
    providers: list[Text] | None = _some("Providers of offers (their names' first part)", "all")
    regions: list[Text] | None = _some("Regions of offers (as the catalog or the offer's name states)", "all")
    precision: list[WeightFormat] | None = _some("Weight formats", "`serving.precision`, `training.precision`")
    kv_cache: list[CacheFormat] | None = _some("KV cache formats", "`serving.precision.kv_cache`")
    lowest_precision: WeightFormat | None = Field(
        default=None, description="Your quality limit: no weights in fewer bits than this format's."
    )
    top_k: list[Count] | None = _some("Experts per token in service", "the model's own, or `routing.top_k`")
    lowest_top_k: Count | None = Field(default=None, description="Your quality limit: no fewer experts per token.")
    tp: list[Degree] | None = _some("Tensor-parallel degrees", "powers of two that divide the model")
    pp: list[Degree] | None = _some("Pipeline stages", "powers of two")
    dp: list[Degree] | None = _some("Data-parallel degrees", "powers of two; training: what the GPUs leave")
    ep: list[Degree] | None = _some("Expert-parallel degrees", "powers of two that divide tp x dp and the experts")
    cp: list[Degree] | None = _some("Context-parallel degrees (training)", "powers of two")
    vpp: list[Degree] | None = _some("Virtual stages (training)", "the scenario's")
    replicas: list[Degree] | None = _some("Replicas", "all that the GPUs allow")
    prefill_replicas: list[CountOrZero] | None = _some(
        "Replicas of a prefill pool; 0: prompts and answers on the same GPUs", "as the scenario"
    )
    prefill_tp: list[Degree] | None = _some("Tensor-parallel degrees of the prefill pool", "powers of two")
    max_num_seqs: list[Count] | None = _some("Sequences in an iteration", "16 to 1024 by doubling, and the engine's")
    max_num_batched_tokens: list[Count] | None = _some(
        "Tokens in an iteration", "2048, 4096, 8192, 16384, and the engine's"
    )
    recompute: list[RecomputeChoice] | None = _some("Activation recomputation (training)", "all three")
    zero: list[ZeroStage] | None = _some("ZeRO stages (training)", "the scenario's")
    micro_batch: list[Count] | None = _some("Sequences of a micro-batch (training)", "1, 2, 4, 8 that divide")
    simulations: Count = Field(
        default=200, description="Most candidates simulated; what is left open then is counted and said."
    )


class VariantFile(Section):
    """One of several ways to do the same work, for `moeplan compare`."""

    name: Text = Field(description="Its name in the ranking.")
    set: dict[str, AnyValue] = Field(description="What it changes: {hardware: h100-sxm, price: 2.5 USD/h}.")

    @field_validator("set", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value:
            raise reject("expected a mapping of paths to values", "{hardware: h100-sxm, price: 2.5 USD/h}")
        return value
