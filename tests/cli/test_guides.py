"""The worked decisions in docs/guides: their commands run, end as stated, and say what the page quotes.

Numbers move with every fit: the words around them must be printed, the numbers of the page are those of its day
(``python tests/cli/pages.py`` renews them).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import GUIDES, ROOT, masked, run, steps

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
    result, code = run(command)
    assert result.exit_code == code, result.output
    printed = masked(result.output)
    for text in quoted:
        assert masked(text) in printed, f"not printed: {text}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem[:8])
def test_links_lead_somewhere(guide: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", guide.read_text(encoding="utf-8")):
        assert (guide.parent / target).exists(), target
