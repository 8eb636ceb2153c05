"""Energy and emissions of a plan, from the use the simulation found."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.costs.energy import POWER_SPREAD_FRAC, device_power_w, energy_j, meter_power_w, power_in
from moeplan.planner.intervals import exact
from moeplan.spec.hardware import Hardware
from moeplan.spec.plan import EnergyResult, Q
from moeplan.spec.prices import Facility, Money
from moeplan.steps.use import Use

J_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Power:
    """Mean power of one GPU at the meter [W]."""

    w_per_gpu: Q
    what: str  # what is in it


def mean_power(use: Use | None, busy_frac: Q, hardware: Hardware, facility: Facility, money: Money) -> Power | None:
    """None where nothing ran, or nobody states a power: no limit in the profile, no power of owned hardware."""
    limit_w = hardware.device.tdp_w
    stated_w = None if money.ownership is None else money.ownership.power_w
    if use is not None and limit_w is None and stated_w is not None:
        return Power(exact(stated_w * facility.pue), "stated power at every load, PUE; no power limit in the profile")
    if use is None or limit_w is None:
        return None

    def at(busy: float, factor: float) -> float:
        drawn = device_power_w(use.memory_frac, use.compute_frac, device=hardware.device, busy_frac=min(busy, 1.0))
        device_w = min(float(drawn) * factor, limit_w)
        return float(meter_power_w(device_w, hardware=hardware, facility=facility, power_w=stated_w))

    low, high = at(busy_frac.low, 1.0 - POWER_SPREAD_FRAC), at(busy_frac.high, 1.0 + POWER_SPREAD_FRAC)
    return Power(Q(at(busy_frac.value, 1.0), low, high), power_in(hardware, facility, stated_w))


def energy_result(
    power: Power | None, n_gpus: int, time_s: Q, tokens: Q | None, facility: Facility, *, basis: str, usd: float
) -> EnergyResult | None:
    """Energy over ``time_s`` of ``n_gpus``; ``tokens`` is what was produced in that time.

    The ends of power and of time are taken together: a slow machine runs longer at its power.
    """
    if power is None:
        return None
    w = power.w_per_gpu
    j = Q(
        *(
            float(energy_j(n_gpus * p, t))
            for p, t in ((w.value, time_s.value), (w.low, time_s.low), (w.high, time_s.high))
        )
    )
    return result_of(j, power, tokens, facility, basis=basis, usd=usd)


def result_of(j: Q, power: Power, tokens: Q | None, facility: Facility, *, basis: str, usd: float) -> EnergyResult:
    """The report of an amount of energy [J]."""
    kwh = j.scaled(1.0 / J_PER_KWH)
    kgco2e = j.scaled(facility.kgco2e_per_j)
    per_token = None
    if tokens is not None and tokens.low > 0.0:
        per_token = Q(j.value / tokens.value, j.low / tokens.high, j.high / tokens.low)
    return EnergyResult(
        basis=basis,
        power_w_per_gpu=power.w_per_gpu,
        kwh=kwh,
        kgco2e=kgco2e,
        kwh_per_million_tokens=None if per_token is None else per_token.scaled(1e6 / J_PER_KWH),
        kgco2e_per_million_tokens=None if per_token is None else per_token.scaled(1e6 * facility.kgco2e_per_j),
        j_per_token=per_token,
        usd=usd,
        region=facility.region,
        gco2e_per_kwh=facility.kgco2e_per_j * J_PER_KWH * 1e3,
        power_from=power.what,
        source=facility.source.text,
    )
