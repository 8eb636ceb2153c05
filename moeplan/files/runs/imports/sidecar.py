"""What a benchmark's file does not say, in a small YAML file beside it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeplan.errors import InputError
from moeplan.files.runs.imports.row import Setup, setup_of
from moeplan.files.validate import problems_of
from moeplan.files.yaml_tree import load_yaml

_Count = Field(default=None, ge=1)
_Positive = Field(default=None, gt=0, allow_inf_nan=False)


class Sidecar(BaseModel):
    """Keys as the columns of a table of measured runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    hardware: str | None = None
    n_gpus: int | None = _Count
    weight_precision: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    tp: int | None = _Count
    pp: int | None = _Count
    dp: int | None = _Count
    ep: int | None = _Count
    load: str | None = Field(default=None, pattern="^(closed_loop|poisson|burst|offline|static)$")
    concurrency: int | None = _Count
    requests_per_s: float | None = _Positive
    input_tokens: float | None = _Positive
    output_tokens: float | None = _Positive
    length_ratio: float | None = Field(default=None, gt=0, le=1)
    measured_on: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    licence: str | None = None


def read_sidecar(path: Path) -> Setup:
    """The setup in a sidecar file. Raises InputError with every problem, located."""
    node = load_yaml(path, what="sidecar of a benchmark result")
    try:
        return setup_of(Sidecar.model_validate(node.plain()).model_dump())
    except ValidationError as error:
        raise InputError(problems_of(error, node, Sidecar)) from None
