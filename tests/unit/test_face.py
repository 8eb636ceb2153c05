"""The package's face: names load on first use and stay what they are."""

from __future__ import annotations

import importlib

import moeplan


def test_simulate_stays_a_function_when_the_room_of_that_name_is_imported() -> None:
    importlib.import_module("moeplan.simulate.arrivals")
    planned = importlib.import_module("moeplan.planner.plan")
    assert moeplan.simulate is planned.simulate
    assert importlib.import_module("moeplan.simulate").__path__
