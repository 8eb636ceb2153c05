"""Telemetry of a serving deployment: a CSV of windows, or Prometheus text or JSON of vLLM's or SGLang's metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moeplan.errors import InputError, Problem, did_you_mean, input_error
from moeplan.files.runs import prometheus
from moeplan.spec.observed import INPUTS, OUTCOMES, Observed

MAX_WINDOWS = 200_000
MAX_TEXT_BYTES = 64 * 2**20
MAX_TABLE_BYTES = 1024 * 2**20
_CHUNK = 50_000
_MOST_PROBLEMS = 20
# CSV column -> (name of the series, factor)
_COLUMNS: Mapping[str, tuple[str, float]] = {
    **{name: (name, 1.0) for name in (*INPUTS, *OUTCOMES)},
    **{f"{name}_ms": (f"{name}_s", 1e-3) for name in ("ttft", "tpot", "e2e")},
    "usd_per_hour": ("usd_per_hour", 1.0),
}


def read_observed(path: Path) -> Observed:
    """Windows of a file, recognised by content: JSON, Prometheus text, else CSV.

    Raises:
        InputError: with every problem found, each with its line.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise input_error(path, "cannot be read", got=str(error.strerror)) from None
    if not head.strip():
        raise input_error(path, "empty file")
    first = head.lstrip()[:1]
    if first in (b"{", b"["):
        return _windows(path, prometheus.read_json(path, _content(path)))
    if first == b"#" or b"vllm:" in head or b"sglang:" in head:
        return _windows(path, prometheus.read_text(path, _content(path)))
    return _read_csv(path)


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_TEXT_BYTES:
        allowed = f"at most {MAX_TEXT_BYTES // 2**20} MiB"
        raise input_error(path, "too large", allowed=allowed, hint="fewer or longer steps")
    return path.read_bytes()


def _windows(path: Path, samples: prometheus.Samples) -> Observed:
    """Rates and means of the windows between scrapes."""
    counters = prometheus.counters(samples)
    if not counters:
        allowed = "counters vllm:* or sglang:*, such as vllm:generation_tokens_total"
        raise input_error(path, "no metric of vLLM or SGLang", allowed=allowed)
    model = _only_model(path, samples)
    times = np.unique(np.concatenate([one.times_s for one in counters.values()]))
    if len(times) == 1:
        steps = {name: one.values[-1:] for name, one in counters.items()}
        start, span_s = times, np.full(1, math.nan)  # since the server began: no one knows how long ago
    else:
        steps = {name: one.increments(times) for name, one in counters.items()}
        start, span_s = times[:-1], np.diff(times)
    nothing = np.full(len(start), math.nan)

    def ratio(over: str, under: str) -> Any:
        a, b = steps.get(over, nothing), steps.get(under, nothing)
        return np.divide(a, b, out=nothing.copy(), where=b > 0.0)

    series = {
        "requests_per_s": steps.get("requests", nothing) / span_s,
        "output_tokens_per_s": steps.get("output_tokens", nothing) / span_s,
        "input_tokens": ratio("input_tokens", "requests"),
        "output_tokens": ratio("output_tokens", "requests"),
        **{f"{name}_s": ratio(f"{name}_sum", f"{name}_count") for name in ("ttft", "tpot", "e2e")},
    }
    told = {name: values for name, values in series.items() if np.isfinite(values).any()}
    if not told:
        hint = "scrapes of one server need the same timestamps: use a range query"
        raise input_error(path, "no window between two scrapes of one server", hint=hint)
    return Observed(start, told, model)


def _only_model(path: Path, samples: prometheus.Samples) -> str:
    models = prometheus.models(samples)
    if len(models) > 1:
        named = ", ".join(repr(name)[1:-1][:80] for name in models[:5])
        hint = 'select one, such as vllm:prompt_tokens_total{model_name="..."}'
        raise input_error(path, f"metrics of {len(models)} models together", got=named, hint=hint)
    return models[0] if models else ""


