"""The scenario language for editors (JSON Schema) and for readers (the reference page), both made from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from moeplan.files.scenario.schema import ScenarioFile
from moeplan.files.scenario.schema_types import Rule, Section
from moeplan.files.scenario.schema_walk import section_in

_HEAD = """# The scenario file

Made by `moeplan schema --markdown`; do not edit. A scenario is a YAML file: plain data, no tags, no code, no
environment variables. Needed are only `model`, `hardware`, `price` and what is asked (`serving` or `training`).

- **Quantities** are a number and a unit in one string: `80 GB` (10^9), `80 GiB` (2^30), `400 Gb/s` (bits),
  `4 req/s`, `50 ms`, `12 months` (a month is 730 h), `3 USD/h`, `3000 USD/month`, `0.12 USD/kWh`, `20 %` or `0.2`,
  `1T tokens`.
- **Money** is in US dollars; another currency needs its rate in `exchange_rates`.
- **Names** of models, hardware and offers: `moeplan catalog models|hardware|prices`. A path (ending in `.json` or
  `.yaml`, or beginning with `.`) is relative to the scenario's folder and may not leave it.
- **Short forms**: where a section is described as *short for*, a single value stands for that one key.
- **Overrides**: `extends: other.yaml` takes that file's values and changes some of them; `--set serving.layout.tp=2`
  on the command line changes one value. Both go through the same checks.

`moeplan check SCENARIO --show` prints every value with where it came from.
"""


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of scenario files."""
    schema = ScenarioFile.model_json_schema()
    sections = {section.__name__: section for _, section in _sections()}
    for name, described in schema.get("$defs", {}).items():
        # defaults are SI numbers inside; a reader of the schema would take them for the file's own notation
        for field in described.get("properties", {}).values():
            if not isinstance(field.get("default"), bool | str | type(None)):
                field.pop("default")
        if sections[name].has_shorthand():
            schema["$defs"][name] = {"anyOf": [described, {"type": ["string", "number"]}], "title": name}
    for field in schema["properties"].values():
        field.pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "moeplan scenario",
    }


def reference_page() -> str:
    """docs/reference/scenario.md: every key with its type, default and meaning."""
    parts = [_HEAD]
    for path, section in _sections():
        parts.append(f"## {path or 'scenario'}\n")
        parts.append((section.__doc__ or "").strip() + "\n")
        if isinstance(section.shorthand, str):
            parts.append(f"A single value is short for `{section.shorthand}`.\n")
        elif section.has_shorthand():
            parts.append("A single price is short for `per_gpu_hour`, any other text for `offer`.\n")
        parts.append("| key | value | default | meaning |\n|---|---|---|---|")
        parts.extend(_row(path, name, field) for name, field in section.model_fields.items())
        parts.append("")
    return "\n".join(parts)


def _sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section with the path it is first met at, outer ones first."""
    queue: list[tuple[str, type[Section]]] = [("", ScenarioFile)]
    seen: set[type[Section]] = set()
    while queue:
        path, section = queue.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield path, section
        for name, field in section.model_fields.items():
            inner = section_in(field.annotation)
            if inner is not None:
                queue.append((f"{path}.{name}".lstrip("."), inner))


def _row(path: str, name: str, field: FieldInfo) -> str:
    inner = section_in(field.annotation)
    if inner is not None:
        place = next(p for p, section in _sections() if section is inner)
        words = f"[{place}](#{place.replace('.', '').lower()})"
    else:
        words = _words(field)
    default = "needed" if field.is_required() else _default(field, inner)
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{name}` | {words} | {default} | {meaning} |"


def _words(field: FieldInfo) -> str:
    rule = next((item for item in field.metadata if isinstance(item, Rule)), None) or _rule_in(field.annotation)
    return "mapping of a currency code to its value" if rule is None else rule.words


def _rule_in(annotation: Any) -> Rule | None:
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(item, Rule):
            return item
    return next((rule for rule in map(_rule_in, get_args(annotation)) if rule is not None), None)


def _default(field: FieldInfo, inner: type[Section] | None) -> str:
    if inner is not None or field.default is None or field.default_factory is not None:
        return ""
    value = field.default
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
