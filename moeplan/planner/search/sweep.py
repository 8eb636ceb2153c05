"""Many variants of one scenario: each point is resolved, simulated somewhere, and on the disk before the next."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from moeplan.errors import InputError, MoeplanError, input_error
from moeplan.files.plan_row import Cell, plan_row
from moeplan.files.scenario.question import Question, ask
from moeplan.files.scenario.vary import Factor, read_factors
from moeplan.files.sweep_results import Journal, SweepPoint, write_table
from moeplan.planner.plan import simulate
from moeplan.planner.search.design import Design, design_points
from moeplan.spec.scenario import Scenario

Told = Callable[[int, int], None]
_Ask = tuple[int, tuple[str, ...]]  # number of a point, and its own overrides

_AHEAD = 256  # points handed to an executor before their turn: enough for any cluster's latency
_DEATHS = 3  # workers a point may bring down
_POINTS_PER_PROCESS = 8  # starting a process costs about as much as so many points


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points in their order. ``varied`` are the paths that differ between them."""

    scenario: str
    design: str
    varied: tuple[str, ...]
    question_sha256: str
    points: tuple[SweepPoint, ...]

    @property
    def failed(self) -> tuple[SweepPoint, ...]:
        return tuple(point for point in self.points if point.error is not None)


def sweep(
    path: str | Path,
    vary: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    design: Design = "grid",
    n_points: int | None = None,
    out: str | Path | None = None,
    executor: Executor | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    progress: Told | None = None,
) -> Sweep:
    """Plans of a scenario over ``vary`` ("PATH=A,B,C", "PATH=LOW..HIGH[:N][:log]").

    Each point's overrides on top of ``overrides`` give its plan again, byte for byte. With ``out`` (.csv or .parquet)
    finished points are kept in a journal beside it and never computed twice. Points run on ``executor``, on the Dask
    cluster of ``scheduler``, or on ``jobs`` local processes (default: the processors, fewer for few points).

    Raises InputError for factors that cannot be varied, values of which no point can be made (before a file is
    touched), a results file of another sweep, or an unreachable scheduler.
    A point that fails is a row with its error.
    """
    question = ask(path, overrides)
    factors = read_factors(question, vary)
    seed = question.value("seed")
    points = design_points(factors, design, n_points, seed if isinstance(seed, int) else 0)
    _require_one(question, points)
    digest = question.sha256()
    identity = {"scenario": digest, "design": design, "vary": list(vary), "n_points": len(points)}
    journal = None if out is None else Journal(Path(out), identity)
    try:
        found = _evaluated(question, factors, points, journal, executor, jobs, scheduler, progress)
    finally:
        if journal is not None:
            journal.close()
    varied = tuple(factor.path for factor in factors)
    if out is not None:
        write_table(Path(out), found.values(), varied)
    return Sweep(Path(path).name, design, varied, digest, tuple(found[i] for i in range(len(points))))


def _require_one(question: Question, points: Sequence[tuple[str, ...]]) -> None:
    """Raises the first point's InputError where not one point is a scenario, as with a range without its unit."""
    first: InputError | None = None
    for own in points:
        try:
            question.scenario(own)
            return
        except InputError as error:
            first = first or error
    if first is not None:
        raise first


def _evaluated(
    question: Question,
    factors: Sequence[Factor],
    points: Sequence[tuple[str, ...]],
    journal: Journal | None,
    executor: Executor | None,
    jobs: int | None,
    scheduler: str | None,
    progress: Told | None,
) -> dict[int, SweepPoint]:
    found = {} if journal is None else dict(journal.points)
    todo = [i for i in range(len(points)) if i not in found]
    if progress is not None:
        progress(len(found), len(points))
    pool = Pool(executor, jobs, scheduler, len(todo))
    with pool.opened():
        for point in pool.run([(i, points[i]) for i in todo], question.scenario):
            point = replace(point, overrides=(*question.overrides, *point.overrides))
            if journal is not None:
                journal.add(point)
            found[point.index] = point
            if progress is not None:
                progress(len(found), len(points))
    return found


def evaluate(scenario: Scenario) -> dict[str, Cell]:
    """The work of one point, wherever it runs."""
    return plan_row(simulate(scenario))


