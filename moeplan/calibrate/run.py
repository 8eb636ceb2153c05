"""The whole calibration: tables in, one fitted file per device and the transfer errors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeplan.calibrate.fit import TEST, Fit, NotConvergedError, TooFewRowsError, fit_rows, split_of
from moeplan.calibrate.tables import Group, cut, models_of, read
from moeplan.calibrate.transfer import DONORS, Loan, leave_one_out, residuals
from moeplan.errors import InputError, Problem
from moeplan.files.catalog.fitted import Fits, Transfer, newest, read_document, write_document
from moeplan.files.runs.op_tables import OpTable, TableFile, table_record
from moeplan.provenance import Tier
from moeplan.spec.hardware import Efficiency, Hardware, OpParameters

_SAMPLE_ROWS = 1000  # per group, kept for leave-one-device-out
_DIGITS = 6

Key = tuple[str, str, str]


@dataclass(slots=True)
class Calibration:
    """What a run found, by device."""

    entries: dict[str, dict[Key, dict[str, Any]]] = field(default_factory=dict)
    tables: set[tuple[str, str]] = field(default_factory=set)  # (device, table) read, whatever came of it
    samples: list[Group] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # groups without enough rows
    failed: dict[str, list[str]] = field(default_factory=dict)  # device -> fits that did not converge
    left_out: dict[tuple[str, str], int] = field(default_factory=dict)  # (table, reason) -> rows


def calibrate(
    files: Sequence[TableFile],
    hardware: Mapping[str, Hardware],
    *,
    seed: int,
    origin: str,
    say: Callable[[str], None],
) -> Calibration:
    """Fit every group of every table; ``origin`` is who measured the tables, for the record.

    Raises:
        InputError: one problem per bad table; then nothing is to be written.
    """
    found = Calibration()
    problems: list[Problem] = []
    # what is composed of other operations last
    for file in sorted(files, key=lambda file: any(model.composed for model in models_of(file.op))):
        say(f"{file.hardware}: {file.op} ({file.engine})")
        machine = _with_fits(hardware[file.hardware], found)
        try:
            table = read(file)
            pieces = cut(table, machine)
        except InputError as error:
            problems += error.problems
            continue
        if problems:
            continue  # the rest is only checked
        found.tables.add((file.hardware, f"{file.op}.{file.engine}"))
        for reason, n in pieces.left_out.items():
            found.left_out[f"{file.hardware}/{file.op}.{file.engine}", reason] = n
        for group in pieces.groups:
            _fit_group(found, group, table, machine, seed, origin)
    if problems:
        raise InputError(problems)
    return found


def _with_fits(hardware: Hardware, found: Calibration) -> Hardware:
    """The machine with what this run has fitted so far in place of what it had."""
    new = _fits(found).get(hardware.slug, {})
    ops = {op for op, _, _ in new}
    old = {key: fit for key, fit in hardware.efficiency.parameters.items() if key[0] not in ops}
    return replace(hardware, efficiency=Efficiency({**old, **new}))


def _fit_group(found: Calibration, group: Group, table: OpTable, hardware: Hardware, seed: int, origin: str) -> None:
    name = f"{group.place.hardware}: {' '.join(group.key)}"
    try:
        fit = fit_rows(group.model, group.frame, group.place, hardware, group.fmt, seed=seed)
    except TooFewRowsError as error:
        found.skipped.append(f"{name}: {error}")
        return
    except NotConvergedError as error:
        found.failed.setdefault(group.place.hardware, []).append(f"{name}: {error}")
        return
    entries = found.entries.setdefault(group.place.hardware, {})
    if group.key not in entries or entries[group.key]["n_rows"] < fit.n_rows:
        entries[group.key] = _entry(group.key, fit, table, origin)
    test = group.frame[split_of(group.frame, group.model.shape_columns) == TEST]
    some = test.iloc[:: max(len(test) // _SAMPLE_ROWS, 1)]
    if not some.empty:
        found.samples.append(Group(group.model, group.place, group.engine, group.fmt, some, group.regime[some.index]))


def _entry(key: Key, fit: Fit, table: OpTable, origin: str) -> dict[str, Any]:
    op, engine, dtype = key
    heldout = asdict(fit.heldout)
    return {
        "op": op,
        "engine": engine,
        "dtype": dtype,
        "tier": Tier.FITTED.value,
        "values": {name: _rounded(value) for name, value in fit.values.items()},
        "covariance": [[_rounded(x) for x in row] for row in fit.covariance],
        "log_residual": [_rounded(x) for x in fit.log_residual],
        "regimes": {name: [_rounded(x) for x in triple] for name, triple in fit.regimes.items()},
        "n_rows": fit.n_rows,
        "heldout": {
            "n": heldout["n"],
            "mdape": _rounded(heldout["mdape_frac"]),
            "mape": _rounded(heldout["mape_frac"]),
            "bias": _rounded(heldout["bias_frac"]),
            "coverage": _rounded(heldout["coverage_frac"]),
        },
        "tables": [{"name": f"{table.file.op}.{table.file.engine}", **table_record(table)}],
        "source": f"fitted to {fit.n_rows} rows of {table.file.op}.{table.file.engine} "
        f"({origin}, {table.file.engine} {', '.join(table.versions) or 'unknown version'})",
    }


def write(found: Calibration, out: Path, today: str) -> list[Path]:
    """Write ``<out>/<device>/fitted/<today>.yaml`` for every device all of whose fits converged.

    Fits of operations, engines and formats this run did not see are carried over from the device's newest file, but for
    those of a table it did see.
    """
    written = []
    for device, entries in sorted(found.entries.items()):
        if device in found.failed:
            continue
        seen = {table for place, table in found.tables if place == device}
        old = newest(out / device)
        kept = [
            fit
            for fit in (read_document(old)["fits"] if old else [])
            if (fit["op"], fit["engine"], fit["dtype"]) not in entries
            and seen.isdisjoint(table["name"] for table in fit.get("tables", []))
        ]
        path = out / device / "fitted" / f"{today}.yaml"
        document = {
            "fitted_on": today,
            "device": device,
            "method": "docs/method/calibration.md",
            "fits": sorted([*kept, *entries.values()], key=lambda fit: (fit["op"], fit["engine"], fit["dtype"])),
        }
        write_document(path, document)
        written.append(path)
    return written


def transfer(found: Calibration, hardware: Mapping[str, Hardware]) -> list[Loan]:
    """Leave-one-device-out errors of the fits just made."""
    rule = Transfer(
        donors={name: list(donors) for name, donors in DONORS.items()},
        architectures={name: one.device.architecture for name, one in hardware.items()},
        residuals={},
    )
    fits = {
        name: {key: fit for key, fit in _with_fits(one, found).efficiency.parameters.items() if fit.tier is Tier.FITTED}
        for name, one in hardware.items()
    }
    return leave_one_out(found.samples, hardware, fits, rule)


def write_transfer(path: Path, found: Sequence[Loan], hardware: Mapping[str, Hardware], old: Transfer | None) -> None:
    """Write the rule and its errors; operations this run did not see keep theirs."""
    errors = {op: {str(k): list(v) for k, v in pair.items()} for op, pair in (old.residuals if old else {}).items()}
    for op, pair in residuals(found).items():
        errors[op] = {name: [_rounded(x) for x in triple] for name, triple in pair.items()}
    seen = {loan.op for loan in found}
    before: dict[str, Any] = ((old.model_extra or {}) if old else {}).get("lodo_mdape", {})
    lodo = {op: one for op, one in before.items() if op not in seen}
    for loan in found:
        mdape = _rounded(loan.accuracy.mdape_frac)
        lodo.setdefault(loan.op, {}).setdefault(loan.distance, {})[loan.hardware] = mdape
    document = {
        "donors": {name: list(donors) for name, donors in DONORS.items()},
        "architectures": {
            **(old.architectures if old else {}),
            **{name: one.device.architecture for name, one in sorted(hardware.items())},
        },
        "residuals": errors,
        "lodo_mdape": lodo,
    }
    write_document(path, document)


def _fits(found: Calibration) -> dict[str, Fits]:
    return {
        device: {
            key: OpParameters(*key, e["values"], Tier.FITTED, tuple(e["log_residual"]), e["source"], {})
            for key, e in entries.items()
        }
        for device, entries in found.entries.items()
    }


def _rounded(value: float) -> float:
    return float(np.format_float_scientific(value, precision=_DIGITS - 1)) if np.isfinite(value) else 0.0
