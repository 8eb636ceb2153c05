"""What README.md and docs/guides quote of commands. ``python tests/cli/pages.py`` writes today's numbers into them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from click.testing import CliRunner, Result

from moeplan.cli import main

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
_NUMBER = r"-?\$?\d[\d,.]*(?:e[+-]\d+)?[TBM%]?"


def masked(text: str) -> str:
    """``text`` on one line with its numbers taken out."""
    return re.sub(_NUMBER, "#", " ".join(text.split()))


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


def run(command: str) -> tuple[Result, int]:
    """The result of a command of a page, and the exit code the page states ("# exit 3", else 0)."""
    line, _, code = command.partition("  # exit ")
    program, *args = shlex.split(line)
    assert program == "moeplan", command
    return CliRunner().invoke(main, args), int(code or 0)


def with_numbers(page: str) -> str:
    """``page`` with the numbers its commands print today in the lines it quotes."""
    for command, quoted in steps(page):
        printed = " ".join(run(command)[0].output.split())
        for line in quoted:
            pattern = _NUMBER.join(re.escape(part) for part in re.split(_NUMBER, " ".join(line.split())))
            found = re.search(pattern, printed)
            if found is not None:
                page = page.replace(line, found.group())
    return page


def readme_with_output(page: str) -> str:
    """README.md with what the quickstart prints today."""
    printed = CliRunner().invoke(main, ["simulate", "scenarios/quickstart.yaml"]).stdout
    text = "\n".join(line.rstrip() for line in printed.splitlines()).strip()
    return re.sub(r"```text\n.*?```", lambda _found: f"```text\n{text}\n```", page, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ["SOURCE_DATE_EPOCH"] = "1795737600"  # as in tests/conftest.py
    for path, renew in ((ROOT / "README.md", readme_with_output), *((guide, with_numbers) for guide in GUIDES)):
        path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
