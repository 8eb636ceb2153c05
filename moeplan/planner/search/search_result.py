"""What a search says: frozen, ready for JSON and for a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.spec.plan import Plan


@dataclass(frozen=True, slots=True)
class Candidate:
    """One choice: what it changes in the scenario, and what came of it.

    ``simulated``: by events (training: timed in full); otherwise the figures are stage one's estimates. ``failed``
    names the checks it misses; ``worst_over`` is the largest ratio of what it takes to what is allowed.
    """

    overrides: tuple[str, ...]
    choice: Mapping[str, str | int]
    n_gpus: int
    figures: Mapping[str, float | None]
    simulated: bool
    feasible: bool
    failed: tuple[str, ...] = ()
    worst_over: float = 0.0
    why: str = ""  # why it is not the answer


@dataclass(frozen=True, slots=True)
class Counts:
    """How the space was worked off; the parts add up to ``layouts``."""

    layouts: int
    do_not_fit: int  # memory
    ruled_out: int  # by a bound: no simulation could meet every target
    cannot_be_better: int  # by a bound on the objective, once an answer is known
    as_another: int  # same events as a simulated one, limits apart that are never reached
    simulated: int
    open: int  # might be better, and was not simulated


@dataclass(frozen=True, slots=True)
class Search:
    """Result of `optimize`. ``plan`` is the full plan of ``best``; both are None when nothing meets every check."""

    scenario: str
    by: str
    best: Candidate | None
    plan: Plan | None
    closest: Candidate | None  # the least far off, where nothing is feasible
    front: tuple[Candidate, ...]  # Pareto front of the simulated feasible candidates, cheapest first
    front_of: tuple[str, str]  # its two figures, less of both is better
    runners_up: tuple[Candidate, ...]
    binding: str  # what keeps the answer from being better
    counts: Counts
    proven: bool  # nothing better is in the space
    excluded: Mapping[str, str]  # models, machines and formats that were left out, and why
    notes: tuple[str, ...]
