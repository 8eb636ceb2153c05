"""The machine that measures: its GPU, driver, library versions, clocks and power cap."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from moeplan.errors import input_error

# What `nvidia-smi --query-gpu` calls them, and the unit it prints.
_CLOCK_AND_POWER = {"sm_clock_mhz": "clocks.sm", "power_w": "power.draw"}
_CARD = {
    "name": "name",
    "driver": "driver_version",
    "power_cap_w": "power.limit",
    "max_sm_clock_mhz": "clocks.max.sm",
    "max_memory_clock_mhz": "clocks.max.memory",
    "pcie_generation": "pcie.link.gen.max",
    "pcie_width": "pcie.link.width.max",
}


def check_gpu() -> None:
    """Raises InputError when PyTorch is missing or sees no GPU."""
    try:
        import torch
    except ImportError:
        hint = "pip install 'moeplan[measure]' on the machine with the GPU"
        raise input_error("measure", "PyTorch is not installed", hint=hint) from None
    if not torch.cuda.is_available():
        raise input_error("measure", "there is no GPU here that PyTorch can use", hint="nvidia-smi shows what is there")


def n_gpus() -> int:
    """GPUs that PyTorch sees."""
    import torch

    return torch.cuda.device_count()


def describe() -> dict[str, object]:
    """Facts that identify the machine; two parts of one measurement must agree on all of them."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "n_gpus": n_gpus(),
        "n_sms": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
        "card": dict(_query(_CARD)),
    }


def clock_and_power() -> dict[str, float]:
    """SM clock [MHz] and power [W] now; empty where the driver's tool is missing."""
    found = {}
    for name, text in _query(_CLOCK_AND_POWER).items():
        try:
            found[name] = float(text)
        except ValueError:  # "[N/A]" on cards that do not say
            continue
    return found


def _query(fields: Mapping[str, str]) -> dict[str, str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, "--id=0", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    values = [text.strip() for text in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    return dict(zip(fields, values, strict=True)) if done.returncode == 0 and len(values) == len(fields) else {}
