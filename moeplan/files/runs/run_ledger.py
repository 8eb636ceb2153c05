"""Which measured runs something was fitted to: a table of hashes beside what was fitted, no measured value in it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

from moeplan.errors import InputError, Problem, input_error
from moeplan.files.locate import data_folder
from moeplan.files.write import write_text

# What was run, and what came out; everything else of a row (ids, notes, who published it) may differ between copies.
_SETUP: Mapping[str, tuple[str, ...]] = {
    "serving": (
        "model", "hardware", "n_gpus", "weight_precision", "engine", "tp", "pp", "dp", "ep", "load", "input_tokens",
        "output_tokens", "length_ratio", "concurrency", "prefill_workers", "prefill_tp", "prefill_dp", "prefill_ep",
        "decode_workers", "decode_tp", "decode_dp", "decode_ep",
    ),
    "training": (
        "model", "precision", "hardware", "n_gpus", "tp", "pp", "vpp", "ep", "etp", "cp", "dp", "recompute",
        "sequence_length", "global_batch", "micro_batch", "framework",
    ),
}  # fmt: skip
_RESULTS: Mapping[str, tuple[str, ...]] = {
    "serving": (
        "ttft_ms", "ttft_ms_median", "tpot_ms", "tpot_ms_median", "itl_ms", "e2e_ms", "e2e_ms_median",
        "output_tokens_per_s", "output_tokens_per_s_per_gpu", "requests_per_s",
    ),
    "training": ("step_time_s", "tokens_per_s_per_gpu", "tflop_per_s_per_gpu", "memory_gb_per_gpu"),
}  # fmt: skip
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One run that was used: hash of setup and results, hash of the setup alone, for what, and whose it is."""

    content: str
    setup: str
    used_for: str
    source: str
    licence: str
    measured_on: str


def hashes(kind: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """(content, setup) of a row of measured runs of ``kind`` "serving" or "training".

    Numbers count to four digits, so that a copy in another unit or with another rounding is still the same run.
    """
    setup = [_text(row.get(name)) for name in _SETUP[kind]]
    return _digest(setup + [_text(row.get(name)) for name in _RESULTS[kind]]), _digest(setup)


def ledger_rows(kind: str, rows: Iterable[Mapping[str, Any]], used_for: str) -> list[LedgerRow]:
    """What a ledger says of rows that were used."""
    about = ("source", "licence", "measured_on")
    return [LedgerRow(*hashes(kind, row), used_for, *(_text(row.get(name)) for name in about)) for row in rows]


def shipped_ledger() -> Path:
    """Where the shipped fits say what they were fitted to."""
    return data_folder("models").parent / "fitted_runs.csv"


def read_ledger(path: Path) -> list[LedgerRow]:
    """Rows of a ledger, none where there is no file. Raises InputError for a file that is none."""
    if not path.exists():
        return []
    try:
        found = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise input_error(path, "cannot be read", got=str(error)) from None
    head = [f.name for f in fields(LedgerRow)]
    if not found or found[0] != head:
        raise input_error(path, "not a ledger of fitted runs", allowed=", ".join(head))
    for number, cells in enumerate(found[1:], 2):
        if len(cells) != len(head):
            raise InputError([Problem(str(path), number, None, "", f"expected {len(head)} cells", str(len(cells)))])
    return [LedgerRow(*cells) for cells in found[1:]]


def write_ledger(path: Path, rows: Iterable[LedgerRow]) -> None:
    """Replace what ``path`` says of the same purposes; other purposes stay."""
    fresh = sorted(set(rows), key=astuple)
    purposes = {row.used_for for row in fresh}
    kept = [row for row in read_ledger(path) if row.used_for not in purposes]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f.name for f in fields(LedgerRow)])
    writer.writerows(astuple(row) for row in sorted([*kept, *fresh], key=astuple))
    write_text(path, text.getvalue())


def _text(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if value != value else f"{float(value):.4g}"
    return str(value).strip() if value is not None else ""


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]
