"""Every shipped hardware profile, and how a user's own is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moeplan.errors import InputError
from moeplan.files.catalog.hardware_catalog import hardware_names, hardware_record, load_hardware
from moeplan.files.locate import data_folder
from moeplan.provenance import Kind, Tier

ACCELERATORS = [
    "a100-sxm-40gb", "a100-pcie-40gb", "a100-sxm-80gb", "a100-pcie-80gb", "h100-sxm", "h100-pcie", "h100-nvl",
    "h800", "h20", "h200-sxm", "h200-nvl", "gh200", "b200-sxm", "b300-sxm", "gb200-nvl72", "gb300-nvl72", "l4",
    "l40s", "a10g", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-6000-ada", "rtx-pro-6000-blackwell", "dgx-spark",
    "mi250x", "mi300x", "mi325x", "mi355x", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7", "trainium2", "trainium3",
    "gaudi3", "apple-m3-ultra", "apple-m4-max", "apple-m5-ultra",
]  # fmt: skip
MORE = [
    "ryzen-ai-max-395", "arc-pro-b60", "h100-96gb-hbm2e", "a800-80gb", "v100-sxm", "a40",
]  # fmt: skip

MINIMAL = """
name: Test card
vendor: Nobody
architecture: hopper
memory:
  capacity: {value: 80 GB, basis: per GPU, kind: datasheet, source: a sheet, date: 2024-01-02}
  bandwidth: {value: 3 TB/s, basis: per GPU, kind: datasheet, source: a sheet, date: 2024}
dense_rates:
  bf16: {value: 900 TFLOP/s, basis: "per GPU, dense", kind: datasheet, source: a sheet, date: 2024-01}
node:
  n_gpus: {value: 1, basis: per node, kind: datasheet, source: a sheet, date: 2024}
