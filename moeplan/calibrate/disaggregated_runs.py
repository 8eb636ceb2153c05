"""Measured runs with prefill and decode pools: their columns to layouts.

A pool has ``*_workers`` replicas of ``*_tp`` x ``*_dp`` GPUs, with the experts over ``*_ep`` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from moeplan.simulate.deployment import Deployment
from moeplan.spec.fleet import PrefillPool
from moeplan.spec.layout import ServingLayout

Row = Mapping[str, Any]
_LEAST_TOKENS = 512  # of an iteration of prompts: below, it would not fill a GPU
Pool = Literal["prefill", "decode"]


def is_disaggregated(row: Row) -> bool:
    """Whether the row states a prefill pool."""
    return _degree(row, "prefill_workers") > 0


def pool_layout(row: Row, pool: Pool) -> ServingLayout:
    """Layout of one pool. Raises ValueError where both pools do not make up the GPUs stated."""
    layouts = {name: _layout(row, name) for name in ("prefill", "decode")}
    n_gpus = sum(layout.n_gpus for layout in layouts.values())
    if n_gpus != int(row["n_gpus"]):
        raise ValueError(f"both pools have {n_gpus} GPUs, {int(row['n_gpus'])} are stated")
    return layouts[pool]


def with_prefill(deployment: Deployment, row: Row, longest_prompt: int) -> Deployment:
    """``deployment`` decodes; prompts come from the pool the row states.

    The decode pool has graphs for all the users there are, as the start scripts of such pools have
    (cuda-graph-bs, cuda_graph_config). An iteration of the prefill pool has as many tokens as the engine's default and
    memory allow, whole prompts where they fit and the engine does not cut them, and as many as it has room for.
    """
    serving = deployment.serving
    users = serving.traffic.arrivals.n_users or 1
    ranks = serving.layout.replicas * serving.layout.dp
    graphs = max(serving.engine.cuda_graph_max_tokens, -(-users // ranks))
    engine = replace(serving.engine, cuda_graph_max_tokens=graphs)
    tokens = (
        engine.max_num_batched_tokens if engine.chunked_prefill else max(engine.max_num_batched_tokens, longest_prompt)
    )
    while True:
        if tokens < longest_prompt:
            engine = replace(engine, chunked_prefill=True)
        pool = PrefillPool(pool_layout(row, "prefill"), max(1, tokens // longest_prompt), tokens)
        found = replace(deployment, serving=replace(serving, engine=engine, prefill=pool))
        prefill = found.prefill
        if prefill is None or prefill.fit().fits or tokens // 2 < _LEAST_TOKENS:
            return found
        tokens //= 2


def _layout(row: Row, pool: str) -> ServingLayout:
    tp, dp, ep, workers = (max(1, _degree(row, f"{pool}_{key}")) for key in ("tp", "dp", "ep", "workers"))
    if dp > 1 and ep == 1 and str(row.get("engine", "")).startswith("sglang"):
        # SGLang's all-to-all back ends spread the experts over the whole group by themselves (server_args: ep_size =
        # tp_size), and start scripts leave ep at its default.
        ep = tp * dp
    return ServingLayout(tp, 1, dp, ep if (tp * dp) % ep == 0 else 1, workers)


def _degree(row: Row, key: str) -> int:
    value = row.get(key)
    return int(value) if isinstance(value, int | float) and value >= 1 else 0