def _read_csv(path: Path) -> Observed:
    """CSV with a column ``time`` (ISO 8601, or seconds) and any of the known columns; others are not read."""
    problems: list[Problem] = []
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise input_error(path, "too large", allowed=f"at most {MAX_TABLE_BYTES // 2**20} MiB", hint="longer windows")
    try:
        with pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", chunksize=_CHUNK) as reader:
            parts = list(_chunks(path, reader, problems))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise input_error(path, "not a readable CSV table", got=str(error).splitlines()[0]) from None
    if problems:
        raise InputError(problems)
    frame = pd.concat(parts, ignore_index=True)
    if frame.empty:
        raise input_error(path, "the table has no rows")
    series = {str(name): np.asarray(frame[name], np.float64) for name in frame.columns}
    time_s = series.pop("time")
    back = np.flatnonzero(np.diff(time_s) < 0.0)
    if len(back):
        raise InputError([Problem(str(path), int(back[0]) + 3, None, "time", "earlier than the window before it")])
    return Observed(time_s, _with_cost(series))


def _chunks(path: Path, reader: Iterable[pd.DataFrame], problems: list[Problem]) -> Iterator[pd.DataFrame]:
    """The numbers of a table a piece at a time; stops when there are too many windows, or too much wrong with them."""
    n = 0
    for chunk in reader:
        if n == 0:
            _check_columns(path, list(chunk.columns))
        yield _numbers(path, chunk, n, problems)
        n += len(chunk)
        if n > MAX_WINDOWS:
            raise input_error(path, "too many windows", allowed=f"at most {MAX_WINDOWS:,}", hint="use longer windows")
        if len(problems) > _MOST_PROBLEMS:
            return


def _check_columns(path: Path, columns: list[str]) -> None:
    known = [name for name in columns if name in _COLUMNS]
    if "time" not in columns or not known:
        missing = "time" if "time" not in columns else "any metric"
        stranger = next((name for name in columns if name not in ("time", *_COLUMNS)), "")
        hint = did_you_mean(stranger, _COLUMNS) if stranger else ""
        raise input_error(path, f"column {missing} missing", allowed=", ".join(("time", *_COLUMNS)), hint=hint)


def _numbers(path: Path, chunk: pd.DataFrame, first_row: int, problems: list[Problem]) -> pd.DataFrame:
    found = {"time": _times(path, chunk["time"].str.strip(), first_row, problems)}
    for column in chunk.columns.intersection([*_COLUMNS]):
        name, factor = _COLUMNS[column]
        text = chunk[column].str.strip()
        values = pd.to_numeric(text.mask(text == ""), errors="coerce").astype(np.float64)
        for row in np.flatnonzero(((text != "") & ~(np.isfinite(values) & (values >= 0.0))).to_numpy())[
            :_MOST_PROBLEMS
        ]:
            what = "not a finite number of at least 0"
            problems.append(Problem(str(path), first_row + int(row) + 2, None, column, what, text.iloc[row]))
        found[name] = values * factor
    return pd.DataFrame(found)


def _times(path: Path, text: pd.Series, first_row: int, problems: list[Problem]) -> pd.Series:
    seconds = pd.to_numeric(text, errors="coerce").astype(np.float64)
    if seconds.isna().any():
        stamps = pd.to_datetime(text, errors="coerce", utc=True, format="ISO8601")
        seconds = (stamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    for row in np.flatnonzero(~np.isfinite(np.asarray(seconds)))[:_MOST_PROBLEMS]:
        what = "not a time"
        problems.append(
            Problem(str(path), first_row + int(row) + 2, None, "time", what, text.iloc[row], "ISO 8601, or seconds")
        )
    return seconds


def _with_cost(series: dict[str, Any]) -> dict[str, Any]:
    """Dollars a million output tokens from dollars an hour, where only those are given."""
    hourly = series.pop("usd_per_hour", None)
    tokens = series.get("output_tokens_per_s")
    if hourly is not None and tokens is not None and "usd_per_million_output_tokens" not in series:
        cost = np.divide(hourly, tokens * 3600.0 / 1e6, out=np.full(len(tokens), math.nan), where=tokens > 0.0)
        series["usd_per_million_output_tokens"] = cost
    return series
