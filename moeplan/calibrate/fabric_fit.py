"""Networks between nodes, fitted to published figures of collectives and expert exchange.

The table holds one figure a row (`library, operation, gpu, inter_node_link, n_gpus, ..., metric, value`). Used are
times across nodes on a named GPU and network with all sizes stated, and DeepEP's bandwidth of the throughput kernel,
which its benchmark computes as bytes of tokens times nodes reached over time. Kernels inside nodes keep their own fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from moeplan.calibrate.fit import LOSS_SCALE, Accuracy, accuracy, quantiles
from moeplan.costs import collectives
from moeplan.costs.expert_exchange import moe_dispatch_time_s
from moeplan.costs.fabrics import DEFAULTS
from moeplan.costs.parameters import lookup
from moeplan.errors import InputError, Problem
from moeplan.files.catalog.hardware_catalog import load_hardware
from moeplan.provenance import Tier
from moeplan.spec.hardware import Efficiency, Hardware, Link, OpParameters

COLUMNS = (
    "library", "operation", "kernel_or_mode", "gpu", "inter_node_link", "n_gpus", "gpus_per_node", "tokens_per_rank",
    "hidden", "topk", "dtype", "message_bytes", "metric", "stat", "value",
)  # fmt: skip
# First words of the column ``gpu`` -> profile. Rows that name no GPU are left out: nothing is guessed.
_DEVICES = {
    "H800": "h800", "H200": "h200-sxm", "H100": "h100-sxm", "B200": "b200-sxm", "GB200": "gb200-nvl72",
    "MI300X": "mi300x", "MI355X": "mi355x",
}  # fmt: skip
# A network's name holds one of these, and gives every GPU 400 Gb/s. Left out are networks whose rate is not stated
# (GB200 racks) and the first generation of EFA (p4de: four NICs of 100 Gb/s for eight GPUs, twice to three times the
# latency of its successors).
_KINDS = (("EFA", "efa"), ("CX7", "infiniband"), ("InfiniBand NDR", "infiniband"), ("Pollara", "ethernet"))
_FIRST_EFA, _NIC_BYTES_PER_S = "p4de", 50e9
_USED_FOR = {"infiniband": ("infiniband", "rdma"), "ethernet": ("ethernet", "rdma"), "efa": ("efa",)}
_LEAST_BUS_RATE = 1.0  # GB/s: slower ones are rounded to nothing
_N_EXPERTS = 256.0  # DeepEP's benchmarks and all that copy them
_PRIOR = 0.1  # a parameter one ln unit off its start weighs as much as one library and GPU 10 % off
_MOST_NODES = 4.0  # group-limited routing of the same benchmarks: a token reaches at most four nodes
_FP8_WITH_SCALES = 1 + 4 / 128
_BOUNDS = {
    "hop_s": (1e-6, 1e-3), "stream_efficiency": (0.1, 1.0), "scatter_efficiency": (0.1, 1.0), "message_s": (1e-10, 1e-5)
}  # fmt: skip
_NCCL: Mapping[str, Callable[..., Any]] = {
    "all_reduce": collectives.all_reduce_time_s,
    "all_gather": collectives.all_gather_time_s,
    "reduce_scatter": collectives.reduce_scatter_time_s,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One published time between nodes."""

    kind: str
    group: str  # library and GPU: what is left out together
    measured_s: float
    predict_s: Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class FabricFit:
    """Parameters of one network class; the errors are of figures whose library and GPU the fit had not seen."""

    kind: str
    values: dict[str, float]
    log_residual: tuple[float, float, float]
    n_rows: int
    heldout: Accuracy
    groups: tuple[str, ...]


def is_published(path: Path) -> bool:
    """Whether a CSV file is such a table."""
    return path.is_file() and {"library", "inter_node_link"} <= set(pd.read_csv(path, nrows=0).columns)


def fit_fabrics(path: Path) -> list[FabricFit]:
    """Fit every network class of the table.

    Raises:
        InputError: a column is missing, or no row can be used.
    """
    frame = pd.read_csv(path)
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise InputError([Problem(str(path), None, None, "", f"column {missing[0]} is missing")])
    figures = [found for row in frame.to_dict("records") if (found := _figure(row)) is not None]
    if not figures:
        raise InputError([Problem(str(path), None, None, "", "no time between nodes on a known GPU and network")])
    kinds = sorted({used for figure in figures for used in _USED_FOR[figure.kind]})
    chosen = {kind: [f for f in figures if kind in _USED_FOR[f.kind]] for kind in kinds}
    # one library on one GPU cannot be judged by another
    return [_fit(kind, found) for kind, found in chosen.items() if len({f.group for f in found}) > 1]


def document(fits: Sequence[FabricFit], source: str, today: str) -> dict[str, Any]:
    """What `files.catalog.fitted` reads."""
    return {
        "fitted_on": today,
        "method": "docs/method/collectives.md",
        "fits": [
            {
                "op": "fabric",
                "engine": fit.kind,
                "dtype": "bf16",
                "tier": Tier.FITTED.value,
                "values": {name: float(f"{value:.4g}") for name, value in fit.values.items()},
                "log_residual": [float(f"{q:.4g}") for q in fit.log_residual],
                "n_rows": fit.n_rows,
                "heldout": {
                    "n": fit.heldout.n,
                    "mdape": float(f"{fit.heldout.mdape_frac:.4g}"),
                    "bias": float(f"{fit.heldout.bias_frac:.4g}"),
                },
                "source": f"fitted to {fit.n_rows} published times between nodes ({source}): {', '.join(fit.groups)}",
            }
            for fit in fits
        ],
    }


