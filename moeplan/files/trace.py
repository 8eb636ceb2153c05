"""Recorded requests: CSV files of arrival times and token counts. Every wrong line is named."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from moeplan.errors import InputError, Problem, input_error

MAX_FILE_BYTES = 200_000_000
MAX_REQUESTS = 5_000_000
MAX_TOKENS = 10**9
_MAX_PROBLEMS = 20  # of one file

# format -> columns of arrival time, prompt tokens, answer tokens
COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "csv": ("arrival_s", "input_tokens", "output_tokens"),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """A trace as read, without numpy: arrival [s after the first], prompt and answer lengths [tokens]."""

    path: Path
    format: str
    arrival_s: array[float]
    input_tokens: array[int]
    output_tokens: array[int]

    def __len__(self) -> int:
        return len(self.arrival_s)


def read_trace(path: Path, fmt: str = "auto") -> Recording:
    """A trace of the format "azure", "csv" or "auto" (told by the header); ``.gz`` is decompressed.

    Raises InputError: unreadable file, missing columns, empty trace, malformed, negative or unsorted rows (first 20).
    """
    text = _text(path)
    rows = csv.reader(io.StringIO(text))
    try:
        header = [name.strip() for name in next(rows, [])]
        chosen = _format(path, header, fmt)
        reading = _read_rows(path, rows, header, chosen)
    except csv.Error as error:
        raise input_error(path, f"not a CSV file: {error}") from None
    return reading


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise input_error(path, "is a directory, expected a trace file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise input_error(path, "trace too large", allowed=f"at most {MAX_FILE_BYTES} bytes")
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # one byte more than allowed tells a gzip bomb without unpacking it
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise input_error(path, "no such trace file") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise input_error(path, f"cannot read the trace: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise input_error(path, "trace too large when unpacked", allowed=f"at most {MAX_FILE_BYTES} bytes")
    if b"\x00" in data:
        raise input_error(path, "binary file, expected a CSV trace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise input_error(path, "not UTF-8 text, expected a CSV trace") from None
    if not text.strip():
        raise input_error(path, "empty trace: no header and no requests")
    return text


def _format(path: Path, header: list[str], fmt: str) -> str:
    """The format whose columns the header has."""
    candidates = tuple(COLUMNS) if fmt == "auto" else (fmt,)
    for name in candidates:
        if all(column in header for column in COLUMNS[name]):
            return name
    wanted = " or ".join(",".join(COLUMNS[name]) for name in candidates)
    missing = [c for c in COLUMNS[candidates[0]] if c not in header] if len(candidates) == 1 else []
    what = f"missing column {', '.join(missing)}" if missing else "not a known trace: the header lacks the columns"
    raise InputError([Problem(str(path), 1, 1, "", what, ",".join(header), wanted)])


def _read_rows(path: Path, rows: Iterator[list[str]], header: list[str], fmt: str) -> Recording:
    at = [header.index(column) for column in COLUMNS[fmt]]
    when: Callable[[str], float] = _timestamp if fmt == "azure" else _seconds
    arrival, prompts, answers = array("d"), array("q"), array("q")
    problems: list[Problem] = []
    first = previous = -math.inf
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(problems) >= _MAX_PROBLEMS or len(arrival) > MAX_REQUESTS:
            break
        try:
            cells = [row[i] for i in at]
            time_s, prompt, answer = when(cells[0]), _tokens(cells[1]), _tokens(cells[2])
            if time_s < previous:
                raise ValueError("unsorted: this request arrives before the one above it")
            if answer < 1:
                raise ValueError("a request that generates no token")
            if prompt < 1:
                raise ValueError("a request without a prompt")
        except IndexError:
            problems.append(Problem(str(path), line, None, "", "too few columns", ",".join(row)))
            continue
        except ValueError as error:
            problems.append(Problem(str(path), line, None, "", str(error), ",".join(cells)))
            continue
        if not arrival:
            first = time_s
        previous = time_s
        arrival.append(time_s - first)
        prompts.append(prompt)
        answers.append(answer)
    if problems:
        raise InputError(problems)
    if not arrival:
        raise input_error(path, "empty trace: a header but no requests")
    if len(arrival) > MAX_REQUESTS:
        raise input_error(path, "trace too long", allowed=f"at most {MAX_REQUESTS} requests")
    return Recording(path, fmt, arrival, prompts, answers)


def _timestamp(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("not a date and time") from None
    # naive times are differences only: the zone cancels, but summer time must not enter
    return (moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("arrival_s is not a number") from None
    if not math.isfinite(value):
        raise ValueError("arrival_s is not a finite number")
    if value < 0.0:
        raise ValueError("negative arrival time")
    return value


def _tokens(text: str) -> int:
    try:
        value = int(text.strip()[:20])
    except ValueError:
        raise ValueError("a token count is not a whole number") from None
    if value < 0:
        raise ValueError("negative token count")
    if value > MAX_TOKENS:
        raise ValueError(f"token count above {MAX_TOKENS}")
    return value
