"""Measured tables cut into groups of rows that share parameters: device x operation x engine x format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moeplan.calibrate.fit import TEST, split_of
from moeplan.calibrate.op_model import OpModel, Place, usable
from moeplan.calibrate.ops import OP_MODELS
from moeplan.files.runs.op_tables import OpTable, TableFile, check_unit, read_table
from moeplan.spec.hardware import Hardware

# Tables of `moeplan measure` that describe a machine; no operation takes its parameters from them.
OBSERVED = ("launch", "gemm_sustained")
_SAMPLE_ROWS = 500


@dataclass(frozen=True, slots=True)
class Group:
    """Rows one fit explains: ``frame`` has the column ``measured_s``; ``regime`` names each row's regime."""

    model: OpModel
    place: Place
    engine: str
    fmt: str
    frame: pd.DataFrame
    regime: pd.Series

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model.op, self.engine, self.fmt


@dataclass(frozen=True, slots=True)
class Cut:
    """A table cut into groups, and why the other rows are in none (reason -> number of rows)."""

    groups: tuple[Group, ...]
    left_out: Mapping[str, int]


def table_ops() -> tuple[str, ...]:
    """Names a table may have."""
    return tuple(dict.fromkeys([name for model in OP_MODELS for name in model.tables] + list(OBSERVED)))


def models_of(op: str) -> tuple[OpModel, ...]:
    """The operations that the tables named ``op`` measure."""
    return tuple(model for model in OP_MODELS if op in model.tables)


def read(file: TableFile) -> OpTable:
    """Read a table with the columns its models need. Raises InputError as `files.runs.op_tables.read_table`."""
    models = models_of(file.op)
    columns = dict.fromkeys(column for model in models for column in model.columns)
    latencies = list(dict.fromkeys(model.latency[0] for model in models)) or ["latency_ms"]
    return read_table(file, columns=[*columns, *latencies[1:]], latency=latencies[0])


def cut(table: OpTable, hardware: Hardware, *, held_out_only: bool = False) -> Cut:
    """Groups of the table's rows; ``held_out_only`` takes and counts only shapes no fit or interval has used.

    Raises:
        InputError: the times cannot be in the unit that their column states.
    """
    place = Place(table.file.hardware, table.file.op, table.file.engine)
    groups: list[Group] = []
    taken = pd.Series(False, index=table.frame.index)
    left_out: dict[str, int] = {}
    for model in models_of(place.op):
        column, unit_s = model.latency
        frame = table.frame.assign(measured_s=table.frame[column].astype(np.float64) * unit_s, engine=table.file.engine)
        fmt = model.format_of(frame, place)
        mine = frame[fmt != ""]
        taken |= fmt != ""
        counted = split_of(mine, model.shape_columns) == TEST if held_out_only else pd.Series(True, index=mine.index)
        keep, _ = usable(model, mine, place)
        _, reasons = usable(model, mine[counted], place)
        for reason, n in reasons.items():
            left_out[reason] = left_out.get(reason, 0) + n
        rows = mine[keep]
        if rows.empty:
            continue
        engine = model.engine_of(rows, place) if model.engine_of else pd.Series(place.engine, index=rows.index)
        regime = model.regime_of(rows, place)
        chosen = rows[counted[rows.index]]
        for (name, kind), part in chosen.groupby([engine[chosen.index], fmt[chosen.index]], sort=True):
            groups.append(Group(model, place, str(name), str(kind), part, regime[part.index]))
    for group in groups:
        _check_unit(table.file, group, hardware)
    unknown = int((~taken).sum())
    if unknown:
        why = "no model for this type or variant"
        if place.op in OBSERVED:
            why = "describes the machine, not an operation"
        left_out[why] = left_out.get(why, 0) + unknown
    return Cut(tuple(groups), left_out)


def _check_unit(file: TableFile, group: Group, hardware: Hardware) -> None:
    """Compare with the model at its starting values: no kernel is a hundred times off, a wrong unit is a thousand."""
    model = group.model
    some = group.frame.iloc[:: max(len(group.frame) // _SAMPLE_ROWS, 1)]
    values = {parameter.name: parameter.start for parameter in model.parameters}
    expected_s = model.time_s(model.inputs(some, hardware, group.fmt), hardware, group.fmt, values)
    ratio = float(np.exp(np.median(np.log(some["measured_s"].to_numpy() / expected_s))))
    check_unit(file, ratio, model.latency[0])
