"""What the parts of ``resolve`` share: the located tree, the problems found so far, the origin of every value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from moeplan.errors import InputError, Problem
from moeplan.files.scenario.overrides import inside
from moeplan.files.scenario.schema_walk import Loc, dotted, place_of, written
from moeplan.files.yaml_tree import Mark, Node
from moeplan.provenance import Origin

T = TypeVar("T")

REFERENCE = "docs/reference/scenario.md"


@dataclass(slots=True)
class Resolving:
    """One resolution. ``folder`` is the scenario's own, from which no path may lead out."""

    tree: Node
    folder: Path
    fits: bool = True  # whether fitted parameters are read, which only a simulation needs
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    currencies: dict[str, float] = field(default_factory=dict)  # US dollars per unit, as the scenario states them
    set_aside: list[Loc] = field(default_factory=list)  # faulty values, reported already, replaced by their defaults

    def problem(self, loc: Loc, what: str, got: object = "", allowed: str = "", hint: str = "") -> None:
        """Record a problem at ``loc``, or at the nearest value above it that the user wrote."""
        loc = written(self.tree, loc)
        if any(_depends(loc, faulty) for faulty in self.set_aside):
            return
        mark = place_of(self.tree, loc)
        self.problems.append(Problem(mark.file, mark.line, mark.col, dotted(loc), what, str(got), allowed, hint))

    def mark(self, loc: Loc) -> Mark:
        """Place of the value at ``loc``."""
        return self.tree.mark_of(loc)

    def attempt(self, loc: Loc, read: Callable[[], T]) -> T | None:
        """What ``read`` returns; None, with its problems recorded, when the input is at fault.

        A problem that concerns no line of another file is placed at ``loc``.
        """
        try:
            return read()
        except InputError as error:
            for p in error.problems:
                if p.line is not None:
                    self.problems.append(p)
                    continue
                named = "" if p.file in (loc[-1], "", "hardware", "model", "prices") else p.file
                what = f"{named}: {p.what}" if named and named != p.got else p.what
                self.problem(loc, what, p.got, p.allowed, p.hint)
            return None

    def text(self, loc: Loc) -> str:
        """The value at ``loc`` as the user wrote it, "" where there is none."""
        node: Node | None = self.tree
        for part in written(self.tree, loc):
            node = node.child(part) if node is not None else None
        return "" if node is None else str(node.plain())

    def inside(self, text: str, loc: Loc) -> Path:
        """The path ``text`` that stands at ``loc``; InputError when it leads out of the scenario's folder."""
        return inside(text, self.mark(loc), self.folder, written(self.tree, loc))

    def given(self, loc: Loc) -> bool:
        """Whether the user wrote a value at ``loc``, or a single value that stands for the mapping above it."""
        node = self.tree
        for part in loc:
            below = node.child(part)
            if below is None:
                return False
            node = below
        return True

    def note(self, target: str, loc: Loc, *, default: str = "", shorthand: bool = False) -> None:
        """Record where the scenario's value ``target`` comes from: the user's file, ``--set``, or a default."""
        if self.given(loc) or (shorthand and self._single(loc[:-1])):
            mark = self.mark(loc)
            self.origins[target] = Origin("set" if mark.line is None else "file", str(mark))
        else:
            self.origins[target] = Origin(
                "default", f"{REFERENCE}#{dotted(loc).rpartition('.')[0] or 'scenario'}", default
            )

    def _single(self, loc: Loc) -> bool:
        node = self.tree
        for part in loc:
            below = node.child(part)
            if below is None:
                return False
            node = below
        return not isinstance(node.value, dict)

    def derived(self, target: str, how: str, where: str, note: str = "") -> None:
        """Record an origin other than the user's text."""
        self.origins[target] = Origin(how, where, note)


def _depends(loc: Loc, faulty: Loc) -> bool:
    """Whether a report about ``loc`` may only be a consequence of ``faulty``: above it, below it, or beside it."""
    beside = len(loc) > 1 and loc[:-1] == faulty[:-1]
    return beside or loc[: len(faulty)] == faulty or faulty[: len(loc)] == loc
