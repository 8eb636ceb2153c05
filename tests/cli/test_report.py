"""The HTML report: one file that loads nothing, draws everything, and says what the JSON says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, embedded_json, opened, table_values
from click.testing import CliRunner

from moeplan.cli import main
from moeplan.files.sweep_results import SweepPoint
from moeplan.planner.answers.surface import interpolated
from moeplan.planner.search.sweep import Sweep
from moeplan.report.page import Page, Section, Sentence, inert_json, render
from moeplan.report.plan_page import at
from moeplan.report.sweep_page import sweep_page

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "scenarios/quickstart.yaml")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e=cmd|' /C calc'!A0"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(args))
    assert result.exit_code == code, result.output
    return result.stdout


def hostile_scenario(folder: Path, name: str) -> Path:
    """The quickstart with small made-up traffic and a name of a stranger's choice."""
    body = Path(QUICKSTART).read_text("utf-8")
    body = re.sub(r"trace: .*\n", "input_tokens: 100\n    output_tokens: 20\n    requests: 200\n", body)
    body = re.sub(r"(?m)^name:.*", lambda _: f"name: {json.dumps(name)}", body)
    (folder / "mine.yaml").write_text(body, "utf-8")
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("report")
    page, pictures = folder / "out.html", folder / "pictures"
    plan = json.loads(run("simulate", QUICKSTART, "--json", "--report", str(page), "--figures", str(pictures)))
    return page, plan, pictures


def test_tables_and_embedded_json_say_what_the_plan_says(report: tuple[Path, dict[str, Any], Path]) -> None:
    page, plan, _ = report
    text = page.read_text("utf-8")
    assert embedded_json(text) == plan
    values = table_values(text)
    assert len(values) > 60
    for path, value in values.items():
        assert at(plan, path) == value, path


def test_every_axis_with_numbers_carries_a_title_and_units(report: tuple[Path, dict[str, Any], Path]) -> None:
    inside = re.search(r'id="moeplan-page">(.*?)</script>', report[0].read_text("utf-8"), re.DOTALL)
    assert inside is not None
    figures = json.loads(inside.group(1))["figures"]
    assert {"latency-percentiles", "step-time", "memory", "cost", "alternatives", "roofline", "expert-load",
            "calibration", "coverage"} <= set(figures)  # fmt: skip

    def axes(node: Any) -> list[dict[str, Any]]:
        if isinstance(node, dict):
            own = [
                v
                for k, v in node.items()
                if k in ("x", "y") and isinstance(v, dict) and v.get("type") in ("quantitative", "ordinal")
            ]
            return own + [a for v in node.values() for a in axes(v)]
        return [a for v in node for a in axes(v)] if isinstance(node, list) else []

    for name, spec in figures.items():
        titles = [axis["title"] for axis in axes(spec.get("layer", spec)) if axis.get("title")]
        assert titles, name
        assert all(title.endswith(")") for title in titles), (name, titles)


def test_pictures_are_written_without_a_browser(report: tuple[Path, dict[str, Any], Path]) -> None:
    pictures = sorted(report[2].iterdir())
    assert len(pictures) >= 18
    for picture in pictures:
        head = picture.read_bytes()[:8]
        assert head == b"\x89PNG\r\n\x1a\n" if picture.suffix == ".png" else head.startswith(b"<svg")


def test_sliders_start_at_the_plan(report: tuple[Path, dict[str, Any], Path]) -> None:
    text, plan = report[0].read_text("utf-8"), report[1]
    inside = json.loads(re.search(r'id="moeplan-page">(.*?)</script>', text, re.DOTALL).group(1))["surface"]  # type: ignore[union-attr]
    from types import SimpleNamespace

    axes = [SimpleNamespace(**axis) for axis in inside["axes"]]
    place = {axis.name: axis.start for axis in axes}
    for name, path in (
        ("usd_per_month", "cost.usd_per_month.value"),
        ("ttft_s", "serving.ttft_s.p90.value"),
        ("requests_per_s", "serving.requests_per_s.value"),
        ("load_frac", "alternatives.utilization_frac.value"),
    ):
        response = next(SimpleNamespace(**r) for r in inside["responses"] if r["name"] == name)
        assert interpolated(response, axes, place) == pytest.approx(at(plan, path), rel=1e-9), name  # type: ignore[arg-type]


