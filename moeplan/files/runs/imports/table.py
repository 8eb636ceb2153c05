"""From files of any known format, with what the user states beside them, to rows of a table of measured runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from moeplan.errors import InputError, Problem, did_you_mean, input_error
from moeplan.files.catalog.hardware_catalog import hardware_names
from moeplan.files.catalog.model_catalog import model_names
from moeplan.files.runs.imports import FORMATS
from moeplan.files.runs.imports.document import Document, Format, documents
from moeplan.files.runs.imports.row import NEEDED, Benchmark, Setup, columns

# Known, but with nothing a prediction can be compared with: (what it is, keys that tell it).
_OTHERS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "vllm bench throughput does not tell input from output tokens",
        frozenset({"total_num_tokens", "tokens_per_second"}),
    ),
    ("vllm bench latency times one batch, not its tokens", frozenset({"avg_latency", "percentiles"})),
    (
        "llmfit results state no precision, and count prompt time in their speeds",
        frozenset({"schemaVersion", "results"}),
    ),
    ("aisimulate's numbers are predictions, not measurements", frozenset({"prediction_provenance"})),
)
# What a checkpoint's name may add to a catalog name without being another architecture.
_SUFFIX = re.compile(
    r"instruct|chat|base|it|hf|thinking|fp8|bf16|fp4|nvfp4|mxfp4|int4|awq|gptq|dynamic|v\d[\d.]*|\d{4}", re.IGNORECASE
)
_RUN_ID_DIGITS = 10
MAX_RUNS = 20_000  # of one file: keeps memory in bounds
_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows of one file."""

    path: Path
    format: str
    rows: tuple[dict[str, Any], ...]


def import_file(path: Path, stated: Setup) -> Imported:
    """Rows of ``path``; ``stated`` fills what the file does not say.

    Raises:
        InputError: every problem of the file: not a known format, bad numbers, something needed stated nowhere,
            something stated differently in the file.
    """
    stream = documents(path)
    first = next(stream, None)
    if first is None:
        raise input_error(path, "no benchmark results in this file")
    known = _format_of(first)
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for run in known.read(_all_of(known, chain([first], stream))):
        row, missing = _row(run, stated, path)
        problems += missing
        rows.append(row)
        if len(problems) >= _MOST_PROBLEMS:
            break
        if len(rows) > MAX_RUNS:
            raise input_error(path, "too many runs in one file", allowed=f"at most {MAX_RUNS:,}")
    problems = [*first.problems, *problems]
    if problems:
        raise InputError(problems)
    about = {"source": _safe_name(path), "source_format": known.name, "source_sha256": _sha256(path)}
    return Imported(path, known.name, tuple({**row, **about} for row in rows))


def _all_of(known: Format, stream: Iterable[Document]) -> Iterator[Document]:
    """The objects, each checked to be of the file's format."""
    for one in stream:
        if not known.recognises(one.value):
            what = f"not an object of the format the file begins with ({known.name})"
            raise InputError([Problem(one.file, one.line, None, "", what)])
        yield one


def _sha256(path: Path) -> str:
    with path.open("rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def _format_of(first: Document) -> Format:
    for known in FORMATS:
        if known.recognises(first.value):
            return known
    names = ", ".join(known.name for known in FORMATS)
    for what, keys in _OTHERS:
        if keys <= first.value.keys():
            raise input_error(first.file, what, allowed=names)
    raise input_error(first.file, "no known benchmark format", allowed=names)


def _row(run: Benchmark, stated: Setup, path: Path) -> tuple[dict[str, Any], list[Problem]]:
    def problem(name: str, what: str, got: object = "", hint: str = "") -> Problem:
        return Problem(str(path), run.line, None, name, what, str(got), hint=hint)

    problems = [
        problem(name, f"the file says {getattr(run.setup, name)}, you say {getattr(stated, name)}")
        for name in run.setup.contradictions(stated)
        if name not in ("hardware", "engine_version", "licence")
    ]
    # a name the user gives decides: files carry checkpoints and nicknames
    named = run.setup.model
    setup = replace(run.setup, model=stated.model or named, hardware=stated.hardware or run.setup.hardware)
    setup = setup.with_stated(stated)
    model, hardware = model_of(setup.model), hardware_of(setup.hardware)
    if setup.model is not None and model is None:
        hint = (
            f"--model NAME ({did_you_mean(setup.model.rpartition('/')[2], model_names()) or 'moeplan catalog models'})"
        )
        problems.append(problem("model", "not a catalog name", setup.model, hint))
    if setup.hardware is not None and hardware is None:
        hint = f"--hardware NAME ({did_you_mean(setup.hardware, hardware_names()) or 'moeplan catalog hardware'})"
        problems.append(problem("hardware", "not a catalog name", setup.hardware, hint))
    setup = replace(setup, model=model, hardware=hardware)
    missing = [name for name in NEEDED if getattr(setup, name) is None and not problems]
    if (setup.n_gpus or 1.0) > 1.0 and run.prefill is None and not problems:
        missing += ["tp"] if setup.tp is None and setup.pp is None and setup.dp is None else []
    for name in missing:
        hint = f"--{name.replace('_', '-')}, or the key {name} in a --sidecar file"
        problems.append(problem(name, "stated neither in the file nor by you", hint=hint))
    if not run.has_results():
        problems.append(problem("", "no latency and no throughput"))
    cells = columns(run, setup) | {"model_as_named": named or setup.model}
    return {"run_id": run_id(cells), **cells}, problems


def run_id(cells: Mapping[str, Any]) -> str:
    """Identity of a run: a hash of all it states, so that one run has one name wherever it is found."""
    said = {name: value for name, value in cells.items() if value is not None}
    facts = {name: f"{value:.9g}" if isinstance(value, float) else str(value) for name, value in said.items()}
    text = json.dumps(facts, sort_keys=True)
    return "i-" + hashlib.sha256(text.encode()).hexdigest()[:_RUN_ID_DIGITS]


def model_of(name: str | None) -> str | None:
    """Catalog name of a checkpoint, None where there is none ("org/Qwen3-30B-A3B-Instruct-2507-FP8": Qwen3-30B-A3B)."""
    if name is None:
        return None
    base = name.rpartition("/")[2].casefold()
    for known in sorted(model_names(), key=len, reverse=True):
        rest = base.removeprefix(known.casefold())
        if rest != base and all(_SUFFIX.fullmatch(part) for part in rest.split("-")[1:]) and rest[:1] in ("", "-"):
            return known
    return None


def hardware_of(name: str | None) -> str | None:
    """Catalog name of a device as benchmarks call it ("h200", "B200"), None where there is none."""
    if name is None:
        return None
    base = name.casefold()
    known = hardware_names()
    return next((full for full in (base, f"{base}-sxm", f"{base}-nvl72") if full in known), None)


def _safe_name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9 ._-]", "_", path.name).lstrip(" .-") or "file"
