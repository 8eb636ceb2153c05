"""What happens to a deployment while it serves: who gets a request, scaling, failures, preemptions, updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.spec.layout import ServingLayout

Dispatch = Literal["least_loaded", "round_robin", "prefix_aware"]


@dataclass(frozen=True, slots=True)
class ColdStart:
    """From a decision to the first request: a machine, the weights, the engine."""

    provision_s: float  # until the machine is there
    weights_bytes_per_s: float  # storage or network to one replica
    engine_s: float  # processes, compilation, graph capture


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Replicas follow the load as Kubernetes' horizontal autoscaler does.

    Every ``interval_s`` the wanted number is current x measured / target, rounded up, unless measured is within
    ``tolerance_frac`` of the target; fewer replicas only when none of the last ``cooldown_s`` wanted more.
    """

    min_replicas: int
    max_replicas: int
    signal: Literal["in_flight", "queue", "utilization"]  # requests, waiting requests, KV share: per ready replica
    target: float
    interval_s: float
    cooldown_s: float
    tolerance_frac: float


@dataclass(frozen=True, slots=True)
class Failures:
    """A replica fails when one of its GPUs does; independent exponential times."""

    failures_per_gpu_s: float
    repair_s: float  # detection and replacement; a cold start follows


@dataclass(frozen=True, slots=True)
class Spot:
    """Replicas on capacity that is taken back; independent exponential times."""

    preemptions_per_replica_s: float
    notice_s: float  # the replica drains; what is left then is sent again
    replacement_s: float  # until other capacity is found; a cold start follows


@dataclass(frozen=True, slots=True)
class RollingUpdate:
    """Replicas are drained, replaced and started ``batch`` at a time, from ``at_s`` on.

    rollback_at_s: the new version is found bad; from then on the replaced ones go back the same way.
    """

    at_s: float
    batch: int
    rollback_at_s: float | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """Behaviour of the replicas of a deployment as one."""

    dispatch: Dispatch
    cold_start: ColdStart
    retries: int  # times a request is sent again after its replica went; then it is lost
    drain_s: float  # longest wait for the running requests of a replica that is to go; the rest is sent again
    autoscaling: Autoscaling | None = None
    failures: Failures | None = None
    spot: Spot | None = None
    update: RollingUpdate | None = None

    @property
    def changes(self) -> bool:
        """Whether the number of replicas ever changes."""
        return any(part is not None for part in (self.autoscaling, self.failures, self.spot, self.update))

    def most_replicas(self, layout: ServingLayout) -> int:
        """Replicas there may be at once."""
        return layout.replicas if self.autoscaling is None else self.autoscaling.max_replicas


PLAIN_FLEET = Fleet("least_loaded", ColdStart(0.0, float("inf"), 0.0), 0, 0.0)  # a number of replicas that stays


@dataclass(frozen=True, slots=True)
class PrefillPool:
    """Replicas that only compute prompts, and hand the KV cache to the others over the network."""

    layout: ServingLayout
    max_num_seqs: int
    max_num_batched_tokens: int
