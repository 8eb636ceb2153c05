"""`moeplan measure` without a GPU: the plan, the journal that survives a kill, the tables `calibrate` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from moeplan.calibrate.tables import cut, read
from moeplan.errors import InputError
from moeplan.files.catalog.hardware_catalog import hardware_of_gpu, load_hardware
from moeplan.files.runs.measured_tables import JOURNAL, Entry, Journal, write_tables
from moeplan.files.runs.op_tables import TableFile
from moeplan.measure.plan import OPS, cases

MACHINE = {"gpu": "NVIDIA H200", "torch": "2.11.0", "card": {"driver": "580"}}
ABOUT = {"versions": dict.fromkeys(OPS, "2.11.0"), "plan": "short"}


@dataclass
class Timed:
    median_s: float = 2e-5
    p10_s: float = 1.9e-5
    p90_s: float = 2.2e-5
    n_repeats: int = 9
    n_calls: int = 50
    mode: str = "graph"


@pytest.mark.parametrize("plan", ["short", "full"])
def test_plan_has_every_operation_once_a_shape(plan: str) -> None:
    found = cases(plan, n_gpus=8)
    assert {case.op for case in found} == set(OPS)
    assert len({case.key for case in found}) == len(found)
    assert not any(case.op == "nccl" for case in cases(plan, n_gpus=1))


def test_full_plan_holds_more_of_every_kernel() -> None:
    for op in set(OPS) - {"launch", "gemm_sustained"}:
        assert len(cases("full", (op,), n_gpus=8)) > len(cases("short", (op,), n_gpus=8))


def test_a_kill_loses_one_case_at_most(tmp_path: Path) -> None:
    todo = cases("short", ("gemm",))[:3]
    journal = Journal(tmp_path, MACHINE)
    for case in todo:
        journal.append(Entry(case.key, case.op, case.values, Timed(), ""))
    path = tmp_path / JOURNAL
    text = path.read_bytes()
    for killed_at in range(len(text) - 2, len(text) - 80, -7):  # anywhere inside the last line
        path.write_bytes(text[:killed_at])
        again = Journal(tmp_path, MACHINE)
        assert list(again.entries) == [case.key for case in todo[:2]]
        again.append(Entry(todo[2].key, "gemm", todo[2].values, Timed(), ""))
        assert path.read_bytes() == text


def test_another_machine_does_not_go_on(tmp_path: Path) -> None:
    Journal(tmp_path, MACHINE)
    with pytest.raises(InputError, match=r"another machine.*torch 2\.11\.0, now 2\.12\.0"):
        Journal(tmp_path, {**MACHINE, "torch": "2.12.0"})


@pytest.mark.parametrize("line", ["{", "[]", '{"key": 1}', "null"])
def test_damaged_journal_is_refused(tmp_path: Path, line: str) -> None:
    Journal(tmp_path, MACHINE)
    with (tmp_path / JOURNAL).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=r"journal\.jsonl:2:1: not a line of a measurement journal"):
        Journal(tmp_path, MACHINE)


@pytest.mark.parametrize(
    "op", ["gemm", "moe", "attention_prefill", "attention_decode", "memory_copy", "host_copy", "nccl"]
)
def test_tables_are_what_calibrate_reads(tmp_path: Path, op: str) -> None:
    """Every measured operation comes back as rows of a cost model, none left over."""
    journal = Journal(tmp_path / "h200-sxm", MACHINE)
    todo = cases("short", (op,), n_gpus=2)
    for case in todo:
        added = {"kernel_source": "k"} | ({"distinct_experts": 8, "max_load": 1} if op == "moe" else {})
        journal.append(Entry(case.key, op, {**case.values, **added}, Timed(), ""))
    journal.append(Entry("gone", op, {}, None, "does not fit the GPU's memory"))
    table_path, metadata = write_tables(journal, "torch", ABOUT)
    engine = "nccl" if op == "nccl" else "torch"
    assert table_path.name == f"{op}.{engine}.parquet"
    assert "does not fit" in metadata.read_text()
    assert len(pd.read_parquet(table_path)) == len(todo)
    pieces = cut(read(TableFile(table_path, "h200-sxm", op, engine)), load_hardware("h200-sxm"))
    assert sum(len(group.frame) for group in pieces.groups) == len(todo)


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA H200", "h200-sxm"),
        ("nvidia h100 80gb hbm3", "h100-sxm"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("Somebody's GPU", None),
    ],
)
def test_profile_of_a_gpu(name: str, profile: str | None) -> None:
    """A node that extends a device's profile is not the device."""
    assert hardware_of_gpu(name) == profile
