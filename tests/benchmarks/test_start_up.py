"""Start-up: what a user waits for before anything is computed. Processor time: a busy machine does not fail it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKED = Path(__file__).parents[2] / "scenarios" / "quickstart.yaml"


def _cpu_s(*args: str) -> float:
    """User plus system time [s] of ``moeplan ARGS`` in a fresh interpreter."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "moeplan", *args], check=True, capture_output=True, timeout=60)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


@pytest.mark.parametrize(
    ("args", "limit_s"), [(("--help",), 0.4), (("check", str(CHECKED)), 0.8)], ids=["help", "check"]
)
def test_start_up(args: tuple[str, ...], limit_s: float) -> None:
    _cpu_s(*args)  # compiles the byte code
    assert min(_cpu_s(*args) for _ in range(3)) < limit_s
