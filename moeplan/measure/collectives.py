"""Collectives over the GPUs of this machine: a process a GPU under NCCL, replayed from graphs, the slowest rank's time.

Launched one by one, a small collective takes as long as Python needs to launch it, not what an engine waits for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moeplan.measure.plan import Case
from moeplan.measure.timing import Timing, elapsed_s, timing_of

_REPEATS = 15
_CALLS = 20


def measure_world(cases: Sequence[Case], world: int, record: Callable[[Case, Timing], None]) -> None:
    """Time collectives over ``world`` GPUs; ``record`` is called in this process as results come in."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    port = _free_port()
    workers = [context.Process(target=_worker, args=(rank, world, port, list(cases), queue)) for rank in range(world)]
    for worker in workers:
        worker.start()
    try:
        for case in cases:
            seconds = queue.get(timeout=120.0)
            record(case, timing_of(seconds, _CALLS, "graph"))
    finally:
        for worker in workers:
            worker.join(timeout=30.0)
            if worker.is_alive():
                worker.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _worker(rank: int, world: int, port: int, cases: Sequence[Case], queue: mp.Queue) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=world, device_id=torch.device("cuda", rank))
    try:
        for case in cases:
            seconds = _slowest_rank_s(
                _COLLECTIVES[str(case.values["op_name"])](int(case.values["message_size"]), world)
            )
            if rank == 0:
                queue.put(seconds)
    finally:
        dist.destroy_process_group()


def _slowest_rank_s(call: Callable[[], object]) -> list[float]:
    """Seconds of ``_CALLS`` calls on the slowest rank, for each repeat."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own threads call the driver meanwhile
        for _ in range(_CALLS):
            call()
    graph.replay()
    seconds = []
    for _ in range(_REPEATS):
        dist.barrier()
        seconds.append(elapsed_s(graph.replay))
    slowest = torch.tensor(seconds, device="cuda", dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return [float(s) for s in slowest]


def _halves(n: int) -> torch.Tensor:
    return torch.randn(n, device="cuda", dtype=torch.float16)


# ``message_size`` as in the published tables: elements on each rank of the all-reduce and the exchange, of the whole
# result of an all-gather and of the whole input of a reduce-scatter.
def _all_reduce(n: int, _world: int) -> Callable[[], object]:
    x = _halves(n).zero_()
    return lambda: dist.all_reduce(x)


def _all_gather(n: int, world: int) -> Callable[[], object]:
    out, part = _halves(n // world * world), _halves(n // world)
    return lambda: dist.all_gather_into_tensor(out, part)


def _reduce_scatter(n: int, world: int) -> Callable[[], object]:
    out, whole = _halves(n // world), _halves(n // world * world)
    return lambda: dist.reduce_scatter_tensor(out, whole)


def _all_to_all(n: int, world: int) -> Callable[[], object]:
    out, x = _halves(n // world * world), _halves(n // world * world)
    return lambda: dist.all_to_all_single(out, x)


_COLLECTIVES: Mapping[str, Callable[[int, int], Callable[[], object]]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "alltoall": _all_to_all,
}
