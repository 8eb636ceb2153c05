"""What the terminal may do to a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_message_not_a_traceback() -> None:
    command = [sys.executable, "-c", "from moeplan.cli import main; main()", "catalog", "hardware"]
    with FULL.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "standard output: No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["catalog", "hardware"], ["schema"]])
def test_a_reader_that_went_away_is_no_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from moeplan.cli import main; main()", *words]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
