"""What measured training runs say of frameworks and devices: `moeplan/data/training_fits.yaml`."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from math import log
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from moeplan.costs.host import DEFAULTS
from moeplan.errors import InputError
from moeplan.files.validate import problems_of
from moeplan.files.yaml_tree import load_yaml
from moeplan.provenance import Tier
from moeplan.spec.hardware import OpParameters

ENGINE, FORMAT = "training", "bf16"
LEAST_ROWS, LEAST_MODELS = 10, 3  # for a fit to count as one


class TrainingFit(BaseModel):
    """Fitted values of one operation, the rows behind them, and ln(measured / predicted) step time on rows held out."""

    model_config = ConfigDict(extra="allow", frozen=True)  # what people read: held-out errors by family

    values: dict[str, float]
    n_rows: int
    n_models: int
    log_residual: tuple[float, float, float]
    source: str
    architecture: str = ""  # of a device

    @property
    def tier(self) -> Tier:
        enough = self.n_rows >= LEAST_ROWS and self.n_models >= LEAST_MODELS
        return Tier.FITTED if enough else Tier.TRANSFERRED


class TrainingFits(BaseModel):
    """``host`` holds for every device, ``devices`` for one each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    fitted_on: str
    host: TrainingFit
    devices: dict[str, TrainingFit]


def training_parameters(device: str, architecture: str) -> dict[tuple[str, str, str], OpParameters]:
    """Parameters of training steps on ``device`` (a catalog name) by (operation, engine, format).

    The host's are fitted to the devices listed and lent to the others; a device that is not listed has the clock of the
    most measured one of its architecture, if any. A fit of few rows or models is no better than one that is lent. What
    no fit holds stays the estimate of `costs.host`.

    Raises:
        InputError: the data file is bad.
    """
    fits = read_training_fits()
    own = fits.devices.get(device)
    host = fits.host
    found = {"training_host": (host, host.tier if own is not None else Tier.TRANSFERRED, host.log_residual)}
    alike = [fit for fit in fits.devices.values() if fit.architecture == architecture]
    clock = own or max(alike, key=lambda fit: fit.n_rows, default=None)
    if clock is not None:
        tier = clock.tier if own is not None else Tier.TRANSFERRED
        residual = clock.log_residual if tier is Tier.FITTED else _of_loans(clock, alike)
        found["training_device"] = (clock, tier, residual)
    return {
        (op, ENGINE, FORMAT): OpParameters(
            op, ENGINE, FORMAT, {**DEFAULTS[op], **fit.values}, tier, residual, fit.source
        )
        for op, (fit, tier, residual) in found.items()
    }


def _of_loans(lender: TrainingFit, alike: list[TrainingFit]) -> tuple[float, float, float]:
    """Quantiles of ln(measured / predicted) step time had each device of the architecture borrowed the lender's clock.

    Arithmetic takes 1 / sustained_frac; the ends are those of the worst loan, so never narrower than the lender's own.
    """
    shifts = [log(lender.values["sustained_frac"] / fit.values["sustained_frac"]) for fit in alike]
    low = min(fit.log_residual[0] + shift for fit, shift in zip(alike, shifts, strict=True))
    high = max(fit.log_residual[2] + shift for fit, shift in zip(alike, shifts, strict=True))
    return low, lender.log_residual[1], high


@cache
def read_training_fits() -> TrainingFits:
    """The shipped file. Raises InputError when it is bad."""
    node = load_yaml(Path(str(files("moeplan"))) / "data" / "training_fits.yaml", what="training fits")
    try:
        return TrainingFits.model_validate(node.plain())
    except ValidationError as error:
        raise InputError(problems_of(error, node, TrainingFits)) from None