"""


def write(folder: Path, text: str, name: str = "card.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_hardware(str(path))
    return [str(problem) for problem in caught.value.problems]


def test_every_accelerator_of_the_facts_has_a_profile() -> None:
    assert len(ACCELERATORS) == 39
    assert not set(ACCELERATORS + MORE) - set(hardware_names())


@pytest.mark.parametrize("name", hardware_names())
def test_profile_loads_with_a_source_for_every_number(name: str) -> None:
    hardware = load_hardware(name)
    record = hardware_record(name)
    assert hardware.slug == name
    assert hardware.device.slug == record.device == record.chain[-1]
    assert hardware.device.slug in ACCELERATORS + MORE
    assert hardware.device.dense_flop_per_s
    for place, stated in record.values.items():
        source = stated.sourced.source
        assert stated.sourced.value > 0, place
        assert stated.sourced.basis, place
        assert source.text, place
        assert source.date[:2] == "20", place
        assert isinstance(source.kind, Kind), place


# Halving the width doubles the rate at most. What vendors state beyond that, each by its own reason:
MOST = {
    ("fp8", "fp4"): {
        "b300-sxm": 3.2,  # Blackwell Ultra FP4: three times FP8
        "gb300-nvl72": 3.0,
        "rtx-5090": 4.0,  # GeForce FP8 with FP32 accumulation runs at half rate, FP4 does not
        "dgx-spark": 2.4,  # FP8 as measured, FP4 as stated
    },
    ("bf16", "fp8"): {"trainium3": 3.8},  # AWS: 671 and 2517
    ("tf32", "bf16"): {"gaudi3": 3.7},  # Epoch: 459 and 1678
    ("fp16", "int8"): {"rtx-3090": 4.0, "rtx-4090": 4.0, "rtx-5090": 4.0},  # FP16 with FP32 accumulation at half rate
}
CUT_INT8 = ("b300-sxm", "gb300-nvl72")  # Blackwell Ultra has next to no INT8


@pytest.mark.parametrize("name", hardware_names())
def test_rates_are_dense_and_consistent(name: str) -> None:
    device = load_hardware(name).device
    rates = device.dense_flop_per_s
    for (low, high), exceptions in MOST.items():
        if low not in rates or high not in rates or (high == "int8" and device.slug in CUT_INT8):
            continue
        # vendors round; a sparse figure taken for a dense one would be 4
        assert 0.99 <= rates[high] / rates[low] <= 1.02 * exceptions.get(device.slug, 2.06), (low, high)
    if "bf16" in rates and "fp16" in rates:
        assert rates["bf16"] == rates["fp16"]


@pytest.mark.parametrize("name", hardware_names())
def test_machine_balance_is_physical(name: str) -> None:
    """Between 1 and 1200 FLOP per byte: outside it a unit or a factor of 8 is wrong somewhere."""
    hardware = load_hardware(name)
    device = hardware.device
    best = max(rate for key, rate in device.dense_flop_per_s.items() if key in ("bf16", "fp16"))
    assert 10 < best / device.memory_bytes_per_s < 1200
    # reading the whole memory once takes between 3 ms and a second
    assert 3e-3 < device.memory_bytes / device.memory_bytes_per_s < 1.0
    assert device.tdp_w is None or 50 < device.tdp_w < 2000
    assert device.n_sms is None or 1 <= device.n_sms <= 320
    assert hardware.scale_up.bytes_per_s <= device.memory_bytes_per_s
    if hardware.scale_out is not None:
        assert hardware.scale_out.bytes_per_s <= 0.2 * device.memory_bytes_per_s
        assert hardware.scale_out.n_gpus > hardware.n_gpus_scale_up
    assert hardware.scale_up.n_gpus == hardware.n_gpus_scale_up >= hardware.n_gpus_per_node


@pytest.mark.parametrize("name", hardware_names())
def test_usable_memory_is_at_most_two_units_off_the_vendors(name: str) -> None:
    """Vendors print decimal or binary gigabytes; what the driver reports lies between 0.7 and 1.08 of it."""
    values = hardware_record(name).values
    if "memory.usable" in values:
        ratio = values["memory.usable"].sourced.value / values["memory.capacity"].sourced.value
        assert 0.7 < ratio < 1.08


def test_known_figures() -> None:
    h200 = load_hardware("h200-sxm")
    assert h200.device.memory_bytes == 143771 * 2**20
    assert h200.device.memory_bytes_per_s == 4.8e12
    assert h200.device.flop_per_s("bf16") == pytest.approx(989e12)
    assert h200.scale_up.bytes_per_s == 450e9
    assert h200.scale_out is not None
    assert h200.scale_out.bytes_per_s == 50e9
    assert h200.allin_power_w_per_gpu == 1730.0
    rack = load_hardware("gb200-nvl72")
    assert (rack.n_gpus_per_node, rack.n_gpus_scale_up) == (4, 72)


def test_traps_of_the_published_tables() -> None:
    """GeForce runs FP32 accumulation at half rate; DGX Spark's petaFLOP is sparse; V100 has no bf16."""
    assert load_hardware("rtx-4090").device.flop_per_s("bf16") == pytest.approx(165.2e12)
    assert load_hardware("rtx-5090").device.flop_per_s("bf16") == pytest.approx(209.5e12)
    assert load_hardware("rtx-3090").device.flop_per_s("bf16") == pytest.approx(71e12)
    assert load_hardware("dgx-spark").device.flop_per_s("fp4") == pytest.approx(500e12)
    assert load_hardware("v100-sxm").device.flop_per_s("bf16") is None
    assert load_hardware("v100-sxm").device.flop_per_s("fp16") == pytest.approx(125e12)
    assert load_hardware("h20").device.flop_per_s("fp8") == pytest.approx(296e12)


def test_systems_keep_the_device_they_extend() -> None:
    system = load_hardware("dgx-h100")
    assert (system.slug, system.device.slug) == ("dgx-h100", "h100-sxm")
    assert system.host.memory_bytes == 2e12
    assert system.host.power_w == pytest.approx(10_200 - 8 * 700)
    assert system.scale_out is not None
    assert system.scale_out.kind == "infiniband"
    desk = load_hardware("workstation-2x-rtx-4090")
    assert desk.n_gpus_scale_up == 2
    assert desk.scale_up.bytes_per_s == 16e9
    assert desk.scale_out is None


