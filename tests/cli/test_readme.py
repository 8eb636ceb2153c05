"""The README says what the program does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from moeplan.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_there_to_the_letter() -> None:
    assert "$ pip install . && moeplan simulate scenarios/quickstart.yaml\n" in README
    assert "$ pip install '.[test]' && pytest\n" in README


def test_quickstart_output_is_what_the_program_prints() -> None:
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    result = CliRunner().invoke(main, ["simulate", str(ROOT / "scenarios/quickstart.yaml")])
    printed = "\n".join(line.rstrip() for line in result.stdout.splitlines())
    assert shown.group(1).strip() == printed.strip()


@pytest.mark.parametrize("command", re.findall(r"`moeplan ([^`]+--set[^`]+)`", README))
def test_commands_in_the_text_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code in (0, 3), result.output


def test_scenario_in_the_readme_is_complete(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    (tmp_path / "traces").mkdir()
    trace = "azure-conversation-2023-excerpt.csv"
    (tmp_path / "traces" / trace).write_bytes((ROOT / "scenarios/traces" / trace).read_bytes())
    (tmp_path / "mine.yaml").write_text(block.group(1))
    result = CliRunner().invoke(main, ["check", str(tmp_path / "mine.yaml")])
    assert result.exit_code == 0, result.output


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    monkeypatch.chdir(ROOT)
    exec(compile(block.group(1), "README.md", "exec"), {})
    assert "Q(value=" in capsys.readouterr().out
