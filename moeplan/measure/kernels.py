"""Kernels of one GPU, as PyTorch runs them: a function per operation from a case's columns to a timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from time import perf_counter
from warnings import catch_warnings, simplefilter

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention, silu

from moeplan.measure.machine import clock_and_power
from moeplan.measure.plan import Value
from moeplan.measure.timing import Timing, time_call, time_host, timing_of

Row = dict[str, Value]
Columns = Mapping[str, Value]


class UnsupportedCaseError(Exception):
    """This machine cannot run the case; the message says why."""


def measure(op: str, columns: Columns) -> tuple[Timing, Row]:
    """Time one case; the row holds columns the kernel adds (its name, the expert load it met).

    Raises:
        UnsupportedCaseError: the kernel or type does not exist here, or the case does not fit the memory.
    """
    try:
        return _KERNELS[op](columns)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise UnsupportedCaseError("does not fit the GPU's memory") from None
    except (NotImplementedError, RuntimeError) as error:  # PyTorch's ways of refusing a type, shape or device
        if "CUDA error" in str(error):
            raise  # the context is broken: nothing after it can be trusted
        raise UnsupportedCaseError(str(error).splitlines()[0][:200]) from None


def _normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).mul_(scale)


def _gemm(columns: Columns) -> tuple[Timing, Row]:
    m, n, k = (int(columns[name]) for name in ("m", "n", "k"))
    a, weight = _normal(m, k), _normal(n, k, scale=k**-0.5)
    if columns["gemm_dtype"] == "bfloat16":
        out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        return time_call(lambda: torch.mm(a, weight.t(), out=out)), {"kernel_source": "torch.mm"}
    a8, weight8 = a.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    kernel = "torch._scaled_mm"  # per-tensor scales; the input is fp8 already, so no time to quantise it
    return time_call(lambda: torch._scaled_mm(a8, weight8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)), {
        "kernel_source": kernel
    }


def _gemm_sustained(columns: Columns) -> tuple[Timing, Row]:
    """Time per product over the second half of the run, with the clock and power read at its end."""
    m, n, k = (int(columns[name]) for name in ("m", "n", "k"))
    a, weight = _normal(m, k), _normal(n, k, scale=k**-0.5)
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    start, chunks, n_calls = perf_counter(), [], 50
    while (now := perf_counter()) - start < float(columns["seconds"]):
        for _ in range(n_calls):
            torch.mm(a, weight.t(), out=out)
        state = clock_and_power()  # read while the products run
        torch.cuda.synchronize()
        chunks.append(perf_counter() - now)
    return timing_of(chunks[len(chunks) // 2 :], n_calls, "eager"), {"kernel_source": "torch.mm", **state}


@lru_cache(maxsize=1)
def _expert_weights(n_experts: int, hidden: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    up = _normal(n_experts, hidden, 2 * width, scale=hidden**-0.5)
    down = _normal(n_experts, width, hidden, scale=width**-0.5)
    return up, down


def _moe(columns: Columns) -> tuple[Timing, Row]:
    """Sort pairs by expert, gather, gate/up product, SwiGLU, down product, weighted sum back into token order."""
    n_experts, top_k, n_tokens = (int(columns[name]) for name in ("num_experts", "topk", "num_tokens"))
    hidden, width = int(columns["hidden_size"]), int(columns["inter_size"]) // int(columns["moe_tp_size"])
    up, down = _expert_weights(n_experts, hidden, width)
    x = _normal(n_tokens, hidden)
    chosen = _route(n_tokens, n_experts, top_k, float(str(columns["distribution"]).removeprefix("zipf_")))
    gate = torch.rand(n_tokens, top_k, 1, device="cuda", dtype=torch.bfloat16)
    pairs = torch.ones(n_tokens * top_k, device="cuda", dtype=torch.int32)

    def layer() -> torch.Tensor:
        flat = chosen.flatten()
        order = torch.argsort(flat)
        counts = torch.zeros(n_experts, device="cuda", dtype=torch.int32).scatter_add_(0, flat, pairs)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        both = torch._grouped_mm(x[order // top_k], up, offs=ends)
        inner = silu(both[:, :width]) * both[:, width:]
        y = torch._grouped_mm(inner, down, offs=ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device="cuda"))
        return (y[back].view(n_tokens, top_k, hidden) * gate).sum(1)

    counts = torch.bincount(chosen.flatten(), minlength=n_experts)
    load: Row = {"distinct_experts": int((counts > 0).sum()), "max_load": int(counts.max())}
    return time_call(layer), {"kernel_source": "torch._grouped_mm", **load}


def _route(n_tokens: int, n_experts: int, top_k: int, exponent: float) -> torch.Tensor:
    """Top-k experts per token, without replacement, popularity rank^-exponent (Gumbel top-k)."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    rank = torch.arange(1, n_experts + 1, device="cuda", dtype=torch.float32)
    uniform = torch.rand(n_tokens, n_experts, device="cuda", generator=generator).clamp_(1e-20, 1.0 - 1e-7)
    return (-torch.log(-torch.log(uniform)) - exponent * torch.log(rank)).topk(top_k, dim=1).indices


