"""From a place in a scenario to its section of the schema, and from pydantic's complaints to located problems."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from moeplan.errors import Problem, did_you_mean
from moeplan.files.scenario.schema import ScenarioFile
from moeplan.files.scenario.schema_types import Section
from moeplan.files.yaml_tree import Mark, Node

Loc = tuple[str | int, ...]


def section_in(annotation: Any) -> type[Section] | None:
    """The section a field's annotation holds, alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list):
        found = (section_in(part) for part in get_args(annotation))
        return next((section for section in found if section is not None), None)
    return None


def section_at(loc: Loc) -> type[Section] | None:
    """The section at ``loc``; None for single values and unknown places."""
    section: type[Section] | None = ScenarioFile
    for part in loc:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section is not None else None
        section = section_in(field.annotation) if field is not None else None
    return section


def dotted(loc: Loc) -> str:
    """``serving.layout.tp``, ``references[0].value``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def written(tree: Node, loc: Loc) -> Loc:
    """``loc`` as far as the user wrote it: a key that a single value stands for is left out."""
    node = tree
    for depth, part in enumerate(loc):
        if not isinstance(node.value, dict | list):
            return loc[:depth]
        below = node.child(part)
        if below is None:
            return loc
        node = below
    return loc


def place_of(tree: Node, loc: Loc) -> Mark:
    """Where a report about ``loc`` points: a single value itself, the key of a mapping or list."""
    node: Node | None = tree
    for part in loc:
        node = node.child(part) if node is not None else None
    is_collection = node is not None and isinstance(node.value, dict | list)
    return tree.mark_of(loc, key=is_collection and bool(loc) and isinstance(loc[-1], str))


def problems_of(error: ValidationError, tree: Node, under: Loc = ()) -> list[Problem]:
    """One located problem for each complaint of the schema about the section at ``under`` of ``tree``."""
    return [
        _problem(item["type"], (*under, *item["loc"]), item["msg"], item.get("ctx") or {}, tree)
        for item in error.errors()
    ]


def _problem(kind: str, loc: Loc, message: str, ctx: dict[str, Any], tree: Node) -> Problem:
    what, allowed, hint = message, "", ""
    if kind == "moeplan":
        what, allowed, hint = ctx["what"], ctx["allowed"], ctx["hint"]
    elif kind == "extra_forbidden":
        section = section_at(loc[:-1])
        known = list(section.model_fields) if section is not None else []
        what, allowed, hint = "unknown key", ", ".join(known), did_you_mean(str(loc[-1]), known)
    elif kind == "missing":
        mark = place_of(tree, written(tree, loc[:-1]))
        field = section_at(loc[:-1])
        description = field.model_fields[str(loc[-1])].description if field is not None else ""
        return Problem(mark.file, mark.line, mark.col, dotted(loc), "missing key", hint=description or "")
    elif kind in ("model_type", "dict_type"):
        section = section_at(loc)
        what, allowed = "expected a mapping of keys to values", ", ".join(section.model_fields) if section else ""
    elif kind == "list_type":
        what = "expected a list"
    elif kind == "too_short":
        what = "an empty list leaves nothing to choose"
    existing = written(tree, loc)
    node = tree
    for part in existing:
        node = node.child(part) or node
    mark = tree.mark_of(loc, key=True) if kind == "extra_forbidden" else place_of(tree, existing)
    got = "" if kind == "extra_forbidden" or isinstance(node.value, dict | list) else str(node.plain())
    return Problem(mark.file, mark.line, mark.col, dotted(existing), what, got, allowed, hint)


def empty_values(node: Node, loc: Loc = ()) -> list[Problem]:
    """A problem for each key without a value: dropping it silently could hide a mistake."""
    if node.value is None:
        mark = node.mark
        return [Problem(mark.file, mark.line, mark.col, dotted(loc), "no value", hint="give one, or remove the key")]
    if isinstance(node.value, dict):
        return [p for key, below in node.value.items() for p in empty_values(below, (*loc, key))]
    if isinstance(node.value, list):
        return [p for i, below in enumerate(node.value) for p in empty_values(below, (*loc, i))]
    return []
