"""``optimize``: the best layout of a scenario within its targets, budget and limits, and why the others lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from moeplan.errors import input_error
from moeplan.files.scenario.question import Question, ask
from moeplan.files.scenario.schema_search import OptimizeFile
from moeplan.files.scenario.search_section import read_search
from moeplan.planner.plan import simulate
from moeplan.planner.search.optimize_search import ServingSearch, pareto_candidates
from moeplan.planner.search.optimize_serving import assess_layouts
from moeplan.planner.search.optimize_training import TrainingSearch
from moeplan.planner.search.search_result import Candidate, Search
from moeplan.planner.search.search_space import NO_PRICE, Site, sites
from moeplan.spec.plan import Plan

Told = Callable[[int, int], None]

_RUNNERS_UP = 5
_CONFIRMATIONS = 8  # answers the full plan may refuse before the search gives up
_WORDS = {
    "load": "keeping up with the load",
    "slo_ttft": "the time to first token",
    "slo_tpot": "the time per output token",
    "slo_e2e": "the end-to-end time",
    "budget": "the budget",
    "deadline": "the deadline",
    "memory": "memory",
}


def optimize(path: str | Path, overrides: Sequence[str] = (), *, progress: Told | None = None) -> Search:
    """Search the space of the scenario's `optimize` section.

    Stage one bounds and estimates every layout; stage two simulates what could be the answer. The best candidate's
    overrides give its plan again, byte for byte. Same scenario, seed and version give the same result.

    Raises InputError for an empty or contradictory space, and for a lifecycle, whose parts are searched apart.
    """
    question = ask(path, overrides)
    return search(question, read_search(question), progress or (lambda _done, _most: None))


def search(question: Question, wanted: OptimizeFile, told: Told) -> Search:
    """`optimize` of a question and a space that are read already."""
    trains, serves = (question.tree.child(name) is not None for name in ("training", "serving"))
    if trains and serves:
        hint = "one scenario for `training`, one for `serving`"
        raise input_error(question.path, "a lifecycle is two searches", hint=hint)
    found, excluded = sites(question, wanted, training=trains)
    work: ServingSearch | TrainingSearch
    most_gpus = wanted.gpus or max(site.most_gpus for site in found)
    if trains:
        work = TrainingSearch(question, wanted, found, most_gpus, told)
    else:
        layouts = assess_layouts(question, wanted, found, most_gpus)
        work = ServingSearch(layouts, wanted.by, wanted.simulations, told)
    best, plan = _confirmed(question, work)
    return _result(question, wanted, found, excluded, work, best, plan)


def _confirmed(question: Question, work: ServingSearch | TrainingSearch) -> tuple[int | None, Plan | None]:
    """The best candidate whose full plan passes every check; what it refuses is out, and the search goes on."""
    for _ in range(_CONFIRMATIONS):
        best = work.run()
        if best is None:
            return None, None
        plan = simulate(question.scenario(work.results[best].overrides))
        if plan.feasible:
            return best, plan
        failed = tuple(v.check for v in plan.verdicts if not v.ok)
        work.refuse(best, failed)
    return None, None


def _result(
    question: Question,
    wanted: OptimizeFile,
    found: list[Site],
    excluded: dict[str, str],
    work: ServingSearch | TrainingSearch,
    best: int | None,
    plan: Plan | None,
) -> Search:
    counts = work.counts()
    answer = None if best is None else work.results[best]
    x_axis, y_axis = work.front_of
    known = list(work.results.values())
    feasible = [c for c in known if c.feasible]
    closest = None
    if answer is None:
        closest = min(known or work.most_hopeful(), key=lambda c: (c.worst_over, c.n_gpus), default=None)
    return Search(
        scenario=str(question.value("name") or question.path.stem),
        by=wanted.by,
        best=None if answer is None else _whole(question, answer),
        plan=plan,
        closest=None if closest is None else _whole(question, closest),
        front=tuple(_whole(question, c) for c in pareto_candidates(feasible, x_axis, y_axis)),
        front_of=(x_axis, y_axis),
        runners_up=tuple(_whole(question, c) for c in _runners_up(answer, known, work.figure)),
        binding=_binding(answer, work, work.figure),
        counts=counts,
        proven=counts.open == 0 and best is not None,
        excluded=excluded,
        notes=_notes(found, excluded, counts.open, work.open_over()),
    )


def _whole(question: Question, candidate: Candidate) -> Candidate:
    """With the user's own overrides in front: what to give to `simulate`, which does not search."""
    own = (text for text in question.overrides if not text.startswith("optimize."))
    return replace(candidate, overrides=(*own, *candidate.overrides))


