"""Shipped prices: every row sourced, dated and positive; what is not an offer cannot be rented."""

from __future__ import annotations

import re

import pytest

from moeplan.errors import InputError
from moeplan.files.catalog import price_catalog as prices
from moeplan.files.catalog.hardware_catalog import hardware_names
from moeplan.provenance import Kind

DATE = re.compile(r"20\d\d(-\d\d(-\d\d)?)?")
# rented by clouds, no profile shipped
WITHOUT_PROFILE = {
    "t4", "a10", "l40", "rtx-a4000", "rtx-a6000", "rtx-pro-4500-blackwell", "tpu-v2", "tpu-v3", "tpu-v4", "inferentia2",
    "trainium1", "v100-sxm-32gb",
}  # fmt: skip


def test_offers_are_positive_dated_and_sourced() -> None:
    offers = prices.offers()
    assert len(offers) > 250
    for name, offer in offers.items():
        assert name == offer.name
        assert 0.05 < offer.usd_per_gpu_hour < 40, name
        assert 1 <= offer.n_gpus_per_instance <= 16, name
        assert offer.term in ("on_demand", "spot"), name
        assert DATE.fullmatch(offer.price_date), name
        assert offer.source.text, name
        assert offer.source.kind is Kind.LIST_PRICE, name
        assert not re.search(r"\s", name), name


def test_offers_name_hardware_of_the_catalog() -> None:
    slugs = {offer.hardware for offer in prices.offers().values()}
    assert slugs - set(hardware_names()) <= WITHOUT_PROFILE
    assert not WITHOUT_PROFILE & set(hardware_names())


def test_known_offer() -> None:
    offer = prices.load_offer("aws/p5.48xlarge/us-east-1")
    assert offer.hardware == "h100-sxm"
    assert offer.usd_per_gpu_hour == pytest.approx(55.04 / 8)
    assert offer.n_gpus_per_instance == 8
    assert offer.price_date == "2026-07-20"
    assert "karpenter" in offer.source.text
    assert prices.offer_row(offer.name)["date_stated"] == "2026-07-20"


def test_per_gpu_price_repeats_what_the_source_states() -> None:
    """``basis`` quotes the instance price; the value is that over the GPUs, to the six digits kept."""
    for name in prices.offers():
        row = prices.offer_row(name)
        stated = re.search(r"the source states ([\d.]+) USD/h for (\d+) GPU", row["basis"])
        assert stated, name
        assert float(row["value"]) == pytest.approx(float(stated[1]) / int(stated[2]), rel=1e-5), name
        assert int(stated[2]) == int(row["n_gpus"]), name


def test_superchip_price_is_per_gpu() -> None:
    (offer,) = (o for o in prices.offers_for("gb200-nvl72") if o.name.startswith("spheron"))
    assert offer.usd_per_gpu_hour == pytest.approx(4.54)
    assert offer.n_gpus_per_instance == 2


def test_offers_for_are_sorted_on_demand_first() -> None:
    found = prices.offers_for("h100-sxm")
    terms = [o.term for o in found]
    assert terms == sorted(terms)
    on_demand = [o.usd_per_gpu_hour for o in found if o.term == "on_demand"]
    assert on_demand == sorted(on_demand)
    assert {o.hardware for o in prices.offers_for("dgx-h100", "h100-sxm")} == {"h100-sxm"}
    assert prices.offers_for("dgx-spark") == ()


def test_modelled_and_test_prices_are_no_offers() -> None:
    reference = prices.reference_prices()
    why = {entry.why_not_an_offer for entry in reference}
    assert any("modelled" in text for text in why)
    assert any("test data" in text for text in why)
    for entry in reference:
        assert entry.source.kind is not Kind.LIST_PRICE or "GPU" in entry.why_not_an_offer, entry.name
        assert entry.name not in prices.offers()
        with pytest.raises(InputError, match="not an offer"):
            prices.load_offer(entry.name)
    assert not [name for name in prices.offers() if name.startswith(("daytona", "semianalysis", "market"))]


def test_unknown_offer_suggests_near_ones() -> None:
    with pytest.raises(InputError, match=r"did you mean aws/p5\.48xlarge/us-east-1"):
        prices.load_offer("aws/p5.48xlarge/us-east1")


def test_no_price_is_an_error_that_lists_offers() -> None:
    error = prices.no_price_error("h200-sxm")
    assert error.exit_code == 2
    assert "aws/p5en.48xlarge" not in str(error)  # the cheapest ones, the rest is counted
    assert "USD/GPU/h" in str(error)
    assert " more" in str(error)
    assert "price: 2.50 USD/h" in str(error)
    assert "no offer for dgx-spark" in str(prices.no_price_error("dgx-spark"))


def test_api_offers() -> None:
    offers = prices.api_offers()
    assert len(offers) > 1000
    for offer in offers:
        assert 0 < offer.usd_per_input_token < 1e-4, offer.name
        assert 0 < offer.usd_per_output_token < 1e-4, offer.name
        assert DATE.fullmatch(offer.price_date)
        assert offer.source.text
        assert offer.source.kind is Kind.LIST_PRICE
    family = prices.api_offers("qwen3-30b-a3b")
    assert {o.model for o in family} == {"Qwen3-30B-A3B"}
    assert [o.usd_per_output_token for o in family] == sorted(o.usd_per_output_token for o in family)
    assert "gpt-oss-120b" in prices.api_models()
    one = prices.load_api_offer("aiand/deepseek-ai/deepseek-v4-pro")
    assert (one.usd_per_input_token, one.usd_per_output_token) == pytest.approx((1.0e-6, 2.5e-6))
    with pytest.raises(InputError, match="did you mean"):
        prices.load_api_offer("aiand/deepseek-ai/deepseek-v4-prp")


def test_other_costs() -> None:
    costs = prices.other_costs()
    assert {c.category for c in costs} == {
        "gpu purchase", "server purchase", "server power", "all-in power per GPU", "electricity", "pue",
        "grid intensity", "object storage", "network egress",
    }  # fmt: skip
    for cost in costs:
        assert cost.value > 0, cost.item
        assert DATE.fullmatch(cost.source.date), cost.item
        assert cost.source.text, cost.item
        assert cost.hardware == "" or cost.hardware in hardware_names(), cost.item
    assert all(1.0 <= c.value < 2.5 for c in prices.other_costs("pue"))
    assert {c.unit for c in prices.other_costs("electricity")} == {"USD/kWh", "EUR/kWh"}
    assert [c.value for c in prices.other_costs("server power", "h100-sxm")] == [10.2]
