"""`serving.fleet` and `serving.prefill` of a scenario file to ``spec.fleet``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from moeplan.files.catalog.model_data import FLEET, RELIABILITY, fleet_defaults, reliability_defaults
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_fleet import AutoscalingFile, FleetFile, PrefillFile
from moeplan.files.scenario.schema_walk import Loc
from moeplan.spec.fleet import (
    Autoscaling,
    ColdStart,
    Dispatch,
    Failures,
    Fleet,
    PrefillPool,
    RollingUpdate,
    Spot,
)
from moeplan.spec.layout import ServingLayout
from moeplan.spec.workload import Engine

_LOC: Loc = ("serving", "fleet")
_CAUSES_PER_GPU = ("gpu_mtbf", "network_mtbf", "software_mtbf")
_GPUS_PER_NODE = 8  # basis of node_mtbf
_SIGNALS = ("in_flight", "queue", "utilization")


def resolve_fleet(rs: Resolving, file: FleetFile, layout: ServingLayout) -> Fleet:
    """How the replicas of ``layout`` act together; what is not stated comes from moeplan/data/fleet.yaml."""
    rs.note("serving.fleet.dispatch", (*_LOC, "dispatch"))
    start = file.cold_start
    at: Loc = (*_LOC, "cold_start")
    cold_start = ColdStart(
        provision_s=_value(rs, start.provision, (*at, "provision"), "cold_start.provision_s"),
        weights_bytes_per_s=_value(rs, start.weights_rate, (*at, "weights_rate"), "cold_start.weights_bytes_per_s"),
        engine_s=_value(rs, start.engine_start, (*at, "engine_start"), "cold_start.engine_s"),
    )
    fleet = Fleet(
        dispatch=cast(Dispatch, file.dispatch),
        cold_start=cold_start,
        retries=int(_value(rs, file.retries, (*_LOC, "retries"), "retries")),
        drain_s=_value(rs, file.drain, (*_LOC, "drain"), "drain_s"),
        failures=_failures(rs, file),
        spot=_spot(rs, file),
        update=_update(rs, file),
    )
    return fleet if file.autoscaling is None else replace(fleet, autoscaling=_autoscaling(rs, file.autoscaling, layout))


def resolve_prefill(rs: Resolving, file: PrefillFile, engine: Engine) -> PrefillPool:
    """The prefill pool; its engine differs by two limits."""
    loc: Loc = ("serving", "prefill")
    for key in ("tp", "pp", "dp", "ep", "replicas"):
        rs.note(f"serving.prefill.layout.{key}", (*loc, key))
    for key in ("max_num_seqs", "max_num_batched_tokens"):
        rs.note(f"serving.prefill.{key}", (*loc, key), default="as serving.engine")
    layout = ServingLayout(file.tp, file.pp, file.dp, file.ep, file.replicas)
    return PrefillPool(
        layout,
        file.max_num_seqs or engine.max_num_seqs,
        file.max_num_batched_tokens or engine.max_num_batched_tokens,
    )


def _value(rs: Resolving, stated: float | None, loc: Loc, target: str) -> float:
    default = fleet_defaults()[str(loc[-1])]
    rs.note(f"serving.fleet.{target}", loc)
    if stated is not None:
        return stated
    rs.derived(f"serving.fleet.{target}", "default", f"data/{FLEET}", default.source)
    return default.value


def _autoscaling(rs: Resolving, file: AutoscalingFile, layout: ServingLayout) -> Autoscaling:
    loc: Loc = (*_LOC, "autoscaling")
    for key in ("min_replicas", "max_replicas"):
        rs.note(f"serving.fleet.autoscaling.{key}", (*loc, key))
    signal = next(name for name in _SIGNALS if getattr(file, name) is not None)
    rs.note("serving.fleet.autoscaling.target", (*loc, signal))
    if not file.min_replicas <= layout.replicas <= file.max_replicas:
        what = "the replicas to begin with are outside min_replicas and max_replicas"
        rs.problem(
            ("serving", "layout", "replicas"), what, layout.replicas, f"{file.min_replicas} to {file.max_replicas}"
        )
    values: dict[str, Any] = {
        name: _value(rs, getattr(file, key), (*loc, key), f"autoscaling.{name}")
        for name, key in (("interval_s", "interval"), ("cooldown_s", "cooldown"), ("tolerance_frac", "tolerance"))
    }
    return Autoscaling(file.min_replicas, file.max_replicas, cast(Any, signal), getattr(file, signal), **values)


def _failures(rs: Resolving, file: FleetFile) -> Failures | None:
    own = file.failures
    if own is None:
        return None
    values, sources = reliability_defaults()
    loc: Loc = (*_LOC, "failures")
    # every cause takes the replica: GPU, network, software, and the GPU's share of its node
    rate = sum(1.0 / values[key] for key in _CAUSES_PER_GPU) + 1.0 / values["node_mtbf"] / _GPUS_PER_NODE
    if own.mtbf_per_gpu is None:
        source = f"sum of {', '.join(_CAUSES_PER_GPU)} and node_mtbf over {_GPUS_PER_NODE} GPUs: {sources['gpu_mtbf']}"
        rs.derived("serving.fleet.failures.failures_per_gpu_s", "default", f"data/{RELIABILITY}", source)
    else:
        rate = 1.0 / own.mtbf_per_gpu
        rs.note("serving.fleet.failures.failures_per_gpu_s", (*loc, "mtbf_per_gpu"))
    if own.repair is None:
        rs.derived("serving.fleet.failures.repair_s", "default", f"data/{RELIABILITY}", sources["restart"])
    else:
        rs.note("serving.fleet.failures.repair_s", (*loc, "repair"))
    return Failures(rate, values["restart"] if own.repair is None else own.repair)


def _spot(rs: Resolving, file: FleetFile) -> Spot | None:
    own = file.spot
    if own is None:
        return None
    loc: Loc = (*_LOC, "spot")
    rs.note("serving.fleet.spot.preemptions_per_replica_s", (*loc, "preemptions"), shorthand=True)
    rs.note("serving.fleet.spot.replacement_s", (*loc, "replacement"))
    values, sources = reliability_defaults()
    rs.note("serving.fleet.spot.notice_s", (*loc, "notice"))
    if own.notice is None:
        rs.derived("serving.fleet.spot.notice_s", "default", f"data/{RELIABILITY}", sources["preemption_notice"])
    notice_s = values["preemption_notice"] if own.notice is None else own.notice
    return Spot(own.preemptions, notice_s, own.replacement)


def _update(rs: Resolving, file: FleetFile) -> RollingUpdate | None:
    own = file.update
    if own is None:
        return None
    loc: Loc = (*_LOC, "update")
    for field, key in (("at_s", "at"), ("batch", "batch"), ("rollback_at_s", "rollback_at")):
        rs.note(f"serving.fleet.update.{field}", (*loc, key), shorthand=key == "at")
    return RollingUpdate(own.at, own.batch, own.rollback_at)
