"""The cost functions bound to one machine and one engine, so that steps compose sizes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.costs import collectives
from moeplan.costs.elementwise import elementwise_time_s
from moeplan.costs.expert_exchange import LOW_LATENCY_TOKENS, Copies, moe_combine_time_s, moe_dispatch_time_s
from moeplan.costs.experts import expert_ffn_time_s
from moeplan.costs.gemm import gemm_time_s
from moeplan.costs.parameters import lookup
from moeplan.costs.projections import Projection
from moeplan.spec.hardware import Hardware
from moeplan.spec.precision import FORMATS

Array = npt.NDArray[np.float64]

ACTIVATION_BYTES = 2.0  # activations between kernels are 16 bit


@dataclass(frozen=True, slots=True)
class Operations:
    """Seconds of single operations on ``hardware`` under ``engine``."""

    hardware: Hardware
    engine: str
    fused_quantization: tuple[str, ...] = ()
    expert_kernels: tuple[str, ...] = ()

    def parameters(self, op: str, fmt: str) -> Mapping[str, float]:
        """Values of the operation's parameters, see `costs.parameters.lookup`."""
        return lookup(self.hardware, op, self.engine, fmt).values

    def gemm_s(self, tokens: npt.ArrayLike, n: int | float, k: int | float, fmt: str) -> Array:
        """A weight GEMM; the quantisation of its input is part of the cost unless the kernel before it does that.

        The tables time a quantisation kernel and a product one after another. Fused, the first writes narrow values in
        passing, and the product starts like one of 16 bit.
        """
        p = self.parameters("gemm", fmt)
        if fmt in self.fused_quantization:
            start_s = min(p["launch_s"], self.parameters("gemm", "bf16")["launch_s"])
            p = {**p, "launch_s": start_s, "quantize_frac": np.inf}
        return gemm_time_s(tokens, n, k, fmt=FORMATS[fmt], device=self.hardware.device, p=p)

    def projections_s(self, tokens: npt.ArrayLike, projections: tuple[Projection, ...], fmt: str) -> Array:
        """Several weight GEMMs one after another."""
        total = np.zeros_like(np.asarray(tokens, np.float64))
        for projection in projections:
            total = total + self.gemm_s(tokens, projection.n, projection.k, fmt)
        return total

    def experts_s(
        self,
        n_tokens: npt.ArrayLike,
        *,
        assignments: npt.ArrayLike,
        distinct: npt.ArrayLike,
        max_load: npt.ArrayLike,
        n_local_experts: int,
        hidden_size: int,
        intermediate_size: float,
        n_matrices: int,
        fmt: str,
        routed_pairs: npt.ArrayLike | None = None,
    ) -> Array:
        """All routed experts of one layer on this GPU, by the engine's fastest kernel; see `expert_ffn_time_s`."""
        known = self.hardware.efficiency.parameters
        others = (known.get(("moe", f"{self.engine}/{kernel}", fmt)) for kernel in self.expert_kernels)
        times = [
            expert_ffn_time_s(
                n_tokens,
                assignments=assignments,
                distinct=distinct,
                max_load=max_load,
                n_local_experts=n_local_experts,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                n_matrices=n_matrices,
                fmt=FORMATS[fmt],
                device=self.hardware.device,
                p=p,
                routed_pairs=routed_pairs,
            )
            for p in (self.parameters("moe", fmt), *(found.values for found in others if found is not None))
        ]
        fastest: Array = np.minimum.reduce(times)
        return fastest

    def elementwise_s(self, n_bytes: npt.ArrayLike) -> Array:
        """One kernel that moves ``n_bytes``."""
        return elementwise_time_s(n_bytes, device=self.hardware.device, p=self.parameters("elementwise", "bf16"))

    def all_reduce_s(self, n_bytes: npt.ArrayLike, n_gpus: int, ranks_per_domain: int | None = None) -> Array:
        """All-reduce of ``n_bytes`` on each GPU, by the engine's own kernel where that is faster."""
        if n_gpus == 1:
            return np.zeros_like(np.asarray(n_bytes, np.float64))
        return collectives.fast_all_reduce_time_s(
            n_bytes,
            n_gpus,
            hardware=self.hardware,
            p=self.parameters("all_reduce", "bf16"),
            custom=self.parameters("custom_allreduce", "bf16"),
            ranks_per_domain=ranks_per_domain,
        )

    def all_gather_s(self, n_bytes: npt.ArrayLike, n_gpus: int, ranks_per_domain: int | None = None) -> Array:
        """All-gather with a result of ``n_bytes`` on each GPU; a reduce-scatter of as much input takes as long."""
        if n_gpus == 1:
            return np.zeros_like(np.asarray(n_bytes, np.float64))
        return collectives.all_gather_time_s(
            n_bytes,
            n_gpus,
            hardware=self.hardware,
            p=self.parameters("all_gather", "bf16"),
            ranks_per_domain=ranks_per_domain,
        )

    def send_s(self, n_bytes: npt.ArrayLike, *, same_domain: bool) -> Array:
        """Point to point."""
        return collectives.send_time_s(
            n_bytes, hardware=self.hardware, p=self.parameters("send", "bf16"), same_domain=same_domain
        )

    def host_copy_s(self, n_bytes: npt.ArrayLike) -> Array:
        """Between a GPU and its host."""
        return collectives.host_copy_time_s(n_bytes, hardware=self.hardware, p=self.parameters("host_copy", "bf16"))

    def expert_exchange_s(
        self,
        n_tokens: npt.ArrayLike,
        *,
        hidden_size: int,
        top_k: float,
        n_experts: int,
        ep: int,
        dispatch_bytes: float,
        combine_bytes: float = ACTIVATION_BYTES,
        imbalance: npt.ArrayLike = 1.0,
        copies: Copies | None = None,
    ) -> Array:
        """Dispatch and combine of ``n_tokens`` per GPU over ``ep`` ranks.

        ``copies``: of a token, one to each distinct rank and domain (default: uniform routing).
        The low-latency kernels take at most `LOW_LATENCY_TOKENS`; below that the faster pair runs.
        """
        pairs = []
        for suffix in ("", "_low_latency"):
            there, back = (
                time_s(
                    n_tokens, hidden_size, top_k, n_experts=n_experts, ep=ep, bytes_per_value=width,
                    hardware=self.hardware, p=self.parameters(op + suffix, "bf16"), low_latency=bool(suffix),
                    imbalance=imbalance, copies=None if suffix else copies,
                )
                for time_s, op, width in (
                    (moe_dispatch_time_s, "moe_dispatch", dispatch_bytes),
                    (moe_combine_time_s, "moe_combine", combine_bytes),
                )
            )  # fmt: skip
            pairs.append(there + back)
        throughput_s, low_latency_s = pairs
        few = np.asarray(n_tokens, np.float64) <= LOW_LATENCY_TOKENS
        return np.where(few, np.minimum(throughput_s, low_latency_s), throughput_s)
