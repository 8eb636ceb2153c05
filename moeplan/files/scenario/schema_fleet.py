"""The `serving.fleet` and `serving.prefill` sections of a scenario file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from moeplan.files.scenario.schema_types import (
    Count,
    Degree,
    Duration,
    DurationOrZero,
    PositiveFraction,
    Section,
    choice,
    one_of,
    quantity,
    reject,
    whole,
)

Bandwidth = Annotated[float, quantity("bytes_per_s", above=0.0)]
Events = Annotated[float, quantity("request_rate", above=0.0)]


class ColdStartFile(Section):
    """From a decision to the first request; defaults and their sources are in moeplan/data/fleet.yaml."""

    provision: DurationOrZero | None = Field(default=None, description="Until the machine is there; default 0 s.")
    weights_rate: Bandwidth | None = Field(
        default=None, description="Storage or network to one replica, which reads its weights; default 2.4 GB/s."
    )
    engine_start: DurationOrZero | None = Field(
        default=None, description="Processes, compilation, graph capture; default 60 s."
    )


class AutoscalingFile(Section):
    """Replicas follow the load as Kubernetes' horizontal autoscaler does: wanted = current x measured / target."""

    exclusive = ("in_flight", "queue", "utilization")
    min_replicas: Count = Field(default=1, description="Never fewer.")
    max_replicas: Count = Field(description="Never more.")
    in_flight: Annotated[float, quantity("count", above=0.0)] | None = Field(
        default=None, description="Target: requests waiting or running, per ready replica."
    )
    queue: Annotated[float, quantity("count", above=0.0)] | None = Field(
        default=None, description="Target: requests waiting, per ready replica."
    )
    utilization: PositiveFraction | None = Field(default=None, description="Target: share of the KV cache in use.")
    interval: Duration | None = Field(default=None, description="Between decisions; default 15 s.")
    cooldown: DurationOrZero | None = Field(
        default=None, description="Fewer replicas only when no decision for so long wanted more; default 5 min."
    )
    tolerance: Annotated[float, quantity("fraction", least=0.0, most=1.0)] | None = Field(
        default=None, description="Distance from the target that is let be; default 10 %."
    )

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingFile:
        one_of(self, *self.exclusive)
        if self.min_replicas > self.max_replicas:
            raise reject("min_replicas is above max_replicas")
        return self


class FailuresFile(Section):
    """Replicas fail, are repaired, and start again; a failure of one GPU takes its replica."""

    mtbf_per_gpu: Duration | None = Field(
        default=None, description="Mean time between failures of one GPU; default 5.8 years (data/reliability.yaml)."
    )
    repair: DurationOrZero | None = Field(
        default=None, description="Detection and replacement, before the cold start; default as its `restart`."
    )


class SpotFile(Section):
    """Capacity that is taken back."""

    shorthand = "preemptions"
    preemptions: Events = Field(description="Per replica: 1/d is once a day.")
    notice: DurationOrZero | None = Field(default=None, description="Warning, while the replica drains; default 2 min.")
    replacement: DurationOrZero = Field(
        default=0.0, description="Until other capacity is found, before the cold start."
    )


class RollingUpdateFile(Section):
    """A new version replaces the replicas, a few at a time."""

    shorthand = "at"
    at: DurationOrZero = Field(description="Start, in simulated time.")
    batch: Degree = Field(default=1, description="Replicas out of service together.")
    rollback_at: Duration | None = Field(
        default=None, description="When the new version is found bad, and the replaced replicas go back."
    )

    @model_validator(mode="after")
    def _ordered(self) -> RollingUpdateFile:
        if self.rollback_at is not None and self.rollback_at < self.at:
            raise reject("the rollback comes before the update")
        return self


class FleetFile(Section):
    """How replicas act together."""

    dispatch: Annotated[str, choice("least_loaded", "round_robin", "prefix_aware")] = Field(
        default="least_loaded",
        description="Who gets a request: fewest requests, in turn, or most of the prompt cached, then fewest requests.",
    )
    cold_start: ColdStartFile = Field(default=ColdStartFile(), description="Start of a replica.")
    autoscaling: AutoscalingFile | None = Field(
        default=None, description="`layout.replicas` is the number to begin with."
    )
    failures: FailuresFile | None = Field(default=None, description="None by default.")
    spot: SpotFile | None = Field(default=None, description="None by default.")
    update: RollingUpdateFile | None = Field(default=None, description="None by default.")
    drain: DurationOrZero | None = Field(
        default=None,
        description="Longest wait for requests of a replica that is scaled down or updated; the rest is sent again. "
        "Default 30 s.",
    )
    retries: Annotated[int, whole(0, 1000)] | None = Field(
        default=None, description="Times a request is sent again when its replica goes; then it is lost. Default 1."
    )


class PrefillFile(Section):
    """Prefill apart from decoding: replicas that compute prompts and hand the KV cache to those of `layout`."""

    tp: Degree = Field(default=1, description="Tensor-parallel degree.")
    pp: Degree = Field(default=1, description="Pipeline stages.")
    dp: Degree = Field(default=1, description="Attention data-parallel ranks inside a replica.")
    ep: Degree = Field(default=1, description="GPUs over which routed experts are spread whole; divides tp x dp.")
    replicas: Degree = Field(default=1, description="Prefill replicas.")
    max_num_seqs: Count | None = Field(default=None, description="Default: as `engine`.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Default: as `engine`.")
