"""Fitted parameters of a device, `hardware_profiles/<device>/fitted/<date>.yaml`, and what others inherit from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moeplan.errors import InputError
from moeplan.files.locate import data_folder
from moeplan.files.validate import problems_of
from moeplan.files.write import write_text
from moeplan.files.yaml_tree import load_yaml
from moeplan.provenance import Tier
from moeplan.spec.hardware import Efficiency, OpParameters

Residual = tuple[float, float, float]
Fits = Mapping[tuple[str, str, str], OpParameters]

TRANSFER_FILE = "transfer.yaml"
# The C reader is ten times faster; a fitted file has thousands of numbers. Both are safe loaders.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Fit(BaseModel):
    """Parameters of one operation, engine and number format, with how well they describe rows not fitted."""

    model_config = ConfigDict(extra="allow", frozen=True)  # covariance, tables, held-out errors: for people

    op: str
    engine: str
    dtype: str
    tier: Literal["fitted", "transferred", "estimate"]
    values: dict[str, float]
    log_residual: Residual
    regimes: dict[str, Residual] = {}
    source: str


class FitFile(BaseModel):
    """A fitted file; keys beside ``fits`` describe how the fits were made and are not read here."""

    model_config = ConfigDict(extra="allow", frozen=True)

    fits: list[Fit]


class Transfer(BaseModel):
    """Who lends parameters to an architecture, and how wrong such loans were on devices with data.

    ``donors`` are devices in order of nearness; an architecture that is not listed gets the median over all measured
    devices. ``architectures`` says what the donors are. ``residuals`` holds, by operation, quantiles of
    ln(measured / predicted) of loans between devices of one architecture (``near``) and of all others (``far``).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    donors: dict[str, list[str]]
    architectures: dict[str, str]
    residuals: dict[str, dict[Literal["near", "far"], Residual]]


@cache
def read_fits(path: Path) -> Fits:
    """The fits of one file by (operation, engine, format).

    Raises:
        InputError: with every problem of the file.
    """
    try:
        file = FitFile.model_validate(yaml.load(path.read_bytes(), _Loader))
    except (ValidationError, yaml.YAMLError, OSError):
        # The slow reader knows lines and columns.
        node = load_yaml(path, what="fitted parameters")
        try:
            file = FitFile.model_validate(node.plain())
        except ValidationError as error:
            raise InputError(problems_of(error, node, FitFile)) from None
    return {
        (f.op, f.engine, f.dtype): OpParameters(
            f.op, f.engine, f.dtype, f.values, Tier(f.tier), f.log_residual, f.source, f.regimes
        )
        for f in file.fits
    }


def newest(folder: Path) -> Path | None:
    """The fitted file of the latest date in a device's folder."""
    files = sorted((folder / "fitted").glob("*.yaml"))
    return files[-1] if files else None


def read_document(path: Path) -> dict[str, Any]:
    """A fitted file as it stands, with the keys that only people read.

    Raises:
        InputError: as `read_fits`.
    """
    read_fits(path)
    document: dict[str, Any] = yaml.load(path.read_bytes(), _Loader)
    return document


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a fitted file or the transfer file, whole or not at all; the folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(document), sort_keys=False, width=120, default_flow_style=None, allow_unicode=True)
    write_text(path, text)


def efficiency_of(folders: Iterable[Path], architecture: str) -> Efficiency:
    """Everything known of a device: its own fits, and loans for the operations nobody measured on it.

    Args:
        folders: the profile's folder, then those of the profiles it extends; the first fitted file counts.
        architecture: of the device.
    """
    files = [file for file in map(newest, folders) if file is not None]
    own = dict(read_fits(files[0])) if files else {}
    measured = {op for op, _, _ in own}
    loans = {key: loan for key, loan in _loans(architecture).items() if key[0] not in measured}
    return Efficiency({**loans, **own})


@cache
def read_transfer() -> Transfer:
    """The shipped rule of inheritance and its measured errors. Raises InputError when the file is bad."""
    path = data_folder("hardware_profiles") / TRANSFER_FILE
    node = load_yaml(path, what="transfer rule")
    try:
        return Transfer.model_validate(node.plain())
    except ValidationError as error:
        raise InputError(problems_of(error, node, Transfer)) from None


@cache
def _loans(architecture: str) -> Fits:
    rule = read_transfer()
    profiles = data_folder("hardware_profiles")
    order = rule.donors.get(architecture) or list(rule.architectures)
    donors = {d: read_fits(f) for d in order if (f := newest(profiles / d)) is not None}
    return loans(architecture, donors, rule)


def loans(architecture: str, donors: Mapping[str, Fits], rule: Transfer) -> Fits:
    """Parameters for a device of ``architecture`` that has none: per operation from the first donor that has it.

    The parameters are shares of datasheet rates, so they move between devices as they are. The interval is that of
    past loans, never narrower than the donor's own.
    """
    order = rule.donors.get(architecture)
    if order is None:
        return {key: _lend(fit, rule, near=False) for key, fit in _pooled(donors).items()}
    lent: dict[tuple[str, str, str], OpParameters] = {}
    for device in order:
        have = {op for op, _, _ in lent}
        near = rule.architectures.get(device) == architecture
        fits = donors.get(device, {})
        lent.update({key: _lend(fit, rule, near=near) for key, fit in fits.items() if key[0] not in have})
    return lent


def _lend(fit: OpParameters, rule: Transfer, *, near: bool) -> OpParameters:
    past = rule.residuals.get(fit.op, {})
    low, middle, high = (past.get("near") if near else None) or past.get("far") or fit.log_residual
    wide = (min(low, fit.log_residual[0]), middle, max(high, fit.log_residual[2]))
    return replace(fit, tier=Tier.TRANSFERRED, log_residual=wide, regimes={}, source=f"transferred: {fit.source}")


def _pooled(donors: Mapping[str, Fits]) -> Fits:
    """Per operation, engine and format the median of every parameter over the devices that have it."""
    together: dict[tuple[str, str, str], list[OpParameters]] = {}
    for fits in donors.values():
        for key, fit in fits.items():
            together.setdefault(key, []).append(fit)
    return {
        key: replace(
            fits[0],
            values={name: median(fit.values[name] for fit in fits) for name in fits[0].values},
            log_residual=(
                min(f.log_residual[0] for f in fits),
                median(f.log_residual[1] for f in fits),
                max(f.log_residual[2] for f in fits),
            ),
            source=f"median of {len(fits)} measured devices",
        )
        for key, fits in together.items()
    }
