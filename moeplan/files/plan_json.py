"""The plan as JSON (DESIGN section 2): one adapter writes it, reads it back and states its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moeplan.errors import input_error
from moeplan.spec.plan import Plan

_ADAPTER: TypeAdapter[Plan] = TypeAdapter(Plan)


def plan_to_json(plan: Plan) -> str:
    """Plan as JSON text; same plan, same bytes. Raises ValueError on NaN and infinity, which JSON cannot hold."""
    tree = _ADAPTER.dump_python(plan, mode="json")
    return json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def plan_from_json(text: str) -> Plan:
    """Plan from the text ``plan_to_json`` wrote. Raises pydantic.ValidationError on anything else."""
    return _ADAPTER.validate_json(text, strict=True)


def read_plan(path: Path) -> Plan:
    """The plan in a file that ``simulate --out`` wrote. Raises InputError when it is none, or of another version."""
    try:
        return plan_from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise input_error(path, "cannot be read", got=str(error.strerror)) from None
    except UnicodeDecodeError as error:
        raise input_error(path, f"not UTF-8 text: byte {error.start}") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"not a plan of this version: {'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
        raise input_error(path, what, hint="moeplan simulate SCENARIO --out PLAN.json") from None


def plan_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a plan; published as docs/reference/plan.schema.json."""
    schema = _ADAPTER.json_schema(mode="serialization")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moeplan plan",
        **{k: v for k, v in schema.items() if k != "title"},
    }
    _close_objects(schema)
    return schema


def _close_objects(node: Any) -> None:
    """Forbid keys the dataclasses do not have: pydantic leaves objects open."""
    if isinstance(node, dict):
        if "properties" in node:
            node["additionalProperties"] = False
            node["required"] = sorted(node["properties"])
        for child in node.values():
            _close_objects(child)
    elif isinstance(node, list):
        for child in node:
            _close_objects(child)