def _attention_prefill(columns: Columns) -> tuple[Timing, Row]:
    batch, n_new, n_cached = (int(columns[name]) for name in ("batch_size", "isl", "step"))
    query, key, value = _heads_of(columns, batch, n_new, n_cached + n_new)
    if n_cached == 0:
        return _fastest(lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))
    from torch.nn.attention.bias import causal_lower_right

    mask = causal_lower_right(n_new, n_cached + n_new)
    return _fastest(lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True))


def _attention_decode(columns: Columns) -> tuple[Timing, Row]:
    """Query heads of one KV head as rows of one query block, so that the cache is read once for all of them."""
    batch, n_keys = int(columns["batch_size"]), int(columns["isl"]) + int(columns["step"])
    query, key, value = _heads_of(columns, batch, 1, n_keys)
    packed = query.view(batch, key.shape[1], -1, query.shape[-1])
    return _fastest(lambda: scaled_dot_product_attention(packed, key, value))


def _heads_of(columns: Columns, batch: int, n_queries: int, n_keys: int) -> tuple[torch.Tensor, ...]:
    n_heads, n_kv_heads, head_dim = (int(columns[c]) for c in ("num_heads", "num_key_value_heads", "head_dim"))
    query = _normal(batch, n_heads, n_queries, head_dim)
    return query, _normal(batch, n_kv_heads, n_keys, head_dim), _normal(batch, n_kv_heads, n_keys, head_dim)


def _fastest(call: Callable[[], object]) -> tuple[Timing, Row]:
    """The fastest of PyTorch's fused attention kernels that takes the shape."""
    found: list[tuple[Timing, str]] = []
    why = ""
    with catch_warnings():
        simplefilter("ignore")  # PyTorch warns at length of every kernel that does not take a shape
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                with sdpa_kernel(backend):
                    found.append((time_call(call), str(backend.name).lower()))
            except RuntimeError as error:
                if "CUDA error" in str(error):
                    raise
                why = why or str(error).splitlines()[0]
    if not found:
        raise UnsupportedCaseError(f"no fused attention kernel takes this shape: {why[:150]}")
    timing, name = min(found, key=lambda pair: pair[0].median_s)
    return timing, {"kernel_source": "torch.sdpa", "backend": name}


def _memory_copy(columns: Columns) -> tuple[Timing, Row]:
    n_bytes = int(columns["n_bytes"]) // 2
    source = torch.randint(0, 255, (n_bytes,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return time_call(lambda: target.copy_(source)), {"kernel_source": "torch.copy_"}


def _host_copy(columns: Columns) -> tuple[Timing, Row]:
    n_bytes = int(columns["n_bytes"])
    host = torch.zeros(n_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.zeros(n_bytes, dtype=torch.uint8, device="cuda")
    target, source = (device, host) if columns["direction"] == "host_to_device" else (host, device)
    return time_call(lambda: target.copy_(source, non_blocking=True)), {"kernel_source": "cudaMemcpyAsync, pinned"}


def _launch(columns: Columns) -> tuple[Timing, Row]:
    """The smallest kernel there is: what a launch costs the host, and a node of a graph the GPU."""
    x = torch.zeros(1, device="cuda")
    timing = time_host(lambda: x.add_(1.0), 1000) if columns["mode"] == "eager" else time_call(lambda: x.add_(1.0))
    return timing, {"kernel_source": "torch.add_ of one number"}


_KERNELS: Mapping[str, Callable[[Columns], tuple[Timing, Row]]] = {
    "gemm": _gemm,
    "gemm_sustained": _gemm_sustained,
    "moe": _moe,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "memory_copy": _memory_copy,
    "host_copy": _host_copy,
    "launch": _launch,
}
