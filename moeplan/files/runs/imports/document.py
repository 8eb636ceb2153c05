"""JSON and JSON-lines files of benchmark results, one object at a time, and the numbers in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.json_text import parse_json
from moeplan.files.runs.imports.row import Benchmark

Object: TypeAlias = Mapping[str, Any]

MAX_JSON_BYTES = 128 * 2**20  # a whole document; lines of a JSON-lines file are read one by one
MAX_LINE_BYTES = 64 * 2**20
_MOST_PROBLEMS = 100
_SHOWN = 40  # characters of a wrong number
_DATE = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})(?![0-9])")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+@-]{0,199}")


@dataclass(frozen=True, slots=True)
class Format:
    """One format: how to tell it, and how to read the objects of a file that is all of it."""

    name: str
    recognises: Callable[[Object], bool]
    read: Callable[[Iterable[Document]], Iterator[Benchmark]]


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file. All objects of a file share ``problems``: what is wrong with their numbers."""

    file: str
    line: int
    value: Object
    problems: list[Problem]
    path: str = ""

    def within(self, *keys: str | int) -> Document:
        """The object at ``keys``, empty where there is none; its problems are this document's."""
        node: Any = self.value
        for key in keys:
            if isinstance(node, Mapping) or (isinstance(node, list) and isinstance(key, int) and key < len(node)):
                node = node.get(key) if isinstance(node, Mapping) else node[key]  # type: ignore[index]
            else:
                node = None
        path = ".".join([*([self.path] if self.path else []), *map(str, keys)])
        return Document(self.file, self.line, node if isinstance(node, Mapping) else {}, self.problems, path)

    def number(self, *names: str, scale: float = 1.0) -> float | None:
        """The first of ``names`` that is there, times ``scale``; None where none is.

        Text that is a number counts (llmperf writes some so). Anything else, negative numbers, NaN and infinity are
        problems.
        """
        for name in names:
            found = self.value.get(name)
            if found is None:
                continue
            try:
                number = float(found) if isinstance(found, int | float | str) and not isinstance(found, bool) else None
            except (ValueError, OverflowError):
                number = None
            if number is None or not math.isfinite(number) or number < 0.0:
                self.wrong(name, "not a finite number of at least 0", found)
                return None
            return number * scale
        return None

    def name(self, *names: str) -> str:
        """A short identifier (a model, an engine, a version) at the first of ``names``; "" where there is none."""
        for name in names:
            found = self.value.get(name)
            if isinstance(found, str) and found.strip():
                text = found.strip()
                return text if _NAME.fullmatch(text) else ""
        return ""

    def date(self, name: str) -> str | None:
        """ISO date that the text at ``name`` begins with ("2026-01-10T10:15", "20260110-101500"); None for others."""
        found = self.value.get(name)
        match = _DATE.match(found) if isinstance(found, str) else None
        try:
            return date(*map(int, match.groups())).isoformat() if match else None
        except ValueError:
            return None

    def wrong(self, name: str, what: str, got: object) -> None:
        """Note a problem with the value at ``name``."""
        if len(self.problems) >= _MOST_PROBLEMS:
            return
        path = f"{self.path}.{name}" if self.path else name
        shown = str(got) if isinstance(got, int | float) else type(got).__name__
        self.problems.append(Problem(self.file, self.line, None, path, what, shown[:_SHOWN]))


def documents(path: Path) -> Iterator[Document]:
    """Objects of a JSON file (one, or an array of them) or of a JSON-lines file, in order.

    Raises:
        InputError: the file is missing, empty, too large, cut off, or not JSON; located by line.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise input_error(path, "not a file")
        if size == 0:
            raise input_error(path, "empty file")
        with path.open("rb") as stream:
            first = stream.readline(MAX_LINE_BYTES)
            whole = _parsed(first) is None
        if not whole:
            yield from _lines(path)
            return
        if size > MAX_JSON_BYTES:
            allowed = f"at most {MAX_JSON_BYTES // 2**20} MiB"
            raise input_error(path, "too large for one JSON document", got=f"{size // 2**20} MiB", allowed=allowed)
        text = path.read_bytes()
    except OSError as error:
        raise input_error(path, "cannot be read", got=str(error.strerror)) from None
    found = parse_json(path, text)
    problems: list[Problem] = []
    for value in found if isinstance(found, list) else [found]:
        if not isinstance(value, Mapping):
            raise InputError([Problem(str(path), 1, 1, "", "expected a JSON object", type(value).__name__)])
        yield Document(str(path), 1, value, problems)


def _lines(path: Path) -> Iterator[Document]:
    problems: list[Problem] = []
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), 1):
            if not line.strip():
                continue
            value = parse_json(path, line, number)
            for one in value if isinstance(value, list) else [value]:
                if not isinstance(one, Mapping):
                    raise InputError([Problem(str(path), number, 1, "", "expected a JSON object", type(one).__name__)])
                yield Document(str(path), number, one, problems)


def _parsed(line: bytes) -> Any:
    """The object on a first line that is a whole JSON document; None where the document goes on."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
