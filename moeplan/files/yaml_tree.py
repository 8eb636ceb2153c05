"""YAML text to a tree in which every value knows its line and column. Data only: no tags, no code, no interpolation.

Stricter than YAML 1.1: only ``true`` and ``false`` are booleans (``on``, ``yes`` stay text), ``12:30`` and ``007`` stay
text, ``1e12`` is a number, a key occurs once, aliases may not blow the document up. Limits keep a hostile file cheap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from moeplan.errors import InputError, Problem, input_error

MAX_FILE_BYTES = 1_000_000
MAX_DEPTH = 30
MAX_NODES = 50_000

Scalar: TypeAlias = str | int | float | bool | None

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[+-]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*(?:_[0-9]+)*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?\.?(?:inf|nan|infinity)", re.ASCII | re.IGNORECASE)
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1, None for a value that no file holds (``--set``)."""

    file: str
    line: int | None
    col: int | None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.col) if part is not None)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place. ``keys`` holds the places of a mapping's keys."""

    value: Scalar | list[Node] | dict[str, Node]
    mark: Mark
    keys: Mapping[str, Mark] = field(default_factory=dict)
    size: int = 1  # nodes below and including this one

    def plain(self) -> Any:
        """The value without places: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """The value under a key or index, None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def mark_of(self, path: tuple[str | int, ...], *, key: bool = False) -> Mark:
        """Place of the value at ``path``, or of the nearest enclosing value that exists; ``key``: place of its key."""
        node = self
        for depth, part in enumerate(path):
            below = node.child(part)
            if below is None or (key and depth == len(path) - 1):
                return node.keys.get(str(part), node.mark)
            node = below
        return node.mark


