"""The house rules a machine can check (docs/contributing.md): floors, who may import what, names, sizes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moeplan"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NUMERIC = ("numpy", "scipy", "pandas", "numba", "simpy", "pyarrow")

# Third-party modules and the rooms that may import them; a room is a folder or a module of the package.
ALLOWED = {
    "prometheus_client": {"files"},
    "torch": {"measure"},
    "pydantic": {"files"},
    "pydantic_core": {"files"},
    "yaml": {"files"},
    "click": {"cli"},
    "rich": {"cli", "report"},
    "simpy": {"simulate"},
    "numba": {"kernels"},
    "pandas": {"metrics", "files", "calibrate", "planner", "report"},
    "pyarrow": {"files"},
    "distributed": {"planner"},
    "altair": {"report"},
    "vl_convert": {"report"},
    "scipy": {"costs", "steps", "simulate", "calibrate", "planner"},
}
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70
# Kernels that call each other share one file (numba's cache does not see edits across files); arrays go in one by one.
MAX_KERNEL_FILE_LINES = 700
MAX_KERNEL_LINES = 150


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions included."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node.lineno)}: relative import"
            found.append((node.lineno, node.module or ""))
    return found


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_there_is_something_to_check():
    assert {room(p) for p in SOURCES} >= {"cli", "report", "planner", "files", "simulate", "steps", "costs", "kernels"}


def test_floors():
    """import-linter's contract: imports go down only."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broken" in done.stdout


def test_every_room_is_on_a_floor():
    """A room that the contract does not name would be free to import anything."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.importlinter]")[2]
    named = set(re.findall(r"moeplan\.(\w+)", contract))
    rooms = {room(p) for p in SOURCES} - {"__init__", "__main__", "_version"}
    assert rooms <= named


@pytest.mark.parametrize("library", ALLOWED)
def test_library_is_used_in_its_rooms_only(library):
    strangers = [
        where(path, line)
        for path in SOURCES
        for line, name in imported(path)
        if name.partition(".")[0] == library and room(path) not in ALLOWED[library]
    ]
    assert not strangers


def test_every_dependency_has_its_rooms():
    """What is imported beside the standard library, numpy and ourselves is named above."""
    known = {*sys.stdlib_module_names, *ALLOWED, "numpy", "moeplan"}
    unknown = {
        where(p, line): name for p in SOURCES for line, name in imported(p) if name.partition(".")[0] not in known
    }
    assert not unknown


@pytest.mark.parametrize(
    "code",
    [
        "import moeplan",
        "import moeplan.units, moeplan.errors, moeplan.provenance, moeplan.spec.scenario, moeplan.spec.plan",
        "import moeplan.cli",
    ],
)
def test_light_imports_load_no_numeric_library(code):
    probe = f"{code}\nimport sys\nprint(*(m for m in {NUMERIC!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_drawer_for_everything():
    assert not [p for p in SOURCES if p.stem in {"utils", "util", "helpers", "common", "misc"}]


def test_flop_is_a_count():
    """The word with an s says neither count nor rate, in names as in prose. Profiles may quote their sources."""
    word = re.compile("flop" + "s", re.IGNORECASE)
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    files = [*SOURCES, *documents, *(ROOT / "docs").rglob("*.json"), *(ROOT / "scenarios").glob("*.yaml")]
    found = [
        where(path, number)
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]
    assert not found


def test_functions_do_not_get():
    """A name says what comes back; hooks keep the name under which click or pydantic calls them."""
    hook = re.compile("__.*__|get_command")
    named = [(path, f) for path in SOURCES for f in functions(path) if re.match("_*get_", f.name)]
    assert not [where(path, f.lineno) for path, f in named if not hook.fullmatch(f.name)]


def test_print_belongs_to_cli_and_report():
    found = [
        where(path, node.lineno)
        for path in SOURCES
        if room(path) not in {"cli", "report"}
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not found


def test_no_except_for_everything():
    """Cleaning up and raising the same error again is not catching it."""

    def catches_all(handler: ast.ExceptHandler) -> bool:
        everything = isinstance(handler.type, ast.Name) and handler.type.id in {"Exception", "BaseException"}
        last = handler.body[-1]
        return (handler.type is None or everything) and not (isinstance(last, ast.Raise) and last.exc is None)

    handlers = [(p, n) for p in SOURCES for n in ast.walk(tree(p)) if isinstance(n, ast.ExceptHandler)]
    assert not [where(path, handler.lineno) for path, handler in handlers if catches_all(handler)]


def test_files_can_be_read_in_one_sitting():
    def limit(path: Path) -> int:
        return MAX_KERNEL_FILE_LINES if room(path) == "kernels" else MAX_FILE_LINES

    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {where(path, n) for path, n in lines.items() if n > limit(path)}


def test_functions_fit_on_a_screen():
    lengths = {(p, f.lineno): (f.end_lineno or 0) - f.lineno + 1 for p in SOURCES for f in functions(p)}
    limits = {key: MAX_KERNEL_LINES if room(key[0]) == "kernels" else MAX_FUNCTION_LINES for key in lengths}
    assert not [f"{where(*key)}: {n} lines" for key, n in lengths.items() if n > limits[key]]


def test_efficiencies_live_in_costs():
    """One model, one place: no number above the costs says how well hardware is used, or what a kernel takes beside."""
    telling = re.compile("EFFICIEN|SUSTAINED|BACKWARD|OVERHEAD|LAUNCH|COMPUTE_FRAC|MEMORY_FRAC|SHARPNESS")
    found = []
    for path in SOURCES:
        if room(path) in {"costs", "calibrate", "measure"}:
            continue
        for node in tree(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and telling.search(n.id)]
                numbers = [n for n in ast.walk(node.value) if isinstance(n, ast.Constant) and type(n.value) is float]
                found += [where(path, node.lineno)] if names and numbers else []
    assert not found


def test_modules_say_what_they_are():
    silent = [p for p in SOURCES if tree(p).body and not ast.get_docstring(tree(p))]
    assert not [p for p in silent if p.name != "_version.py"]


def test_nothing_is_left_to_do():
    """No markers of unfinished work in comments."""
    marker = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = []
    for path in SOURCES:
        with tokenize.open(path) as file:
            comments = [t for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT]
        found += [where(path, t.start[0]) for t in comments if marker.search(t.string)]
    assert not found


def test_kernels_load_where_no_cache_can_be_kept():
    """A read-only installation under a user without a home, as containers with an arbitrary user id are."""
    # This locator alone, with no folder given, is what numba is left with there.
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from moeplan.kernels import engine, expert_loads, maxima, pipeline, routing",
        ],
        cwd=ROOT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
