"""Megatron-Core's pipeline layout language: ``Et*3|(tt|)*29mL``."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationInfo

from moeplan.files.scenario.schema_types import reject
from moeplan.spec.layout import StagePlan

MAX_SYMBOLS = 100_000
_ALLOWED = "E, t, m, L, |, ( ), * and a number"
_REPEAT = re.compile(r"(\([^()]*\)|[A-Za-z])\*(\d{1,5})")


def check_pipeline_layout(value: Any, _info: ValidationInfo) -> tuple[StagePlan, ...]:
    """The stages a layout text describes."""
    if not isinstance(value, str):
        raise reject("expected a pipeline layout as text", _ALLOWED, "Et*15|t*16|t*16|t*14L")
    text = "".join(value.split())
    while (found := _REPEAT.search(text)) is not None:
        unit, times = found.group(1), int(found.group(2))
        if len(unit) * times + len(text) > MAX_SYMBOLS:
            raise reject("pipeline layout too long", f"at most {MAX_SYMBOLS} symbols")
        text = text[: found.start()] + unit.strip("()") * times + text[found.end() :]
    text = text.replace("(", "").replace(")", "").strip("|")
    wrong = sorted(set(text) - set("EtmL|"))
    if wrong or not text:
        raise reject(f"not understood in a pipeline layout: {' '.join(wrong) or 'nothing there'}", _ALLOWED)
    stages = []
    for part in text.split("|"):
        if not part:
            raise reject("a stage without anything in it", _ALLOWED)
        if part.count("E") > 1 or part.count("L") > 1:
            raise reject("embedding and loss stand once in a stage", _ALLOWED)
        stages.append(StagePlan(part.count("t"), "E" in part, part.count("m"), "L" in part))
    return tuple(stages)
