"""What interrupts a training run: from the scenario, the data file, and the size of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from moeplan.costs.reliability import goodput_frac
from moeplan.files.catalog.model_data import RELIABILITY, reliability_defaults
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_training import ReliabilityFile
from moeplan.files.scenario.schema_walk import Loc
from moeplan.spec.hardware import Hardware
from moeplan.spec.workload import Reliability
from moeplan.units import DAY_S

_LOC: Loc = ("training", "reliability")
_MTBF = ("gpu_mtbf", "node_mtbf", "network_mtbf", "software_mtbf")
# A run that makes less progress than this is not worth simulating: it ends years late or never.
LEAST_GOODPUT = 0.01


def resolve_reliability(
    rs: Resolving, file: ReliabilityFile, hardware: Hardware, n_gpus: int, checkpoint_bytes: float
) -> Reliability:
    """Failures, checkpoints and spares of a run of ``n_gpus`` with checkpoints of ``checkpoint_bytes``."""
    known, sources = reliability_defaults()

    def value(key: str) -> float:
        own: float | None = getattr(file, key)
        if own is None:
            rs.derived(f"training.reliability.{key}", "default", RELIABILITY, sources[key])
            return known[key]
        rs.note(f"training.reliability.{key}", (*_LOC, key))
        return own

    gpu, node, network, software = _failures_per_s(rs, file, hardware, value)
    write_s = file.checkpoint_write
    if write_s is None:
        write_s = checkpoint_bytes / value("storage_bandwidth")
        note = f"{checkpoint_bytes / 1e12:.3g} TB over the storage bandwidth"
        rs.derived("training.reliability.checkpoint_write", "derived", "checkpoint size", note)
    else:
        rs.note("training.reliability.checkpoint_write", (*_LOC, "checkpoint_write"))
    stall_s = write_s
    pcie = hardware.host.pcie
    if file.checkpoint == "async":
        if pcie is None:
            rs.problem((*_LOC, "checkpoint"), f"{hardware.device.name} has no host link to copy over", file.checkpoint)
        else:
            stall_s = min(write_s, checkpoint_bytes / n_gpus / pcie.bytes_per_s)
    for key in (
        "detection", "checkpoint", "spare_nodes", "preemptions_per_node_day", "slow_nodes_per_node_day",
        "slow_factor", "slow_duration",
    ):  # fmt: skip
        rs.note(f"training.reliability.{key}", (*_LOC, key))
    found = Reliability(
        gpu_failures_per_s=gpu,
        node_failures_per_s=node,
        network_failures_per_s=network,
        software_failures_per_s=software,
        restart_s=value("restart"),
        checkpoint_interval_s=value("checkpoint_interval"),
        checkpoint_write_s=write_s,
        checkpoint_stall_s=stall_s,
        checkpoint_bytes=checkpoint_bytes,
        detection_s=file.detection,
        preemptions_per_s=file.preemptions_per_node_day / DAY_S,
        preemption_notice_s=value("preemption_notice"),
        n_spare_nodes=file.spare_nodes,
        node_repair_s=value("node_repair"),
        slow_nodes_per_s=file.slow_nodes_per_node_day / DAY_S,
        slow_factor=file.slow_factor,
        slow_s=file.slow_duration,
    )
    _check(rs, found, hardware, n_gpus)
    return found


def _failures_per_s(
    rs: Resolving, file: ReliabilityFile, hardware: Hardware, value: Callable[[str], float]
) -> tuple[float, float, float, float]:
    """Of a GPU, a node, a GPU's links, a GPU's software [1/s]."""
    stated = [key for key in _MTBF if getattr(file, key) is not None]
    if file.failures_per_gpu_day is None:
        gpu, node, network, software = (1.0 / value(key) for key in _MTBF)
        return gpu, node, network, software
    if stated:
        what = f"states all failures together; {', '.join(stated)} would contradict it"
        rs.problem((*_LOC, "failures_per_gpu_day"), what, file.failures_per_gpu_day)
    rs.note("training.reliability.failures_per_gpu_day", (*_LOC, "failures_per_gpu_day"))
    known, _ = reliability_defaults()
    gpu, node, network, software = (1.0 / known[key] for key in _MTBF)
    scale = file.failures_per_gpu_day / DAY_S / (gpu + node / hardware.n_gpus_per_node + network + software)
    return scale * gpu, scale * node, scale * network, scale * software


def _check(rs: Resolving, found: Reliability, hardware: Hardware, n_gpus: int) -> None:
    if found.checkpoint_write_s > found.checkpoint_interval_s:
        what = f"a checkpoint takes {found.checkpoint_write_s:.3g} s to write, longer than the interval between two"
        allowed = f"at least {found.checkpoint_write_s:.3g} s"
        rs.problem((*_LOC, "checkpoint_interval"), what, f"{found.checkpoint_interval_s:g} s", allowed)
    elif goodput_frac(n_gpus, hardware.n_gpus_per_node, found) < LEAST_GOODPUT:
        what = f"on {n_gpus} GPUs failures undo the work as fast as it is done: the run never ends"
        rs.problem(_LOC, what, hint="a shorter checkpoint_interval or restart")
