"""Fitted files: written whole, the newest counts, loans to devices without data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moeplan.costs import expert_exchange
from moeplan.costs.parameters import ESTIMATES, lookup
from moeplan.costs.transfer import Scale, n_lenders, scaled, sm_clock_per_s
from moeplan.errors import InputError
from moeplan.files.catalog.fitted import Transfer, efficiency_of, loans, newest, read_fits, write_document
from moeplan.files.catalog.hardware_catalog import hardware_names, load_hardware
from moeplan.provenance import Tier
from moeplan.spec.hardware import Device, OpParameters


def entry(value: float, op: str = "gemm", engine: str = "vllm", dtype: str = "bf16") -> dict:
    return {
        "op": op, "engine": engine, "dtype": dtype, "tier": "fitted", "values": {"compute_frac": value},
        "covariance": [[0.1]], "log_residual": [-0.1, 0.0, 0.1], "regimes": {"small": [-0.3, 0.0, 0.3]}, "n_rows": 9,
        "heldout": {"mdape": 0.05}, "tables": [], "source": "test",
    }  # fmt: skip


def parameters(value: float, op: str = "gemm", engine: str = "vllm", dtype: str = "bf16") -> OpParameters:
    return OpParameters(op, engine, dtype, {"compute_frac": value}, Tier.FITTED, (-0.1, 0.0, 0.1), "test")


def keyed(*fits: OpParameters) -> dict:
    return {(f.op, f.engine, f.dtype): f for f in fits}


RULE = Transfer(
    donors={"hopper": ["one", "two"], "ampere": ["one", "two"]},
    architectures={"one": "hopper", "two": "ada", "three": "ada"},
    residuals={"gemm": {"near": (-0.2, 0.01, 0.05), "far": (-0.6, 0.0, 0.7), "any": (-0.9, 0.0, 0.9)}},
)


def device(architecture: str, **changes: object) -> Device:
    rates = {"fp32": 67e12, "bf16": 989e12}
    plain = Device("d", "d", "v", architecture, 8e10, 3.35e12, rates, 132, 5e7, 700.0, False)
    return replace(plain, **changes)


def lenders(**fits: dict) -> dict:
    return {name: (device(RULE.architectures[name]), found) for name, found in fits.items()}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "device" / "fitted" / "2026-01-01.yaml"
    write_document(path, {"fits": [entry(0.5)], "device": "device"})
    found = read_fits(path)["gemm", "vllm", "bf16"]
    assert found.values == {"compute_frac": 0.5}
    assert found.regimes == {"small": (-0.3, 0.0, 0.3)}
    assert found.tier is Tier.FITTED
    assert [p.name for p in path.parent.iterdir()] == ["2026-01-01.yaml"]  # no temporary file is left


def test_the_newest_file_counts(tmp_path):
    for day, value in (("2026-01-01", 0.5), ("2026-02-01", 0.7)):
        write_document(tmp_path / "fitted" / f"{day}.yaml", {"fits": [entry(value)]})
    assert newest(tmp_path).name == "2026-02-01.yaml"
    found = efficiency_of([tmp_path], device("hopper"), lambda name: load_hardware(name, fits=False).device).parameters
    assert found["gemm", "vllm", "bf16"].values["compute_frac"] == 0.7


def test_a_bad_file_is_refused_with_its_place(tmp_path):
    path = tmp_path / "fitted" / "2026-01-01.yaml"
    write_document(path, {"fits": [{**entry(0.5), "tier": "guessed"}]})
    with pytest.raises(InputError, match="tier"):
        read_fits(path)


def test_the_nearest_of_ones_own_architecture_lends_and_the_interval_is_that_of_past_loans():
    donors = lenders(one=keyed(parameters(0.5)), two=keyed(parameters(0.9), parameters(0.8, op="moe")))
    lent = loans(device("hopper"), donors, RULE)
    assert lent["gemm", "vllm", "bf16"].values["compute_frac"] == 0.5
    assert lent["gemm", "vllm", "bf16"].tier is Tier.TRANSFERRED
    assert lent["gemm", "vllm", "bf16"].log_residual == (-0.2, 0.01, 0.1)  # never narrower than the donor's
    assert lent["moe", "vllm", "bf16"].values["compute_frac"] == 0.8


def test_a_format_the_nearest_lacks_comes_from_the_next():
    donors = lenders(one=keyed(parameters(0.5)), two=keyed(parameters(0.9), parameters(0.7, dtype="fp8")))
    lent = loans(device("hopper"), donors, RULE)
    assert lent["gemm", "vllm", "fp8"].values["compute_frac"] == 0.7
    assert lent["gemm", "vllm", "fp8"].log_residual == (-0.6, 0.0, 0.7)


def test_two_of_other_architectures_lend_their_mean_with_the_far_interval():
    donors = lenders(one=keyed(parameters(0.4)), two=keyed(parameters(0.9)))
    lent = loans(device("ampere"), donors, RULE)["gemm", "vllm", "bf16"]
    assert lent.values["compute_frac"] == pytest.approx(0.6)  # geometric
    assert lent.log_residual == (-0.6, 0.0, 0.7)


def test_an_unlisted_architecture_gets_the_median_with_the_widest_interval():
    donors = lenders(one=keyed(parameters(0.5)), two=keyed(parameters(0.9)), three=keyed(parameters(0.6)))
    lent = loans(device("cdna3"), donors, RULE)["gemm", "vllm", "bf16"]
    assert lent.values["compute_frac"] == 0.6
    assert lent.log_residual == (-0.9, 0.0, 0.9)


def test_what_the_datasheet_says_scales_the_loan():
    """Twice the clock halves a start; a quarter of the bandwidth per SM needs a quarter of the blocks, and makes the L2
    eight times as fast against it."""
    slow = device("ada")
    fast = device("ampere", memory_bytes_per_s=3.35e12 / 4, dense_flop_per_s={"fp32": 134e12, "bf16": 989e12})
    scale = Scale.between(slow, fast)
    assert scale.clock == pytest.approx(2.0)
    lent = scaled(
        "attention_decode",
        {"launch_s": 8e-6, "saturating_blocks_per_sm": 0.8, "l2_frac": 0.8, "memory_frac": 0.9}, scale,
    )  # fmt: skip
    assert lent["launch_s"] == pytest.approx(4e-6)
    assert lent["saturating_blocks_per_sm"] == pytest.approx(0.2)
    assert lent["l2_frac"] == pytest.approx(0.1)
    assert lent["memory_frac"] == 0.9
    assert scaled("gemm", {"l2_gain": 1.0}, scale)["l2_gain"] == pytest.approx(15.0)
    assert scaled("custom_allreduce", {"base_s": 5e-6}, scale)["base_s"] == 5e-6


@pytest.mark.parametrize(
    ("name", "ghz"), [("a100-sxm-80gb", 1.41), ("v100-sxm", 1.53), ("h100-sxm", 1.98), ("l40s", 2.52)]
)
def test_the_clock_follows_from_the_fp32_rate(name, ghz):
    assert sm_clock_per_s(load_hardware(name).device) == pytest.approx(ghz * 1e9, rel=0.01)


def test_operations_of_the_engines_traffic_have_the_names_of_their_costs():
    traffic = set(ESTIMATES) & {*expert_exchange.DEFAULTS, "custom_allreduce"}
    assert {op for op in ESTIMATES if n_lenders(op) == 1} == traffic


@pytest.mark.parametrize("name", hardware_names())
def test_every_device_has_parameters_for_the_main_operations(name):
    hardware = load_hardware(name)
    for op in ("gemm", "moe", "attention_prefill", "attention_decode"):
        found = lookup(hardware, op, "vllm", "bf16")
        assert set(found.values) >= set(ESTIMATES[op])
        assert found.log_residual[0] < found.log_residual[2]
        assert found.tier in (Tier.FITTED, Tier.TRANSFERRED)


def test_devices_without_data_are_transferred_and_wider():
    own, lent = (lookup(load_hardware(n), "gemm", "vllm", "bf16") for n in ("h100-sxm", "h20"))
    assert own.tier is Tier.FITTED
    assert lent.tier is Tier.TRANSFERRED
    assert lent.log_residual[2] - lent.log_residual[0] >= own.log_residual[2] - own.log_residual[0]


def test_lookup_prefers_the_engine_then_the_format():
    hardware = load_hardware("h100-sxm")
    assert lookup(hardware, "gemm", "sglang", "bf16").engine == "sglang"
    assert lookup(hardware, "gemm", "llama.cpp", "bf16").engine == "vllm"
    assert lookup(hardware, "gemm", "vllm", "mxfp8").dtype in ("fp8", "fp8_block")
    assert lookup(hardware, "moe", "vllm/some_kernel", "bf16").engine == "vllm"
    with pytest.raises(KeyError):
        lookup(hardware, "no such operation", "vllm", "bf16")
