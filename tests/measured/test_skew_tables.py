"""What skew does to the time of grouped products, in every measured table.

Effect = skewed over balanced time of one shape; error = predicted over measured effect, less one. The table in
docs/method/routing.md is the one made here: `pytest tests/measured/test_skew_tables.py -m ''` says what it should be.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeplan.calibrate.judge import predict
from moeplan.calibrate.tables import Group, cut, read, table_ops
from moeplan.files.catalog.hardware_catalog import hardware_names, load_hardware
from moeplan.files.runs.op_tables import find_tables
from moeplan.spec.hardware import Hardware

SHARED = Path(os.environ.get("MOEPLAN_SHARED", Path(__file__).parents[2].parent / "shared"))
OPS = SHARED / "measured" / "ops"
PAGE = Path(__file__).parents[2] / "docs" / "method" / "routing.md"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(not OPS.is_dir(), reason="measured runs are not here"),
]

SAME = ("kernel_source", "version")  # beside the shape, what a balanced and a skewed row must share


def effects(group: Group, hardware: Hardware) -> pd.DataFrame:
    """Measured and predicted effect of every skewed row whose balanced row was measured too."""
    frame = group.frame.assign(predicted_s=predict(group, hardware)[0])
    keys = [name for name in (*group.model.shape_columns, *SAME) if name in frame]
    balanced = frame[frame["distribution"] == "balanced"].drop_duplicates(keys)[[*keys, "measured_s", "predicted_s"]]
    skewed = frame[frame["distribution"] != "balanced"].merge(balanced, on=keys, suffixes=("", "_balanced"))
    kinds = ("measured", "predicted")
    return pd.DataFrame({kind: skewed[f"{kind}_s"] / skewed[f"{kind}_s_balanced"] for kind in kinds})


def by_table() -> dict[str, pd.DataFrame]:
    """Effects in the shapes that no fit has used, by device and engine; the kernels an engine usually runs."""
    found = {}
    for file in find_tables(OPS, ops=table_ops(), hardware=hardware_names(), only_hardware=()):
        if file.op == "moe":
            hardware = load_hardware(file.hardware)
            groups = [g for g in cut(read(file), hardware, held_out_only=True).groups if g.engine == file.engine]
            found[f"{file.hardware}, {file.engine}"] = pd.concat([effects(g, hardware) for g in groups])
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, pd.DataFrame]:
    return {name: one for name, one in by_table().items() if len(one)}


def errors(one: pd.DataFrame) -> np.ndarray:
    return np.abs(one["predicted"] / one["measured"] - 1.0).to_numpy()


def test_effect_of_skew(found):
    """The target is 15 %: the median effect of every table is well inside, and three in four of all effects."""
    for name, one in found.items():
        assert len(one) >= 200, name
        assert np.median(errors(one)) < 0.10, name
    everything = np.concatenate([errors(one) for one in found.values()])
    assert np.mean(everything < 0.15) > 0.75


def test_page(found):
    """docs/method/routing.md has these rows."""
    rows = []
    for name, one in sorted(found.items()):
        low, high = np.quantile(one["measured"], (0.05, 0.95))
        bad = errors(one)
        figures = f"{low:.2f} to {high:.2f} | {100 * np.median(bad):.1f} % | {100 * np.mean(bad < 0.15):.0f} %"
        rows.append(f"| {name} | {len(one)} | {figures} |")
    text = PAGE.read_text()
    missing = [row for row in rows if row not in text]
    assert not missing, "\n".join(rows)
