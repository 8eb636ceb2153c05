"""``--report`` and ``--figures`` of the commands that answer a question."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from moeplan.report.page import Page
    from moeplan.spec.plan import Plan
    from moeplan.spec.scenario import Scenario

_F = TypeVar("_F", bound=Callable[..., Any])


def report_options(command: _F) -> _F:
    """Adds the two options."""
    path = click.Path(path_type=Path)
    command = click.option(
        "--figures", type=path, metavar="FOLDER", help="Also write every figure as PNG and SVG there (moeplan[report])."
    )(command)
    return click.option(
        "--report", type=path, metavar="OUT.html", help="Also write a self-contained HTML report (moeplan[report])."
    )(command)


def require_report(report: Path | None, figures: Path | None) -> None:
    """Say before the work, not after it, that the extra is missing. Raises InputError."""
    if report is not None or figures is not None:
        from moeplan.report.figures import converter, plotting

        plotting()
        converter()


def write_report(make: Callable[[], Page], report: Path | None, figures: Path | None) -> None:
    """The page of a result as one file, and its figures as pictures."""
    if report is None and figures is None:
        return
    from moeplan.files.write import write_text
    from moeplan.report.figures import write_figures
    from moeplan.report.page import render

    page = make()
    if report is not None:
        write_text(report, render(page))
        click.echo(f"wrote {report}", err=True)
    if figures is not None:
        written = write_figures((one for section in page.sections for one in section.figures), figures)
        click.echo(f"wrote {len(written)} pictures to {figures}", err=True)


def report_of_plan(scenario: Scenario, plan: Plan, report: Path | None, figures: Path | None) -> None:
    """The report of one plan, with what only its scenario can tell."""
    if report is None and figures is None:
        return
    from moeplan.cli.progress import progress_bar
    from moeplan.planner.answers.exhibits import exhibits
    from moeplan.planner.answers.surface import surface
    from moeplan.report.plan_page import plan_page

    shown = exhibits(scenario, plan)
    with progress_bar("simulating what-ifs") as told:
        around = None if report is None else surface(scenario, plan, progress=told)
    write_report(lambda: plan_page(plan, shown, around), report, figures)
