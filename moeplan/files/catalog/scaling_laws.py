"""Published scaling laws shipped with the package: ``moeplan/data/scaling_laws.yaml``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from moeplan.files.yaml_tree import load_yaml
from moeplan.spec.scaling import ScalingLaw


@cache
def load_scaling_laws() -> tuple[ScalingLaw, ...]:
    """All laws, in the order of the file."""
    tree: dict[str, Any] = load_yaml(Path(str(files("moeplan"))) / "data" / "scaling_laws.yaml").plain()
    return tuple(_law(name, entry) for name, entry in tree.items())


def _law(name: str, entry: dict[str, Any]) -> ScalingLaw:
    def ends(key: str) -> tuple[float, float] | None:
        return (float(entry[key][0]), float(entry[key][1])) if key in entry else None

    return ScalingLaw(
        name=name,
        form=entry["form"],
        coefficients={key: float(value) for key, value in entry["coefficients"].items()},
        active_params=ends("active_params"),
        total_params=ends("total_params"),
        tokens=ends("tokens"),
        sparsities=tuple(float(s) for s in entry.get("sparsities", ())),
        source=entry["source"],
        spread=entry["spread"],
    )
