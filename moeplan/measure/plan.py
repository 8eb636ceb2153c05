"""What is measured: cases of every operation, in the columns of the measured tables. Needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

Value: TypeAlias = int | float | str

OPS = (
    "gemm",
    "moe",
    "attention_prefill",
    "attention_decode",
    "memory_copy",
    "host_copy",
    "launch",
    "gemm_sustained",
    "nccl",
)
PLANS = ("short", "full")


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape: ``columns`` are the table's, without the time."""

    op: str
    columns: tuple[tuple[str, Value], ...]

    @property
    def values(self) -> Mapping[str, Value]:
        return dict(self.columns)

    @property
    def key(self) -> str:
        """Identity of the case in a journal."""
        return self.op + ":" + ",".join(f"{name}={value}" for name, value in self.columns)


def cases(plan: str, ops: tuple[str, ...] = OPS, *, n_gpus: int = 1) -> list[Case]:
    """Cases of a plan ("short" or "full"), those that share weights beside each other.

    ``n_gpus`` is how many GPUs the machine has; collectives run over 2, 4, 8 of them.
    """
    makers: Mapping[str, Callable[[bool], Iterator[Case]]] = {
        "gemm": _gemm,
        "moe": _moe,
        "attention_prefill": _attention_prefill,
        "attention_decode": _attention_decode,
        "memory_copy": _memory_copy,
        "host_copy": _host_copy,
        "launch": _launch,
        "gemm_sustained": _gemm_sustained,
        "nccl": lambda full: _nccl(full, n_gpus),
    }
    return [case for op in OPS if op in ops for case in makers[op](plan == "full")]


def _case(op: str, **columns: Value) -> Case:
    return Case(op, tuple(columns.items()))


def _powers(low: int, high: int, step: int = 1) -> list[int]:
    return [2**i for i in range(low, high + 1, step)]


def _sizes(low: int, high: int, full: bool) -> list[int]:
    """Sizes from 2^low to 2^high: three an octave in the full plan, as `calibrate` needs; else every other octave."""
    return [round(2 ** (i / 3)) for i in range(3 * low, 3 * high + 1)] if full else _powers(low, high, 2)


def _gemm(full: bool) -> Iterator[Case]:
    """Widths from a small expert to a large dense model; rows from one decoding sequence to a full prefill chunk."""
    if full:
        widths = list(product((256, 1024, 2048, 4096, 8192, 16384), repeat=2))
        rows = sorted({*_powers(0, 14), 24, 48, 96, 192, 384, 768, 1536, 3072})
    else:
        widths = [(2048, 2048), (6144, 4096), (4096, 14336), (16384, 7168)]
        rows = [*_powers(0, 13, 2), 8192]
    for dtype, (n, k), m in product(("bfloat16", "fp8"), widths, rows):
        yield _case("gemm", gemm_dtype=dtype, m=m, n=n, k=k)


def _moe(full: bool) -> Iterator[Case]:
    """(experts, top-k, hidden, width of an expert, tensor-parallel share of it)."""
    layers = [(128, 8, 2048, 768, 1), (64, 8, 2048, 1024, 1), (8, 2, 4096, 14336, 1), (256, 8, 7168, 2048, 8)]
    tokens, skews = [*_powers(0, 13, 2), 8192], (0.0, 1.0)
    if full:
        layers += [(128, 8, 4096, 1536, 4), (32, 4, 2880, 2880, 1), (512, 10, 2048, 512, 1), (16, 2, 4096, 6400, 1)]
        tokens, skews = sorted({*_powers(0, 14), 24, 48, 96, 192, 384, 768}), (0.0, 0.5, 1.0, 1.5)
    for (experts, top_k, hidden, width, tp), skew, n_tokens in product(layers, skews, tokens):
        yield _case(
            "moe",
            moe_dtype="bfloat16",
            num_experts=experts,
            topk=top_k,
            hidden_size=hidden,
            inter_size=width,
            moe_tp_size=tp,
            moe_ep_size=1,
            distribution=f"zipf_{skew:g}",
            num_tokens=n_tokens,
        )


def _heads(full: bool) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, head size)."""
    heads = [(32, 8, 128), (32, 4, 128), (64, 8, 64), (16, 16, 128)]
    return [*heads, (8, 1, 128), (16, 2, 256), (64, 8, 128)] if full else heads


def _attention(op: str, batch: int, isl: int, step: int, heads: tuple[int, int, int]) -> Case:
    n_heads, n_kv_heads, head_dim = heads
    return _case(
        op,
        attn_dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        num_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=head_dim,
        window_size=0,
        beam_width=1,
        batch_size=batch,
        isl=isl,
        step=step,
    )


def _attention_prefill(full: bool) -> Iterator[Case]:
    batches = _powers(0, 6) if full else [1, 4, 16]
    lengths = [16, 64, *_powers(7, 15)] if full else [128, 512, 2048, 8192]
    for heads, step, batch, isl in product(_heads(full), (0, 4096), batches, lengths):
        if batch * isl <= 2**16 and batch * (isl + step) <= 2**18:
            yield _attention("attention_prefill", batch, isl, step, heads)


def _attention_decode(full: bool) -> Iterator[Case]:
    batches = _powers(0, 9) if full else [1, 8, 32, 128]
    contexts = _powers(6, 17) if full else [128, 1024, 4096, 16384]
    for heads, batch, context in product(_heads(full), batches, contexts):
        if batch * context <= 2**22:
            yield _attention("attention_decode", batch, 1, context - 1, heads)


def _memory_copy(full: bool) -> Iterator[Case]:
    for n_bytes in _sizes(12, 32, full):
        yield _case("memory_copy", n_bytes=2 * n_bytes)  # read and written


def _host_copy(full: bool) -> Iterator[Case]:
    for direction, n_bytes in product(("host_to_device", "device_to_host"), _sizes(12, 30, full)):
        yield _case("host_copy", direction=direction, n_bytes=n_bytes)


def _launch(_full: bool) -> Iterator[Case]:
    for mode in ("eager", "graph"):
        yield _case("launch", mode=mode)


def _gemm_sustained(full: bool) -> Iterator[Case]:
    """The same large product back to back: what the power cap leaves of a burst."""
    yield _case("gemm_sustained", gemm_dtype="bfloat16", m=8192, n=8192, k=8192, seconds=30 if full else 10)


def _nccl(full: bool, n_gpus: int) -> Iterator[Case]:
    worlds = [n for n in (2, 4, 8) if n <= n_gpus]
    names = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
    for world, name, size in product(worlds, names, _sizes(9, 28, full)):
        # whole parts for every rank
        yield _case("nccl", op_name=name, nccl_dtype="half", num_gpus=world, message_size=size // 8 * 8)
