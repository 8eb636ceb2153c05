"""The user's quotes: a CSV of GPU hours or of hosted models, checked row by row and kept in their own catalogue."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

from moeplan.errors import InputError, Problem, did_you_mean, input_error
from moeplan.files.catalog.hardware_catalog import hardware_names
from moeplan.files.catalog.price_catalog import API_OFFERS, OFFERS, quotes_path, shipped_offers
from moeplan.files.scenario.schema_money import first_day
from moeplan.files.write import write_text
from moeplan.units import Dimension, UnitError, parse

Row = Mapping[str, str]
Fault = tuple[str, str, str] | None  # what is wrong, what is allowed, a hint
Judge = Callable[[str, str], Fault]  # of a field and the row's unit
MAX_BYTES = 20_000_000
_NEEDED = {
    OFFERS: ("name", "hardware", "n_gpus", "term", "value", "unit", "price_date", "source"),
    API_OFFERS: ("name", "model", "input", "output", "unit", "price_date", "source"),
}
_OPTIONAL = {
    OFFERS: ("kind", "basis", "region", "note"),
    API_OFFERS: ("kind", "basis", "cached_input", "batch_input", "batch_output", "note"),
}


def read_quotes(path: Path) -> tuple[str, tuple[Row, ...]]:
    """The catalogue file that the quotes in ``path`` belong to, and their rows.

    Raises InputError with every problem of the file, by line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise input_error(path, "file too large", allowed=f"at most {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise input_error(path, "cannot be read", got=error.strerror or error) from None
    except UnicodeDecodeError:
        raise input_error(path, "not a UTF-8 text file") from None
    lines = csv.reader(io.StringIO(text))
    try:
        table = [(lines.line_num, fields) for fields in lines if any(field.strip() for field in fields)]
    except csv.Error as error:
        raise input_error(path, f"not a CSV file: {error}") from None
    if not table:
        raise input_error(path, "no rows", hint=_hint())
    file, columns = _columns(path, [name.strip() for name in table[0][1]])
    problems: list[Problem] = []
    rows: dict[str, Row] = {}
    for line, fields in table[1:]:
        row = _row(path, file, columns, line, fields, problems)
        if row["name"] in rows:
            problems.append(Problem(str(path), line, 1, "name", "a second quote of this name", row["name"]))
        rows[row["name"]] = row
    if not rows:
        raise input_error(path, "no quotes below the heading", hint=_hint())
    if problems:
        raise InputError(problems)
    return file, tuple(rows.values())


def keep_quotes(path: Path) -> tuple[str, int, Path]:
    """Add the quotes in ``path`` to the user's catalogue; one of the same name is replaced.

    Returns what they are ("GPU hours", "hosted models"), how many, and where they are kept. Raises InputError.
    """
    file, rows = read_quotes(path)
    target = quotes_path(file)
    kept = {row["name"]: row for row in (read_quotes(target)[1] if target.exists() else ())}
    kept |= {row["name"]: row for row in rows}
    out = io.StringIO()
    writer = csv.DictWriter(out, (*_NEEDED[file], *_OPTIONAL[file]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept.values())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise input_error(target, "cannot be written", got=error.strerror or error) from None
    write_text(target, out.getvalue())
    return ("GPU hours" if file == OFFERS else "hosted models"), len(rows), target


def _columns(path: Path, columns: list[str]) -> tuple[str, list[str]]:
    file = API_OFFERS if "model" in columns and "hardware" not in columns else OFFERS
    known = (*_NEEDED[file], *_OPTIONAL[file])
    problems = [
        Problem(str(path), 1, 1, name, "missing column", allowed=", ".join(known), hint=_hint())
        for name in _NEEDED[file]
        if name not in columns
    ]
    problems += [
        Problem(str(path), 1, 1, name, "unknown column", allowed=", ".join(known), hint=did_you_mean(name, known))
        for name in columns
        if name not in known
    ]
    if len(set(columns)) < len(columns):
        problems.append(Problem(str(path), 1, 1, "", "a column appears twice"))
    if problems:
        raise InputError(problems)
    return file, columns


def _row(path: Path, file: str, columns: list[str], line: int, fields: list[str], problems: list[Problem]) -> Row:
    if len(fields) != len(columns):
        problems.append(Problem(str(path), line, 1, "", "wrong number of fields", str(len(fields)), str(len(columns))))
    row = dict.fromkeys((*_NEEDED[file], *_OPTIONAL[file]), "")
    row |= {name: text.strip() for name, text in zip(columns, fields, strict=False)}
    row["kind"] = row["kind"] or "list price"
    row["basis"] = row["basis"] or "a quote of the user's own"
    for column, text in row.items():
        fault: Fault = None
        if text and column in _JUDGES:
            fault = _JUDGES[column](text, row["unit"])
        elif not text and column in _NEEDED[file]:
            fault = ("no value", "", "")
        if fault is not None:
            before = fields[: columns.index(column)] if column in columns else []
            col = 1 + sum(len(field) + 1 for field in before)
            problems.append(Problem(str(path), line, col, column, fault[0], text, fault[1], fault[2]))
    return row


def _name(text: str, _unit: str) -> Fault:
    return ("a name has no blanks", "", "") if any(c.isspace() for c in text) else None


def _hardware(text: str, _unit: str) -> Fault:
    known = {*hardware_names(), *(offer.hardware for offer in shipped_offers())}
    if text in known:
        return None
    return "unknown hardware", "a name of moeplan catalog hardware", did_you_mean(text, known)


def _one_of(*names: str) -> Judge:
    def judge(text: str, _unit: str) -> Fault:
        return None if text in names else ("unknown value", ", ".join(names), did_you_mean(text, names))

    return judge


def _count(text: str, _unit: str) -> Fault:
    return None if text.isdecimal() and 0 < int(text) <= 10**6 else ("expected a count", "1 or more", "")


def _date(text: str, _unit: str) -> Fault:
    try:
        first_day(text)
    except ValueError:
        return "expected a date", "2026-11-27, 2026-11, 2026", ""
    return None


def _price(dimension: Dimension) -> Judge:
    def judge(text: str, unit: str) -> Fault:
        try:
            price = parse(f"{text} {unit}", dimension)
        except UnitError as error:
            return error.what, error.allowed, error.hint
        if price > 0.0:
            return None
        return ("must not be zero" if price == 0.0 else "must not be negative"), "above 0", ""

    return judge


_JUDGES: Mapping[str, Judge] = {
    "name": _name,
    "hardware": _hardware,
    "n_gpus": _count,
    "term": _one_of("on_demand", "spot", "reserved"),
    "kind": _one_of("list price", "estimate"),
    "price_date": _date,
    "value": _price("usd_per_gpu_hour"),
    **dict.fromkeys(("input", "output", "cached_input", "batch_input", "batch_output"), _price("usd_per_token")),
}


def _hint() -> str:
    return f"GPU hours need {','.join(_NEEDED[OFFERS])}; hosted models {','.join(_NEEDED[API_OFFERS])}"
