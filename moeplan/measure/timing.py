"""Times one call on the GPU: many calls in one captured graph, events around each replay, the median of the replays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

_GRAPH_S = 1e-3  # a replay lasts at least this long, so that starting it does not count
_MOST_CALLS = 200
_BUDGET_S = 0.03  # of replays per case
_REPLAYS = (9, 60)


@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one call [s]: median, 10 % and 90 % over ``n_repeats`` repeats of ``n_calls`` calls."""

    median_s: float
    p10_s: float
    p90_s: float
    n_repeats: int
    n_calls: int
    mode: str  # "graph", "eager" or "host"


def timing_of(seconds: list[float], n_calls: int, mode: str) -> Timing:
    """Quantiles of repeats that took ``seconds``, ``n_calls`` calls each."""
    low, middle, high = np.quantile(np.asarray(seconds) / n_calls, (0.1, 0.5, 0.9))
    return Timing(float(middle), float(low), float(high), len(seconds), n_calls, mode)


def time_call(call: Callable[[], object], *, graph: bool = True) -> Timing:
    """Time of ``call``, which launches work on the current stream and waits for nothing.

    Without ``graph`` (or where it cannot be captured) calls are launched one by one and the mode is "eager": short
    kernels then show the host's launch time.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        once_s = min(elapsed_s(call) for _ in range(3))
        n_calls = int(np.clip(np.ceil(_GRAPH_S / once_s), 1, _MOST_CALLS))
        replay, mode = _replay(call, n_calls, stream, graph)
        replay()
        first_s = elapsed_s(replay)
        repeats = int(np.clip(_BUDGET_S / first_s, *_REPLAYS))
        seconds = [elapsed_s(replay) for _ in range(repeats)]
    return timing_of(seconds, n_calls, mode)


def time_host(call: Callable[[], object], n_calls: int, repeats: int = 15) -> Timing:
    """Host time of launching ``call``, the GPU being faster."""
    seconds = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(n_calls):
            call()
        seconds.append(perf_counter() - start)
    torch.cuda.synchronize()
    return timing_of(seconds[1:], n_calls, "host")


def _replay(
    call: Callable[[], object], n_calls: int, stream: torch.cuda.Stream, graph: bool
) -> tuple[Callable[[], object], str]:
    def calls() -> None:
        for _ in range(n_calls):
            call()

    if not graph:
        return calls, "eager"
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured, stream=stream):
            calls()
    except RuntimeError:  # a kernel that allocates or waits cannot be captured
        torch.cuda.synchronize()
        return calls, "eager"
    return captured.replay, "graph"


def elapsed_s(call: Callable[[], object]) -> float:
    """GPU time [s] from before to after the work that ``call`` launches."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3
