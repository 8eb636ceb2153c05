"""Closed forms at the ends of the message range, and published figures across nodes."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.costs import collectives, expert_exchange
from moeplan.costs.fabrics import DEFAULTS as UNKNOWN_NETWORK
from moeplan.costs.fabrics import fabric_of
from moeplan.files.catalog.fitted import fabric_parameters
from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link


def machine(up: float = 450e9, nic: str = "infiniband", unified: bool = False) -> Hardware:
    device = Device("d", "d", "NVIDIA", "hopper", 8e10, 3.35e12, {"bf16": 1e15}, 132, 5e7, 700.0, unified)
    pcie = Link("PCIe 5", 64e9, 1e-6, 8, "pcie")
    link, out = Link("nvlink", up, 1e-6, 8, "nvlink"), Link("NIC", 50e9, 2e-6, 10**6, nic)
    return Hardware("m", device, 8, 8, link, out, Host(None, None, None, pcie), None, Efficiency(fabric_parameters()))


P = {
    "base_s": 5e-6, "hop_s": 1e-6, "wide_step": 0.2, "low_latency_efficiency": 0.4, "switch_bytes": 1e6,
    "bulk_hop_s": 8e-6, "efficiency": 0.8, "local_chunks": 0.0, "sharpness": 1.0, "host_path": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("n", [2, 4, 8])
def test_large_ring_moves_its_bus_bytes_at_the_link_rate(n: int) -> None:
    size = 1e15
    seconds = collectives.all_reduce_time_s(size, n, hardware=machine(), p=P)
    assert seconds == pytest.approx(2 * (n - 1) / n * size / (450e9 * 0.8), rel=1e-4)
    gather = collectives.all_gather_time_s(size, n, hardware=machine(), p=P)
    assert gather == pytest.approx((n - 1) / n * size / (450e9 * 0.8), rel=1e-4)
    exchange = collectives.all_to_all_time_s(size, n, hardware=machine(), p=P)
    assert exchange == pytest.approx((n - 1) / n * size / (450e9 * 0.8), rel=1e-4)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_empty_message_costs_its_steps(n: int) -> None:
    assert collectives.all_reduce_time_s(0.0, n, hardware=machine(), p=P) == pytest.approx(5e-6 + 1e-6 * 2 * (n - 1))
    assert collectives.all_gather_time_s(0.0, n, hardware=machine(), p=P) == pytest.approx(5e-6 + 1e-6 * (n - 1))


def test_large_all_reduce_across_nodes_is_bound_by_the_slower_of_both_links() -> None:
    size, n = 1e13, 64
    nic = 50e9 * fabric_of(machine())["stream_efficiency"]
    inside = 2 * (n - 1) / n * size / (450e9 * 0.8)
    across = 2 * (n - 1) / n * size / 8 / nic
    got = collectives.all_reduce_time_s(size, n, hardware=machine(), p=P)
    assert got == pytest.approx(max(inside, across), rel=1e-3)


def test_multicast_carries_the_sum_once() -> None:
    p = P | {"multicast_efficiency": 0.8}
    got = collectives.all_reduce_time_s(1e15, 8, hardware=machine(), p=p)
    assert got == pytest.approx(9 / 8 * 1e15 / (450e9 * 0.8), rel=1e-4)


def test_one_shot_reads_every_peer_and_two_shot_wins_later() -> None:
    p = {
        "base_s": 3e-6, "hop_s": 0.0, "one_shot_efficiency": 0.5, "two_shot_s": 4e-6, "two_shot_efficiency": 0.5,
        "limit_bytes": 1e12, "bulk_hop_s": 1e-6, "efficiency": 0.8, "local_chunks": 0.0, "multicast_efficiency": 0.5,
    }  # fmt: skip
    small, large = collectives.custom_all_reduce_time_s(np.array([1e4, 1e8]), 8, hardware=machine(), p=p)
    assert small == pytest.approx(3e-6 + 7 * 1e4 / 225e9)
    assert large == pytest.approx(7e-6 + 2 * 7 / 8 * 1e8 / 225e9)


def test_send_and_host_copy() -> None:
    p = {"base_s": 1e-5, "efficiency": 0.8, "host_path": 0.35}
    assert collectives.send_time_s(1e9, hardware=machine(), p=p) == pytest.approx(1e-5 + 1e9 / 360e9)
    far = collectives.send_time_s(1e9, hardware=machine(), p=p, same_domain=False)
    network = fabric_of(machine())
    assert far == pytest.approx(1e-5 + network["hop_s"] + 1e9 / (50e9 * network["stream_efficiency"]))
    assert collectives.host_copy_time_s(1e9, hardware=machine(), p=p) == pytest.approx(1e-5 + 1e9 / 51.2e9)
    assert collectives.host_copy_time_s(1e9, hardware=machine(unified=True), p=p) == 0.0


def test_an_unknown_network_takes_the_estimates() -> None:
    assert fabric_of(machine(nic="ici")) is UNKNOWN_NETWORK
    assert fabric_of(machine(nic="efa")) is not UNKNOWN_NETWORK


@pytest.mark.parametrize(
    ("ep", "dispatch_us", "combine_us"),
    [(16, 118, 195), (32, 155, 273), (64, 173, 314), (128, 192, 369), (256, 194, 360)],
)
def test_low_latency_exchange_across_nodes_as_deepep_published(ep: int, dispatch_us: float, combine_us: float) -> None:
    """DeepEP docs/legacy.md @dd758ca: H800, 400 Gb/s InfiniBand, 128 tokens of 7168 values, top 8 of 256."""
    where = {"n_experts": 256, "ep": ep, "hardware": machine(up=200e9), "low_latency": True}
    there = expert_exchange.moe_dispatch_time_s(
        128, 7168, 8, bytes_per_value=1 + 4 / 128, p=expert_exchange.DEFAULTS["moe_dispatch_low_latency"], **where
    )
    back = expert_exchange.moe_combine_time_s(
        128, 7168, 8, bytes_per_value=2, p=expert_exchange.DEFAULTS["moe_combine_low_latency"], **where
    )
    assert float(there) * 1e6 == pytest.approx(dispatch_us, rel=0.15)
    assert float(back) * 1e6 == pytest.approx(combine_us, rel=0.15)


@pytest.mark.parametrize(("ep", "dispatch_us", "combine_us"), [(16, 1141, 1965), (24, 1637, 2887), (32, 2072, 3724)])
def test_throughput_exchange_across_nodes_as_uccl_published(ep: int, dispatch_us: float, combine_us: float) -> None:
    """UCCL-EP README: B200, 8 x 400 Gb/s EFA, 4096 tokens of 7168 values, top 8 of 256."""
    where = {"n_experts": 256, "ep": ep, "hardware": machine(up=900e9, nic="efa")}
    there = expert_exchange.moe_dispatch_time_s(
        4096, 7168, 8, bytes_per_value=1 + 4 / 128, p=expert_exchange.DEFAULTS["moe_dispatch"], **where
    )
    back = expert_exchange.moe_combine_time_s(
        4096, 7168, 8, bytes_per_value=2, p=expert_exchange.DEFAULTS["moe_combine"], **where
    )
    assert float(there) * 1e6 == pytest.approx(dispatch_us, rel=0.2)
    assert float(back) * 1e6 == pytest.approx(combine_us, rel=0.2)


@pytest.mark.parametrize(("gib", "microseconds"), [(0.5, 2984.6), (1, 5808), (2, 11163), (4, 22181), (8, 43980)])
def test_all_reduce_on_64_h100_as_coreweave_published(gib: float, microseconds: float) -> None:
    """CoreWeave nccl-tests README: 8 nodes of 8 H100, 400 Gb/s InfiniBand per GPU."""
    p = collectives.DEFAULTS["all_reduce"]
    got = collectives.all_reduce_time_s(gib * 2**30, 64, hardware=machine(), p=p)
    assert float(got) * 1e6 == pytest.approx(microseconds, rel=0.1)


@pytest.mark.parametrize(
    ("n_bytes", "microseconds"), [(2**16, 4.21), (2**20, 20.96), (2**24, 307.1), (2**28, 4881.4), (2**30, 19505.7)]
)
def test_host_copies_of_an_h200(n_bytes: int, microseconds: float) -> None:
    """Own measurement 2026-11-23: pinned memory, PCIe 5.0 x16."""
    got = collectives.host_copy_time_s(n_bytes, hardware=machine(), p=collectives.DEFAULTS["host_copy"])
    assert float(got) * 1e6 == pytest.approx(microseconds, rel=0.1)
