"""Files under ``calibration``: own runs correct predictions, own tables replace operation parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from moeplan.files.locate import resolve_path
from moeplan.files.runs.calibration import CalibrationFile, corrections_for, read_calibration
from moeplan.files.scenario.resolving import Resolving
from moeplan.provenance import Tier
from moeplan.spec.hardware import Efficiency, Hardware, OpParameters
from moeplan.spec.uncertainty import LogError, ModelError


def calibrated(
    rs: Resolving, named: str | list[str], hardware: Hardware, engine: str | None, error: ModelError
) -> tuple[Hardware, ModelError]:
    """``hardware`` and ``error`` with what the named files say. ``engine`` is None where nothing is served."""
    own: dict[str, LogError] = {}
    for i, text in enumerate([named] if isinstance(named, str) else named):
        loc = ("calibration",) if isinstance(named, str) else ("calibration", i)
        found = rs.attempt(loc, partial(_read, text, rs.folder))
        if isinstance(found, CalibrationFile):
            mine = _corrections(found, hardware, engine)
            if not mine:
                made_for = sorted({f"{c.hardware} under {c.engine}" for c in found.corrections})
                runs = f"{hardware.device.slug}" + (f" under {engine}" if engine else "")
                rs.problem(loc, "no correction for what this scenario runs on", runs, ", ".join(made_for))
            own |= mine
        elif found is not None:
            hardware = _with_fits(hardware, found)
    return hardware, replace(error, own=own) if own else error


def _read(text: str, folder: Path) -> CalibrationFile | Mapping[tuple[str, str, str], OpParameters]:
    return read_calibration(resolve_path(text, folder, "calibration"))


def _corrections(file: CalibrationFile, hardware: Hardware, engine: str | None) -> dict[str, LogError]:
    """Of the device, or of the node that holds it. Training frameworks go by no name in a scenario."""
    engines = {c.engine for c in file.corrections if c.metric == "training_step"} if engine is None else {engine}
    found: dict[str, LogError] = {}
    for slug in (hardware.device.slug, hardware.slug):
        for name in sorted(engines):
            found |= corrections_for(file, slug, name)
    return found


def _with_fits(hardware: Hardware, fits: Mapping[tuple[str, str, str], OpParameters]) -> Hardware:
    """Own operations instead of borrowed ones; what was fitted on this device for an engine stays beside them."""
    measured = {op for op, _, _ in fits}
    known = hardware.efficiency.parameters.items()
    kept = {key: p for key, p in known if p.tier is Tier.FITTED or key[0] not in measured}
    return replace(hardware, efficiency=Efficiency({**kept, **fits}))
