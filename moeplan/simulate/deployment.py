"""A model served on described hardware: what it needs, how fast one iteration is, what happens under its traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from moeplan.costs.fabrics import fabric_of, stream_bytes_per_s
from moeplan.simulate.arrivals import draw_requests
from moeplan.simulate.disaggregated import KvTransfer, PoolSettings, simulate_disaggregated
from moeplan.simulate.serving import EventLog, HostMemory, simulate_serving
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import LatentAttention, LinearAttention, ModelArchitecture, MoeMlp, SoftmaxAttention, StateSpace
from moeplan.spec.scenario import RoutingAssumption, Serving
from moeplan.spec.workload import Arrivals, Traffic
from moeplan.steps.compiled import compile_step_table
from moeplan.steps.memory import MemoryFit, serving_memory
from moeplan.steps.serving import ServingStep
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

    @property
    def prefill(self) -> Deployment | None:
        """The prefill pool as a deployment of its own, where prompts are computed apart."""
        pool = self.serving.prefill
        if pool is None:
            return None
        engine = replace(
            self.serving.engine, max_num_seqs=pool.max_num_seqs, max_num_batched_tokens=pool.max_num_batched_tokens
        )
        return replace(self, serving=replace(self.serving, layout=pool.layout, engine=engine, prefill=None))

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
        """Times of an iteration, in the prefill pool too. Raises ValueError where the hardware lacks a rate or link."""
        s = self.serving
        table = compile_step_table(self.model, self.hardware, s.layout, s.precision, s.engine, self.routing)
        return table if self.prefill is None else replace(table, prefill_pool=self.prefill.table())

    def run(self, table: StepTable, fit: MemoryFit, arrivals: Arrivals | None = None) -> EventLog:
        """Every request of the traffic to its end; ``arrivals`` replaces the traffic's own."""
        s = self.serving
        traffic = s.traffic if arrivals is None else replace(s.traffic, arrivals=arrivals)
        if self.prefill is not None:
            return self._run_pools(self.prefill, table, fit, traffic)
        return simulate_serving(
            table,
            traffic,
            s.engine,
            s.layout,
            _held(fit),
            self.seed,
            max_context_tokens=s.max_context_tokens,
            fleet=s.fleet,
            weight_bytes=self._weight_bytes(fit),
            host=self._host_memory(fit),
        )

    def _host_memory(self, fit: MemoryFit) -> HostMemory | None:
        """Host memory for KV; None where nothing uses it. Raises ValueError when the profile states no link to it."""
        engine = self.serving.engine
        per_token = fit.kv_bytes_per_token
        if not per_token or (engine.swap_bytes == 0.0 and engine.kv_offload_bytes == 0.0):
            return None
        block_s = float(self.step.ops.host_copy_s(per_token * engine.kv_block_tokens))
        return HostMemory(
            block_s / engine.kv_block_tokens, engine.swap_bytes / per_token, engine.kv_offload_bytes / per_token
        )

    def _run_pools(self, prefill: Deployment, table: StepTable, fit: MemoryFit, traffic: Traffic) -> EventLog:
        s, first, first_fit = self.serving, prefill.serving, prefill.fit()
        return simulate_disaggregated(
            PoolSettings(table.prefill_pool or prefill.table(), first.engine, first.layout, _held(first_fit)),
            PoolSettings(table, s.engine, s.layout, _held(fit)),
            traffic,
            self._transfer(fit, first_fit),
            self.seed,
            max_context_tokens=s.max_context_tokens,
            dispatch=s.fleet.dispatch,
        )

    def _transfer(self, fit: MemoryFit, prefill_fit: MemoryFit) -> KvTransfer:
        """Every GPU of a rank sends or receives its part of the cache; the larger part takes longest."""
        n_gpus = self.serving.n_gpus
        per_token = max(fit.kv_bytes_per_token or 0.0, prefill_fit.kv_bytes_per_token or 0.0)
        if n_gpus <= self.hardware.n_gpus_scale_up:
            link = self.hardware.scale_up
            return KvTransfer(per_token, link.bytes_per_s, link.latency_s)
        return KvTransfer(per_token, stream_bytes_per_s(self.hardware), fabric_of(self.hardware)["hop_s"])

    def _weight_bytes(self, fit: MemoryFit) -> float:
        """What a replica reads when it starts: the fullest GPU's weights, for all of its GPUs."""
        per_gpu = sum(size for name, size in fit.breakdown.items() if name.startswith("weights_"))
        return per_gpu * self.serving.layout.n_gpus_per_replica

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


def _held(fit: MemoryFit) -> float:
    return math.inf if fit.kv_capacity_tokens is None else fit.kv_capacity_tokens
