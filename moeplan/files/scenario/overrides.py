"""The one override mechanism: values of a base file (``extends``), of the file itself, of ``--set``, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.scenario.schema_walk import Loc, dotted, section_at
from moeplan.files.yaml_tree import Mark, Node, load_yaml, parse_yaml

SET = "--set"
MAX_EXTENDS = 10


def read_tree(path: Path, overrides: Sequence[str] = ()) -> Node:
    """Tree of a scenario file with everything it extends and the ``PATH=VALUE`` overrides applied.

    Raises InputError for unreadable files, a cycle or an escape of ``extends``, and malformed overrides.
    """
    return overridden(_extended(path, path.resolve().parent, ()), overrides)


def overridden(tree: Node, overrides: Sequence[str]) -> Node:
    """``tree`` with ``PATH=VALUE`` overrides applied in order. Raises InputError with every malformed one."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            tree = _set(tree, override)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return tree


def inside(text: str, mark: Mark, folder: Path, loc: Loc) -> Path:
    """The path ``text`` seen from the file that names it (``--set``: the scenario's folder).

    Raises InputError when it leads out of the scenario's ``folder``, symbolic links followed.
    """
    start = folder if mark.file == SET else Path(mark.file).resolve().parent
    try:
        path = (start / text).resolve()
    except (OSError, RuntimeError, ValueError):  # a NUL character, a loop of links
        raise InputError([Problem(mark.file, mark.line, mark.col, dotted(loc), "not a usable path", text)]) from None
    if not path.is_relative_to(folder):
        what = "path outside the scenario's folder"
        hint = "copy the file beside the scenario; a scenario reads only its own folder and the catalogues"
        raise InputError([Problem(mark.file, mark.line, mark.col, dotted(loc), what, text, hint=hint)])
    return path


def _extended(path: Path, folder: Path, below: tuple[Path, ...]) -> Node:
    real = path.resolve()
    if real in below:
        circle = " -> ".join(p.name for p in (*below[below.index(real) :], real))
        raise input_error(path, "extends runs in a circle", got=circle)
    if len(below) >= MAX_EXTENDS:
        raise input_error(path, f"extends goes deeper than {MAX_EXTENDS} files")
    tree = load_yaml(path)
    base = tree.child("extends")
    if base is None:
        return tree
    if not isinstance(base.value, str) or not base.value:
        raise InputError([_at(base.mark, ("extends",), "expected the path of another scenario")])
    target = inside(base.value, base.mark, folder, ("extends",))
    if not target.exists():
        raise InputError([_at(base.mark, ("extends",), "no such scenario file", base.value)])
    # shown as the user would name it: relative to the file that extends it
    shown = path.parent / base.value
    return _overlay(_extended(shown, folder, (*below, real)), tree, ())


def _overlay(base: Node, top: Node, loc: Loc) -> Node:
    """``top`` over ``base``: mappings merge key by key, anything else replaces."""
    base, top = _opened(base, top, loc), _opened(top, base, loc)
    if not isinstance(base.value, dict) or not isinstance(top.value, dict):
        return top
    section = section_at(loc)
    exclusive = section.exclusive if section is not None else ()
    replaced = exclusive if any(key in top.value for key in exclusive) else ()
    values = {key: node for key, node in base.value.items() if key not in replaced or key in top.value}
    for key, node in top.value.items():
        values[key] = _overlay(values[key], node, (*loc, key)) if key in values else node
    return Node(values, top.mark, {**base.keys, **top.keys})


def _opened(node: Node, other: Node, loc: Loc) -> Node:
    """A single value as the mapping it stands for, where the other side is a mapping."""
    if isinstance(node.value, dict | list) or not isinstance(other.value, dict):
        return node
    section = section_at(loc)
    key = section.shorthand_key(node.value) if section is not None else None
    return node if key is None else Node({key: node}, node.mark, {key: node.mark})


def _set(tree: Node, override: str) -> Node:
    """``tree`` with one ``PATH=VALUE`` applied."""
    mark = Mark(SET, None, None)
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(part.strip() for part in parts):
        raise input_error(SET, "expected PATH=VALUE", got=override, hint="for example serving.layout.tp=2")
    parsed = parse_yaml(text, SET) if text.strip() else Node("", mark)
    node = _moved(parsed, mark)
    for part in reversed(parts):
        node = Node({part.strip(): node}, mark, {part.strip(): mark})
    loc = tuple(part.strip() for part in parts)
    if loc == ("extends",):
        raise input_error(SET, "extends cannot be set here", hint="name the other scenario file instead")
    return _placed(tree, node, ())


def _placed(base: Node, top: Node, loc: Loc) -> Node:
    """As ``_overlay``; in addition a key that is a number reaches into a list (references.0.value=3)."""
    if isinstance(base.value, list) and isinstance(top.value, dict) and len(top.value) == 1:
        key, node = next(iter(top.value.items()))
        if not key.isdecimal() or int(key) >= len(base.value):
            raise input_error(SET, f"{dotted(loc)} is a list of {len(base.value)}", got=key)
        i = int(key)
        items = [_placed(item, node, (*loc, i)) if n == i else item for n, item in enumerate(base.value)]
        return Node(items, base.mark)
    if isinstance(base.value, dict) and isinstance(top.value, dict) and len(top.value) == 1:
        key, node = next(iter(top.value.items()))
        below = base.value.get(key)
        if below is not None and isinstance(below.value, dict | list) and isinstance(node.value, dict):
            return Node({**base.value, key: _placed(below, node, (*loc, key))}, base.mark, base.keys)
    return _overlay(base, top, loc)


def _moved(node: Node, mark: Mark) -> Node:
    """The same values, all at ``mark``."""
    if isinstance(node.value, dict):
        return Node({k: _moved(n, mark) for k, n in node.value.items()}, mark, dict.fromkeys(node.value, mark))
    if isinstance(node.value, list):
        return Node([_moved(n, mark) for n in node.value], mark)
    return Node(node.value, mark)


def _at(mark: Mark, loc: Loc, what: str, got: str = "") -> Problem:
    return Problem(mark.file, mark.line, mark.col, dotted(loc), what, got)
