"""Text of strangers in tables that a spreadsheet may open."""

from __future__ import annotations

from typing import Any

_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of what a spreadsheet runs (OWASP, CSV injection)


def inert_cell(value: object) -> object:
    """``value``, with an apostrophe before text that a spreadsheet would run as a formula; numbers stay as they are."""
    if not isinstance(value, str) or not value.lstrip(" ").startswith(_STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def inert_frame(frame: Any) -> Any:
    """A pandas frame whose columns of text are inert."""
    words = [name for name in frame.columns if frame[name].dtype.kind not in "biufM"]
    return frame.assign(**{name: frame[name].map(inert_cell) for name in words})
