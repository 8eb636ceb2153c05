"""From the errors of past predictions to the interval of this one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.stats import norm

from moeplan.costs.parameters import lookup
from moeplan.provenance import Tier
from moeplan.spec.hardware import Hardware, OpParameters
from moeplan.spec.plan import Q
from moeplan.spec.uncertainty import LogError
from moeplan.steps.table import StepTable

_WORST_LAST = (Tier.FITTED, Tier.TRANSFERRED, Tier.ESTIMATE)


def worst_tier(parameters: Iterable[OpParameters]) -> Tier:
    """A prediction is as good as the worst of the operations it rests on."""
    return max((p.tier for p in parameters), key=_WORST_LAST.index, default=Tier.ESTIMATE)


def operations_used(hardware: Hardware, engine: str, operations: Iterable[tuple[str, str]]) -> tuple[OpParameters, ...]:
    """Parameters behind (operation, number format) pairs."""
    return tuple(lookup(hardware, op, engine, fmt) for op, fmt in operations)


def exact(value: float) -> Q:
    """A number known as well as it is stated: a price, a count."""
    return Q(value, value, value)


def from_log_error(value: float, error: LogError) -> Q:
    """A positive quantity whose ln(truth / prediction) has the quantiles of ``error``, corrected by its shift."""
    return Q(*(value * math.exp(e) for e in (error.shift, min(error.low, error.shift), max(error.high, error.shift))))


def log_error_quantiles(error: LogError, n: int) -> np.ndarray:
    """``n`` equally likely factors truth / prediction: half a log-normal on each side, through the stated quantiles."""
    z = norm.ppf((np.arange(n) + 0.5) / n) / norm.ppf(0.95)
    factors: np.ndarray = np.exp(np.where(z > 0.0, z * max(error.high, 0.0), -z * min(error.low, 0.0)))
    return factors


def hull(value: float, *others: float) -> Q:
    """Interval that spans the values a quantity takes when the model is as wrong as it may be, either way."""
    return Q(value, min((value, *others)), max((value, *others)))


def at_least(q: Q, error: LogError) -> Q:
    """``q`` corrected by the shift of ``error``, or the interval of ``error`` where that reaches further."""
    learnt = from_log_error(q.value, error)
    return Q(learnt.value, min(q.low, learnt.low), max(q.high, learnt.high))


def scaled_table(table: StepTable, factor: float) -> StepTable:
    """The same engine with every iteration ``factor`` times as long."""
    return replace(
        table,
        linear_time_s=table.linear_time_s * factor,
        decode_attention_time_s=table.decode_attention_time_s * factor,
        prefill_attention_time_s=table.prefill_attention_time_s * factor,
        head_time_s=table.head_time_s * factor,
        step_overhead_s=table.step_overhead_s * factor,
        eager_time_s=table.eager_time_s * factor,
        host_step_s=table.host_step_s * factor,
        host_row_s=table.host_row_s * factor,
        prefill_pool=None if table.prefill_pool is None else scaled_table(table.prefill_pool, factor),
        parts={name: part * factor for name, part in table.parts.items()},
        draft_time_s=None if table.draft_time_s is None else table.draft_time_s * factor,
    )
