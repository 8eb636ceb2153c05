"""The measured-table side of communication: rows chosen, bytes counted, parameters found again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moeplan.calibrate.fit import fit_rows
from moeplan.calibrate.op_model import OpModel, Place, usable
from moeplan.calibrate.ops.collectives import MODELS
from moeplan.costs import collectives, expert_exchange
from moeplan.costs.parameters import ESTIMATES, lookup
from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link

DEVICE = Device("d", "d", "NVIDIA", "hopper", 8e10, 3.35e12, {"bf16": 1e15}, 132, 5e7, 700.0, False)
LINK = Link("nvlink", 450e9, 1e-6, 8, "nvlink")
NODE = Hardware("m", DEVICE, 8, 8, LINK, None, Host(None, None, None, None), None, Efficiency({}))


def model(op: str, table: str) -> OpModel:
    (found,) = (m for m in MODELS if m.op == op and table in m.tables)
    return found


def nccl_table(values: dict[str, float]) -> pd.DataFrame:
    sizes = 2.0 ** np.arange(8, 30)
    rows = [(op, "half", n, s) for op in ("all_gather", "alltoall") for n in (2, 4, 8) for s in sizes]
    frame = pd.DataFrame(rows, columns=["op_name", "nccl_dtype", "num_gpus", "message_size"])
    seconds = collectives.all_gather_time_s(2 * frame["message_size"], frame["num_gpus"], hardware=NODE, p=values)
    frame["measured_s"] = np.where(frame["op_name"] == "all_gather", seconds, 1.0)
    return frame


def test_fit_finds_the_parameters_that_made_the_table() -> None:
    truth = {**collectives.DEFAULTS["all_gather"], "base_s": 4e-6, "efficiency": 0.9, "switch_bytes": 6e5}
    gather = model("all_gather", "nccl")
    place = Place("m", "nccl", "nccl")
    table = nccl_table(truth)
    rows = table[gather.format_of(table, place) == "bf16"]
    assert set(rows["op_name"]) == {"all_gather"}
    fit = fit_rows(gather, rows, place, NODE, "bf16", seed=1)
    assert fit.heldout.mdape_frac < 0.01
    assert fit.values["base_s"] == pytest.approx(4e-6, rel=0.05)
    assert fit.values["efficiency"] == pytest.approx(0.9, rel=0.05)


def test_message_sizes_count_elements() -> None:
    gather = model("all_gather", "nccl")
    frame = pd.DataFrame({"message_size": [100, 100], "nccl_dtype": ["half", "int8"], "num_gpus": [2, 2]})
    np.testing.assert_array_equal(gather.inputs(frame, NODE, "bf16")["n_bytes"], [200.0, 100.0])


@pytest.mark.parametrize(
    ("place", "source", "n", "left_out"),
    [
        (Place("h100-sxm", "custom_allreduce", "vllm"), "vLLM_custom_eager", 4, False),
        (Place("h100-sxm", "custom_allreduce", "vllm"), "vLLM_custom_graph", 4, False),
        (Place("arc-pro-b60", "custom_allreduce", "vllm"), "vLLM_custom_eager", 4, False),
        (Place("l40s", "custom_allreduce", "vllm"), "vLLM_custom_graph", 8, True),
        (Place("gb200-nvl72", "custom_allreduce", "vllm"), "vLLM_custom_graph", 2, True),
        (Place("gb200-nvl72", "custom_allreduce", "trtllm"), "TRTLLM", 2, False),
    ],
)
def test_known_bad_rows_are_left_out(place: Place, source: str, n: int, left_out: bool) -> None:
    row = {"kernel_source": source, "allreduce_dtype": "bfloat16", "num_gpus": n, "message_size": 64}
    frame = pd.DataFrame([row])
    keep, reasons = usable(model("custom_allreduce", "custom_allreduce"), frame, place)
    assert bool(keep.iloc[0]) is not left_out
    assert bool(reasons) is left_out


def test_kernels_no_engine_usually_runs_are_kept_apart() -> None:
    eager = pd.DataFrame({"kernel_source": ["vLLM_custom_eager", "vLLM_custom_graph"]})
    custom = model("custom_allreduce", "custom_allreduce")
    assert custom.engine_of is not None
    assert list(custom.engine_of(eager, Place("h100-sxm", "custom_allreduce", "vllm"))) == ["vllm/eager", "vllm"]
    assert list(custom.engine_of(eager, Place("arc-pro-b60", "custom_allreduce", "vllm"))) == ["vllm", "vllm"]
    preview = pd.DataFrame({"comm_backend": ["deepep_ht", "deepep_v2_context"]})
    dispatch = model("moe_dispatch", "moe_all_to_all")
    assert dispatch.engine_of is not None
    names = list(dispatch.engine_of(preview, Place("h100-sxm", "moe_all_to_all", "vllm")))
    assert names == ["vllm", "vllm/deepep_v2"]


def test_phases_and_back_ends_of_one_table_do_not_mix() -> None:
    frame = pd.DataFrame(
        {
            "comm_backend": ["deepep_ht", "deepep_ll", "trtllm_deepep_ht", "trtllm_deepep_ll", "trtllm_deepep_ll"],
            "phase": ["dispatch", "dispatch", "combine", "combine", "combine"],
            "comm_dtype": ["default", "default", "nvfp4", "fp8", "fp4"],
        }
    )
    place = Place("b200-sxm", "moe_all_to_all", "trtllm")
    chosen = {
        op: model(op, "moe_all_to_all").format_of(frame, place).tolist()
        for op in ("moe_dispatch", "moe_dispatch_low_latency", "moe_combine", "moe_combine_low_latency")
    }
    assert chosen == {
        "moe_dispatch": ["bf16", "", "", "", ""],
        "moe_dispatch_low_latency": ["", "bf16", "", "", ""],
        "moe_combine": ["", "", "bf16", "", ""],
        "moe_combine_low_latency": ["", "", "", "bf16", "nvfp4"],
    }


def test_combine_carries_bf16_whatever_the_dispatch_did() -> None:
    columns = {"num_tokens": 8, "hidden_size": 4096, "topk": 8, "num_experts": 256, "ep_size": 8, "comm_dtype": "nvfp4"}
    frame = pd.DataFrame([columns])
    assert model("moe_dispatch", "moe_all_to_all").inputs(frame, NODE, "bf16")["width"] == [0.5625]
    assert model("moe_combine", "moe_all_to_all").inputs(frame, NODE, "bf16")["width"] == [2.0]


def test_every_communication_cost_has_estimates() -> None:
    for op in (*collectives.DEFAULTS, *expert_exchange.DEFAULTS):
        assert lookup(NODE, op, "vllm", "bf16").values == ESTIMATES[op]
    for m in MODELS:
        names = {p.name for p in m.parameters}
        assert names <= set(ESTIMATES[m.op])
        assert all(p.lower < p.start < p.upper for p in m.parameters)
