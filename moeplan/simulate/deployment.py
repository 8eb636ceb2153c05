"""A model served on described hardware: what it needs, how fast one iteration is, what happens under its traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from moeplan.simulate.arrivals import draw_requests
from moeplan.simulate.serving import EventLog, simulate_serving
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import LatentAttention, LinearAttention, ModelArchitecture, MoeMlp, SoftmaxAttention, StateSpace
from moeplan.spec.scenario import RoutingAssumption, Serving
from moeplan.spec.workload import Arrivals
from moeplan.steps.memory import MemoryFit, serving_memory
from moeplan.steps.serving import ServingStep, compile_step_table
from moeplan.steps.table import StepTable


@dataclass(frozen=True, slots=True)
class Deployment:
    """The part of a scenario that serving depends on; no money."""

    model: ModelArchitecture
    hardware: Hardware
    serving: Serving
    routing: RoutingAssumption
    seed: int

    @property
    def step(self) -> ServingStep:
        s = self.serving
        return ServingStep(self.model, self.hardware, s.layout, s.precision, s.engine, self.routing)

    def fit(self) -> MemoryFit:
        """Memory of one replica."""
        s = self.serving
        return serving_memory(
            self.model,
            self.hardware,
            s.layout,
            s.precision,
            s.engine,
            max_context_tokens=s.max_context_tokens,
            mean_context_tokens=self.mean_context_tokens(),
            routing=self.routing,
        )

    def mean_context_tokens(self) -> float:
        """Tokens a running sequence holds on average: its prompt and half its answer, weighted by how long it runs.

        Windows and recurrent states cost a sequence the same whatever its length, so what they add to a token of the
        cache depends on it.
        """
        drawn = draw_requests(self.serving.traffic, self.seed)
        context = drawn.input_tokens + drawn.output_tokens / 2.0
        weight = np.maximum(drawn.output_tokens, 1)
        return float(np.average(np.maximum(context, 1.0), weights=weight))

    def table(self) -> StepTable:
        """Times of an iteration. Raises ValueError where the hardware lacks a rate or link."""
        s = self.serving
        return compile_step_table(self.model, self.hardware, s.layout, s.precision, s.engine, self.routing)

    def run(self, table: StepTable, fit: MemoryFit, arrivals: Arrivals | None = None) -> EventLog:
        """Every request of the traffic to its end; ``arrivals`` replaces the traffic's own."""
        s = self.serving
        return simulate_serving(
            table,
            s.traffic if arrivals is None else replace(s.traffic, arrivals=arrivals),
            s.engine,
            s.layout,
            math.inf if fit.kv_capacity_tokens is None else fit.kv_capacity_tokens,
            self.seed,
            max_context_tokens=s.max_context_tokens,
        )

    def operations(self) -> tuple[tuple[str, str], ...]:
        """(operation, number format) of what fills a step."""
        precision = self.serving.precision
        blocks = {type(block) for layer in self.model.layers for block in layer.blocks}
        used = [("gemm", precision.attention)]
        if MoeMlp in blocks:
            used.append(("moe", precision.experts))
        if SoftmaxAttention in blocks:
            used += [("attention_decode", precision.kv_cache), ("attention_prefill", precision.kv_cache)]
        if LatentAttention in blocks:
            used += [("mla_decode", precision.kv_cache), ("mla_prefill", precision.kv_cache)]
        if LinearAttention in blocks:
            used.append(("linear_attention", "bf16"))
        if StateSpace in blocks:
            used.append(("state_space", "bf16"))
        if self.serving.layout.n_gpus_per_replica > 1:
            used.append(("all_reduce", "bf16"))
        return tuple(used)
