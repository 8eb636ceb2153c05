"""Lengths that were seen: CSV with the columns tokens and, where they differ, count. Every wrong line is named."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.yaml_tree import read_text

MAX_FILE_BYTES = 20_000_000
MAX_TOKENS = 10**9
_MAX_PROBLEMS = 20


def read_lengths(path: Path) -> dict[int, float]:
    """How often each length was seen, by its tokens.

    Raises InputError: unreadable file, no column ``tokens``, no rows, malformed or negative values.
    """
    rows = csv.reader(io.StringIO(read_text(path, max_bytes=MAX_FILE_BYTES, what="length table")))
    problems: list[Problem] = []
    counts: dict[int, float] = {}
    try:
        header = [name.strip() for name in next(rows, [])]
        if "tokens" not in header:
            raise input_error(path, "missing column tokens", got=",".join(header)[:200], allowed="tokens, count")
        for row in rows:
            if not row or len(problems) >= _MAX_PROBLEMS:
                continue
            cells = dict(zip(header, row, strict=False))
            tokens, count = _number(cells.get("tokens", "")), _number(cells.get("count", "1"))
            if not (1.0 <= tokens <= MAX_TOKENS and tokens == int(tokens)):
                problems.append(_problem(path, rows.line_num, "tokens", cells, f"whole number, 1 to {MAX_TOKENS}"))
            elif not 0.0 <= count < math.inf:
                problems.append(_problem(path, rows.line_num, "count", cells, "a number of at least 0"))
            else:
                counts[int(tokens)] = counts.get(int(tokens), 0.0) + count
    except csv.Error as error:
        raise input_error(path, f"not a CSV file: {error}") from None
    if problems:
        raise InputError(problems)
    if not any(counts.values()):
        raise input_error(path, "no lengths: a header but no row that counts")
    return counts


def _number(text: str) -> float:
    try:
        return float(text) if len(text) <= 40 else math.nan
    except ValueError:
        return math.nan


def _problem(path: Path, line: int, column: str, cells: dict[str, str], allowed: str) -> Problem:
    return Problem(str(path), line, None, column, "not usable", cells.get(column, "")[:40], allowed)
