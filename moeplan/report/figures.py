"""Figures as Vega-Lite specifications: the same one is drawn in the page, and as PNG or SVG without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from moeplan.errors import input_error
from moeplan.files.write import write_bytes

HINT = "pip install 'moeplan[report]'"
# Colours that people with deficient colour vision tell apart (Okabe and Ito 2008), on white and on near black.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#999999")
WIDTH, HEIGHT = 640, 260  # pixels of a picture; in the page the width is the reader's


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture. ``note`` says how to read it, in words for a reader who does not."""

    name: str
    title: str
    note: str
    spec: dict[str, Any]


def plotting() -> ModuleType:
    """Altair. Raises InputError where the extra is not installed."""
    try:
        import altair
    except ImportError:
        raise input_error("--report", "needs altair and vl-convert-python", hint=HINT) from None
    return altair


def converter() -> ModuleType:
    """vl-convert: Vega's own code without a browser. Raises InputError where the extra is not installed."""
    try:
        import vl_convert
    except ImportError:
        raise input_error("--report", "needs altair and vl-convert-python", hint=HINT) from None
    converted: ModuleType = vl_convert
    return converted


def figure(name: str, title: str, note: str, chart: Any) -> Figure:
    """``chart`` (Altair) as a figure that fills its place."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    return Figure(name, title, note, spec)


def theme(*, dark: bool) -> dict[str, Any]:
    """Vega-Lite configuration for one background; the page holds both."""
    text, grid = ("#e8e8e8", "#3a3f47") if dark else ("#1f2328", "#dde1e6")
    axis = {"labelColor": text, "titleColor": text, "gridColor": grid, "domainColor": grid, "tickColor": grid,
            "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 220}  # fmt: skip
    return {
        "background": "transparent" if dark else "#ffffff",
        "font": "system-ui, sans-serif",
        "axis": axis,
        "legend": {"labelColor": text, "titleColor": text, "labelFontSize": 12, "orient": "top", "labelLimit": 260},
        "header": {"labelColor": text, "titleColor": text},
        "title": {"color": text},
        "text": {"color": text},
        "view": {"stroke": "transparent"},
        "range": {"category": list(PALETTE)},
        "rule": {"color": text},
    }


def write_figures(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Each figure as PNG and SVG in ``folder``, which is made. Raises InputError where it cannot be written."""
    convert = converter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise input_error(folder, "cannot be made", got=str(error.strerror)) from error
    written = []
    for one in figures:
        spec = json.dumps(_of_fixed_width(one.spec))
        config = theme(dark=False)
        for suffix, data in (
            (".png", convert.vegalite_to_png(spec, scale=2, config=config)),
            (".svg", convert.vegalite_to_svg(spec, config=config).encode()),
        ):
            written.append(folder / (one.name + suffix))
            write_bytes(written[-1], data)
    return written


def _of_fixed_width(spec: Any) -> Any:
    """``spec`` with pixels where the page fills its place."""
    if isinstance(spec, dict):
        return {k: WIDTH if k == "width" and v == "container" else _of_fixed_width(v) for k, v in spec.items()}
    return [_of_fixed_width(item) for item in spec] if isinstance(spec, list) else spec