def _runners_up(answer: Candidate | None, known: list[Candidate], figure: str) -> list[Candidate]:
    """The best of the other kinds (machine and replica layout), each with what it lacks."""
    kinds: dict[tuple[object, ...], Candidate] = {}
    mine = None if answer is None else _kind(answer)

    def rank(c: Candidate) -> tuple[bool, float, float]:
        value = c.figures.get(figure)
        return not c.feasible, c.worst_over if not c.feasible else 0.0, float("inf") if value is None else value

    for candidate in sorted(known, key=rank):
        kind = _kind(candidate)
        if kind != mine and kind not in kinds:
            kinds[kind] = replace(candidate, why=_why(answer, candidate, figure))
    return list(kinds.values())[:_RUNNERS_UP]


def _kind(candidate: Candidate) -> tuple[object, ...]:
    names = ("model", "hardware", "formats", "tp", "pp", "dp", "cp", "ep")
    return tuple(candidate.choice.get(name) for name in names)


def _why(answer: Candidate | None, candidate: Candidate, figure: str) -> str:
    if not candidate.feasible:
        missed = " and ".join(_WORDS.get(name, name) for name in candidate.failed)
        return f"misses {missed}, by {candidate.worst_over - 1.0:.0%} at worst" if candidate.failed else "does not fit"
    mine = None if answer is None else answer.figures.get(figure)
    value = candidate.figures.get(figure)
    if mine is None or value is None:
        return "feasible"
    if value == mine:
        return "as good; slower end to end, or later in the list"
    return f"{value / mine - 1.0:.1%} more {_unit(figure)}"


def _unit(figure: str) -> str:
    return {"usd_per_month": "a month", "total_usd": "for the run", "wall_time_s": "time", "e2e_s": "time",
            "makespan_s": "time", "usd_per_million_output_tokens": "per token"}[figure]  # fmt: skip


def _binding(answer: Candidate | None, work: ServingSearch | TrainingSearch, figure: str) -> str:
    """The check that the candidates which would be better fail alone, most often."""
    best = float("inf") if answer is None else answer.figures.get(figure) or float("inf")
    alone: dict[str, int] = {}
    for candidate in work.results.values():
        value = candidate.figures.get(figure)
        if not candidate.feasible and len(candidate.failed) == 1 and value is not None and value < best:
            alone[candidate.failed[0]] = alone.get(candidate.failed[0], 0) + 1
    for name, n in work.ruled_out_by(best).items():
        alone[name] = alone.get(name, 0) + n
    if not alone:
        return "nothing: no cheaper layout is in the space" if answer is not None else "memory"
    name = max(sorted(alone), key=lambda key: alone[key])
    return f"{_WORDS.get(name, name)}: {alone[name]} better layouts miss that alone"


def _notes(found: list[Site], excluded: dict[str, str], n_open: int, open_over: float) -> tuple[str, ...]:
    notes = [f"left out: {name} ({why})" for name, why in excluded.items()]
    unpriced = sorted({site.hardware for site in found if NO_PRICE in site.overrides})
    if unpriced:
        notes.append(f"no offer in the catalog or the limits for {', '.join(unpriced)}: without cost, never cheapest")
    if n_open:
        expected = ""
        if open_over > 1.0:
            expected = f"; stage one expects each of them to miss a target, by {open_over - 1.0:.0%} at least"
        notes.append(
            f"{n_open:,} candidates that might be better were not simulated{expected}. "
            "Raise optimize.simulations to be sure"
        )
    return tuple(notes)
