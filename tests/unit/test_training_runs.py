"""Rows of the training table as configurations, and the fit of what the kernels leave over."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.calibrate import training_fit
from moeplan.calibrate.training_fit import Fact, facts, fit_clocks, fit_host
from moeplan.calibrate.training_runs import predict_row, routing_of, training_of
from moeplan.costs.host import DEFAULTS
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.files.catalog.model_data import load_model_error
from moeplan.files.catalog.training_fits import read_training_fits
from moeplan.provenance import Tier

ROW = {
    "run_id": "t-1", "kind": "MoE", "model": "Qwen3-30B-A3B", "hardware": "gb200-nvl72", "n_gpus": 8, "tp": 1.0,
    "pp": 1.0, "vpp": float("nan"), "ep": 8.0, "etp": float("nan"), "cp": 1.0, "dp": 8.0, "precision": "MXFP8",
    "recompute": "", "distributed_optimizer": "", "overlap_notes": "", "notes": "", "sequence_length": 4096,
    "global_batch": 512,
    "micro_batch": 4.0, "step_time_s": 6.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("notes", "graphs", "data", "expert"),
    [
        ("", False, 0.8, 0.0),
        ("ep_overlap=True; dp_overlap=True/True; cuda_graph=full_iteration:[]", True, 0.8, 0.8),
        ("ep_a2a_overlap=False; cuda_graph=none:full_iteration", False, 0.8, 0.0),
        ("EP overlap on", False, 0.8, 0.8),
        ("dp_overlap=False/True; cuda_graph=transformer_engine:['attn']", False, 0.4, 0.0),
        ("dp_overlap=False/False", False, 0.0, 0.0),
    ],
)
def test_overlap_and_graphs_as_stated(notes, graphs, data, expert):
    work = training_of({**ROW, "overlap_notes": notes}).work
    assert (work.cuda_graphs, work.overlap_comm_frac, work.expert_overlap_frac) == (graphs, data, expert)


@pytest.mark.parametrize(
    ("text", "how", "modules"),
    [
        ("", "none", None),
        ("none (selective, empty module list)", "none", None),
        ("selective:[]", "none", None),
        ("full uniform 1", "full", None),
        ("selective", "selective", {"activation", "latent_up", "norm"}),
        ("selective:moe_act", "selective", {"activation"}),
        ("modules:moe+layernorm+core_attn+moe_act", "selective", {"moe", "norm", "attention", "activation"}),
        ("selective: mla_up_proj, mlp (25.07 README, same layout)", "selective", {"latent_up", "mlp"}),
    ],
)
def test_recomputation_as_stated(text, how, modules):
    layout = training_of({**ROW, "recompute": text}).layout
    assert layout.recompute == how
    if modules is not None:
        assert set(layout.recompute_modules) == modules


def test_routing_optimizer_and_sharding_as_stated():
    assert routing_of(ROW).zipf_exponent == 0.0
    assert routing_of({**ROW, "overlap_notes": "force_balance=False"}).zipf_exponent > 0.0
    narrow = training_of({**ROW, "distributed_optimizer": "precision-aware=True moments=torch.bfloat16"})
    assert narrow.work.optimizer == "adamw_bf16"
    assert training_of({**ROW, "distributed_optimizer": "Megatron-FSDP sharding=8"}).layout.zero_stage == 3
    assert training_of({**ROW, "kind": "MoE fine-tune/RL", "notes": "task: peft"}).work.adapter is not None


def test_a_row_that_contradicts_itself_is_unanswered():
    found = predict_row({**ROW, "n_gpus": 16}, load_model_error())
    assert [metric for metric, _ in found.unanswered] == ["step_time"]
    assert "needs 8 GPUs" in found.unanswered[0][1]


def invented(family: str, *, is_moe: bool, clock: float, expert_s: float, sync_s: float, seed: int) -> Fact:
    """A run whose step is exactly what the equations say for these parameters."""
    rng = np.random.default_rng(seed)
    compute_s, other_s, once_s = rng.uniform(1.0, 6.0, 3) * (1.0, 0.2, 0.1)
    n_micro, layers, held = int(rng.integers(8, 64)), 24, int(rng.choice([2, 8, 32]))
    fact = Fact(
        f"{family}-{seed}", family, "x", (f"{family}-{seed % 2}", "x", "bf16"), is_moe, False, "x",
        "hopper", 1.0, compute_s,
        other_s, once_s, n_micro, layers, layers if is_moe else 0, held if is_moe else 0,
    )  # fmt: skip
    host = {**DEFAULTS["training_host"], "expert_s": expert_s, "sync_s": sync_s}
    truth = training_fit._Table([fact]).step_s({"x": clock}, host)[0]
    return Fact(**{name: getattr(fact, name) for name in Fact.__slots__} | {"truth_s": float(truth)})


def test_the_fit_finds_what_made_the_runs():
    made = {"clock": 0.7, "expert_s": 8e-4, "sync_s": 2e-3}
    known = [
        invented(family, is_moe=moe, seed=seed, **made)
        for family, moe in (("dense", False), ("a", True), ("b", True))
        for seed in range(24)
    ]
    clocks = fit_clocks(known)
    assert clocks == {"x": pytest.approx(0.7, rel=0.01)}
    host = fit_host(known, clocks)
    assert host["expert_s"] == pytest.approx(8e-4, rel=0.05)
    assert host["sync_s"] == pytest.approx(2e-3, rel=0.05)
    errors = training_fit.held_out(known)
    assert set(errors) == {"a", "b"}  # without the dense family no clock is known
    assert np.abs(np.concatenate(list(errors.values()))).max() < 0.02


def test_runs_that_were_not_meant_to_be_fast_are_not_fitted():
    for change in (
        {"kind": "MoE fine-tune/RL"},
        {"notes": "functional run: the card says its throughput is a sanity check"},
        {"n_gpus": 16},
        {"step_time_s": float("nan")},
    ):
        assert facts([{**ROW, **change}]) == []
    assert len(facts([ROW])) == 1


def test_shipped_fits_reach_the_hardware():
    fits = read_training_fits()
    assert fits.kind == "fitted"
    assert fits.host.n_rows > 50
    own, lent = load_hardware("gb200-nvl72").efficiency.parameters, load_hardware("mi300x").efficiency.parameters
    key = ("training_host", "training", "bf16")
    assert own[key].tier is Tier.FITTED
    assert lent[key].tier is Tier.TRANSFERRED
    assert own[key].values == lent[key].values
    clock = fits.devices["gb200-nvl72"].values
    assert set(clock) == {"sustained_frac"}  # what is not fitted is not in the file
    assert own["training_device", "training", "bf16"].values == {**DEFAULTS["training_device"], **clock}
    few = load_hardware("b200-sxm").efficiency.parameters["training_device", "training", "bf16"]
    assert few.tier is Tier.TRANSFERRED  # five rows of two models
    assert ("training_device", "training", "bf16") not in lent
    alike = load_hardware("h800").efficiency.parameters["training_device", "training", "bf16"]
    assert alike.tier is Tier.TRANSFERRED  # the clock of the most measured device of its architecture
    assert alike.values["sustained_frac"] == fits.devices["h100-sxm"].values["sustained_frac"]
