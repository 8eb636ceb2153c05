"""Recorded expert selections: CSV with the columns layer, expert, count. Every wrong line is named."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.yaml_tree import read_text

COLUMNS = ("layer", "expert", "count")
MAX_LAYERS = 10_000
_MAX_PROBLEMS = 20


def read_histogram(path: Path, n_experts: int) -> tuple[tuple[float, ...], ...]:
    """Selections (n_layers, n_experts) in the order of the layer numbers.

    Raises InputError: unreadable file, missing columns, malformed, negative or repeated rows, a layer with another
    number of experts or without any selection.
    """
    rows = csv.reader(io.StringIO(read_text(path, what="histogram")))
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise input_error(path, "missing columns", got=",".join(header), allowed=", ".join(COLUMNS))
        problems: list[Problem] = []
        counts: dict[int, dict[int, float]] = {}
        lines: dict[int, int] = {}
        for row in rows:
            if row:
                _read_row(path, rows.line_num, dict(zip(header, row, strict=False)), counts, lines, problems, n_experts)
            if len(problems) >= _MAX_PROBLEMS:
                break
    except csv.Error as error:
        raise input_error(path, f"not a CSV file: {error}") from None
    if not problems:
        problems = _layer_problems(path, counts, lines, n_experts)
    if problems:
        raise InputError(problems)
    return tuple(tuple(counts[layer][e] for e in range(n_experts)) for layer in sorted(counts))


def _read_row(
    path: Path, line: int, row: dict[str, str], counts: dict[int, dict[int, float]], lines: dict[int, int],
    problems: list[Problem], n_experts: int,
) -> None:  # fmt: skip
    def wrong(name: str, what: str, allowed: str = "") -> None:
        problems.append(Problem(str(path), line, None, name, what, row.get(name, ""), allowed))

    numbers = {}
    for name in COLUMNS:
        text = row.get(name, "")
        try:
            number = float(text) if len(text) <= 40 else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            return wrong(name, "not a number")
        if number < 0.0:
            return wrong(name, "must not be negative")
        if name != "count" and number != int(number):
            return wrong(name, "not a whole number")
        numbers[name] = number
    layer, expert = int(numbers["layer"]), int(numbers["expert"])
    if layer >= MAX_LAYERS:
        return wrong("layer", "too large", f"below {MAX_LAYERS}")
    if expert >= n_experts:
        return wrong("expert", f"the model has {n_experts} experts, counted from 0", f"0 to {n_experts - 1}")
    lines.setdefault(layer, line)
    if expert in counts.setdefault(layer, {}):
        return wrong("expert", f"expert {expert} of layer {layer} twice")
    counts[layer][expert] = numbers["count"]
    return None


def _layer_problems(
    path: Path, counts: dict[int, dict[int, float]], lines: dict[int, int], n_experts: int
) -> list[Problem]:
    if not counts:
        return [Problem(str(path), None, None, "", "no rows")]
    problems = []
    for layer, row in sorted(counts.items()):
        if len(row) != n_experts:
            what = f"layer {layer} has {len(row)} experts, the model has {n_experts}"
            problems.append(Problem(str(path), lines[layer], None, "layer", what))
        elif sum(row.values()) <= 0.0:
            problems.append(Problem(str(path), lines[layer], None, "layer", f"layer {layer} has no selection at all"))
    return problems[:_MAX_PROBLEMS]
