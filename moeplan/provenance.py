"""Where a number comes from and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What sort of statement a data value is (DESIGN section 4)."""

    DATASHEET = "datasheet"
    MEASURED = "measured"
    FITTED = "fitted"
    LIST_PRICE = "list price"
    DERIVED = "derived"
    ESTIMATE = "estimate"


class Tier(StrEnum):
    """How a cost parameter was obtained, best first; wider intervals follow from lower tiers."""

    FITTED = "fitted"  # fitted to kernels measured on this device
    TRANSFERRED = "transferred"  # fitted on the nearest measured architecture
    ESTIMATE = "estimate"  # nobody measured anything comparable


@dataclass(frozen=True, slots=True)
class Source:
    """Citation of one value."""

    text: str
    date: str  # ISO date or year as far as it is known, "" when the source states none
    kind: Kind
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sourced:
    """One value of a data file with everything needed to trust or replace it."""

    value: float
    unit: str
    basis: str  # "per GPU per direction", "per node", ...
    source: Source


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a scenario value was set: a file position, a catalog entry, ``--set`` or a default."""

    how: str  # "file", "set", "catalog", "default", "derived"
    where: str  # "scenario.yaml:12:5", "catalog hardware h200-sxm", "docs/reference/scenario.md#..."
    note: str = ""
