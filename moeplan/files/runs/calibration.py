"""What `moeplan calibrate` learnt from a user's own runs, in a file that a scenario names under ``calibration``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeplan.errors import InputError
from moeplan.files.catalog.fitted import read_fits, write_document
from moeplan.files.validate import problems_of
from moeplan.files.yaml_tree import Node, load_yaml
from moeplan.spec.hardware import OpParameters
from moeplan.spec.uncertainty import LogError

SPREADS = "error_spread.yaml"


class Correction(BaseModel):
    """ln(measured / predicted) of one metric on one hardware under one engine; own errors before and after."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hardware: str
    engine: str
    metric: Literal["step", "ttft", "throughput", "training_step"]
    shift: float = Field(ge=-3, le=3, allow_inf_nan=False)
    low: float = Field(ge=-10, le=10, allow_inf_nan=False)
    high: float = Field(ge=-10, le=10, allow_inf_nan=False)
    n_runs: int = Field(ge=1)
    mean: float
    sd: float
    before: float
    after: float


class CalibrationFile(BaseModel):
    """Written by `moeplan calibrate RUNS.csv`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fitted_on: str
    runs: str
    corrections: list[Correction]


def read_calibration(path: Path) -> CalibrationFile | Mapping[tuple[str, str, str], OpParameters]:
    """Corrections of own runs, or operation parameters where the file is one that `calibrate TABLES` wrote.

    Raises:
        InputError: every problem, located.
    """
    node = load_yaml(path, what="calibration")
    if isinstance(node.value, dict) and "fits" in node.value:
        return read_fits(path)
    try:
        return CalibrationFile.model_validate(node.plain())
    except ValidationError as error:
        raise InputError(problems_of(error, node, CalibrationFile)) from None


def write_calibration(path: Path, fitted_on: str, runs: str, corrections: Sequence[Mapping[str, Any]]) -> None:
    """Write corrections, whole or not at all."""
    rounded = [{k: round(v, 5) if isinstance(v, float) else v for k, v in one.items()} for one in corrections]
    write_document(path, {"fitted_on": fitted_on, "runs": runs, "corrections": rounded})


def corrections_for(file: CalibrationFile, hardware: str, engine: str) -> dict[str, LogError]:
    """The corrections made for a hardware and engine, by metric."""
    return {
        one.metric: LogError(one.low, one.high, one.n_runs, f"{one.n_runs} own runs, {file.fitted_on}", one.shift)
        for one in file.corrections
        if (one.hardware, one.engine) == (hardware, engine)
    }


@cache
def error_spreads() -> Mapping[str, Mapping[str, Any]]:
    """By metric: between, within, n_runs, n_groups, source of published runs' errors (`moeplan.calibrate.own_runs`)."""
    node: Node = load_yaml(error_spreads_path(), what="data")
    tree: Mapping[str, Mapping[str, Any]] = node.plain()
    return tree


def error_spreads_path() -> Path:
    """The installed file of spreads."""
    return Path(str(files("moeplan"))) / "data" / SPREADS
