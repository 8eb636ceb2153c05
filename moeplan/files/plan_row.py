"""A plan as one row of a table: dotted columns, numbers as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from moeplan.files.plan_json import plan_to_json
from moeplan.spec.plan import Plan

Cell = float | int | str | bool | None


def plan_row(plan: Plan) -> dict[str, Cell]:
    """Columns of ``plan`` as its JSON names them ("serving.ttft_s.p90.high"), and the digest of that JSON.

    Verdicts are columns by their check ("verdicts.budget.ok"); sentences and origins of inputs are left to the JSON.
    """
    row: dict[str, Cell] = {}
    for verdict in plan.verdicts:
        if verdict.need is not None or verdict.have is not None:
            row |= {f"verdicts.{verdict.check}.{name}": getattr(verdict, name) for name in ("ok", "need", "have")}
    for field in fields(plan):
        if field.name not in ("verdicts", "provenance"):
            row |= dict(_cells(field.name, getattr(plan, field.name)))
    row |= {f"provenance.{key}": value for key, value in plan.provenance.items() if isinstance(value, str)}
    row["plan_sha256"] = plan_digest(plan)
    return row


def plan_digest(plan: Plan) -> str:
    """SHA-256 of the plan's JSON."""
    return hashlib.sha256(plan_to_json(plan).encode()).hexdigest()


def _cells(path: str, value: Any) -> Iterator[tuple[str, Cell]]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _cells(f"{path}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _cells(f"{path}.{key}", below)
    elif value is None or isinstance(value, str | bool | int | float):
        yield path, value
