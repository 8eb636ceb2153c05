"""pydantic's complaints as located problems of the file they concern."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from moeplan.errors import Problem, did_you_mean
from moeplan.files.yaml_tree import Node
from moeplan.units import UnitError

_WORDS = {"missing": "missing key", "extra_forbidden": "unknown key"}


def problems_of(error: ValidationError, node: Node, schema: type[BaseModel]) -> list[Problem]:
    """One located problem for each complaint about ``node``, which was validated against ``schema``."""
    problems = []
    for item in error.errors():
        loc = tuple(part for part in item["loc"] if isinstance(part, str | int))
        cause = (item.get("ctx") or {}).get("error")
        what, allowed, hint = _WORDS.get(item["type"], item["msg"]), "", ""
        if isinstance(cause, UnitError):
            loc, what, allowed, hint = (*loc, "value"), cause.what, cause.allowed, cause.hint
        elif isinstance(cause, ValueError):
            loc, what = (*loc, "value"), str(cause)
        if item["type"] == "extra_forbidden":
            known = _keys_at(schema, loc[:-1])
            allowed, hint = ", ".join(known), did_you_mean(str(loc[-1]), known)
        mark = node.mark_of(loc, key=item["type"] == "extra_forbidden")
        got = "" if item["type"] in _WORDS else _got(node, loc)
        path = ".".join(str(part) for part in loc)
        problems.append(Problem(mark.file, mark.line, mark.col, path, what, got, allowed, hint))
    return problems


def _got(node: Node, loc: tuple[str | int, ...]) -> str:
    for part in loc:
        below = node.child(part)
        if below is None:
            return ""
        node = below
    return "" if isinstance(node.value, dict | list) else repr(node.value)


def _keys_at(schema: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Keys the schema allows at ``loc``."""
    for part in loc:
        field = schema.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field is not None else None
        if inner is None:
            return []
        schema = inner
    return list(schema.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list):
        for part in get_args(annotation):
            found = _model_in(part)
            if found is not None:
                return found
    if hasattr(annotation, "__metadata__"):
        return _model_in(annotation.__origin__)
    return None
