"""Time of one engine iteration as arrays on grids: `steps.serving` compiles it, the engine kernel interpolates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_MAX_TIME_S = 1e6  # of one iteration: more is a mistake upstream, and infinity would stop the clock


@dataclass(frozen=True, slots=True, eq=False)
class StepTable:
    """Seconds of one forward pass over all layers on the slowest GPU (docs/decisions/0001).

    An iteration takes ``linear(tokens) + decode_attention(batch, mean context) + head(rows)`` plus the sum over its
    prompts of ``prefill_attention(query, cached)``; at least what the host needs meanwhile, ``host_step_s`` plus
    ``host_row_s`` a row, plus ``eager_time_s`` when it has more than ``graph_max_tokens`` tokens; plus
    ``step_overhead_s``. With speculation ``draft(batch)`` more, and a decoding sequence counts with all tokens and rows
    it verifies. Below a grid its first value holds, above it the last slope. Tokens, batch and rows are those
    of ONE attention data-parallel rank and, under pipeline parallelism, of one micro-batch; the table assumes the other
    ranks hold as many.

    Grids increase strictly and have at least two points. Raises ValueError when a grid or a time is unusable.
    """

    token_grid: Array  # (G,)
    linear_time_s: Array  # (G,)
    decode_batch_grid: Array  # (B,)
    decode_context_grid: Array  # (C,)
    decode_attention_time_s: Array  # (B, C)
    prefill_query_grid: Array  # (P,)
    prefill_context_grid: Array  # (X,)
    prefill_attention_time_s: Array  # (P, X)
    head_rows_grid: Array  # (H,)
    head_time_s: Array  # (H,)
    step_overhead_s: float
    eager_time_s: float
    graph_max_tokens: int
    pp: int
    host_step_s: float = 0.0
    host_row_s: float = 0.0
    prefill_pool: StepTable | None = None  # of the replicas that compute prompts, where others decode
    parts: Mapping[str, Array] = field(default_factory=dict)  # breakdown of linear_time_s, each (G,)
    draft_time_s: Array | None = None  # (B,) drafting tokens for a batch; None: no drafts
    graph_sizes: Array = field(default_factory=lambda: np.zeros(0))  # captured graphs, ascending: padded to the next

    def __post_init__(self) -> None:
        for name in ("token_grid", "decode_batch_grid", "decode_context_grid", "prefill_query_grid",
                     "prefill_context_grid", "head_rows_grid"):  # fmt: skip
            grid = getattr(self, name)
            if grid.ndim != 1 or grid.size < 2 or not np.all(np.isfinite(grid)) or not np.all(np.diff(grid) > 0):
                raise ValueError(f"{name}: needs at least two finite, strictly increasing points")
        shapes = {
            "linear_time_s": (self.token_grid.size,),
            "decode_attention_time_s": (self.decode_batch_grid.size, self.decode_context_grid.size),
            "prefill_attention_time_s": (self.prefill_query_grid.size, self.prefill_context_grid.size),
            "head_time_s": (self.head_rows_grid.size,),
        }
        if self.draft_time_s is not None:
            shapes["draft_time_s"] = (self.decode_batch_grid.size,)
        if self.graph_sizes.ndim != 1 or not np.all(np.diff(self.graph_sizes, prepend=0.0) > 0):
            raise ValueError("graph_sizes: must be positive and increase")
        for name, shape in shapes.items():
            time_s = getattr(self, name)
            if time_s.shape != shape:
                raise ValueError(f"{name}: shape {time_s.shape}, expected {shape}")
            if not np.all((time_s >= 0.0) & (time_s <= _MAX_TIME_S)):
                raise ValueError(f"{name}: times must be between 0 and {_MAX_TIME_S:.0e} s")
        for name in ("step_overhead_s", "eager_time_s", "host_step_s", "host_row_s"):
            if not 0.0 <= getattr(self, name) <= _MAX_TIME_S:
                raise ValueError(f"{name}: must be between 0 and {_MAX_TIME_S:.0e} s (got {getattr(self, name)})")
        if self.pp < 1:
            raise ValueError(f"pp: must be at least 1 (got {self.pp})")
