"""Changes of a resolved scenario that no file states: parts of the model switched off, machines faster or slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from moeplan.costs.collectives import DEFAULTS as COLLECTIVES
from moeplan.costs.expert_exchange import DEFAULTS as EXCHANGES
from moeplan.costs.parameters import lookup
from moeplan.spec.hardware import Efficiency, Hardware, Link
from moeplan.spec.scenario import Scenario, Serving
from moeplan.steps.training_layer import KERNELS

Change = Callable[[Scenario], Scenario]

_UNLIMITED_BYTES_PER_S = 1e18
_ONE_DOMAIN = 2**20  # GPUs
_OVERHEADS = ("step_overhead_s", "request_overhead_s", "eager_layer_s", "eager_experts_s", "front_request_s",
              "front_token_s", "host_step_s", "host_sequence_s")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ablation:
    """A part of the model switched off; ``of_latency``: it changes the load, so only latencies compare."""

    name: str
    what: str
    change: Change
    of_latency: bool = False


def ablations(scenario: Scenario) -> tuple[Ablation, ...]:
    """Those that concern the scenario."""
    found = [
        Ablation("no routing skew", "every expert is chosen equally often", _uniform_routing),
        Ablation("perfect network", "links without latency or limit between all GPUs", _perfect_network),
    ]
    if scenario.serving is not None:
        arrivals = scenario.serving.traffic.arrivals
        if arrivals.kind in ("open", "trace"):
            found.append(Ablation("no bursts", "the same requests, evenly spaced", _even_arrivals))
            found.append(
                Ablation("no queueing", "requests a hundred times further apart", _sparse_arrivals, of_latency=True)
            )
        found.append(Ablation("no overhead", "the host and the front end take no time", _no_overhead))
    if scenario.training is not None:
        found.append(Ablation("no launches", "the whole step replayed from CUDA graphs", _no_launches))
        found.append(Ablation("no failures", "nothing interrupts the run", _no_failures))
    if not scenario.model.is_moe:
        found = [ablation for ablation in found if ablation.name != "no routing skew"]
    return tuple(found)


# Multipliers of a machine that a scenario has no key for.
MULTIPLIERS: Mapping[str, Callable[[Scenario, float], Scenario]] = {
    "what_if.network_bandwidth": lambda s, x: _on_hardware(s, lambda h: _with_network(h, x)),
    "what_if.memory_bandwidth": lambda s, x: _on_hardware(s, lambda h: _with_memory(h, x)),
    "what_if.arithmetic": lambda s, x: _on_hardware(s, lambda h: _with_arithmetic(h, x)),
}


def _on_hardware(scenario: Scenario, change: Callable[[Hardware], Hardware]) -> Scenario:
    other = scenario.training_hardware
    return replace(
        scenario, hardware=change(scenario.hardware), training_hardware=None if other is None else change(other)
    )


def _with_network(hardware: Hardware, factor: float) -> Hardware:
    def faster(link: Link) -> Link:
        return replace(link, bytes_per_s=link.bytes_per_s * factor)

    out = hardware.scale_out
    return replace(hardware, scale_up=faster(hardware.scale_up), scale_out=None if out is None else faster(out))


def _with_memory(hardware: Hardware, factor: float) -> Hardware:
    device = hardware.device
    return replace(hardware, device=replace(device, memory_bytes_per_s=device.memory_bytes_per_s * factor))


def _with_arithmetic(hardware: Hardware, factor: float) -> Hardware:
    device = hardware.device
    rates = {name: rate * factor for name, rate in device.dense_flop_per_s.items()}
    return replace(hardware, device=replace(device, dense_flop_per_s=rates))


def _uniform_routing(scenario: Scenario) -> Scenario:
    return replace(
        scenario,
        routing=scenario.routing.with_skew(0.0),
        training_routing=scenario.training_routing.with_skew(0.0),
    )


def _perfect_network(scenario: Scenario) -> Scenario:
    engines = {KERNELS, *([] if scenario.serving is None else [scenario.serving.engine.name])}

    def perfect(hardware: Hardware) -> Hardware:
        known = dict(hardware.efficiency.parameters)
        for op in (*COLLECTIVES, *EXCHANGES):
            for engine in engines:
                found = lookup(hardware, op, engine, "bf16")
                free = {
                    name: 0.0 if name.endswith("_s") and "per_s" not in name else x for name, x in found.values.items()
                }
                known[op, engine, "bf16"] = replace(found, values=free)
        link = replace(
            hardware.scale_up, bytes_per_s=_UNLIMITED_BYTES_PER_S, latency_s=0.0, n_gpus=_ONE_DOMAIN, kind="nvlink"
        )
        return replace(hardware, scale_up=link, n_gpus_scale_up=_ONE_DOMAIN, efficiency=Efficiency(known))

    return _on_hardware(scenario, perfect)


def _on_serving(scenario: Scenario, change: Callable[[Serving], Serving]) -> Scenario:
    return scenario if scenario.serving is None else replace(scenario, serving=change(scenario.serving))


def _even_arrivals(scenario: Scenario) -> Scenario:
    def even(serving: Serving) -> Serving:
        traffic = serving.traffic
        arrivals = traffic.arrivals
        rate = arrivals.rate_per_s
        if rate is None and traffic.trace is not None:
            times = traffic.trace.arrival_s
            rate = (times.size - 1) / max(float(times[-1] - times[0]), 1e-9)
        even = replace(arrivals, kind="open", rate_per_s=rate, gap_cv=0.0, rate_steps=())
        return replace(serving, traffic=replace(traffic, arrivals=even))

    return _on_serving(scenario, even)


def _sparse_arrivals(scenario: Scenario) -> Scenario:
    even = _even_arrivals(scenario)

    def sparse(serving: Serving) -> Serving:
        arrivals = serving.traffic.arrivals
        rate = None if arrivals.rate_per_s is None else arrivals.rate_per_s / 100.0
        return replace(serving, traffic=replace(serving.traffic, arrivals=replace(arrivals, rate_per_s=rate)))

    return _on_serving(even, sparse)


def _no_overhead(scenario: Scenario) -> Scenario:
    def free(serving: Serving) -> Serving:
        names = {f.name for f in fields(serving.engine)}
        return replace(serving, engine=replace(serving.engine, **dict.fromkeys(names.intersection(_OVERHEADS), 0.0)))

    return _on_serving(scenario, free)


def _no_launches(scenario: Scenario) -> Scenario:
    training = scenario.training
    if training is None:
        return scenario
    return replace(scenario, training=replace(training, work=replace(training.work, cuda_graphs=True)))


def _no_failures(scenario: Scenario) -> Scenario:
    """Checkpoints stay: without failures they are what the fear of them costs."""
    training = scenario.training
    if training is None:
        return scenario
    r = training.reliability
    events = [f.name for f in fields(r) if "failures" in f.name or f.name in ("preemptions_per_s", "slow_nodes_per_s")]
    return replace(scenario, training=replace(training, reliability=replace(r, **dict.fromkeys(events, 0.0))))
