"""One self-contained HTML file: text, tables, figures and the sliders; it loads nothing.

Every text of a scenario is escaped where it is written, data travels as JSON in which no tag can be opened or
closed, and a content security policy forbids the file every request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from moeplan._version import __version__
from moeplan.errors import printable
from moeplan.planner.answers.surface import Surface
from moeplan.report.figures import Figure, converter, theme

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_LONG = 12  # characters; a longer cell is words, not a number
Value = float | int | str | bool | None


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and the number behind it with its place in the JSON."""

    text: str
    path: str = ""
    value: Value = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; the first column names the row."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    grids: Sequence[Grid] = ()


@dataclass(frozen=True, slots=True)
class Sentence:
    """A verdict or a remark: ``mark`` is "ok", "NO" or "note"."""

    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """A report. ``document`` is the JSON of the result, kept in the file for machines; None where it is too long."""

    title: str
    headline: str
    ok: bool | None
    sentences: Sequence[Sentence] = ()
    sections: Sequence[Section] = ()
    surface: Surface | None = None
    surface_json: Any = None
    document: Any = None
    foot: Sequence[str] = field(default=())


def render(page: Page) -> str:
    """The file's text."""
    figures = {one.name: one.spec for section in page.sections for one in section.figures}
    body = "".join(
        [
            _head(page),
            _sentences(page.sentences),
            "" if page.surface is None else _what_if(page.surface),
            *map(_section, page.sections),
            _foot(page),
        ]
    )
    inside = {"figures": figures, "config": _page_config(), "surface": page.surface_json}
    scripts = [
        f'<script type="application/json" id="moeplan-json">{inert_json(page.document)}</script>',
        f'<script type="application/json" id="moeplan-page">{inert_json(inside)}</script>',
        f"<script>{_library()}</script>" if figures else "<script>const vegaEmbed = null;</script>",
        f"<script>{_asset('page.js')}</script>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(page.title)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>{_asset('page.css')}</style>\n</head>\n<body>\n{body}\n{chr(10).join(scripts)}\n</body>\n</html>\n"
    )


def inert_json(value: Any) -> str:
    """JSON that an HTML parser takes for text whatever it holds: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(value: object, limit: int = 2000) -> str:
    """Text of a user or a catalog, inert: no tag, no entity, no control or direction character."""
    return escape(printable(str(value).replace("\n", " "), limit), quote=True)


def _head(page: Page) -> str:
    state = "" if page.ok is None else ' class="yes"' if page.ok else ' class="no"'
    return (
        f"<header><h1>{_text(page.title)}: <span{state}>{_text(page.headline)}</span></h1>"
        '<div><button id="theme" type="button">light / dark</button> '
        '<button id="print" type="button">print</button></div></header>\n'
    )


def _sentences(found: Iterable[Sentence]) -> str:
    kinds = {"ok": "ok", "NO": "fails", "note": "remark"}
    rows = [f'<li class="{kinds[s.mark]}"><b>{s.mark}</b> {_text(s.text)}</li>' for s in found]
    return f'<ul class="verdicts">{"".join(rows)}</ul>\n' if rows else ""


def _what_if(surface: Surface) -> str:
    return (
        '<section id="what-if"><h2>What if</h2><p class="note">Move what may change. The answers lie between '
        f"{surface.n_simulated} simulations of this scenario around it; {surface.n_held_out} more, in the middle "
        "between them, measured how far the interpolation is off: the bound stands with every answer. It comes on "
        "top of the plan's own intervals.</p>"
        '<div class="sliders" id="sliders"></div><div class="answers" id="answers"></div></section>\n'
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{_text(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{_text(section.text, 4000)}</p>")
    parts += map(_figure, section.figures)
    parts += map(_grid, section.grids)
    return "".join([*parts, "</section>\n"])


def _figure(one: Figure) -> str:
    label = _text(f"{one.title}. {one.note}")
    return (
        f'<figure><figcaption><h3>{_text(one.title)}</h3><p class="note">{_text(one.note)}</p></figcaption>'
        f'<div class="chart" id="chart-{one.name}" role="img" aria-label="{label}"></div></figure>'
    )


def _grid(grid: Grid) -> str:
    head = "".join(f'<th scope="col">{_text(text)}</th>' for text in grid.heads)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in grid.rows)
    caption = f"<caption>{_text(grid.title)}</caption>" if grid.title else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if not cell.path:
        kind = ' class="words"' if len(cell.text) > _LONG else ""
        return f"<td{kind}>{_text(cell.text, 400)}</td>"
    exact = _text(json.dumps(cell.value), 400)
    return f'<td data-path="{_text(cell.path, 400)}" data-value="{exact}" title="{exact}">{_text(cell.text, 400)}</td>'


def _foot(page: Page) -> str:
    lines = [*page.foot, f"Made by moeplan {__version__}. Intervals hold the truth in nine of ten cases."]
    return f"<footer>{''.join(f'<p>{_text(line, 4000)}</p>' for line in lines)}</footer>\n"


def _page_config() -> dict[str, Any]:
    """The theme in the page's own text colour, so that it follows light, dark and print."""
    config = theme(dark=False)

    def recoloured(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: recoloured(value) for key, value in item.items()}
        return "currentColor" if isinstance(item, str) and item.startswith("#") else item

    for name in ("axis", "legend", "header", "title", "text", "rule"):
        config[name] = recoloured(config[name])
    config["axis"] |= {"gridOpacity": 0.15, "domainOpacity": 0.4, "tickOpacity": 0.4}
    return config | {"background": "transparent"}


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed in one script, closed against the end of its element."""
    bundle: str = converter().javascript_bundle()
    return bundle.replace("</script", "<\\/script")


@cache
def _asset(name: str) -> str:
    return (files("moeplan.report") / "assets" / name).read_text(encoding="utf-8")


def finite(value: Any) -> Any:
    """``value`` with null for what JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
