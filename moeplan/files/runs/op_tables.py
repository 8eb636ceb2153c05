"""Reads measured operation tables, `<hardware>/<op>.<engine>.parquet`, and says what is wrong with a bad one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moeplan.errors import InputError, Problem, did_you_mean, input_error

_TEXT_SUFFIXES = ("_dtype", "_type", "distribution", "kernel_source", "backend", "implementation", "phase", "op_name")


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table's place: device slug, operation and engine come from the path."""

    path: Path
    hardware: str
    op: str
    engine: str


@dataclass(frozen=True, slots=True)
class OpTable:
    """One table as read, and what identifies it."""

    file: TableFile
    frame: pd.DataFrame
    sha256: str
    versions: tuple[str, ...]
    kernel_sources: tuple[str, ...]


def find_tables(
    root: Path, *, ops: Collection[str], hardware: Collection[str], only_hardware: Collection[str] = ()
) -> list[TableFile]:
    """Tables under ``root``: one file, the tables of one device, or a folder of devices.

    Args:
        root: file or folder.
        ops: operations that exist.
        hardware: devices that exist.
        only_hardware: devices wanted; all when empty.

    Raises:
        InputError: nothing there, or names that are no operation or device; one problem per file.
    """
    if root.is_file():
        paths = [root]
    elif root.is_dir():
        paths = sorted(root.glob("*.parquet")) or sorted(root.glob("*/*.parquet"))
    else:
        raise input_error(root, "no such file or folder")
    if not paths:
        raise input_error(root, "no tables here", allowed="<hardware>/<op>.<engine>.parquet")
    found, problems = [], []
    for path in paths:
        file = TableFile(path, _device(path.resolve()), *_op_and_engine(path))
        if only_hardware and file.hardware not in only_hardware:
            continue
        if file.hardware not in hardware:
            hint = did_you_mean(file.hardware, hardware)
            problems.append(_problem(path, "the folder is no known device", got=file.hardware, hint=hint))
        elif file.op not in ops or not file.engine:
            hint = did_you_mean(file.op, ops) or "<op>.<engine>.parquet"
            problems.append(_problem(path, "the name is no known operation", got=path.name, hint=hint))
        else:
            found.append(file)
    if problems:
        raise InputError(problems)
    if not found:
        raise input_error(root, "no table of the devices asked for", got=", ".join(sorted(only_hardware)))
    return found


def read_table(file: TableFile, *, columns: Collection[str], latency: str) -> OpTable:
    """Read and check one table.

    Args:
        file: the table.
        columns: columns the operation needs; numbers unless they name a type or kernel.
        latency: column with the measured time; must be positive.

    Raises:
        InputError: with one problem that names the first thing wrong with the file.
    """
    try:
        raw = file.path.read_bytes()
        frame = pd.read_parquet(file.path)
    except ImportError:
        raise input_error(file.path, "reading parquet needs pyarrow", hint="pip install moeplan[parquet]") from None
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError([_problem(file.path, "not a readable parquet file", got=str(error).splitlines()[0])]) from None
    problem = _first_problem(file.path, frame, columns, latency)
    if problem is not None:
        raise InputError([problem])
    return OpTable(
        file, frame, hashlib.sha256(raw).hexdigest(), _values(frame, "version"), _values(frame, "kernel_source")
    )


def check_unit(file: TableFile, measured_over_expected: float, latency: str) -> None:
    """Refuse a table whose times are off by a factor no kernel reaches.

    Raises:
        InputError: the median ratio is beyond 300 either way (a unit is 1000).
    """
    if not 1.0 / 300.0 < measured_over_expected < 300.0:
        what = f"{latency} is {measured_over_expected:.3g} times what the hardware can take: wrong unit?"
        raise InputError([_problem(file.path, what, allowed=f"the unit in the name {latency}")])


def _device(path: Path) -> str:
    """The folder's name; tables kept with a profile lie in <device>/measured/."""
    folder = path.parent
    return folder.parent.name if folder.name == "measured" else folder.name


def _op_and_engine(path: Path) -> tuple[str, str]:
    op, _, engine = path.name.removesuffix(".parquet").partition(".")
    return op, engine


def _first_problem(path: Path, frame: pd.DataFrame, columns: Collection[str], latency: str) -> Problem | None:
    for name in (latency, *columns):
        if name not in frame:
            stem = latency.rpartition("_")[0]
            other = [c for c in frame.columns if name == latency and str(c).startswith(stem + "_")]
            hint = f"times must be in {latency}, not {other[0]}" if other else ""
            return _problem(path, f"column {name} is missing", allowed=", ".join(map(str, frame.columns)), hint=hint)
    if frame.empty:
        return _problem(path, "the table has no rows")
    for name in (latency, *columns):
        column = frame[name]
        if name != latency and name.endswith(_TEXT_SUFFIXES):
            bad = column.isna()
        elif not pd.api.types.is_numeric_dtype(column):
            return _problem(path, f"column {name} is not numeric", got=str(column.iloc[0]))
        else:
            values = column.astype(np.float64)
            bad = values.isna() | np.isinf(values) | (values < 0.0 if name != latency else values <= 0.0)
        if bad.any():
            row = int(np.flatnonzero(bad.to_numpy())[0])
            what = f"column {name}: {int(bad.sum())} values are missing, negative or not finite"
            return _problem(path, what, got=f"{column.iloc[row]} in row {row + 1}")
    return None


def _values(frame: pd.DataFrame, column: str) -> tuple[str, ...]:
    return tuple(sorted(frame[column].astype(str).unique())) if column in frame else ()


def _problem(path: Path, what: str, **more: str) -> Problem:
    return Problem(str(path), None, None, "", what, **more)


def table_record(table: OpTable) -> Mapping[str, object]:
    """What a fitted file says of a table it was fitted to."""
    return {
        "sha256": table.sha256,
        "version": list(table.versions),
        "kernel_source": list(table.kernel_sources),
    }