def test_cards_without_nvlink_talk_over_pcie() -> None:
    card = load_hardware("l40s")
    assert card.scale_up.kind == "pcie"
    assert card.scale_up == card.host.pcie


def test_box_with_one_gpu_has_no_link() -> None:
    mac = load_hardware("apple-m3-ultra")
    assert mac.scale_up.kind == "none"
    assert mac.n_gpus_scale_up == 1
    assert mac.scale_out is None
    assert mac.device.unified_memory


def test_names_ignore_case() -> None:
    assert load_hardware("H200-SXM") == load_hardware("h200-sxm")


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean h200-sxm"):
        load_hardware("h200-smx")


def test_own_profile_by_path(tmp_path: Path) -> None:
    hardware = load_hardware(str(write(tmp_path, MINIMAL)))
    assert hardware.device.slug == "card"
    assert hardware.device.memory_bytes == 80e9
    assert hardware.device.l2_bytes is None
    assert hardware.allin_power_w_per_gpu is None
    assert hardware_record(str(tmp_path / "card.yaml")).values["memory.bandwidth"].sourced.source.date == "2024"


def test_folder_with_a_profile(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "mine/profile.yaml")
    assert load_hardware("./mine", tmp_path).slug == "mine"


def test_extends_a_shipped_profile(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
extends: h100-sxm
scale_out:
  bandwidth: {value: 100 Gb/s, basis: per GPU per direction, kind: estimate, source: our cluster, date: 2026-01}
pcie: null
""",
    )
    mine, base = load_hardware(str(path)), load_hardware("h100-sxm")
    assert mine.device == base.device
    assert mine.scale_out is not None
    assert base.scale_out is not None
    assert mine.scale_out.bytes_per_s == 12.5e9
    assert mine.scale_out.latency_s == base.scale_out.latency_s
    assert mine.host.pcie is None
    assert hardware_record(str(path)).chain == ("card", "h100-sxm")


def test_a_record_is_replaced_whole(tmp_path: Path) -> None:
    """An old source must not stay with a new number."""
    path = write(tmp_path, "extends: h100-sxm\nmemory:\n  capacity: {value: 64 GB, basis: per GPU}\n")
    found = problems(path)
    assert len(found) == 3
    assert all("card.yaml:3:" in line and "missing key" in line for line in found)


def test_extends_own_profile_twice_removed(tmp_path: Path) -> None:
    write(tmp_path, "extends: rtx-4090\nname: middle\n", "middle.yaml")
    path = write(tmp_path, "extends: ./middle.yaml\nunified_memory: true\n")
    assert hardware_record(str(path)).chain == ("card", "middle", "rtx-4090")
    assert load_hardware(str(path)).device.name == "middle"


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "extends: ./b.yaml\n", "a.yaml")
    write(tmp_path, "extends: ./a.yaml\n", "b.yaml")
    assert "a -> b -> a" in problems(tmp_path / "a.yaml")[0]


def test_fitted_parameters_of_the_newest_file(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "mine/profile.yaml")
    fit = """
fits:
  - {{op: gemm, engine: vllm, dtype: bf16, tier: fitted, values: {{efficiency: {0}}}, log_residual: [-0.1, 0.0, 0.2],
     source: a table}}
"""
    write(tmp_path, fit.format(0.5), "mine/fitted/2026-01-01.yaml")
    write(tmp_path, fit.format(0.75), "mine/fitted/2026-02-01.yaml")
    write(tmp_path, "extends: ./mine/profile.yaml\n", "system.yaml")
    for path in ("mine", "system.yaml"):
        found = load_hardware(f"./{path}", tmp_path).efficiency.parameters["gemm", "vllm", "bf16"]
        assert found.values == {"efficiency": 0.75}
        assert found.tier is Tier.FITTED
        assert found.log_residual == (-0.1, 0.0, 0.2)


def test_paths_stay_inside_the_scenarios_folder(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    inside = tmp_path / "scenarios"
    inside.mkdir()
    write(inside, "extends: ../card.yaml\n", "sneaky.yaml")
    for path in ("../card.yaml", str(tmp_path / "card.yaml"), "./sneaky.yaml"):
        with pytest.raises(InputError, match="leaves the folder"):
            load_hardware(path, inside)


BAD = {
    "unknown key": ("colour: red", "colour: unknown key", "allowed: name, product_names"),
    "misspelt key": ("memmory: {}", "memmory: unknown key", "did you mean memory?"),
    "bits for bytes": (
        "memory: {bandwidth: {value: 24 Tb/s, basis: b, kind: datasheet, source: s, date: 2024}}",
        "memory.bandwidth.value: bits where bytes are expected",
        "= 3000 GB/s",
    ),
    "no unit": (
        "tdp: {value: 700, basis: b, kind: datasheet, source: s, date: 2024}",
        "tdp.value: missing unit",
        "700 W",
    ),
    "negative": (
        "tdp: {value: -5 W, basis: b, kind: datasheet, source: s, date: 2024}",
        "tdp.value: must be above zero",
        "-5 W",
    ),
    "zero": (
        "tdp: {value: 0 W, basis: b, kind: datasheet, source: s, date: 2024}",
        "tdp.value: must be above zero",
        "0 W",
    ),
    "half a GPU": (
        "n_sms: {value: 1.5, basis: b, kind: datasheet, source: s, date: 2024}",
        "n_sms.value: must be a whole number",
        "1.5",
    ),
    "wrong kind": (
        "tdp: {value: 5 W, basis: b, kind: rumour, source: s, date: 2024}",
        "tdp.kind:",
        "'measured'",
    ),
    "no source": (
        "tdp: {value: 5 W, basis: b, kind: estimate, source: '', date: 2024}",
        "tdp.source:",
        "at least 1 character",
    ),
    "no date": ("tdp: {value: 5 W, basis: b, kind: estimate, source: s}", "tdp.date: missing key", ""),
    "odd date": (
        "tdp: {value: 5 W, basis: b, kind: estimate, source: s, date: yesterday}",
        "tdp.date:",
        "'yesterday'",
    ),
    "unknown number format": (
        "dense_rates: {fp6: {value: 5 TFLOP/s, basis: b, kind: estimate, source: s, date: 2024}}",
        "dense_rates.fp6: unknown key",
        "did you mean fp",
    ),
    "unknown architecture": ("architecture: rubin", "architecture:", "'rubin'"),
    "bare number": ("tdp: 700", "tdp:", "700"),
    "not a mapping": ("memory: [1, 2]", "memory:", ""),
    "unknown base": ("extends: h100-sxmm", "extends: unknown hardware", "did you mean h100-sxm"),
    "missing base": ("extends: ./nothing.yaml", "extends: no such hardware profile", "./nothing.yaml"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_profile_names_the_place(case: str, tmp_path: Path) -> None:
    text, what, detail = BAD[case]
    base = "" if text.startswith("extends") else "extends: h200-sxm\n"
    found = problems(write(tmp_path, f"{base}{text}\n"))
    line = 1 if not base else 2
    assert any(f"card.yaml:{line}:" in entry and what in entry and detail in entry for entry in found), found


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: h200-sxm\ncolour: red\ntdp: 700\nvendor: [x]\n")
    assert len(problems(path)) == 3


def test_several_gpus_need_a_link(tmp_path: Path) -> None:
    assert "scale_up" in problems(write(tmp_path, MINIMAL.replace("value: 1,", "value: 8,")))[0]


def test_missing_file(tmp_path: Path) -> None:
    assert "no such hardware profile file" in problems(tmp_path / "none.yaml")[0]


def test_profiles_hold_nothing_but_the_schema() -> None:
    """The shipped files are plain YAML for any reader, and each folder is named as the product names it."""
    folder = data_folder("hardware_profiles")
    for path in folder.glob("*/profile.yaml"):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.parent.name == path.parent.name.lower()
        assert "name" in tree
