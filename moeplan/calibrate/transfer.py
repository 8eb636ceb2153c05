"""How wrong parameters are on a device nobody measured: leave devices out, lend to them, and compare.

``docs/method/calibration.md`` states the rule and reports the errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeplan.calibrate.fit import QUANTILES, Accuracy, accuracy
from moeplan.calibrate.judge import predict
from moeplan.calibrate.tables import Group
from moeplan.files.catalog.fitted import Distance, Fits, Residual, Transfer, loans
from moeplan.spec.hardware import Device, Efficiency, Hardware

# Who lends to whom, nearest first: the same architecture, then the nearest generation of the same vendor. Consumer
# Blackwell has the GDDR memory system, the power limits and the warp-level tensor instructions of Ada cards, so it
# borrows from the L40S, then from the A100, before it does from the data-centre Blackwell.
DONORS: Mapping[str, tuple[str, ...]] = {
    "volta": ("a100-sxm-80gb", "l40s", "h100-sxm"),
    "ampere": ("a100-sxm-80gb", "h100-sxm", "l40s"),
    "ada": ("l40s", "a100-sxm-80gb", "h100-sxm"),
    "hopper": ("h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm-80gb"),
    "blackwell": ("b200-sxm", "gb200-nvl72", "b300-sxm", "h200-sxm", "a100-sxm-80gb"),
    "blackwell-consumer": ("l40s", "a100-sxm-80gb", "b200-sxm"),
}


@dataclass(frozen=True, slots=True)
class Loan:
    """Errors of one operation on one device, predicted as if it had not been measured."""

    op: str
    hardware: str
    distance: Distance
    by_rule: bool  # what an unmeasured device of its architecture would really get
    log_error: np.ndarray  # ln(measured / predicted)

    @property
    def accuracy(self) -> Accuracy:
        low, high = np.full_like(self.log_error, 0.0), np.full_like(self.log_error, np.inf)
        return accuracy(np.exp(self.log_error), low, high)


def leave_one_out(
    samples: Sequence[Group], hardware: Mapping[str, Hardware], fits: Mapping[str, Fits], rule: Transfer
) -> list[Loan]:
    """Predict every device's sample rows from other devices' fits.

    Three times: from all others by the rule, from those of other architectures by the rule, from the median of all.
    Only kernels an engine usually runs are judged: what a scenario on such a device would be given.
    """
    found: list[Loan] = []
    anywhere = rule.model_copy(update={"donors": {}})
    for device in sorted({group.place.hardware for group in samples}):
        machine = hardware[device]
        architecture = machine.device.architecture
        rows = [group for group in samples if group.place.hardware == device and "/" not in group.engine]
        others = {name: (hardware[name].device, lent) for name, lent in fits.items() if name != device}
        strangers = {name: pair for name, pair in others.items() if pair[0].architecture != architecture}
        listed = rule.donors.get(architecture, [])
        kin = any(name in others and name not in strangers for name in listed)
        trials: list[tuple[Distance, bool, Mapping[str, tuple[Device, Fits]], Transfer]] = []
        if kin:
            trials.append(("near", True, others, rule))
        if any(name in strangers for name in listed):
            trials.append(("far", not kin, strangers, rule))
        trials.append(("any", not listed, others, anywhere))
        for distance, by_rule, donors, used in trials:
            lent = Efficiency(loans(machine.device, donors, used))
            borrower = replace(machine, efficiency=lent)
            for op in dict.fromkeys(group.model.op for group in rows):
                if any(key[0] == op for key in lent.parameters):
                    mine = [group for group in rows if group.model.op == op]
                    found.append(Loan(op, device, distance, by_rule, _errors(mine, borrower)))
    return found


def _errors(samples: Sequence[Group], borrower: Hardware) -> np.ndarray:
    parts = [np.log(g.frame["measured_s"].to_numpy() / predict(g, borrower)[0]) for g in samples]
    return np.concatenate(parts)


def residuals(found: Sequence[Loan]) -> dict[str, dict[Distance, Residual]]:
    """Quantiles of ln(measured / predicted) by operation and distance; every device weighs the same."""
    result: dict[str, dict[Distance, Residual]] = {}
    distances: tuple[Distance, ...] = ("near", "far", "any")
    for op in sorted({loan.op for loan in found}):
        for distance in distances:
            parts = [loan.log_error for loan in found if loan.op == op and loan.distance == distance]
            if parts:
                result.setdefault(op, {})[distance] = _quantiles(parts)
    return result


def _quantiles(parts: Iterable[np.ndarray]) -> Residual:
    parts = list(parts)
    values = np.concatenate(parts)
    weight = np.concatenate([np.full(len(part), 1.0 / len(part)) for part in parts])
    order = np.argsort(values)
    cumulative = np.cumsum(weight[order]) / weight.sum()
    low, middle, high = (float(values[order][np.searchsorted(cumulative, q)]) for q in QUANTILES)
    return low, middle, high
