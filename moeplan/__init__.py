"""moeplan: cost and capacity planning for Mixture-of-Experts models.

``moeplan.load(path)`` reads a scenario, ``moeplan.simulate(scenario)`` returns its plan. Names are loaded on first use,
so that ``import moeplan`` stays cheap.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moeplan._version import __version__

if TYPE_CHECKING:
    from moeplan.files.load import load
    from moeplan.planner.plan import simulate
    from moeplan.planner.search.compare import compare
    from moeplan.planner.search.optimize import optimize
    from moeplan.planner.search.sensitivity import sensitivity
    from moeplan.planner.search.sweep import sweep

__all__ = ["__version__", "compare", "load", "optimize", "sensitivity", "simulate", "sweep"]

_LAZY = {
    "load": "moeplan.files.load",
    "simulate": "moeplan.planner.plan",
    "compare": "moeplan.planner.search.compare",
    "optimize": "moeplan.planner.search.optimize",
    "sensitivity": "moeplan.planner.search.sensitivity",
    "sweep": "moeplan.planner.search.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moeplan' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


class _Face(ModuleType):
    """Keeps ``moeplan.simulate`` the function: importing the room ``moeplan/simulate`` would bind its module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
