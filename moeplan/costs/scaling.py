"""Loss by published scaling laws, and the size and tokens that make it least for a compute budget.

Equations and sources: docs/method/scaling-laws.md, ``moeplan/data/scaling_laws.yaml``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from moeplan.spec.scaling import ScalingLaw

FLOP_PER_PARAM_TOKEN_TRAINED = 6.0  # forward and backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
# Layers of 12 d^2: attention 4 d^2, feed-forward 8 d^2, of which a law with E experts' worth holds E times
_ATTENTION_SHARE = 4.0 / 12.0
_FEWEST_PARAMS, _MOST_PARAMS = 1e5, 1e15


@dataclass(frozen=True, slots=True)
class Choice:
    """A model and how long it is trained; parameters non-embedding."""

    active_params: float
    total_params: float
    tokens: float

    @property
    def sparsity_frac(self) -> float:
        return 1.0 - self.active_params / self.total_params


def loss(law: ScalingLaw, choice: Choice) -> float | None:
    """Loss [nats per token] on the law's own data; None where its tokens are fixed (``routed``)."""
    k, active, total, tokens = law.coefficients, choice.active_params, choice.total_params, choice.tokens
    if law.form == "dense":
        return float(k["e"] + k["a"] / active ** k["alpha"] + k["b"] / tokens ** k["beta"])
    if law.form == "granular":
        size = k["g"] / k["granularity"] ** k["gamma"] + k["a"]
        return float(k["c"] + size / total ** k["alpha"] + k["b"] / tokens ** k["beta"])
    if law.form == "sparse":
        dense = active / total
        return float(
            k["e"]
            + k["a"] / total ** k["alpha"]
            + k["b"] / tokens ** k["beta"]
            + k["c"] / dense ** k["lambda"]
            + k["d"] / (dense ** k["delta"] * total ** k["gamma"])
        )
    return None


def optimum(law: ScalingLaw, budget_flop: float, served_flop_per_param: float = 0.0) -> Choice | None:
    """The choice of least loss whose training and serving cost ``budget_flop``; None for a law without an optimum.

    6 N D + s N = budget, N active: ``served_flop_per_param`` is what every active parameter costs in service, in FLOP
    of training (Sardana et al. 2024, arXiv:2401.00448, with a price per FLOP of each).
    """
    if law.form == "routed":
        return None
    shares = tuple(1.0 - s for s in law.sparsities) or (_active_share(law),)
    found = [_best(law, share, budget_flop, served_flop_per_param) for share in shares]
    return min(found, key=lambda choice: loss(law, choice) or math.inf)


def _active_share(law: ScalingLaw) -> float:
    """Active over total parameters in the law's experiments."""
    if law.form == "dense":
        return 1.0
    return 1.0 / (_ATTENTION_SHARE + (1.0 - _ATTENTION_SHARE) * law.coefficients["expansion"])


def _best(law: ScalingLaw, active_share: float, budget_flop: float, served_flop_per_param: float) -> Choice:
    def choice(log_active: float) -> Choice:
        active = math.exp(log_active)
        left = budget_flop / active - served_flop_per_param
        return Choice(active, active / active_share, max(left, 1e-9) / FLOP_PER_PARAM_TOKEN_TRAINED)

    most = budget_flop if served_flop_per_param == 0.0 else budget_flop / served_flop_per_param
    bounds = math.log(_FEWEST_PARAMS), math.log(min(max(most, 2.0 * _FEWEST_PARAMS), _MOST_PARAMS))
    found = minimize_scalar(
        lambda x: loss(law, choice(x)) or 0.0, bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    return choice(float(found.x))


def dense_equivalent_params(law: ScalingLaw, active_params: float, n_experts: float) -> float:
    """Size of the dense model of equal loss (effective parameter count, Clark et al., equation 11), law ``routed``."""
    k = law.coefficients

    def saturating(experts: float) -> float:
        start = 1.0 / (1.0 / k["e_start"] - 1.0 / k["e_max"])
        return 1.0 / (1.0 / (experts - 1.0 + start) + 1.0 / k["e_max"])

    log_n, log_e, log_1 = math.log10(active_params), math.log10(saturating(n_experts)), math.log10(saturating(1.0))
    log_loss = k["a"] * log_n + k["b"] * log_e + k["c"] * log_n * log_e
    return float(10.0 ** ((log_loss - k["b"] * log_1) / (k["a"] + k["c"] * log_1)))
