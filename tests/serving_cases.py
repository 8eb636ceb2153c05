"""Small serving set-ups shared by the serving tests: tables with chosen times, traffic with chosen lengths."""

from __future__ import annotations

import numpy as np

from moeplan.spec.workload import Arrivals, Engine, LengthDistribution, Trace, Traffic
from moeplan.steps.table import StepTable


def table(
    base_s: float = 5e-3,
    per_token_s: float = 0.0,
    per_context_token_s: float = 0.0,
    per_prefill_token_s: float = 0.0,
    head_s: float = 0.0,
    overhead_s: float = 0.0,
    pp: int = 1,
) -> StepTable:
    """A table that is linear in everything: base + tokens + cached tokens of the decoding batch + query tokens."""
    tokens, batch = np.array([0.0, 8192.0]), np.array([0.0, 1024.0])
    context = np.array([0.0, 131072.0])
    return StepTable(
        token_grid=tokens,
        linear_time_s=base_s + per_token_s * tokens,
        decode_batch_grid=batch,
        decode_context_grid=context,
        decode_attention_time_s=per_context_token_s * np.outer(batch, context),
        prefill_query_grid=tokens,
        prefill_context_grid=context,
        prefill_attention_time_s=np.outer(per_prefill_token_s * tokens, np.ones(2)),
        head_rows_grid=batch,
        head_time_s=np.full(2, head_s),
        step_overhead_s=overhead_s,
        eager_time_s=0.0,
        graph_max_tokens=10**9,
        pp=pp,
    )


def engine(**changes) -> Engine:
    settings = {
        "name": "vllm",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "chunked_prefill": True,
        "kv_block_tokens": 16,
        "memory_utilization_frac": 0.9,
        "reserve_bytes": 0.0,
        "step_overhead_s": 0.0,
        "request_overhead_s": 0.0,
        "cuda_graphs": True,
        "cuda_graph_max_tokens": 8192,
        "async_scheduling": False,
    }
    return Engine(**(settings | changes))


def fixed(tokens: int) -> LengthDistribution:
    return LengthDistribution("fixed", float(tokens), tokens, tokens)


def poisson(rate_per_s: float, n: int, n_in=100, n_out=50) -> Traffic:
    lengths = (x if isinstance(x, LengthDistribution) else fixed(x) for x in (n_in, n_out))
    return Traffic(Arrivals("open", rate_per_s, None, n, 0), None, *lengths)


def closed_loop(n_users: int, n: int, n_in=100, n_out=50) -> Traffic:
    return Traffic(Arrivals("closed_loop", None, n_users, n, 0), None, fixed(n_in), fixed(n_out))


def recorded(arrival_s, input_tokens, output_tokens, rate_per_s=None, n=None) -> Traffic:
    trace = Trace(
        "test",
        np.asarray(arrival_s, dtype=float),
        np.asarray(input_tokens, dtype=np.int64),
        np.asarray(output_tokens, dtype=np.int64),
        "",
    )
    return Traffic(Arrivals("trace", rate_per_s, None, n or len(trace.arrival_s), 0), trace, None, None)
