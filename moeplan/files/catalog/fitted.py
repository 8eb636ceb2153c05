"""Fitted parameters of a device, `hardware_profiles/<device>/fitted/<date>.yaml`, and what others inherit from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moeplan.costs.transfer import ESTIMATE_LOG_RESIDUAL, Scale, mean, n_lenders, scaled
from moeplan.errors import InputError
from moeplan.files.locate import data_folder
from moeplan.files.validate import problems_of
from moeplan.files.write import write_text
from moeplan.files.yaml_tree import load_yaml
from moeplan.provenance import Tier
from moeplan.spec.hardware import Device, Efficiency, OpParameters

Residual = tuple[float, float, float]
Fits = Mapping[tuple[str, str, str], OpParameters]
Distance = Literal["near", "far", "any"]  # a device of one's own architecture, of one listed as kin, or all of them

TRANSFER_FILE = "transfer.yaml"
FABRICS_FILE = "fabrics.yaml"
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
    devices, the keys of ``architectures``. ``residuals`` holds, by operation, quantiles of ln(measured / predicted) of
    past loans by their distance.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    donors: dict[str, list[str]]
    architectures: dict[str, str]
    residuals: dict[str, dict[Distance, Residual]]


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


def efficiency_of(folders: Iterable[Path], device: Device, device_of: Callable[[str], Device]) -> Efficiency:
    """Everything known of a device: its own fits, and loans for the operations nobody measured on it.

    Args:
        folders: the profile's folder, then those of the profiles it extends; the first fitted file counts.
        device: the device.
        device_of: a shipped device by its name, for its datasheet.
    """
    files = [file for file in map(newest, folders) if file is not None]
    own = dict(read_fits(files[0])) if files else {}
    measured = {op for op, _, _ in own}
    rule = read_transfer()
    profiles = data_folder("hardware_profiles")
    order = rule.donors.get(device.architecture) or list(rule.architectures)
    donors = {d: (device_of(d), read_fits(f)) for d in order if (f := newest(profiles / d)) is not None}
    lent = {key: loan for key, loan in loans(device, donors, rule).items() if key[0] not in measured}
    return Efficiency({**lent, **own})


def fabric_parameters() -> Fits:
    """What network classes deliver, for every device. Raises InputError when the shipped file is bad."""
    return read_fits(data_folder("hardware_profiles") / FABRICS_FILE)


@cache
def read_transfer() -> Transfer:
    """The shipped rule of inheritance and its measured errors. Raises InputError when the file is bad."""
    path = data_folder("hardware_profiles") / TRANSFER_FILE
    node = load_yaml(path, what="transfer rule")
    try:
        return Transfer.model_validate(node.plain())
    except ValidationError as error:
        raise InputError(problems_of(error, node, Transfer)) from None


def loans(device: Device, donors: Mapping[str, tuple[Device, Fits]], rule: Transfer) -> Fits:
    """Parameters for a device that has none, scaled by the datasheets (`costs.transfer`).

    Per operation and number format from the first donor that has it, if that is of the device's own architecture;
    else the mean of the nearest few; for an architecture without a list the median of all. The interval is that of
    past loans, never narrower than the donors' own; kin unlike any that were measured count as far. An operation that
    one device alone has measured was never lent: its interval is an estimate's.
    """
    order = rule.donors.get(device.architecture)
    together: dict[tuple[str, str, str], list[tuple[str, OpParameters]]] = {}
    for name in order if order is not None else donors:
        lender, fits = donors.get(name, (device, {}))
        scale = Scale.between(lender, device)
        for key, fit in fits.items():
            values = scaled(fit.op, fit.values, scale)
            together.setdefault(key, []).append((name, replace(fit, values=values)))
    if order is None:
        return {key: _lend([fit for _, fit in found], rule, "any") for key, found in together.items()}
    first: dict[tuple[str, str], str] = {}  # (operation, format) -> nearest device that has it
    for (op, _, dtype), found in together.items():
        first[op, dtype] = min(first.get((op, dtype), found[0][0]), found[0][0], key=order.index)
    lent: dict[tuple[str, str, str], OpParameters] = {}
    for (op, engine, dtype), found in together.items():
        near = donors[first[op, dtype]][0].architecture == device.architecture
        if near and found[0][0] != first[op, dtype]:
            continue
        nearest = [fit for _, fit in found[: 1 if near else n_lenders(op)]]
        alike = near and Scale.between(donors[found[0][0]][0], device).alike
        lent[op, engine, dtype] = _lend(nearest, rule, "near" if alike else "far")
    return lent


def _lend(fits: list[OpParameters], rule: Transfer, distance: Distance) -> OpParameters:
    if distance == "any":
        values = {name: median(fit.values[name] for fit in fits if name in fit.values) for name in fits[0].values}
    else:
        values = mean([fit.values for fit in fits])
    past = rule.residuals.get(fits[0].op, {})
    lows, _, highs = zip(*(fit.log_residual for fit in fits), strict=True)
    low, middle, high = past.get(distance) or past.get("far") or past.get("any") or ESTIMATE_LOG_RESIDUAL
    lenders = f"{'median' if distance == 'any' else 'mean'} of {len(fits)} measured devices"
    return replace(
        fits[0],
        values=values,
        tier=Tier.TRANSFERRED,
        log_residual=(min(low, *lows), middle, max(high, *highs)),
        regimes={},
        source=f"transferred: {fits[0].source if len(fits) == 1 else lenders}",
    )
