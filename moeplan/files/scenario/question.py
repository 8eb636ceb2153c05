"""A scenario file with what is changed in it: all that is needed to ask the same question again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeplan._version import __version__
from moeplan.files.scenario.overrides import overridden, read_tree
from moeplan.files.scenario.resolve import resolve
from moeplan.files.yaml_tree import Node
from moeplan.spec.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Question:
    """A scenario file read once. ``overrides`` ("serving.layout.tp=2") are in ``tree`` already."""

    path: Path
    overrides: tuple[str, ...]
    tree: Node

    def scenario(self, more: Sequence[str] = ()) -> Scenario:
        """The resolved scenario with ``more`` overrides on top: what ``load(path, [*overrides, *more])`` gives.

        Raises InputError with every problem found.
        """
        return resolve(overridden(self.tree, more), self.path)

    def value(self, path: str) -> Any:
        """The value the file holds at a dotted path, None where there is none."""
        node: Node | None = self.tree
        for part in path.split("."):
            node = None if node is None else node.child(part)
        return None if node is None else node.plain()

    def sha256(self) -> str:
        """Digest of the program's version, the values, and the content of every local file they name."""
        plain = self.tree.plain()
        digest = hashlib.sha256(json.dumps([__version__, plain], sort_keys=True, default=str).encode())
        folder = self.path.resolve().parent
        for text in sorted(set(_texts(plain))):
            if len(text) > 500 or not text.isprintable():
                continue
            named = (folder / text).resolve()
            if named.is_relative_to(folder) and named.is_file():
                digest.update(named.read_bytes())
        return digest.hexdigest()


def ask(path: str | Path, overrides: Sequence[str] = ()) -> Question:
    """The question of a scenario file. Raises InputError for files that cannot be read and malformed overrides."""
    path = Path(path)
    return Question(path, tuple(overrides), read_tree(path, overrides))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _texts(below)