class Pool:
    """Points to workers and back, whatever the executor; a pool of our own is started again when a worker dies."""

    def __init__(self, executor: Executor | None, jobs: int | None, scheduler: str | None, n_points: int) -> None:
        if sum(given is not None for given in (executor, jobs, scheduler)) > 1:
            raise ValueError("executor, jobs and scheduler exclude each other")
        if jobs is not None and jobs < 1:
            raise input_error("--jobs", "not a number of processes", got=jobs, allowed="1 or more")
        self._given, self._scheduler = executor, scheduler
        self._jobs = jobs or max(1, min(os.cpu_count() or 1, n_points // _POINTS_PER_PROCESS))
        self._executor: Executor | None = executor
        self._ahead = _AHEAD if executor or scheduler else 2 * self._jobs

    @contextmanager
    def opened(self) -> Iterator[None]:
        if self._scheduler is not None:
            with _dask(self._scheduler) as self._executor:
                yield
            return
        if self._given is None:
            self._executor = self._own()
        try:
            yield
        finally:
            if self._given is None and self._executor is not None:
                self._executor.shutdown(wait=True, cancel_futures=True)

    def _own(self) -> Executor:
        if self._jobs == 1:
            return ThreadPoolExecutor(1)
        import multiprocessing

        # spawned: a fork would inherit the threads of numeric libraries
        return ProcessPoolExecutor(self._jobs, mp_context=multiprocessing.get_context("spawn"))

    def run(self, todo: Sequence[_Ask], resolve: Callable[[tuple[str, ...]], Scenario]) -> Iterator[SweepPoint]:
        """Points as they finish, resolved here and simulated there.

        A point that was running when a worker died runs again, alone.
        """
        queue, suspects = deque(todo), deque[_Ask]()
        deaths: dict[int, int] = {}
        running: dict[Future[dict[str, Cell]], _Ask] = {}
        while queue or suspects or running:
            while (suspects or queue) and len(running) < (1 if deaths else self._ahead):
                index, own = (suspects or queue).popleft()
                try:
                    scenario = resolve(own)
                except InputError as error:
                    yield SweepPoint(index, own, error=str(error))
                    continue
                running[self._submitted(scenario)] = index, own
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                index, own = running.pop(future)
                error = _failure(future)
                dies = isinstance(error, BrokenExecutor) and self._given is None
                deaths_now = deaths.pop(index, 0) + dies
                broken = broken or dies
                if dies and deaths_now < _DEATHS:
                    deaths[index] = deaths_now
                    suspects.append((index, own))
                else:
                    yield _point(index, own, future, error)
            if broken:  # what else was running may be the cause as well
                suspects.extend(running.values())
                deaths |= {index: 1 for index, _ in running.values()}
                running.clear()
                self._executor = self._own()

    def _submitted(self, scenario: Scenario) -> Future[dict[str, Cell]]:
        if self._executor is None:
            raise RuntimeError("the pool is not open")
        return self._executor.submit(evaluate, scenario)


def _failure(future: Future[dict[str, Cell]]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:
        hint = "what is finished is kept: give the same command again"
        raise input_error("sweep", "the executor cancelled a point: it went away", hint=hint) from error


def _point(
    index: int, overrides: tuple[str, ...], future: Future[dict[str, Cell]], error: BaseException | None
) -> SweepPoint:
    if error is None:
        return SweepPoint(index, overrides, future.result())
    of_the_question = isinstance(error, MoeplanError | ValueError | ArithmeticError)
    text = str(error) if isinstance(error, MoeplanError) else f"{type(error).__name__}: {error}"
    return SweepPoint(index, overrides, error=text, retry=not of_the_question)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """An executor on the Dask cluster at ``address``; Dask itself moves the work of a worker that dies."""
    try:
        from distributed import Client
    except ImportError:
        hint = "pip install 'moeplan[cluster]'"
        raise input_error("--scheduler", "needs dask.distributed", got=address, hint=hint) from None
    try:
        client = Client(address, timeout=10.0, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        what = "no Dask scheduler answers there"
        raise input_error("--scheduler", what, got=address, allowed="tcp://HOST:PORT", hint=str(error)[:200]) from error
    with client:
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)
