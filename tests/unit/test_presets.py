"""Presets of routing say what their sources say, and the default points to the preset of a recorded model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml
from step_cases import moe

from moeplan.costs.choices import layer_choices
from moeplan.files.catalog.model_catalog import load_model
from moeplan.files.catalog.model_data import default_routing
from moeplan.files.scenario.resolve_routing import presets
from moeplan.spec.routing import Popularity, RoutingAssumption

FOLDER = Path(str(files("moeplan"))) / "data" / "routing"
DATA = yaml.safe_load((FOLDER.parent / "routing.yaml").read_text())


def selected(preset, n_experts, top_k, n_layers=300):
    """Selection probabilities of many layers, (n_layers, n_experts)."""
    entry = yaml.safe_load((FOLDER / f"{preset}.yaml").read_text())
    law = RoutingAssumption(0.0, "", Popularity(entry["popularity"]["law"], entry["popularity"]["value"]))
    block = moe(n_experts, top_k)
    return np.stack([layer_choices(block, law, layer).selected[0] for layer in range(n_layers)])


@pytest.mark.parametrize(
    ("preset", "n_experts", "top_k", "recorded"),
    [("mixtral-8x7b", 8, 2, 0.14), ("qwen1.5-moe-a2.7b", 60, 4, np.sqrt(0.208**2 - 0.076**2))],
)
def test_recorded_unevenness(preset, n_experts, top_k, recorded):
    """Coefficient of variation of the selections, not of the weights, which top-k levels."""
    p = selected(preset, n_experts, top_k)
    assert np.median(p.std(axis=1) / p.mean(axis=1)) == pytest.approx(recorded, rel=0.06)


@pytest.mark.parametrize(
    ("preset", "published"), [("aux-loss-training", (0.72 + 0.52) / 2), ("balanced-training", 0.04)]
)
def test_published_imbalance(preset, published):
    """Max over mean, less one, of 64 experts top-6 (arXiv:2408.15664, table 2)."""
    p = selected(preset, 64, 6)
    assert np.mean(p.max(axis=1) / p.mean(axis=1)) - 1.0 == pytest.approx(published, rel=0.05)


def test_recorded_models_are_pointed_to_their_preset():
    assert set(DATA["recorded"].values()) <= set(presets())
    for name, preset in DATA["recorded"].items():
        model = load_model(name)
        assert f"`routing: {preset}`" in default_routing(model).note
        assert preset not in default_routing(model, training=True).note
    assert "was recorded" not in default_routing(load_model("Qwen3-30B-A3B")).note
