"""Laws every communication cost obeys, for any message, group and machine."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.costs import collectives, expert_exchange
from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link

SINGLE = {
    "all_reduce": collectives.all_reduce_time_s,
    "all_gather": collectives.all_gather_time_s,
    "reduce_scatter": collectives.reduce_scatter_time_s,
    "all_to_all": collectives.all_to_all_time_s,
    "custom_allreduce": collectives.custom_all_reduce_time_s,
}
EXCHANGE = {
    "moe_dispatch": False, "moe_combine": False, "moe_dispatch_low_latency": True, "moe_combine_low_latency": True,
}  # fmt: skip
INSIDE = [op for op in SINGLE if op != "custom_allreduce"]

n_bytes = st.floats(1.0, 1e11)
groups = st.sampled_from([1, 2, 3, 4, 8, 16, 64, 256])


def machine(kind: str = "nvlink", rate: float = 450e9, nic: str | None = "infiniband") -> Hardware:
    device = Device("d", "d", "NVIDIA", "hopper", 8e10, 3.35e12, {"bf16": 1e15}, 132, 5e7, 700.0, False)
    pcie = Link("PCIe 5", 64e9, 1e-6, 8, "pcie")
    scale_out = None if nic is None else Link("NIC", 50e9, 2e-6, 10**6, nic)
    up = Link(kind, rate, 1e-6, 8, kind)
    return Hardware("m", device, 8, 8, up, scale_out, Host(None, None, None, pcie), None, Efficiency({}))


def cost(op: str, size: object, n: object, hardware: Hardware) -> np.ndarray:
    return SINGLE[op](size, n, hardware=hardware, p=collectives.DEFAULTS[op])


def exchange(op: str, tokens: object, hardware: Hardware, **changes: object) -> np.ndarray:
    given_ = {"n_experts": 256, "ep": 8, "bytes_per_value": 2.0, **changes}
    p = expert_exchange.DEFAULTS[op]
    return expert_exchange.moe_dispatch_time_s(
        tokens, 7168, 8, hardware=hardware, p=p, low_latency=EXCHANGE[op], **given_
    )


@pytest.mark.parametrize("op", SINGLE)
@given(size=n_bytes)
def test_alone_costs_nothing(op: str, size: float) -> None:
    assert cost(op, size, 1, machine()) == 0.0


@pytest.mark.parametrize("op", EXCHANGE)
def test_one_rank_exchanges_nothing(op: str) -> None:
    assert exchange(op, 100.0, machine(), ep=1) == 0.0


@pytest.mark.parametrize("op", SINGLE)
@pytest.mark.parametrize("kind", ["nvlink", "pcie", "xgmi"])
@given(size=n_bytes, n=groups, factor=st.floats(1.0, 100.0))
def test_more_bytes_never_take_less(op: str, kind: str, size: float, n: int, factor: float) -> None:
    small, large = cost(op, np.array([size, size * factor]), n, machine(kind))
    assert large >= small * (1 - 1e-12)


@pytest.mark.parametrize("op", EXCHANGE)
@given(tokens=st.floats(1.0, 1e5), factor=st.floats(1.0, 100.0), ep=st.sampled_from([2, 8, 16, 64]))
def test_more_tokens_never_take_less(op: str, tokens: float, factor: float, ep: int) -> None:
    small, large = exchange(op, np.array([tokens, tokens * factor]), machine(), ep=ep)
    assert large >= small


@pytest.mark.parametrize("op", SINGLE)
@given(size=n_bytes, n=st.sampled_from([2, 4, 8]))
def test_a_faster_link_never_takes_longer(op: str, size: float, n: int) -> None:
    assert cost(op, size, n, machine(rate=900e9)) <= cost(op, size, n, machine()) * (1 + 1e-12)


@pytest.mark.parametrize("op", INSIDE)
@given(size=n_bytes, n=st.sampled_from([16, 64, 256]))
def test_leaving_the_domain_never_helps_a_group_of_the_same_size(op: str, size: float, n: int) -> None:
    rack = replace(machine(), n_gpus_scale_up=256)
    assert cost(op, size, n, machine()) >= cost(op, size, n, rack) * (1 - 1e-12)


@pytest.mark.parametrize("op", SINGLE)
def test_arrays_equal_scalars(op: str) -> None:
    sizes, ranks = np.meshgrid(np.geomspace(1, 1e10, 30), [1, 2, 4, 8])
    together = cost(op, sizes, ranks, machine())
    singly = [float(cost(op, s, n, machine())) for s, n in zip(sizes.ravel(), ranks.ravel(), strict=True)]
    np.testing.assert_allclose(together.ravel(), singly, rtol=1e-12)


@pytest.mark.parametrize("op", EXCHANGE)
def test_exchange_arrays_equal_scalars(op: str) -> None:
    tokens, ranks = (x.ravel() for x in np.meshgrid(np.geomspace(1, 1e5, 20), [1, 2, 8, 64]))
    together = exchange(op, tokens, machine(), ep=ranks)
    singly = [float(exchange(op, t, machine(), ep=n)) for t, n in zip(tokens, ranks, strict=True)]
    np.testing.assert_allclose(together, singly, rtol=1e-12)


@given(size=st.floats(1e9, 1e11), n=st.sampled_from([2, 4, 8]))
def test_all_reduce_is_reduce_scatter_and_all_gather(size: float, n: int) -> None:
    p = {k: v for k, v in collectives.DEFAULTS["all_gather"].items() if k != "local_chunks"} | {"local_chunks": 0.0}
    parts = 2 * collectives.all_gather_time_s(size, n, hardware=machine(), p=p)
    whole = collectives.all_reduce_time_s(size, n, hardware=machine(), p=p)
    assert whole <= parts
    assert whole == pytest.approx(float(parts), rel=0.02)  # one launch instead of two


@pytest.mark.parametrize(
    ("topk", "n_experts", "n_groups"), [(1, 4, 2), (2, 8, 4), (3, 9, 3), (4, 8, 2), (2, 6, 6), (3, 4, 2)]
)
def test_distinct_groups_is_the_exact_expectation(topk: int, n_experts: int, n_groups: int) -> None:
    size = n_experts // n_groups
    hits = [len({expert // size for expert in chosen}) for chosen in combinations(range(n_experts), topk)]
    assert expert_exchange.distinct_groups(topk, n_experts, n_groups) == pytest.approx(np.mean(hits), rel=1e-10)


def test_copies_of_a_token_add_up_over_the_links() -> None:
    """Uniform routing, 4 domains of 8: brute force over random draws."""
    rng = np.random.default_rng(7)
    experts = np.argsort(rng.random((20000, 64)), axis=1)[:, :6]
    ranks = experts // 2
    copies = expert_exchange.uniform_copies(6, 64, 32, hardware=machine())
    domains = [len(set(row // 8) - {0}) for row in ranks]  # the token lives in domain 0
    # A domain's member forwards inside to every rank hit but itself (same position as the sender).
    forwarded = [sum(1 for rank in set(row) if rank % 8 != 0) for row in ranks]
    assert np.mean(domains) == pytest.approx(float(copies.scale_out), rel=0.02)
    assert np.mean(forwarded) == pytest.approx(float(copies.scale_up), rel=0.02)
    each = expert_exchange.uniform_copies(6, 64, 32, hardware=machine(), once=False)
    assert float(each.scale_up) + float(each.scale_out) == pytest.approx(6 * 31 / 32)


@given(imbalance=st.floats(1.0, 8.0))
def test_a_hot_rank_costs_at_most_its_share(imbalance: float) -> None:
    even = float(exchange("moe_dispatch", 4096.0, machine()))
    skewed = float(exchange("moe_dispatch", 4096.0, machine(), imbalance=imbalance))
    assert even <= skewed <= even * imbalance * (1 + 1e-12)


def test_a_group_that_strides_the_nodes_uses_one_nic_each() -> None:
    p = collectives.DEFAULTS["all_reduce"]
    packed = collectives.all_reduce_time_s(1e9, 16, hardware=machine(), p=p)
    strided = collectives.all_reduce_time_s(1e9, 16, hardware=machine(), p=p, ranks_per_domain=1)
    assert strided > 3 * packed


def test_no_network_is_an_error_that_names_the_machine() -> None:
    with pytest.raises(ValueError, match="m: the group spans several nodes"):
        cost("all_reduce", 1e6, 16, machine(nic=None))


def test_three_cards_on_pcie_share_the_host() -> None:
    """More than two are slowed by ``host_path``, two are not."""
    p = collectives.DEFAULTS["all_gather"]
    alone = {**p, "host_path": 1.0}
    pcie = machine("pcie", 32e9)
    times = [[float(collectives.all_gather_time_s(1e10, n, hardware=pcie, p=q)) for q in (p, alone)] for n in (2, 3, 8)]
    assert times[0][0] == times[0][1]
    for shared, private in times[1:]:
        assert shared / private == pytest.approx(1 / p["host_path"], rel=0.02)
