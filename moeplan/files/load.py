"""One call from a path to a resolved scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moeplan.files.scenario.overrides import read_tree
from moeplan.files.scenario.resolve import resolve
from moeplan.spec.scenario import Scenario


def load(path: str | Path, overrides: Sequence[str] = (), *, arrays: bool = True) -> Scenario:
    """The scenario in ``path`` with ``overrides`` ("serving.layout.tp=2") applied.

    With ``arrays`` false a trace stays in plain Python arrays: enough for ``check``, which loads no numeric library.
    Raises InputError with every problem found, each with file, line and column.
    """
    path = Path(path)
    return resolve(read_tree(path, overrides), path, arrays=arrays)


def with_strict_prices(overrides: Sequence[str], strict: bool) -> tuple[str, ...]:
    """``overrides``, and ``strict_prices`` set where it is asked for."""
    return (*overrides, "strict_prices=true") if strict else tuple(overrides)
