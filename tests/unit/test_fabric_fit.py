"""Networks between nodes from published figures: a known network is found again, bad tables are refused."""

from __future__ import annotations

import csv

import pytest
import yaml
from click.testing import CliRunner

from moeplan.calibrate.fabric_fit import COLUMNS, fit_fabrics
from moeplan.cli import main
from moeplan.costs import collectives
from moeplan.costs.fabrics import fabric_of
from moeplan.costs.parameters import lookup
from moeplan.files.catalog.hardware_catalog import load_hardware


def row(**values):
    return dict.fromkeys(COLUMNS, "") | {"gpus_per_node": 8, **values}


def figures():
    """All-reduce of two GPUs as the shipped InfiniBand takes it, and rows that must not be used."""
    for name, gpu in (("dgx-h100", "H100"), ("dgx-h200", "H200")):
        machine = load_hardware(name)
        p = lookup(machine, "all_reduce", "nccl", "bf16").values
        for n in (16, 64):
            for size in (1024, 2**20, 2**28, 2**33):
                seconds = float(collectives.all_reduce_time_s(float(size), n, hardware=machine, p=p))
                common = {"library": "NCCL", "operation": "all_reduce", "gpu": gpu, "n_gpus": n, "message_bytes": size}
                yield row(inter_node_link="CX7", metric="latency_us", value=seconds * 1e6, **common)
                yield row(inter_node_link="unheard of", metric="latency_us", value=1.0, **common)
    yield row(library="x", operation="dispatch", inter_node_link="CX7", n_gpus=16, metric="latency_us", value=1.0)


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_known_network_is_found_again(tmp_path):
    fits = {fit.kind: fit for fit in fit_fabrics(write(tmp_path / "figures.csv", figures()))}
    truth = fabric_of(load_hardware("dgx-h100"))
    assert fits["infiniband"].n_rows == 16
    assert fits["infiniband"].values["hop_s"] == pytest.approx(truth["hop_s"], rel=0.02)
    assert fits["infiniband"].values["stream_efficiency"] == pytest.approx(truth["stream_efficiency"], rel=0.02)
    assert fits["infiniband"].heldout.mdape_frac < 0.01
    assert "efa" not in fits


def test_the_command_writes_a_file_that_is_read(tmp_path):
    table = write(tmp_path / "figures.csv", figures())
    result = CliRunner().invoke(main, ["calibrate", str(table), "--out", str(tmp_path / "fabrics.yaml")])
    assert result.exit_code == 0, result.output
    assert {fit["op"] for fit in yaml.safe_load((tmp_path / "fabrics.yaml").read_text())["fits"]} == {"fabric"}


def test_bad_tables_are_one_error_and_nothing_is_written(tmp_path):
    without = [name for name in COLUMNS if name != "message_bytes"]
    for table, what in (
        (write(tmp_path / "a.csv", figures(), without), "column message_bytes is missing"),
        (write(tmp_path / "b.csv", []), "no time between nodes"),
    ):
        result = CliRunner().invoke(main, ["calibrate", str(table), "--out", str(tmp_path / "fabrics.yaml")])
        assert result.exit_code == 2
        assert what in result.output
        assert not (tmp_path / "fabrics.yaml").exists()
