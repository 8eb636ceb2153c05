"""Its presence puts this folder on the import path: helpers shared by tests of several folders live beside it."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _fixed_today(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ages of prices are counted from 2026-11-27; quotes are kept in a folder of the tests' own."""
    os.environ["SOURCE_DATE_EPOCH"] = "1795737600"
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))
