"""Writes own measurements: a journal while they run, then the operation tables and what they were measured on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.write import write_text

JOURNAL = "journal.jsonl"
METADATA = "measurement.json"


class Timing(Protocol):
    """Time of one call [s] with its spread."""

    median_s: float
    p10_s: float
    p90_s: float
    n_repeats: int
    n_calls: int
    mode: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One case in the journal: its timing, or why there is none."""

    key: str
    op: str
    columns: Mapping[str, Any]
    timing: Any  # a `Timing`, or its fields as read back
    skipped: str


class Journal:
    """Results in the order they were measured, one JSON line each, on disk before the next case starts."""

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        """Open the journal in ``folder``, or start it.

        Raises:
            InputError: it cannot be read or written, or another machine or another PyTorch wrote it.
        """
        self.path = folder / JOURNAL
        self.machine = json.loads(json.dumps(machine))
        self.entries: dict[str, Entry] = {}
        if self.path.exists():
            self._read()
        else:
            self._write(json.dumps({"machine": self.machine}))

    def append(self, entry: Entry) -> None:
        """Add a result. Raises InputError when it cannot be written."""
        timing = None if entry.timing is None else asdict(entry.timing)
        self._write(json.dumps({**asdict(entry, dict_factory=dict), "timing": timing}))
        self.entries[entry.key] = Entry(entry.key, entry.op, entry.columns, timing, entry.skipped)

    def _write(self, line: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise input_error(self.path, "cannot be written", got=str(error.strerror)) from error

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise input_error(self.path, "cannot be read", got=str(error)) from None
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # killed in the middle of a line: that case is measured again
            write_text(self.path, whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                if number == 1:
                    self._check_machine(record["machine"])
                else:
                    self.entries[record["key"]] = Entry(**record)
            except (ValueError, KeyError, TypeError):
                problem = Problem(str(self.path), number, 1, "", "not a line of a measurement journal")
                raise InputError([problem]) from None
        if not whole:
            self._write(json.dumps({"machine": self.machine}))

    def _check_machine(self, written_on: Mapping[str, Any]) -> None:
        other = [name for name, value in self.machine.items() if written_on.get(name) != value]
        if other:
            got = ", ".join(f"{name} {written_on.get(name)}, now {self.machine[name]}" for name in other)
            hint = "give another --out, or remove the folder to start again"
            raise input_error(self.path, "was measured on another machine or version", got=got, hint=hint)


def write_tables(journal: Journal, engine: str, about: Mapping[str, Any]) -> list[Path]:
    """Write ``<op>.<engine>.parquet`` for every operation measured, and the metadata file. Returns the files.

    Raises:
        InputError: pyarrow is missing or a file cannot be written.
    """
    folder = journal.path.parent
    written: dict[str, Path] = {}
    for op in dict.fromkeys(entry.op for entry in journal.entries.values() if entry.timing is not None):
        rows = [
            {
                "version": about["versions"][op],
                "op_name": op,
                **entry.columns,
                "latency_ms": entry.timing["median_s"] * 1e3,
                "latency_p10_ms": entry.timing["p10_s"] * 1e3,
                "latency_p90_ms": entry.timing["p90_s"] * 1e3,
                "repeats": entry.timing["n_repeats"],
                "calls_per_repeat": entry.timing["n_calls"],
                "mode": entry.timing["mode"],
            }
            for entry in journal.entries.values()
            if entry.op == op and entry.timing is not None
        ]
        path = folder / f"{op}.{'nccl' if op == 'nccl' else engine}.parquet"
        _write_parquet(path, pd.DataFrame(rows))
        written[op] = path
    document = {
        **about,
        "machine": journal.machine,
        "tables": {
            path.name: {"rows": len(pd.read_parquet(path)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in written.values()
        },
        "skipped": {entry.key: entry.skipped for entry in journal.entries.values() if entry.timing is None},
    }
    write_text(folder / METADATA, json.dumps(document, indent=1) + "\n")
    return [*written.values(), folder / METADATA]


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        frame.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    except ImportError:
        raise input_error(path, "writing parquet needs pyarrow", hint="pip install 'moeplan[measure]'") from None
    except OSError as error:
        raise input_error(path, "cannot be written", got=str(error.strerror)) from error
    finally:
        temporary.unlink(missing_ok=True)
