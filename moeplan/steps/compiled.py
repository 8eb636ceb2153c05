"""Iterations of a serving engine: compiled into a `StepTable`, and opened up into parts for one batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moeplan.spec.hardware import Hardware
from moeplan.spec.layout import ServingLayout
from moeplan.spec.model import LatentAttention, Mixer, ModelArchitecture, SoftmaxAttention
from moeplan.spec.precision import Precision
from moeplan.spec.scenario import RoutingAssumption
from moeplan.spec.workload import Engine
from moeplan.steps.drafts import draft_mixers_s, draft_time_s, graph_sizes
from moeplan.steps.mixers import window_tokens
from moeplan.steps.offload import offload_time_s
from moeplan.steps.serving import Iteration, ServingStep
from moeplan.steps.table import StepTable

Array = npt.NDArray[np.float64]


def step_parts_s(step: ServingStep, iteration: Iteration) -> dict[str, float]:
    """The parts of one iteration [s]; they add up to its time.

    One stage of a pipeline takes 1/pp of all but ``overhead``.
    """
    drafts = step.engine.draft_tokens * iteration.decode_batch
    tokens = np.asarray(iteration.n_tokens + drafts, np.float64)
    parts = {name: float(time_s) for name, time_s in _linear_parts_s(step, tokens).items()}
    attention = 0.0
    batch, context = np.asarray(float(iteration.decode_batch)), np.asarray(float(iteration.decode_context_tokens))
    if iteration.decode_batch:
        attention += float(step.decode_mixers_s(batch, context))
    for new, cached in iteration.prompts:
        attention += float(step.prefill_mixers_s(np.asarray(float(new)), np.asarray(float(cached))))
    parts["attention"] = attention
    rows = iteration.decode_batch + len(iteration.prompts) if iteration.head_rows is None else iteration.head_rows
    parts["head"] = float(step.head_s(np.asarray(float(rows + drafts)))) if rows else 0.0
    if drafts:
        parts["drafts"] = float(draft_time_s(step, batch) + draft_mixers_s(step, batch, context))
    graph_max = step.engine.cuda_graph_max_tokens if step.engine.cuda_graphs else 0
    launch_s = step.eager_floor_s if tokens > graph_max else 0.0
    host_s = step.engine.host_step_s + rows * step.engine.host_sequence_s
    device_s = sum(parts.values())
    hidden_s = host_s if step.engine.async_scheduling else 0.0
    parts["overhead"] = step.engine.step_overhead_s + (host_s - hidden_s)
    if (waits_s := launch_s + hidden_s - device_s) > 0.0:
        parts["host"] = waits_s
    return parts


def compile_step_table(
    model: ModelArchitecture,
    hardware: Hardware,
    layout: ServingLayout,
    precision: Precision,
    engine: Engine,
    routing: RoutingAssumption,
) -> StepTable:
    """All times of an iteration on grids, see `StepTable` and docs/decisions/0001.

    Raises ValueError where the layout needs a link the hardware does not have, or the device no rate for a format.
    """
    step = ServingStep(model, hardware, layout, precision, engine, routing)
    most_tokens = max(engine.max_num_batched_tokens, engine.max_num_seqs, 2)
    tokens = _grid(1, most_tokens, 3)
    parts = _linear_parts_s(step, tokens)
    batch = _grid(1, max(engine.max_num_seqs, 2), 2)
    corners = [window for block, _ in step.mixers() if (window := _corner(block)) is not None]
    context = _grid(1, max(model.max_context_tokens, 2), 1, corners)
    # without chunks the longest prompt runs whole
    query = _grid(1, most_tokens if engine.chunked_prefill else max(most_tokens, model.max_context_tokens), 4)
    cached = np.concatenate([[0.0], _grid(64, max(model.max_context_tokens, 128), 1, corners)])
    rows = _grid(1, max(engine.max_num_seqs * engine.verified_tokens, 2), 2)
    decode_s = step.decode_mixers_s(batch[:, None], context[None, :])
    if engine.draft_tokens:
        decode_s = decode_s + draft_mixers_s(step, batch[:, None], context[None, :])
    graph_max = engine.cuda_graph_max_tokens if engine.cuda_graphs else 0
    hides_host = engine.async_scheduling
    return StepTable(
        token_grid=tokens,
        linear_time_s=_total_s(parts),
        decode_batch_grid=batch,
        decode_context_grid=context,
        decode_attention_time_s=decode_s,
        prefill_query_grid=query,
        prefill_context_grid=cached,
        prefill_attention_time_s=step.prefill_mixers_s(query[:, None], cached[None, :]),
        head_rows_grid=rows,
        head_time_s=step.head_s(rows) + (0.0 if hides_host else rows / engine.verified_tokens * engine.host_sequence_s),
        step_overhead_s=engine.step_overhead_s + (0.0 if hides_host else engine.host_step_s),
        eager_time_s=step.eager_floor_s,
        host_step_s=engine.host_step_s if hides_host else 0.0,
        host_row_s=engine.host_sequence_s if hides_host else 0.0,
        graph_max_tokens=graph_max,
        pp=layout.pp,
        parts=parts,
        draft_time_s=draft_time_s(step, batch) if engine.draft_tokens else None,
        graph_sizes=graph_sizes(graph_max) if engine.cuda_graph_padding else np.zeros(0),
    )


def _linear_parts_s(step: ServingStep, n_tokens: Array) -> dict[str, Array]:
    """`ServingStep.linear_parts_s` with what weights in host memory change."""
    parts = step.linear_parts_s(n_tokens)
    engine = step.engine
    if engine.expert_offload_frac > 0.0 and engine.expert_offload_on == "host" and "experts" in parts:
        parts["experts"] = parts["experts"] * (1.0 - engine.expert_offload_frac)
    if engine.weight_offload_frac > 0.0 or engine.expert_offload_frac > 0.0:
        parts["offload"] = offload_time_s(step, n_tokens, _total_s(parts))
    return parts


def _total_s(parts: Mapping[str, Array]) -> Array:
    return np.sum(list(parts.values()), axis=0)


def _corner(block: Mixer) -> float | None:
    """Context at which the block's cost stops growing."""
    if not isinstance(block, SoftmaxAttention | LatentAttention):
        return None
    window = window_tokens(block)
    ratio = block.kv_compression_ratio if isinstance(block, LatentAttention) else 1.0
    return None if window is None else window * ratio


def _grid(low: float, high: float, per_octave: int, extra: list[float] | None = None) -> Array:
    """Whole numbers from ``low`` to ``high``, about ``per_octave`` to a doubling, with ``extra`` points inside."""
    n = int(np.ceil(np.log2(high / low) * per_octave)) + 1
    points = np.round(np.geomspace(low, high, n))
    inside = [x for x in extra or () if low < x < high]
    return np.unique(np.concatenate([points, inside]))
