"""The worked decisions in docs/guides: their commands run, end as stated, and say what the page quotes.

Numbers move with every fit: the words around them must be printed, the numbers of the page are those of its day.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from moeplan.cli import main

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def masked(text: str) -> str:
    """``text`` on one line with its numbers, and the unit that follows a size, taken out."""
    line = " ".join(text.split())
    return re.sub(r"-?\$?\d[\d,.]*(e[+-]\d+)?[TBM%]?", "#", line)


def steps(page: str) -> list[tuple[str, list[str]]]:
    """Commands of a page with the lines quoted below each."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip():
                found[-1][1].append(line)
    return found


CASES = [
    pytest.param(command, quoted, id=f"{guide.stem[:8]}-{i}")
    for guide in GUIDES
    for i, (command, quoted) in enumerate(steps(guide.read_text(encoding="utf-8")))
]


def test_there_are_two_guides() -> None:
    assert len(GUIDES) >= 2
    assert len(CASES) >= 14


@pytest.mark.parametrize(("command", "quoted"), CASES)
def test_guide(command: str, quoted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line, _, comment = command.partition("  # exit ")
    program, *args = shlex.split(line)
    assert program == "moeplan"
    result = CliRunner().invoke(main, args)
    assert result.exit_code == int(comment or 0), result.output
    printed = masked(result.output)
    for text in quoted:
        assert masked(text) in printed, f"not printed: {text}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem[:8])
def test_links_lead_somewhere(guide: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", guide.read_text(encoding="utf-8")):
        assert (guide.parent / target).exists(), target