def _fit(kind: str, figures: list[Figure]) -> FabricFit:
    groups = sorted({figure.group for figure in figures})
    unseen = []
    for group in groups:
        rest = [f for f in figures if f.group != group]
        values = _solve(rest)
        unseen += [_log_error(f, values) for f in figures if f.group == group]
    errors = pd.Series(unseen)
    nothing, all_of_it = np.zeros(len(errors)), np.full(len(errors), np.inf)
    return FabricFit(
        kind,
        _solve(figures),
        quantiles(errors, len(groups)),
        len(figures),
        accuracy(np.exp(errors.to_numpy()), nothing, all_of_it),
        tuple(groups),
    )


def _solve(figures: Sequence[Figure]) -> dict[str, float]:
    """Robust bounded least squares of ln(predicted / measured), every library and GPU with the same weight."""
    names = list(DEFAULTS)
    start = np.log([DEFAULTS[name] for name in names])
    lower, upper = np.log([_BOUNDS[name] for name in names]).T
    sizes = pd.Series([figure.group for figure in figures]).value_counts()
    weight = np.sqrt([1.0 / sizes[figure.group] for figure in figures])

    def residual(theta: Any) -> Any:
        values = dict(zip(names, np.exp(theta).tolist(), strict=True))
        errors = np.array([_log_error(figure, values) for figure in figures])
        return np.append(weight * errors, _PRIOR * (theta - start))

    found = least_squares(
        residual, np.clip(start, lower, upper), bounds=(lower, upper), loss="soft_l1", f_scale=LOSS_SCALE, x_scale=1.0
    )
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


def _log_error(figure: Figure, values: Mapping[str, float]) -> float:
    return float(np.log(figure.measured_s / figure.predict_s(values)))


def _figure(row: Mapping[str, Any]) -> Figure | None:
    """A row as a figure, None where it is inside one node or does not say enough."""
    device = _DEVICES.get(str(row["gpu"]).split(" ")[0])
    network = str(row["inter_node_link"])
    kind = next((kind for word, kind in _KINDS if word in network), None)
    if device is None or kind is None or _FIRST_EFA in network:
        return None
    machine = _machine(device, kind)
    if row["n_gpus"] <= machine.n_gpus_scale_up:
        return None
    operation, group = str(row["operation"]), f"{row['library']} on {row['gpu']}"
    if operation in _NCCL and row["metric"] in ("latency_us", "busbw_gb_s") and row["message_bytes"] > 0.0:
        p = lookup(machine, operation, "nccl", "bf16").values
        if row["metric"] == "busbw_gb_s" and row["value"] < _LEAST_BUS_RATE:
            return None
        size, n = float(row["message_bytes"]), float(row["n_gpus"])
        bus_bytes = size * (n - 1.0) / n * (2.0 if operation == "all_reduce" else 1.0)  # as nccl-tests defines it
        measured_s = row["value"] * 1e-6 if row["metric"] == "latency_us" else bus_bytes / (row["value"] * 1e9)
        return Figure(
            kind, f"{group} {operation}", measured_s,
            lambda values: float(_NCCL[operation](size, n, hardware=_with(machine, values), p=p)),
        )  # fmt: skip
    if operation in ("dispatch", "combine") and row["hidden"] > 0.0 and row["tokens_per_rank"] > 0.0:
        return _exchange(row, kind, group, machine)
    return None


def _exchange(row: Mapping[str, Any], kind: str, group: str, machine: Hardware) -> Figure | None:
    mode = str(row["kernel_or_mode"])
    low_latency = "low-latency" in mode or mode.endswith("-LL")
    tokens, hidden, ranks = float(row["tokens_per_rank"]), float(row["hidden"]), float(row["n_gpus"])
    width = _FP8_WITH_SCALES if row["dtype"] == "FP8" else 2.0
    if row["metric"] == "latency_us":
        measured_s = row["value"] * 1e-6
    elif mode.startswith("normal internode") and "RDMA" in str(row["stat"]):
        reached = min(ranks / machine.n_gpus_per_node, _MOST_NODES)
        measured_s = tokens * reached * hidden * width / (row["value"] * 1e9)
    else:
        return None
    op = f"moe_{row['operation']}" + ("_low_latency" if low_latency else "")
    p = lookup(machine, op, "sglang", "bf16").values
    return Figure(
        kind, f"{group}, {'low latency' if low_latency else 'throughput'}", measured_s,
        lambda values: float(moe_dispatch_time_s(
            tokens, hidden, float(row["topk"]), n_experts=_N_EXPERTS, ep=ranks, bytes_per_value=width,
            hardware=_with(machine, values), p=p, low_latency=low_latency,
        )),
    )  # fmt: skip


@cache
def _machine(device: str, kind: str) -> Hardware:
    return replace(load_hardware(device), scale_out=Link("NIC", _NIC_BYTES_PER_S, 0.0, 2**31 - 1, kind))


def _with(machine: Hardware, values: Mapping[str, float]) -> Hardware:
    if machine.scale_out is None:
        raise ValueError(f"{machine.slug} has no scale-out link")
    key = ("fabric", machine.scale_out.kind, "bf16")
    fit = OpParameters(*key, values, Tier.FITTED, (0.0, 0.0, 0.0), "trial")
    return replace(machine, efficiency=Efficiency({**machine.efficiency.parameters, key: fit}))