def test_no_text_of_a_user_becomes_markup() -> None:
    text = render(Page(HOSTILE, HOSTILE, True, [Sentence("note", HOSTILE)], [Section(HOSTILE, HOSTILE)],
                       document={"scenario": HOSTILE, HOSTILE: 1}))  # fmt: skip
    body = text.partition("<body>")[2]
    assert "<img" not in body
    assert "\x1b" not in text
    assert "\u202e" not in text.replace(inert_json({"scenario": HOSTILE, HOSTILE: 1}), "")
    assert body.count("</script>") == body.count("<script") == 4
    assert embedded_json(text) == {"scenario": HOSTILE, HOSTILE: 1}


def test_hostile_scenario_is_inert_on_the_terminal_and_in_csv(tmp_path: Path) -> None:
    scenario = hostile_scenario(tmp_path, "=HYPERLINK(1)" + HOSTILE)
    shown = run("simulate", str(scenario), code=0)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    out = tmp_path / "out.csv"
    run("sweep", str(scenario), "--vary", "serving.traffic.rate=1 req/s,2 req/s", "--out", str(out))
    import csv

    for row in csv.reader(out.read_text("utf-8").splitlines()):
        for field in row:
            number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", field)
            assert number or not field.startswith(("=", "+", "-", "@", "\t")), field


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    result = CliRunner().invoke(main, ["simulate", QUICKSTART, "--report", str(tmp_path / "x.html")])
    assert result.exit_code == 2
    assert "pip install 'moeplan[report]'" in result.stderr


def large_sweep(n: int) -> Sweep:
    points = tuple(
        SweepPoint(
            i,
            (f"serving.traffic.rate={1 + i % 977} req/s", f"hardware={'ab'[i % 2]}"),
            {"feasible": i % 3 == 0, "cost.usd_per_month.value": 1000.0 + (i * 7919) % 5000,
             "cost.usd_per_million_output_tokens.value": 0.1 + (i * 31) % 997 / 100.0,
             "serving.ttft_s.p90.value": 0.05 + (i * 104729) % 9973 / 1000.0,
             "serving.tpot_s.p90.value": 0.01 + i % 50 / 1000.0, "serving.requests_per_s.value": float(1 + i % 977)},
        )
        for i in range(n)
    )  # fmt: skip
    return Sweep("large.yaml", "random", ("serving.traffic.rate", "hardware"), "0" * 64, points)


def test_front_of_a_sweep_is_what_nothing_beats() -> None:
    found = large_sweep(300)
    page = sweep_page(found)
    front = next(f for f in page.sections[0].figures if f.name == "pareto")
    drawn = {(r["x"], r["y"]) for r in front.spec["data"]["values"] if r["what"] == "front"}
    pairs = {
        (p.row["cost.usd_per_million_output_tokens.value"], p.row["serving.ttft_s.p90.value"]) for p in found.points
    }
    best = {p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs)}
    assert drawn == best


@pytest.mark.slow
def test_report_of_a_hundred_thousand_points_stays_small(tmp_path: Path) -> None:
    assert len(render(sweep_page(large_sweep(100_000))).encode()) < 10e6


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [1100, 390])
def test_browser_draws_every_chart_without_error_or_request(
    report: tuple[Path, dict[str, Any], Path], tmp_path: Path, width: int
) -> None:
    found = opened(report[0], tmp_path, width=width)
    assert found.console == []
    assert found.requests == []
    places = re.findall(r'class="chart[^"]*" id="chart-([^"]+)"', found.dom)
    assert len(places) >= 9
    for name in places:
        drawn = found.dom.partition(f'id="chart-{name}"')[2].partition("</figure>")[0]
        assert "<svg" in drawn, name
        assert "mark-" in drawn, name
    assert 'data-ready="true"' in found.dom
    values = table_values(found.dom)
    assert all(at(report[1], path) == value for path, value in values.items())


