"""Results of a sweep on disk: a journal that survives a kill at any moment, and the table made from it.

The journal is lines of JSON: a header that says which sweep it is, then a line for each finished point, each on the
disk before the next is reported. A line cut short by a kill or a full disk is dropped when the journal is opened again.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moeplan.errors import InputError, input_error
from moeplan.files.inert import inert_frame
from moeplan.files.plan_row import Cell
from moeplan.files.write import write_bytes

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One point: what was changed, and its plan as a row, or why there is none.

    ``retry``: the machinery failed (a worker died), not the question; such a point is asked again on resuming.
    """

    index: int
    overrides: tuple[str, ...]
    row: Mapping[str, Cell] = field(default_factory=dict)
    error: str | None = None
    retry: bool = False


class Journal:
    """Finished points beside the results file ``out``."""

    def __init__(self, out: Path, sweep: Mapping[str, Any]) -> None:
        """Open the journal of ``sweep``, or start it.

        Raises InputError when it belongs to another sweep, when another process writes it, or when ``out`` exists
        and is no result of this sweep.
        """
        if out.suffix not in SUFFIXES:
            raise input_error(out, "unknown kind of results file", got=out.suffix, allowed=", ".join(SUFFIXES))
        self.out, self.path = out, out.with_name(out.name + ".journal")
        if out.suffix == ".parquet":
            _parquet_engine(out)
        if out.exists() and not self.path.exists():
            raise input_error(out, "exists and has no journal of a sweep beside it", hint="name another file")
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise input_error(self.path, "cannot be written", got=error.strerror) from error
        self.points: dict[int, SweepPoint] = {}
        try:
            self._lock()
            self.points = self._read(sweep)
            if self._file.seek(0, os.SEEK_END) == 0:
                self._append({"moeplan sweep": 1, **sweep})
        except InputError:
            self._file.close()
            raise

    def add(self, point: SweepPoint) -> None:
        """Put a finished point on the disk. Raises InputError when that fails; the points before are kept."""
        self._append(asdict(point))
        self.points[point.index] = point

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise input_error(self.path, "another process is writing this sweep") from error

    def _read(self, sweep: Mapping[str, Any]) -> dict[int, SweepPoint]:
        """Points of the journal; the file is cut after its last whole line."""
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            return {}
        try:
            header, *records = (json.loads(line) for line in lines)
            if not isinstance(header, dict) or "moeplan sweep" not in header:
                raise ValueError("no header")
            found = [SweepPoint(**{**r, "overrides": tuple(r["overrides"])}) for r in records]
        except (ValueError, TypeError, KeyError) as error:
            raise input_error(self.path, "not the journal of a sweep", hint="name another file") from error
        differs = [key for key, value in sweep.items() if header.get(key) != value]
        if differs:
            what = f"results of another sweep: it differs in {', '.join(differs)}"
            raise input_error(self.path, what, hint="name another file, or ask the same again")
        return {point.index: point for point in found if not point.retry}

    def _append(self, record: Mapping[str, Any]) -> None:
        end = self._file.seek(0, os.SEEK_END)
        left = memoryview(json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        try:
            while left:  # a disk that fills up takes a part first
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            hint = "make room and give the same command again"
            what = f"cannot be written; the {len(self.points)} points finished before are kept"
            raise input_error(self.path, what, got=error.strerror, hint=hint) from error


def write_table(out: Path, points: Iterable[SweepPoint], varied: Sequence[str]) -> None:
    """All points as CSV or Parquet, whole or not at all. Raises InputError when it cannot be written."""
    frame = table(points, varied)
    buffer = io.BytesIO()
    if out.suffix == ".parquet":
        frame.to_parquet(buffer, engine="pyarrow", index=False)
    else:
        inert_frame(frame).to_csv(buffer, index=False, lineterminator="\n")
    write_bytes(out, buffer.getvalue())


def table(points: Iterable[SweepPoint], varied: Sequence[str]) -> Any:
    """A pandas frame in the order of the points: what was varied, the plan's columns, ``overrides`` and ``error``."""
    import pandas as pd

    rows = []
    for point in sorted(points, key=lambda p: p.index):
        values = dict(text.partition("=")[::2] for text in point.overrides)
        row: dict[str, Cell] = {"index": point.index}
        row |= {f"vary.{path}": values.get(path) for path in varied}
        row |= {"error": point.error, "overrides": json.dumps(point.overrides, ensure_ascii=False)}
        rows.append(row | dict(point.row))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pd.DataFrame(rows, columns=columns)


def _parquet_engine(out: Path) -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise input_error(out, "Parquet needs pyarrow", hint="pip install 'moeplan[parquet]', or name a .csv file")
