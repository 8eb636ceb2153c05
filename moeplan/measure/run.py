"""Measures the cases of a plan that a journal does not have yet. Says how it goes; a kill loses one case at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from moeplan.files.runs.measured_tables import Entry, Journal
from moeplan.measure.plan import Case

Done = Callable[[Case], None]


def run(todo: Sequence[Case], journal: Journal, done: Done) -> None:
    """Measure ``todo`` in order, each result written at once; ``done`` is called after each case.

    Raises:
        RuntimeError: the GPU itself failed; what was measured before is in the journal.
    """
    for op, cases in groupby(todo, key=lambda case: case.op):
        if op == "nccl":
            _run_collectives(list(cases), journal, done)
        else:
            _run_kernels(list(cases), journal, done)


def _run_kernels(cases: Sequence[Case], journal: Journal, done: Done) -> None:
    from moeplan.measure.kernels import UnsupportedCaseError, measure

    for case in cases:
        try:
            timing, added = measure(case.op, case.values)
        except UnsupportedCaseError as why:
            journal.append(Entry(case.key, case.op, case.values, None, str(why)))
        else:
            journal.append(Entry(case.key, case.op, {**case.values, **added}, timing, ""))
        done(case)


def _run_collectives(cases: Sequence[Case], journal: Journal, done: Done) -> None:
    from moeplan.measure.collectives import measure_world
    from moeplan.measure.timing import Timing

    def record(case: Case, timing: Timing) -> None:
        journal.append(Entry(case.key, case.op, {**case.values, "kernel_source": "NCCL"}, timing, ""))
        done(case)

    for world, part in groupby(cases, key=lambda case: case.values["num_gpus"]):
        measure_world(list(part), int(world), record)