@pytest.mark.slow
@needs_browser
def test_sliders_interpolate_as_the_planner_does(report: tuple[Path, dict[str, Any], Path], tmp_path: Path) -> None:
    script = """
      const set = (name, value) => { const s = document.getElementById('slider-' + name); s.value = value;
        s.dispatchEvent(new Event('input')); };
      set('work', 700); set('size', 2); set('price', 300); set('months', 800);
      const out = {};
      for (const box of document.querySelectorAll('#answers > div'))
        out[box.id.slice(7)] = box.querySelector('output').value_exact;
      document.body.setAttribute('data-out', JSON.stringify(out));
    """
    dom = opened(report[0], tmp_path, script=script).dom
    import html
    from types import SimpleNamespace

    got = json.loads(html.unescape(re.search(r'data-out="([^"]*)"', dom).group(1)))  # type: ignore[union-attr]
    surface = json.loads(re.search(r'id="moeplan-page">(.*?)</script>', dom, re.DOTALL).group(1))["surface"]  # type: ignore[union-attr]
    axes = [SimpleNamespace(**axis) for axis in surface["axes"]]
    by_name = {axis.name: axis for axis in axes}

    def along(name: str, share: float, log: bool) -> float:
        low, high = by_name[name].nodes[0], by_name[name].nodes[-1]
        return low * (high / low) ** share if log else low + (high - low) * share

    place = {"work": along("work", 0.7, True), "size": by_name["size"].nodes[2], "price": along("price", 0.3, True),
             "months": along("months", 0.8, False)}  # fmt: skip
    assert len(got) == len(surface["responses"]) >= 8
    for r in surface["responses"]:
        expected = interpolated(SimpleNamespace(**r), axes, place)  # type: ignore[arg-type]
        assert got[r["name"]] == pytest.approx(expected, rel=1e-9), r["name"]


@pytest.mark.slow
@needs_browser
def test_a_large_sweep_opens_quickly(tmp_path: Path) -> None:
    page, small = tmp_path / "sweep.html", tmp_path / "small.html"
    page.write_text(render(sweep_page(large_sweep(100_000))), "utf-8")
    small.write_text("<!doctype html><title>nothing</title>", "utf-8")
    start = min(opened(small, tmp_path).seconds for _ in range(2))
    found = min((opened(page, tmp_path) for _ in range(2)), key=lambda one: one.seconds)
    assert found.console == []
    assert 'data-ready="true"' in found.dom
    assert found.seconds - start < 3.0


@pytest.mark.slow
@needs_browser
def test_hostile_names_run_nothing_in_a_browser(tmp_path: Path) -> None:
    scenario = hostile_scenario(tmp_path, HOSTILE)
    page = tmp_path / "out.html"
    run("simulate", str(scenario), "--report", str(page))
    found = opened(page, tmp_path, script="document.body.setAttribute('data-images', document.images.length);")
    assert found.console == []
    assert 'data-images="0"' in found.dom
    assert 'data-ready="true"' in found.dom


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    "command",
    [
        ("sweep", QUICKSTART, "--vary", "serving.traffic.rate=1 req/s..20 req/s:6"),
        ("sensitivity", QUICKSTART, "--vary", "serving.traffic.rate=4 req/s..6 req/s", "--no-ablation"),
        ("compare", QUICKSTART, "--hardware", "h200-sxm,h100-sxm"),
        ("optimize", QUICKSTART, "--gpus", "2"),
        ("simulate", str(ROOT / "scenarios/lora-qwen3-30b.yaml")),
    ],
    ids=lambda c: c[0],
)
def test_reports_of_the_other_commands(command: tuple[str, ...], tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    result = CliRunner().invoke(main, [*command, "--json", "--report", str(page)])
    assert result.exit_code in (0, 3), result.output
    found = opened(page, tmp_path)
    assert found.console == []
    assert found.requests == []
    drawn = [part.partition("</figure>")[0] for part in found.dom.split('id="chart-')[1:] if "</figure>" in part]
    assert drawn
    assert all("<svg" in part and "mark-" in part for part in drawn)
    document = embedded_json(found.dom)
    if command[0] != "sweep":
        assert document == json.loads(result.stdout)
    values = table_values(found.dom)
    assert values
    for path, value in values.items():
        got = at(document, path) if command[0] != "sweep" else None
        assert command[0] == "sweep" or got == value, path
