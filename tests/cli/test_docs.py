"""The documentation, built strictly: every link and section exists, generated pages are current, every block runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt
from pages import masked, run, steps

from moeplan.cli import main
from moeplan.cli.reference import cli_markdown
from moeplan.files.scenario.schema_document import json_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@cache
def parsed(page: Path) -> tuple[list[str], set[str], list[tuple[str, str]]]:
    """Targets of links and pictures, sections by their anchors, fenced blocks by their language."""
    links, anchors, blocks = [], set(), []
    tokens = MarkdownIt().enable("table").parse(page.read_text("utf-8"))
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in tokens[i + 1].children or [] if child.content)
            anchors.add(re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-"))
        if token.type == "fence":
            blocks.append((token.info.strip(), token.content))
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                links.append(str(target))
    return links, anchors, blocks


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_section_exists(page: Path) -> None:
    for target in parsed(page)[0]:
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, section = target.partition("#")
        file = page if not name else (page.parent / name)
        assert file.exists(), f"{page.name}: {target}"
        assert file.resolve().is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        if section and file.suffix == ".md":
            assert section in parsed(file.resolve())[1], f"{page.name}: {target}: no such section"


def test_the_check_of_links_would_find_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A b\n\n[x](#a-b) [y](gone.md) ![z](no.png)\n\n| t |\n|---|\n| [w](#none) |\n")
    links, anchors, _ = parsed(tmp_path / "a.md")
    assert links == ["#a-b", "gone.md", "no.png", "#none"]
    assert anchors == {"a-b"}


def test_every_page_is_reached_from_the_index() -> None:
    seen, queue = set(), [DOCS / "index.md"]
    while queue:
        page = queue.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        queue += [page.parent / t.partition("#")[0] for t in parsed(page)[0] if t.partition("#")[0] and "://" not in t]
    missed = [str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md") if page.resolve() not in seen]
    assert missed == []


def test_command_reference_is_the_programs() -> None:
    made = cli_markdown()
    hint = "run: python -m moeplan.cli.reference > docs/reference/cli.md"
    assert (DOCS / "reference/cli.md").read_text("utf-8") == made, hint
    for name in main.list_commands(None):  # type: ignore[arg-type]
        assert f"## moeplan {name}\n" in made


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """Commands and Python run here, in the guides' tests or the README's; what CI itself runs is in contributing."""
    kinds = {name: {kind for kind, _ in parsed(page)[2]} for page, name in zip(PAGES, NAMES, strict=True)}
    for name, found in kinds.items():
        assert found <= {"console", "python", "yaml", "text", "csv"}, name
    assert {name for name, found in kinds.items() if "python" in found} == {"docs/tutorial.md", "README.md"}
    runnable = {name for name, found in kinds.items() if "console" in found and "/guides/" not in name}
    assert runnable == {"docs/tutorial.md", "docs/reference/editors.md", "docs/contributing.md", "README.md"}


def test_commands_of_contributing_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci/run").read_text("utf-8")
    for kind, block in parsed(DOCS / "contributing.md")[2]:
        for line in block.splitlines() if kind == "console" else ():
            for command in re.split(r"&&", line.removeprefix("$ ").partition("#")[0]):
                words = shlex.split(command)
                program = "pip" if words[0] == "pip" else "venv" if "venv" in command else words[0]
                assert program in ci, command


def test_tutorial_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "tutorial.md").read_text("utf-8")
    for command, quoted in steps(page):
        result, code = run(command)
        assert result.exit_code == code, f"{command}: {result.output}"
        for text in quoted:
            assert masked(text) in masked(result.output), f"{command}: not printed: {text}"
    assert {"mine.yaml", "plan.html", "card.md", "plan.json"} <= {path.name for path in tmp_path.iterdir()}
    for kind, block in parsed(DOCS / "tutorial.md")[2]:
        if kind == "python":
            exec(compile(block, "tutorial.md", "exec"), {})


def test_schema_of_editors_has_help_for_every_key_and_accepts_the_starters() -> None:
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        shapes = [section, *section.get("anyOf", [])]
        for shape in shapes:
            for key, described in shape.get("properties", {}).items():
                assert described.get("description"), key
    for kind in ("serving", "training", "lifecycle"):
        text = CliRunner().invoke(main, ["init", kind]).stdout
        assert text.count("#") >= 5, "starters explain themselves"
        jsonschema.validate(yaml.load(text, yaml.BaseLoader) and yaml.safe_load(text), schema)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """The line of the reference page gives a script, and the script's question is answered."""
    page = (DOCS / "reference/editors.md").read_text("utf-8")
    assert f"_MOEPLAN_COMPLETE={shell}_source moeplan" in page
    program = [sys.executable, "-c", "from moeplan.cli import main; main(prog_name='moeplan')"]

    def asked(**env: str) -> str:
        return subprocess.run(program, env=os.environ | env, capture_output=True, text=True, check=False).stdout

    if shell != "bash":  # bash is asked for its version, which a machine without it cannot tell
        assert "_MOEPLAN_COMPLETE" in asked(_MOEPLAN_COMPLETE=f"{shell}_source")
    words = {"COMP_WORDS": "moeplan sim", "COMP_CWORD": "sim" if shell == "fish" else "1"}
    assert "simulate" in asked(_MOEPLAN_COMPLETE=f"{shell}_complete", **words)
    words = {"COMP_WORDS": "moeplan simulate --re", "COMP_CWORD": "--re" if shell == "fish" else "2"}
    assert "--report" in asked(_MOEPLAN_COMPLETE=f"{shell}_complete", **words)
