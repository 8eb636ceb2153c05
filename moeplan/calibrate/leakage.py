"""Which runs of a table may count as validation: not those something was fitted to, nor copies of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeplan.files.runs.run_ledger import LedgerRow, hashes

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Leakage:
    """Masks of shape (n_rows,) over a table, and what the fits were made of."""

    fitted: tuple[bool, ...]  # this very run was used to fit
    near: tuple[bool, ...]  # another run of the same setup was
    repeated: tuple[bool, ...]  # the table holds the run a second time
    used_for: Mapping[str, int]  # purpose -> rows of this table it used

    @property
    def validation(self) -> tuple[bool, ...]:
        """Rows that nothing was fitted to and that do not stand above already."""
        return tuple(not (f or r) for f, r in zip(self.fitted, self.repeated, strict=True))

    def summary(self) -> dict[str, Any]:
        """For the report."""
        return {
            "fitted": sum(self.fitted),
            "near_duplicates_of_fitted": sum(n and not f for n, f in zip(self.near, self.fitted, strict=True)),
            "repeated": sum(self.repeated),
            "validation": sum(self.validation),
            "used_for": dict(self.used_for),
        }


def leakage(kind: str, rows: Sequence[Row], ledger: Sequence[LedgerRow]) -> Leakage:
    """Compare ``rows`` of ``kind`` with what was fitted."""
    purposes: dict[str, list[str]] = {}
    for one in ledger:
        purposes.setdefault(one.content, []).append(one.used_for)
    setups = {one.setup for one in ledger}
    marks = [hashes(kind, row) for row in rows]
    seen: set[str] = set()
    repeated = [content in seen or seen.add(content) is not None for content, _ in marks]
    return Leakage(
        fitted=tuple(content in purposes for content, _ in marks),
        near=tuple(setup in setups for _, setup in marks),
        repeated=tuple(repeated),
        used_for=Counter(name for content, _ in marks for name in purposes.get(content, ())),
    )
