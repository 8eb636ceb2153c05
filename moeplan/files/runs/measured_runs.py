"""Tables of measured runs (CSV): read, checked, every unusable cell reported with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.inert import inert_frame
from moeplan.files.write import write_text

# Columns a serving row needs to be understood, and those that hold numbers. Everything else is carried through.
SERVING_NEEDED: tuple[str, ...] = (
    "run_id",
    "model",
    "hardware",
    "n_gpus",
    "engine",
    "load",
    "input_tokens",
    "output_tokens",
)
SERVING_NUMBERS: tuple[str, ...] = (
    "n_gpus", "tp", "pp", "dp", "ep", "input_tokens", "output_tokens", "length_ratio", "concurrency", "ttft_ms",
    "ttft_ms_median", "tpot_ms", "tpot_ms_median", "itl_ms", "e2e_ms", "e2e_ms_median", "output_tokens_per_s",
    "input_tokens_per_s", "output_tokens_per_s_per_gpu", "requests_per_s", "prefill_workers", "prefill_tp",
    "prefill_dp", "prefill_ep", "decode_workers", "decode_tp", "decode_dp", "decode_ep",
)  # fmt: skip
SERVING_TEXT: tuple[str, ...] = (
    "run_id", "source", "licence", "measured_on", "model", "model_as_named", "hardware", "weight_precision",
    "engine", "engine_version", "load", "notes",
)  # fmt: skip
TRAINING_NEEDED: tuple[str, ...] = (
    "run_id",
    "model",
    "precision",
    "hardware",
    "n_gpus",
    "sequence_length",
    "global_batch",
)
TRAINING_NUMBERS: tuple[str, ...] = (
    "n_gpus", "tp", "pp", "vpp", "ep", "etp", "cp", "dp", "sequence_length", "global_batch", "micro_batch",
    "step_time_s", "tokens_per_s_per_gpu", "tflop_per_s_per_gpu", "mfu_pct", "memory_gb_per_gpu",
)  # fmt: skip
_MOST_BYTES = 512 * 2**20
_MOST_RUNS = 100_000
_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class RunTable:
    """Measured runs of one kind. ``unknown_columns`` are carried through unread."""

    kind: str  # "serving" or "training"
    frame: pd.DataFrame
    unknown_columns: tuple[str, ...]


def read_runs(path: Path) -> RunTable:
    """The runs in a CSV file. Raises InputError for a file that is no such table, or for unusable cells."""
    if not path.is_file():
        raise input_error(path, "no such file")
    if path.stat().st_size > _MOST_BYTES:
        raise input_error(path, "too large for a table of runs", allowed=f"at most {_MOST_BYTES // 2**20} MiB")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", nrows=_MOST_RUNS + 1)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise input_error(path, "not a readable CSV table", got=str(error)) from error
    if len(frame) > _MOST_RUNS:
        raise input_error(path, "too many runs in one table", allowed=f"at most {_MOST_RUNS:,}")
    if "load" in frame.columns and "engine" in frame.columns:
        kind, needed, numbers, known = "serving", SERVING_NEEDED, SERVING_NUMBERS, {*SERVING_TEXT, *SERVING_NUMBERS}
    else:
        kind, needed, numbers, known = "training", TRAINING_NEEDED, TRAINING_NUMBERS, set(frame.columns)
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise input_error(path, f"column {', '.join(missing)} missing", allowed=", ".join(needed))
    return RunTable(kind, _typed(path, frame, numbers), tuple(c for c in frame.columns if c not in known))


def read_predictions(path: Path) -> pd.DataFrame:
    """Another tool's predictions by run: run_id, peer_ttft_ms, peer_tpot_ms. Raises InputError for any other table."""
    try:
        frame = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise input_error(path, "not a readable CSV table", got=str(error)) from None
    missing = [column for column in ("run_id", "peer_ttft_ms", "peer_tpot_ms") if column not in frame]
    if missing:
        raise input_error(path, f"column {', '.join(missing)} missing", allowed="run_id, peer_ttft_ms, peer_tpot_ms")
    return frame


def write_runs(path: Path, rows: Sequence[Mapping[str, Any]], *, append: bool) -> tuple[int, int]:
    """Write rows as a table of serving runs, whole or not at all; returns how many are new and how many were there.

    Raises:
        InputError: ``path`` exists and is not to be added to, is no such table, or cannot be written.
    """
    if path.exists() and not append:
        raise input_error(path, "exists already", hint="--append adds to it")
    frame = pd.DataFrame([*rows]).dropna(axis=1, how="all").drop_duplicates("run_id")
    old = pd.DataFrame({"run_id": []}, dtype=str)
    if path.exists():
        read_runs(path)
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
    fresh = frame[~frame["run_id"].isin(old["run_id"])]
    together = pd.concat([old, fresh], ignore_index=True) if len(old) else fresh
    order = {name: i for i, name in enumerate(dict.fromkeys([*SERVING_TEXT, *SERVING_NUMBERS]))}
    columns = sorted(together.columns, key=lambda name: order.get(name, len(order)))
    write_text(path, inert_frame(together[columns]).to_csv(index=False, float_format="%.9g"))
    return len(fresh), len(rows) - len(fresh)


def _typed(path: Path, frame: pd.DataFrame, numbers: Sequence[str]) -> pd.DataFrame:
    """Numbers as floats, empty cells as NaN (numbers) or "" (text)."""
    problems: list[Problem] = []
    for column in numbers:
        if column not in frame.columns:
            frame[column] = np.nan
            continue
        text = frame[column].str.strip()
        value = pd.to_numeric(text.mask(text == ""), errors="coerce")
        bad = (text != "") & ~(np.isfinite(value) & (value >= 0.0))
        for row in np.flatnonzero(bad.to_numpy())[:_MOST_PROBLEMS]:
            what = "not a finite number of at least 0"
            problems.append(Problem(str(path), int(row) + 2, None, column, what, str(text.iloc[row])))
        frame[column] = value
    if problems:
        raise InputError(problems)
    return frame


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A text cell, "" when the table has no such column."""
    value = row.get(key, "")
    return value.strip() if isinstance(value, str) else ""
