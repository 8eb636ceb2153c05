"""Every cost function, called with pint quantities, returns the unit its name states.

The suffix of a name is its unit: arguments, parameters, fields and module constants get it (`units_by_name`), so a
time that forgets a rate, bytes divided by a FLOP rate or a constant without its suffix cannot pass. Magnitudes must
equal those of the plain call.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pint
import pytest
from units_by_name import Quantity, public_functions, put_units_in_costs, registry, unit_of, with_units

from moeplan.costs import (
    attention,
    collectives,
    elementwise,
    energy,
    expert_exchange,
    experts,
    gemm,
    host,
    memory,
    recurrent,
    reliability,
)
from moeplan.costs import latent_attention as latent
from moeplan.costs import money as money_costs
from moeplan.files.catalog.model_catalog import load_model
from moeplan.provenance import Kind, Source
from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link
from moeplan.spec.model import (
    DenseMlp,
    LatentAttention,
    Layer,
    LinearAttention,
    MoeMlp,
    SoftmaxAttention,
    StateSpace,
)
from moeplan.spec.precision import FORMATS, Precision
from moeplan.spec.prices import Commitment, Facility, Money, Offer, Ownership
from moeplan.spec.workload import Reliability, TrainingWork

BF16, FP8 = FORMATS["bf16"], FORMATS["fp8_block"]
DEVICE = Device(
    "d", "d", "NVIDIA", "hopper", 8e10, 3.35e12, {"bf16": 1e15, "fp8": 2e15, "fp32": 6e13}, 132, 5e7, 700.0, False
)
NVLINK = Hardware(
    "m", DEVICE, 8, 8, Link("NVLink", 450e9, 1e-6, 8, "nvlink"), Link("NIC", 50e9, 2e-6, 10**6, "infiniband"),
    Host(1e12, 4e11, 3000.0, Link("PCIe", 64e9, 1e-6, 8, "pcie")), 1300.0, Efficiency({}),
)  # fmt: skip
PCIE = replace(NVLINK, scale_up=Link("PCIe", 64e9, 1e-6, 4, "pcie"), n_gpus_scale_up=4, allin_power_w_per_gpu=None)
SOFTMAX = SoftmaxAttention(32, 4, 128, 128, 4_000_000)
LATENT = LatentAttention(128, 1536, 512, 128, 64, 128, 5_000_000)
SPARSE_LATENT = replace(LATENT, index_n_heads=64, index_head_dim=128, index_top_k_tokens=2048)
LINEAR = LinearAttention("gated_delta", 16, 32, 128, 128, 4, 4_000_000)
MAMBA = StateSpace(2, 4096, 128, 64, 8, 4, 0, 4_000_000)
DENSE = DenseMlp(6144, 3, 3 * 2048 * 6144)
MOE = MoeMlp(128, 8, 768, 3, 1, 768, 129 * 3 * 2048 * 768 + 2048 * 128, 3 * 2048 * 768, 2048 * 128, 2048)
LAYERS = tuple(Layer((block,), 4096) for block in (SOFTMAX, LATENT, LINEAR, MAMBA, DENSE, MOE))
OFFER = Offer("o", "h", 2.5, 8, "on_demand", "2026-01-01", Source("s", "2026-01-01", Kind.LIST_PRICE))
MONEY = Money(OFFER, 100.0, 20.0, 5000.0, 0.2, 730.0, None, 50.0, 2e-11, 9e-11, 250.0)
OWN = Ownership(3e4, 48.0, 0.1, 0.06, 200.0, 3e-8, 1000.0, "")
FACILITY = Facility(1.5, True, "World", 1e-7, Source("s", "2026", Kind.MEASURED))

ATTENTION = {"n_heads": 32, "n_kv_heads": 4, "head_dim": 128, "v_head_dim": 128, "device": DEVICE}
MLA = {
    "n_heads": 64, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "device": DEVICE,
}  # fmt: skip
EXPERTS = {
    "n_tokens": 64.0, "assignments": 512.0, "distinct": 100.0, "max_load": 40.0, "n_local_experts": 128,
    "hidden_size": 2048, "intermediate_size": 768, "n_matrices": 3, "device": DEVICE, "p": experts.DEFAULTS,
}  # fmt: skip
EXCHANGE = {
    "n_tokens": 500.0, "hidden_size": 7168, "topk": 8, "n_experts": 256, "bytes_per_value": 2.0, "hardware": NVLINK,
}  # fmt: skip
RECURRENT = {"batch": 8, "q_tokens": 512, "conv_kernel": 4, "device": DEVICE, "p": recurrent.RECURRENT_DEFAULTS}
RULE = memory.ActivationRule(2, True, 1, 2.0)


def group(op, **arguments):
    return {"n_bytes": 3e6, "n_gpus": 8, "hardware": NVLINK, "p": collectives.DEFAULTS[op], **arguments}


def prefill(**changes):
    return {
        "batch": 2, "q_tokens": 1000, "cached_tokens": 500, "window_tokens": None, "kv_fmt": BF16, **ATTENTION,
        "p": attention.PREFILL_DEFAULTS, **changes,
    }  # fmt: skip


def decode(**changes):
    return {
        "batch": 32, "context_tokens": 5000, "window_tokens": None, "kv_fmt": FP8, **ATTENTION,
        "p": attention.DECODE_DEFAULTS, **changes,
    }  # fmt: skip


# Arguments of calls, by function; each list visits the branches that differ in what they add up.
WORK = TrainingWork("full_finetune", 1e9, 2048, 2048, 1, "bf16", "adamw", True, 4.0, None, 1.0, 0.8)

CASES = {
    "attention.prefill_attention_time_s": [prefill(), prefill(window_tokens=128, kv_fmt=FP8), prefill(batch=0)],
    "attention.decode_attention_time_s": [decode(), decode(window_tokens=128, warm_l2=True), decode(n_kv_heads=32)],
    "latent_attention.mla_prefill_time_s": [
        {"batch": 1, "q_tokens": 900, "cached_tokens": 0, "kv_fmt": BF16, **MLA, "p": latent.MLA_PREFILL_DEFAULTS}
    ],
    "latent_attention.mla_glue_time_s": [
        {"n_tokens": 64, "n_heads": 16, "latent_dim": 2112, "head_dim": 192, "device": DEVICE,
         "p": latent.MLA_MODULE_DEFAULTS},
    ],
    "transfer.sm_clock_per_s": [{"device": replace(DEVICE, dense_flop_per_s={"fp32": 67e12}, n_sms=132)}],
    "latent_attention.mla_decode_time_s": [
        {"batch": 64, "context_tokens": 900, "kv_fmt": FP8, **MLA, "p": latent.MLA_DECODE_DEFAULTS, "warm_l2": warm}
        for warm in (True, False)
    ],
    "latent_attention.mla_absorb_time_s": [
        {
            "batch": 64, "n_heads": 64, "kv_lora_rank": 512, "inner_head_dim": 128, "fmt": BF16, "device": DEVICE,
            "p": latent.MLA_ABSORB_DEFAULTS, "warm_l2": warm,
        }
        for warm in (True, False)
    ],
    "recurrent.linear_attention_time_s": [
        {**RECURRENT, "n_k_heads": 16, "n_v_heads": 32, "k_head_dim": 128, "v_head_dim": 128}
    ],
    "recurrent.state_space_time_s": [{**RECURRENT, "inner_size": 4096, "state_size": 128, "n_groups": 8}],
    "gemm.gemm_time_s": [
        {"m": m, "n": 4096.0, "k": 2048.0, "fmt": fmt, "device": DEVICE, "p": gemm.DEFAULTS}
        for m, fmt in ((17.0, BF16), (17.0, FP8), (4096.0, FORMATS["int4"]))
    ],
    "experts.expert_ffn_time_s": [{**EXPERTS, "fmt": BF16}, {**EXPERTS, "fmt": FP8, "routed_pairs": 600.0}],
    "elementwise.elementwise_time_s": [{"n_bytes": 1e7, "device": DEVICE, "p": elementwise.DEFAULTS}],
    "collectives.all_reduce_time_s": [
        group("all_reduce"), group("all_reduce", n_gpus=32), group("all_reduce", hardware=PCIE),
        group("all_reduce", ranks_per_domain=1), group("all_reduce", n_gpus=1), group("all_reduce", n_bytes=1e3),
    ],
    "collectives.all_gather_time_s": [group("all_gather"), group("all_gather", n_gpus=32)],
    "collectives.reduce_scatter_time_s": [group("reduce_scatter"), group("reduce_scatter", n_gpus=32)],
    "collectives.all_to_all_time_s": [group("all_to_all"), group("all_to_all", n_gpus=32, n_bytes=1e5)],
    "collectives.custom_all_reduce_time_s": [group("custom_allreduce"), group("custom_allreduce", n_bytes=1e8)],
    "collectives.fast_all_reduce_time_s": [
        group("all_reduce", custom=collectives.DEFAULTS["custom_allreduce"]), group("all_reduce", custom=None)
    ],
    "collectives.send_time_s": [
        {"n_bytes": 1e6, "hardware": hardware, "p": collectives.DEFAULTS["send"], "same_domain": near}
        for hardware, near in ((NVLINK, True), (PCIE, True), (NVLINK, False))
    ],
    "collectives.host_copy_time_s": [
        {"n_bytes": 1e9, "hardware": NVLINK, "p": collectives.DEFAULTS["host_copy"]},
    ],
    "fabrics.stream_bytes_per_s": [{"hardware": NVLINK}],
    "fabrics.scatter_bytes_per_s": [{"hardware": NVLINK}],
    "fabrics.inner_bytes_per_s": [
        {"local": np.float64(4.0), "hardware": hardware, "p": collectives.DEFAULTS["all_reduce"]}
        for hardware in (NVLINK, PCIE, replace(NVLINK, n_gpus_scale_up=2))
    ],
    "expert_exchange.moe_dispatch_time_s": [
        {**EXCHANGE, "ep": ep, "p": expert_exchange.DEFAULTS["moe_dispatch" + kind], "low_latency": bool(kind)}
        for ep in (1, 8, 64) for kind in ("", "_low_latency")
    ],
    "expert_exchange.moe_combine_time_s": [
        {**EXCHANGE, "ep": 8, "p": expert_exchange.DEFAULTS["moe_combine" + kind], "low_latency": bool(kind)}
        for kind in ("", "_low_latency")
    ],
    "host.launch_time_s": [{"n_layers": 48, "n_experts": 768, "p": host.DEFAULTS["training_host"]}],
    "host.products_bytes_per_s": [{"host_bytes_per_s": 5e10, "p": host.DEFAULTS["host_products"]}],
    "energy.device_power_w": [{"memory_frac": 0.5, "compute_frac": 0.3, "device": DEVICE, "busy_frac": 0.7}],
    "energy.meter_power_w": [
        {"device_w": 500.0, "hardware": hardware, "facility": FACILITY, "power_w": power_w}
        for hardware in (NVLINK, PCIE) for power_w in (None, 900.0)
    ],
    "energy.energy_j": [{"power_w": 500.0, "time_s": 60.0}],
    "money.capital_usd_per_month": [{"own": OWN}, {"own": replace(OWN, interest_frac_per_year=0.0)}],
    "money.payback_months": [
        {"purchase_usd": 3e4, "rent_usd_per_month": 2000.0, "running_usd_per_month": 300.0}
    ],
    "money.usd_per_million_tokens": [{"usd_per_hour": 3.0, "tokens_per_s": 900.0}],
    "memory.cache_bytes_per_sequence": [
        {"layers": [Layer((block,), 0)], "context_tokens": 3000.0, "kv_fmt": FP8, "tp": 2}
        for block in (SOFTMAX, LATENT, SPARSE_LATENT, LINEAR, MAMBA)
    ],
    "memory.block_activation_bytes_per_token": [
        {"block": block, "hidden_size": 2048, "rule": RULE}
        for block in (SOFTMAX, LATENT, LINEAR, MAMBA, DENSE, MOE)
    ],
    "memory.checkpoint_bytes_per_token": [{"hidden_size": 2048, "rule": RULE}],
    "model_state.checkpoint_bytes": [{"model": load_model("Qwen3-8B"), "work": WORK}],
    "reliability.young_interval_s": [{"stall_s": 40.0, "mean_time_between_failures_s": 1e4}],
    "reliability.daly_interval_s": [
        {"stall_s": 40.0, "mean_time_between_failures_s": 1e4},
        {"stall_s": 4e4, "mean_time_between_failures_s": 1e4},
    ],
    "roofline.joined_s": [{"compute_s": np.float64(1e-5), "memory_s": np.float64(2e-5), "sharpness": 1.7}],
    "roofline.memory_time_s": [
        {"n_bytes": np.float64(1e7), "device": DEVICE, "p": gemm.DEFAULTS},
        {"n_bytes": np.float64(1e7), "device": replace(DEVICE, l2_bytes=None), "p": gemm.DEFAULTS},
    ],
    "roofline.peak_flop_per_s": [{"fmt": BF16, "device": DEVICE}],
    "roofline.activation_bytes_per_value": [{"fmt": FP8, "device": DEVICE}],
}  # fmt: skip

# Shared by functions above, which call it with units.
INNER = {"attention.split_kv_time_s", "reliability.failure_rates_per_s"}

# A bare literal counts bytes in these, so pint refuses them; with bytes as a plain number times still must be times.
BARE_BYTES = {
    "gemm.gemm_time_s",
    "experts.expert_ffn_time_s",
    "memory.block_activation_bytes_per_token",
    "memory.checkpoint_bytes_per_token",
    "model_state.checkpoint_bytes",
}

ALL = [(f"{name}-{i}", name, case) for name, cases in CASES.items() for i, case in enumerate(cases)]
BARE = [c for c in ALL if c[1] in BARE_BYTES]


def parametrized(cases):
    return pytest.mark.parametrize(("name", "arguments"), [pytest.param(name, case, id=i) for i, name, case in cases])


def call(function, arguments):
    """The function on positional and keyword arguments as its signature wants them."""
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update(arguments)
    return function(*bound.args, **bound.kwargs)


def stated_unit(name, **how):
    return registry.Unit(unit_of(name.rpartition(".")[2], **how) or "dimensionless")


def assert_unit(quantity, unit):
    """Same dimension. A geometric mean of two times is s**w * s**(1 - w): exponents add up to 1 but for rounding."""
    powers = dict((1.0 * quantity).dimensionality / unit.dimensionality)
    assert all(abs(power) < 1e-9 for power in powers.values()), f"{quantity.units} where {unit} is stated"


def check(name, arguments, monkeypatch, **how):
    function = public_functions()[name]
    plain = call(function, arguments)
    put_units_in_costs(monkeypatch, **how)
    found = call(function, {k: with_units(k, v, **how) for k, v in arguments.items()})
    unit = stated_unit(name, **how)
    if np.all(plain == 0.0):  # no work: a bare zero has every unit
        assert np.all(getattr(found, "magnitude", found) == 0.0)
        return
    assert isinstance(found, Quantity) or unit.dimensionless, f"{name} lost its unit"
    assert_unit(Quantity(found), unit)
    if not name.startswith("money."):  # 3600 s/h is a bare number there
        np.testing.assert_allclose(getattr(found, "magnitude", found), plain, rtol=1e-12)


@parametrized(c for c in ALL if c not in BARE)
def test_returns_the_unit_of_its_name(name, arguments, monkeypatch):
    check(name, arguments, monkeypatch)


@parametrized(c for c in BARE if c[1].endswith("_s"))
def test_returns_seconds_with_bytes_as_a_plain_number(name, arguments, monkeypatch):
    check(name, arguments, monkeypatch, count_bytes=True)


@pytest.mark.xfail(raises=(pint.DimensionalityError, AssertionError), strict=True, reason="a bare literal counts bytes")
@parametrized(BARE)
def test_bytes_of_bare_literals_have_no_unit(name, arguments, monkeypatch):
    """Fails once the literal has a name with its unit: then take the function off ``BARE_BYTES``."""
    check(name, arguments, monkeypatch)


FAST = 1e40  # a rate so high that its ceiling vanishes


def ceilings_s(name, arguments, memory_scale, compute_scale):
    """Time [s] without the fixed seconds of the kernel, on a device with scaled rates."""
    device = replace(
        DEVICE,
        memory_bytes_per_s=DEVICE.memory_bytes_per_s * memory_scale,
        dense_flop_per_s={k: v * compute_scale for k, v in DEVICE.dense_flop_per_s.items()},
        l2_bytes=None,
    )
    p = {key: 0.0 if unit_of(key) == "second" else value for key, value in arguments["p"].items()}
    return call(public_functions()[name], {**arguments, "device": device, "p": p})


@parametrized(c for c in BARE if c[1].endswith("_s"))
def test_bytes_meet_the_byte_rate_and_flop_the_flop_rate(name, arguments):
    """What pint would say of the bare literals: each ceiling is inverse in its own rate, above its least work."""
    fmt = arguments["fmt"]
    if name == "gemm.gemm_time_s":
        rows, weights = arguments["m"], arguments["n"] * arguments["k"]
        touched = 1.0
    else:
        rows, touched = arguments["assignments"], arguments["distinct"]
        weights = arguments["n_matrices"] * arguments["hidden_size"] * arguments["intermediate_size"]
    memory_s = ceilings_s(name, arguments, 1.0, FAST)
    compute_s = ceilings_s(name, arguments, FAST, 1.0)
    assert ceilings_s(name, arguments, 0.5, FAST) == pytest.approx(2.0 * memory_s, rel=1e-12)
    assert ceilings_s(name, arguments, FAST, 0.5) == pytest.approx(2.0 * compute_s, rel=1e-12)
    assert memory_s >= touched * weights * fmt.bytes_per_value / DEVICE.memory_bytes_per_s
    assert compute_s >= 2.0 * rows * weights / max(DEVICE.dense_flop_per_s.values())
    both_s = ceilings_s(name, arguments, 1.0, 1.0)
    assert max(memory_s, compute_s) * (1.0 - 1e-12) <= both_s <= (memory_s + compute_s) * (1.0 + 1e-12)


def test_every_public_cost_is_called_here():
    """A new public function whose name states a unit needs a case, one that is gone none."""
    assert set(CASES) | INNER == set(public_functions())


WRONG = {
    "forgets the rate": lambda n_bytes, *, device, p: p["launch_s"] + n_bytes,
    "divides bytes by FLOP/s": lambda n_bytes, *, device, p: n_bytes / device.dense_flop_per_s["bf16"],
    "multiplies by the rate": lambda n_bytes, *, device, p: n_bytes * device.memory_bytes_per_s,
    "drops the unit": lambda n_bytes, *, device, p: np.float64(1e-6),
    "bare seconds": lambda n_bytes, *, device, p: 1e-6 + n_bytes / device.memory_bytes_per_s,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_formulas_are_refused(wrong, monkeypatch):
    """The check itself can fail."""
    name = "elementwise.elementwise_time_s"
    monkeypatch.setattr(elementwise, "elementwise_time_s", wrong)
    wrong.__module__ = elementwise.__name__
    with pytest.raises((pint.DimensionalityError, AssertionError)):
        check(name, CASES[name][0], monkeypatch)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (energy.sustained_clock_frac, {"memory_frac": 0.6, "compute_frac": 0.9, "device": DEVICE}),
        (
            reliability.goodput_frac,
            {
                "n_gpus": 1024,
                "n_gpus_per_node": 8,
                "reliability": Reliability(1e-8, 1e-8, 1e-9, 1e-9, 600.0, 3600.0, 60.0, 60.0),
            },
        ),
    ],
)
def test_fractions_have_no_unit(function, arguments, monkeypatch):
    plain = call(function, arguments)
    put_units_in_costs(monkeypatch)
    found = call(function, {k: with_units(k, v) for k, v in arguments.items()})
    assert_unit(Quantity(found), registry.Unit("dimensionless"))
    assert Quantity(found).m_as("dimensionless") == pytest.approx(plain)


def test_a_bill_is_in_dollars(monkeypatch):
    usage = money_costs.Usage(9, 500.0, 1e9, 1e12, 1e12, True, True)
    rented = replace(MONEY, experiments_frac=0.5, commitment=Commitment(12.0, 0.3))
    own = replace(MONEY, ownership=OWN)
    plain = [money_costs.bill(money, usage) for money in (rented, own)]
    put_units_in_costs(monkeypatch)
    found = [money_costs.bill(with_units("money", money), with_units("usage", usage)) for money in (rented, own)]
    common = ("storage", "egress", "operations", "people", "tax")
    for i, items in enumerate((("gpus", "unused_commitment", *common), ("depreciation", "financing", *common))):
        for item in items:
            assert_unit(getattr(found[i], item), registry.Unit("USD"))
            assert getattr(found[i], item).m_as("USD") == pytest.approx(getattr(plain[i], item))
            assert getattr(plain[i], item) > 0.0


def test_stored_weights_are_bytes(monkeypatch):
    precision = Precision("fp8_block", "bf16", "bf16", "fp32", "fp8")
    put_units_in_costs(monkeypatch)
    stored = memory.Params(1e9, 2e9, 3e9, 4e9).stored_bytes(precision)
    assert {key: value.m_as("byte") / 1e9 for key, value in stored.items()} == pytest.approx(
        {"attention": 2.0, "dense": 4.0, "experts": 3.0 * (1 + 4 / 128**2), "embedding": 16.0}
    )


WIDTHS = {
    SoftmaxAttention: ("n_heads", "n_kv_heads"),
    LatentAttention: ("n_heads", "q_lora_rank", "kv_lora_rank"),  # the rotary part, a head size, is set to 0
    LinearAttention: ("n_k_heads", "n_v_heads"),
    StateSpace: ("inner_size", "n_groups"),
    DenseMlp: ("intermediate_size",),
    MoeMlp: ("n_experts", "expert_intermediate_size", "shared_intermediate_size", "expert_hidden_size"),
}


@pytest.mark.parametrize("repeated", [(), ("norm", "activation", "latent_up"), ("attention", "mlp", "moe")])
@pytest.mark.parametrize("block", [layer.blocks[0] for layer in LAYERS], ids=lambda b: type(b).__name__)
def test_activation_bytes_scale_as_the_widths(block, repeated):
    """Bytes per token are a sum over widths: a block twice as wide, head sizes kept, leaves exactly twice as many."""
    rule = replace(RULE, repeated=frozenset(repeated))
    if isinstance(block, LatentAttention):
        block = replace(block, qk_rope_head_dim=0)
    wide = replace(block, **{name: 2 * getattr(block, name) for name in WIDTHS[type(block)]})
    one = memory.block_activation_bytes_per_token(block, 2048, rule)
    assert memory.block_activation_bytes_per_token(wide, 4096, rule) == pytest.approx(2.0 * one, rel=1e-12)


@pytest.mark.parametrize(("block", "power"), [(SOFTMAX, 1), (LATENT, 1), (SPARSE_LATENT, 1), (LINEAR, 0), (MAMBA, 0)])
def test_cache_bytes_scale_as_tokens(block, power):
    """A cache of keys grows with the context, a recurrent state does not."""

    def cache(tokens):
        return memory.cache_bytes_per_sequence([Layer((block,), 0)], tokens, FP8, 1)

    assert cache(2e4) == pytest.approx(2.0**power * cache(1e4), rel=1e-12)
