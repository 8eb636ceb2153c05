"""The models this package knows, and any other Hugging Face ``config.json`` by its path.

``moeplan/data/models/`` holds one plain configuration a model and ``provenance.csv`` with where each came from.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from moeplan.errors import InputError, Problem, did_you_mean
from moeplan.files.catalog.models.reader import read_model
from moeplan.files.locate import data_folder, resolve_path
from moeplan.spec.model import ModelArchitecture

MAX_FILE_BYTES = 8 * 2**20  # the largest published configurations are below 100 kB
REFERENCE_TOLERANCE = 0.005  # relative; beyond it ``count_notes`` speaks


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Where a catalog entry comes from, with reference and published sizes [parameters], None where not stated."""

    name: str
    source: str
    grade: str  # "HF config copy", "vendor repo config", "library defaults", ...
    note: str
    formula: str  # how the reference was counted: "exact-form", or what is approximate
    computed_total: float | None
    computed_active: float | None
    computed_mtp: float | None
    published_total: float | None
    published_active: float | None
    published_total_step: float  # unit of the last digit of the published total
    published_source: str
    usable: bool
    remark: str  # why it is not usable, what was added to the file, or why our count differs


@cache
def _records() -> Mapping[str, ModelRecord]:
    with (data_folder("models") / "provenance.csv").open(encoding="utf-8", newline="") as file:
        return {row["model"]: _record(row) for row in csv.DictReader(file)}


def _record(row: Mapping[str, str]) -> ModelRecord:
    def parameters(column: str) -> float | None:
        return float(row[column]) * 1e9 if row[column] else None

    decimals = len(row["published_total_B"].partition(".")[2])
    return ModelRecord(
        name=row["model"],
        source=row["source"],
        grade=row["grade"],
        note=row["note"],
        formula=row["formula_note"],
        computed_total=parameters("computed_total_B"),
        computed_active=parameters("computed_active_B"),
        computed_mtp=parameters("computed_mtp_B"),
        published_total=parameters("published_total_B"),
        published_active=parameters("published_active_B"),
        published_total_step=1e9 * 10.0**-decimals,
        published_source=row["published_source"],
        usable=row["usable"] == "yes",
        remark=row["remark"],
    )


def model_names() -> tuple[str, ...]:
    """Names of the usable catalog entries, in alphabetical order without regard to case."""
    return tuple(sorted((name for name, record in _records().items() if record.usable), key=str.casefold))


def unusable_models() -> tuple[ModelRecord, ...]:
    """Entries whose configuration cannot be counted; ``remark`` has the reason."""
    return tuple(record for record in _records().values() if not record.usable)


def model_record(name: str) -> ModelRecord:
    """Provenance of a catalog entry, usable or not.

    Raises:
        InputError: when there is no such name.
    """
    found = _find(name)
    if found is None:
        _unknown(name)
    return _records()[found]


def count_notes(name: str) -> tuple[str, ...]:
    """Where our parameter counts of a catalog entry differ from the reference count or from the published figure."""
    record, model = model_record(name), load_model(name)
    notes = []
    for what, ours, reference in (
        ("total", model.n_params_total, record.computed_total),
        ("active", model.n_params_active, record.computed_active),
    ):
        if reference is not None and abs(ours / reference - 1.0) > REFERENCE_TOLERANCE:
            difference = ours / reference - 1.0
            counts = f"{ours / 1e9:.2f} B against {reference / 1e9:.2f} B"
            notes.append(f"{what} {counts} counted elsewhere ({difference:+.1%})")
    published = record.published_total
    if published is not None and abs(model.n_params_total - published) > record.published_total_step / 2:
        difference = model.n_params_total / published - 1.0
        notes.append(
            f"total {model.n_params_total / 1e9:.2f} B against {published / 1e9:g} B published ({difference:+.1%})"
        )
    return tuple(notes)


def load_model(name_or_path: str, base_dir: str | Path | None = None) -> ModelArchitecture:
    """The architecture of a catalog name, a configuration file, or a folder that holds ``config.json``.

    Names are matched without regard to case; of a repository id (``Qwen/Qwen3-30B-A3B``) the last part counts.
    Anything that ends in ``.json`` or begins with ``.``, ``~`` or ``/`` is a path, relative to ``base_dir``, which it
    must not leave.

    Raises:
        InputError: no such name or file, not a JSON object, or an architecture that is not understood.
    """
    looks_like_path = name_or_path.endswith(".json") or name_or_path.startswith((".", "/", "~"))
    found = None if looks_like_path else _find(name_or_path)
    if found is not None:
        record = _records()[found]
        if not record.usable:
            raise InputError([Problem("model", None, None, "", "cannot be used", found, hint=record.remark)])
        path = data_folder("models") / f"{found}.json"
        return read_model(read_config(path), f"catalog model {found}", found)
    try:
        path = resolve_path(name_or_path, None if base_dir is None else Path(base_dir), "model")
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, an unknown home folder
        _unknown(name_or_path)
    if not name_or_path or not (looks_like_path or exists):
        _unknown(name_or_path)
    if path.is_dir():
        path /= "config.json"
    return read_model(read_config(path), str(path), path.parent.name if path.name == "config.json" else path.stem)


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        InputError: unreadable, too large, not UTF-8, not JSON, or not an object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            _refuse(path, "too large for a model configuration", allowed=f"at most {MAX_FILE_BYTES} bytes")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        _refuse(path, "is not UTF-8 text")
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise InputError([Problem(str(path), error.lineno, error.colno, "", f"is not JSON: {error.msg}")]) from None
    except RecursionError:
        _refuse(path, "is nested too deeply")
    except ValueError as error:
        _refuse(path, str(error))
    if not isinstance(value, dict):
        _refuse(path, "must hold a JSON object", type(value).__name__, "a Hugging Face config.json")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} appears twice in one object")
    return values


def _find(name: str) -> str | None:
    folded = {known.casefold(): known for known in _records()}
    return folded.get(name.casefold()) or folded.get(name.rsplit("/", 1)[-1].casefold())


def _unknown(name: str) -> NoReturn:
    hint = did_you_mean(name.rsplit("/", 1)[-1], model_names()) or "see `moeplan catalog models`, or give a config.json"
    raise InputError([Problem("model", None, None, "", "no such model", name, "a catalog name or a path", hint)])


def _refuse(path: Path, what: str, got: str = "", allowed: str = "") -> NoReturn:
    raise InputError([Problem(str(path), 1, 1, "", what, got, allowed)])
