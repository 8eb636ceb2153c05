"""Results of what-if studies as JSON: frozen dataclasses, field by field."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter


def to_json(result: Any) -> str:
    """JSON of a frozen result; same result, same bytes. Raises ValueError on NaN and infinity."""
    tree = TypeAdapter(type(result)).dump_python(result, mode="json")
    return json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
