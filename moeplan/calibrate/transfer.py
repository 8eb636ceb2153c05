"""How wrong parameters are on a device nobody measured: leave one device out, lend to it, and compare.

``docs/method/calibration.md`` states the rule and reports the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeplan.calibrate.fit import QUANTILES, Accuracy, accuracy
from moeplan.calibrate.judge import predict
from moeplan.calibrate.tables import Group
from moeplan.files.fitted import Fits, Residual, Transfer, loans
from moeplan.spec.hardware import Efficiency, Hardware

# Who lends to whom, nearest first. Same architecture first, then the nearest generation of the same vendor. Consumer
# Blackwell has the GDDR memory system and the power limits of Ada cards, so it borrows from the L40S.
DONORS: Mapping[str, tuple[str, ...]] = {
    "volta": ("a100-sxm-80gb", "h100-sxm"),
    "ampere": ("a100-sxm-80gb", "h100-sxm", "l40s"),
    "ada": ("l40s", "a100-sxm-80gb", "h100-sxm"),
    "hopper": ("h100-sxm", "h200-sxm", "b200-sxm"),
    "blackwell": ("b200-sxm", "gb200-nvl72", "b300-sxm", "h200-sxm"),
    "blackwell-consumer": ("l40s", "b200-sxm"),
}


_ALL = "median of all"


@dataclass(frozen=True, slots=True)
class Loan:
    """Errors of one operation on one device, predicted as if it had not been measured."""

    op: str
    hardware: str
    lender: str  # device, or "median of all"
    near: bool  # lender of the same architecture
    log_error: np.ndarray  # ln(measured / predicted)

    @property
    def by_rule(self) -> bool:
        return self.lender != _ALL

    @property
    def accuracy(self) -> Accuracy:
        low, high = np.full_like(self.log_error, 0.0), np.full_like(self.log_error, np.inf)
        return accuracy(np.exp(self.log_error), low, high)


def leave_one_out(
    samples: Sequence[Group], hardware: Mapping[str, Hardware], fits: Mapping[str, Fits], rule: Transfer
) -> list[Loan]:
    """Predict every device's sample rows from the other devices' fits, by the rule and by the median of all others."""
    found: list[Loan] = []
    for device in sorted({group.place.hardware for group in samples}):
        architecture = hardware[device].device.architecture
        others = {name: lent for name, lent in fits.items() if name != device}
        rows = [group for group in samples if group.place.hardware == device]
        order = [name for name in rule.donors.get(architecture, []) if name in others]
        pooled = replace(hardware[device], efficiency=Efficiency(loans("", others, rule)))
        ruled = replace(hardware[device], efficiency=Efficiency(loans(architecture, others, rule)))
        for op in dict.fromkeys(group.model.op for group in rows):
            mine = [group for group in rows if group.model.op == op]
            lender = next((name for name in order if any(key[0] == op for key in others[name])), None)
            if lender is not None:
                near = hardware[lender].device.architecture == architecture
                found.append(Loan(op, device, lender, near, _errors(mine, ruled)))
            if any(key[0] == op for key in pooled.efficiency.parameters):
                found.append(Loan(op, device, _ALL, False, _errors(mine, pooled)))
    return found


def _errors(samples: Sequence[Group], borrower: Hardware) -> np.ndarray:
    parts = [np.log(g.frame["measured_s"].to_numpy() / predict(g, borrower)[0]) for g in samples]
    return np.concatenate(parts)


def residuals(found: Sequence[Loan]) -> dict[str, dict[str, Residual]]:
    """Quantiles of ln(measured / predicted) by operation for near and far loans; every device weighs the same."""
    result: dict[str, dict[str, Residual]] = {}
    for op in sorted({loan.op for loan in found}):
        for name, near in (("near", True), ("far", False)):
            parts = [loan.log_error for loan in found if loan.op == op and loan.near == near]
            if parts:
                result.setdefault(op, {})[name] = _quantiles(parts)
    return result


def _quantiles(parts: Sequence[np.ndarray]) -> Residual:
    values = np.concatenate(parts)
    weight = np.concatenate([np.full(len(part), 1.0 / len(part)) for part in parts])
    order = np.argsort(values)
    cumulative = np.cumsum(weight[order]) / weight.sum()
    low, middle, high = (float(values[order][np.searchsorted(cumulative, q)]) for q in QUANTILES)
    return low, middle, high
