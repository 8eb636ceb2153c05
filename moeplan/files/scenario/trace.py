"""Recorded requests: CSV or JSON lines with arrival times and token counts. Every wrong line is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from moeplan.errors import InputError, Problem, input_error

MAX_FILE_BYTES = 200_000_000
MAX_REQUESTS = 5_000_000
MAX_TOKENS = 10**9
_MAX_PROBLEMS = 20  # of one file

# format -> columns (keys of a line) of arrival time, prompt tokens, answer tokens
COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "csv": ("arrival_s", "input_tokens", "output_tokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
}
FORMATS = ("auto", *COLUMNS)
CLASS_COLUMN = "class"  # of the format "csv", where there is one
MOONCAKE_BLOCK_TOKENS = (
    512  # github.com/kvcache-ai/Mooncake, FAST25-release/traces: a hash id stands for so many tokens
)


@dataclass(frozen=True, slots=True)
class Recording:
    """A trace as read, without numpy: arrival [s after the first], prompt and answer lengths [tokens].

    ``classes``: name of each request's class, empty where the trace has none. Prompts that share text share block ids:
    those of request i are ``block_id[block_start[i] : block_start[i + 1]]``, each of ``block_tokens`` (0: none known).
    """

    path: Path
    format: str
    arrival_s: array[float] = field(default_factory=lambda: array("d"))
    input_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    classes: list[str] = field(default_factory=list)
    block_tokens: int = 0
    block_start: array[int] = field(default_factory=lambda: array("q", [0]))
    block_id: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True)
class _Row:
    """One request as written: its line, the text of its three numbers, and what else the format knows."""

    line: int
    cells: tuple[str, str, str]
    of_class: str | None = None
    blocks: tuple[object, ...] = ()


def read_trace(path: Path, fmt: str = "auto") -> Recording:
    """A trace of one of ``FORMATS``; "auto" is told by the content. ``.gz`` is decompressed.

    Requests without an answer are refused, except in BurstGPT, which marks failed ones so: they are kept.
    Raises InputError: unreadable file, missing columns, empty trace, malformed, negative or unsorted rows (first 20).
    """
    text = _text(path)
    if fmt == "mooncake" or (fmt == "auto" and text.lstrip()[:1] == "{"):
        recording = Recording(path, "mooncake", block_tokens=MOONCAKE_BLOCK_TOKENS)
        return _record(recording, _json_rows(path, text))
    rows = csv.reader(io.StringIO(text))
    try:
        header = [name.strip() for name in next(rows, [])]
        chosen = _format(path, header, fmt)
        return _record(Recording(path, chosen), _csv_rows(path, rows, header, chosen))
    except csv.Error as error:
        raise input_error(path, f"not a CSV file: {error}") from None


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
        raise input_error(path, "binary file, expected a trace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise input_error(path, "not UTF-8 text, expected a trace") from None
    if not text.strip():
        raise input_error(path, "empty trace: no header and no requests")
    return text


def _format(path: Path, header: list[str], fmt: str) -> str:
    """The CSV format whose columns the header has."""
    candidates = tuple(name for name in COLUMNS if name != "mooncake") if fmt == "auto" else (fmt,)
    for name in candidates:
        if all(column in header for column in COLUMNS[name]):
            return name
    wanted = " or ".join(",".join(COLUMNS[name]) for name in candidates)
    missing = [c for c in COLUMNS[candidates[0]] if c not in header] if len(candidates) == 1 else []
    what = f"missing column {', '.join(missing)}" if missing else "not a known trace: the header lacks the columns"
    raise InputError([Problem(str(path), 1, 1, "", what, ",".join(header)[:200], wanted)])


def _csv_rows(path: Path, rows: Iterator[list[str]], header: list[str], fmt: str) -> Iterator[_Row | Problem]:
    at = [header.index(column) for column in COLUMNS[fmt]]
    class_at = header.index(CLASS_COLUMN) if fmt == "csv" and CLASS_COLUMN in header else None
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        try:
            time, prompt, answer = (row[i] for i in at)
            of_class = None if class_at is None else row[class_at].strip()
        except IndexError:
            yield Problem(str(path), line, None, "", "too few columns", ",".join(row)[:200])
            continue
        yield _Row(line, (time, prompt, answer), of_class)


def _json_rows(path: Path, text: str) -> Iterator[_Row | Problem]:
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            found = json.loads(content)
            cells = tuple(str(found[key]) for key in COLUMNS["mooncake"])
            blocks = tuple(found.get("hash_ids") or ())
        except (ValueError, RecursionError):
            yield Problem(str(path), line, None, "", "not a line of JSON", content[:80])
            continue
        except (KeyError, TypeError, AttributeError):
            wanted = ", ".join(COLUMNS["mooncake"])
            yield Problem(str(path), line, None, "", "not a request of a Mooncake trace", content[:80], wanted)
            continue
        yield _Row(line, (cells[0], cells[1], cells[2]), None, blocks)


def _record(to: Recording, rows: Iterator[_Row | Problem]) -> Recording:
    when = {"azure": _timestamp, "mooncake": _milliseconds}.get(to.format, _seconds)
    least_answer = 0 if to.format == "burstgpt" else 1
    problems: list[Problem] = []
    first = previous = -math.inf
    for row in rows:
        if len(problems) >= _MAX_PROBLEMS or len(to) > MAX_REQUESTS:
            break
        if isinstance(row, Problem):
            problems.append(row)
            continue
        try:
            time_s, prompt, answer = when(row.cells[0]), _tokens(row.cells[1]), _tokens(row.cells[2])
            if time_s < previous:
                raise ValueError("unsorted: this request arrives before the one above it")
            if answer < least_answer:
                raise ValueError("a request that generates no token")
            if prompt < 1:
                raise ValueError("a request without a prompt")
            blocks = _block_ids(row.blocks, prompt, to.block_tokens)
        except ValueError as error:
            problems.append(Problem(str(to.path), row.line, None, "", str(error), ",".join(row.cells)[:200]))
            continue
        if not to.arrival_s:
            first = time_s
        previous = time_s
        to.arrival_s.append(time_s - first)
        to.input_tokens.append(prompt)
        to.output_tokens.append(answer)
        to.block_id.extend(blocks)
        to.block_start.append(len(to.block_id))
        if row.of_class is not None:
            to.classes.append(row.of_class)
    if problems:
        raise InputError(problems)
    if not to.arrival_s:
        raise input_error(to.path, "empty trace: a header but no requests")
    if len(to) > MAX_REQUESTS:
        raise input_error(to.path, "trace too long", allowed=f"at most {MAX_REQUESTS} requests")
    return to


def _block_ids(ids: tuple[object, ...], prompt_tokens: int, block_tokens: int) -> list[int]:
    """Ids of whole blocks: what follows the last whole one is nobody else's."""
    if not ids:
        return []
    if len(ids) > -(-prompt_tokens // block_tokens):
        raise ValueError(f"more hash_ids than blocks of {block_tokens} tokens in the prompt")
    found = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**40]
    if len(found) < len(ids):
        raise ValueError("a hash id is not a whole number of at least 0")
    return found[: prompt_tokens // block_tokens]


def _timestamp(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("not a date and time") from None
    # naive times are differences only: the zone cancels, but summer time must not enter
    return (moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()


def _seconds(text: str, scale: float = 1.0) -> float:
    try:
        value = float(text) * scale
    except ValueError:
        raise ValueError("arrival time is not a number") from None
    if not math.isfinite(value):
        raise ValueError("arrival time is not a finite number")
    if value < 0.0:
        raise ValueError("negative arrival time")
    return value


def _milliseconds(text: str) -> float:
    return _seconds(text, 1e-3)


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