def read_text(path: Path, *, max_bytes: int = MAX_FILE_BYTES, what: str = "scenario") -> str:
    """Text of a UTF-8 file. Size is asked before anything is read.

    Raises InputError for a missing or empty file, a directory, one above ``max_bytes``, one that is not UTF-8 text.
    """
    try:
        if path.is_dir():
            raise input_error(path, f"is a directory, expected a {what} file")
        if not path.is_file() and path.exists():
            raise input_error(path, f"is not a regular file, expected a {what} file")
        n_bytes = path.stat().st_size
        if n_bytes > max_bytes:
            raise input_error(path, "file too large", got=f"{n_bytes} bytes", allowed=f"at most {max_bytes} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        raise input_error(path, f"no such {what} file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise input_error(path, f"cannot read the {what} file: {reason}") from None
    if b"\x00" in data:
        raise input_error(path, f"binary file, expected a {what} as UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        col = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        what_wrong = f"not UTF-8 text: byte 0x{data[error.start]:02x}"
        raise InputError([Problem(str(path), line, col, "", what_wrong, hint="save the file as UTF-8")]) from None
    if not text.strip():
        raise input_error(path, f"empty file, expected a {what}")
    return text


def load_yaml(path: Path, *, max_bytes: int = MAX_FILE_BYTES, what: str = "scenario") -> Node:
    """Tree of a YAML file whose top is a mapping. Raises InputError with every problem found."""
    node = parse_yaml(read_text(path, max_bytes=max_bytes, what=what), str(path))
    if not isinstance(node.value, dict):
        raise InputError([_problem(node.mark, f"expected a {what}: a mapping of keys to values")])
    return node


def parse_yaml(text: str, file: str) -> Node:
    """Tree of one YAML document. Raises InputError with every problem found."""
    return _Builder(text, file).build()


def scalar(text: str) -> Scalar:
    """Value of an unquoted scalar. Raises ValueError for a number that is not finite."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("not a finite number")
    if _INT.fullmatch(text) and len(text) <= 40:
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
        if math.isinf(value):
            raise ValueError("number too large")
        return value
    return text


def _problem(mark: Mark, what: str, *, path: str = "", got: str = "", hint: str = "") -> Problem:
    return Problem(mark.file, mark.line, mark.col, path, what, got, hint=hint)


class _Builder:
    """One pass over the parser's events; keeps problems and goes on where the structure allows it."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._problems: list[Problem] = []
        self._anchors: dict[str, Node] = {}
        self._n_nodes = 0

    def build(self) -> Node:
        root: Node | None = None
        events: Iterator[Any] = yaml.parse(self._text, Loader=_LOADER)
        try:
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        self._add(event, "a second document, expected one", hint="remove the line '---'")
                        break
                elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                    root = self._node(event, events, 0, "")
        except yaml.YAMLError as error:
            self._problems.append(self._syntax(error))
        if self._problems:
            raise InputError(self._problems)
        if root is None:
            raise input_error(self._file, "no content, expected a mapping of keys to values")
        return root

    def _mark(self, event: Any) -> Mark:
        return Mark(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _add(self, event: Any, what: str, *, path: str = "", got: str = "", hint: str = "") -> None:
        self._problems.append(_problem(self._mark(event), what, path=path, got=got, hint=hint))

    def _node(self, event: Any, events: Iterator[Any], depth: int, path: str) -> Node:
        mark = self._mark(event)
        self._count(1, mark, path)
        if depth > MAX_DEPTH:
            raise InputError([*self._problems, _problem(mark, f"nested deeper than {MAX_DEPTH} levels")])
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            target = self._anchors.get(name)
            if target is None:
                self._add(event, "alias without an earlier complete anchor", path=path, got="*" + name)
                return Node(None, mark)
            self._count(target.size, mark, path)
            return target
        if event.tag is not None:
            self._add(event, "YAML tags are not allowed: a scenario is plain data", path=path, got=event.tag)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event, path), mark)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(mark, events, depth, path)
        else:
            node = self._mapping(mark, events, depth, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _count(self, n: int, mark: Mark, path: str) -> None:
        self._n_nodes += n
        if self._n_nodes > MAX_NODES:
            what = f"more than {MAX_NODES} values once aliases are expanded"
            raise InputError([*self._problems, _problem(mark, what, path=path, hint="remove the aliases")])

    def _scalar(self, event: Any, path: str) -> Scalar:
        text = str(event.value)
        if event.style:  # quoted or block text
            return text
        try:
            return scalar(text)
        except ValueError as error:
            self._add(event, str(error), path=path, got=text)
            return None

    def _sequence(self, mark: Mark, events: Iterator[Any], depth: int, path: str) -> Node:
        items: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, events, depth + 1, f"{path}[{len(items)}]"))
        return Node(items, mark, size=1 + sum(item.size for item in items))

    def _mapping(self, mark: Mark, events: Iterator[Any], depth: int, path: str) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                self._add(event, "a key must be plain text", path=path)
                self._node(event, events, depth + 1, path)
                self._node(next(events), events, depth + 1, path)
                continue
            key = str(event.value)
            below = f"{path}.{key}" if path else key
            if event.tag is not None:
                self._add(event, "YAML tags are not allowed: a scenario is plain data", path=below, got=event.tag)
            if key == "<<" and not event.style:
                self._add(event, "merge keys are not supported", path=below, hint="use extends: OTHER_FILE")
            value = self._node(next(events), events, depth + 1, below)
            if key in values:
                self._add(event, "duplicate key", path=below, hint=f"first set in line {keys[key].line}")
                continue
            values[key] = value
            keys[key] = self._mark(event)
        return Node(values, mark, keys, size=1 + sum(value.size for value in values.values()))

    def _syntax(self, error: yaml.YAMLError) -> Problem:
        place = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if place is None:  # a character YAML forbids
            position = getattr(error, "position", None)
            what = "a character that YAML does not allow (control character?)"
            if not isinstance(position, int):
                return _problem(Mark(self._file, None, None), what)
            line = self._text.count("\n", 0, position) + 1
            return _problem(Mark(self._file, line, None), what)
        mark = Mark(self._file, place.line + 1, place.column + 1)
        if "nesting depth" in (getattr(error, "problem", None) or ""):  # newer parsers read ahead, and give up first
            return _problem(mark, f"nested deeper than {MAX_DEPTH} levels")
        lines = self._text.split("\n")
        # libyaml may report the line after the one that holds the tab
        for n in (place.line, place.line - 1):
            if 0 <= n < len(lines) and "\t" in lines[n][: len(lines[n]) - len(lines[n].lstrip())]:
                where = Mark(self._file, n + 1, lines[n].index("\t") + 1)
                return _problem(where, "tab used for indentation", hint="indent with spaces")
        parts = [p for p in (getattr(error, "problem", None), getattr(error, "context", None)) if p]
        what = "not valid YAML: " + (", ".join(parts) or "syntax error")
        return _problem(mark, what, hint="check quotes and indentation")
