"""``sensitivity``: which assumption moves the answer most, what each part of the model adds, where a verdict flips.

All runs of a study share the scenario's seed: common random numbers, so that differences are effects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from moeplan.errors import input_error
from moeplan.files.plan_row import Cell
from moeplan.files.scenario.question import Question, ask
from moeplan.files.scenario.vary import Factor, read_factors
from moeplan.files.sweep_results import SweepPoint
from moeplan.planner.search.design import unit_cube
from moeplan.planner.search.sweep import Pool, evaluate
from moeplan.planner.search.what_if import MULTIPLIERS, Ablation, ablations
from moeplan.spec.scenario import Scenario

Told = Callable[[int, int], None]
Method = Literal["tornado", "morris", "sobol"]
Array = npt.NDArray[np.float64]

_LEVELS = 4  # of Morris' grid; its step is 2/3 of the range
_RESAMPLES = 200  # bootstrap of the Sobol indices
_BISECTIONS = 12  # 1/4000 of the range
SPREAD = 0.3  # each way, of a value nobody gave a range: an assumption, shown as such


@dataclass(frozen=True, slots=True)
class Bar:
    """One factor at its two ends, all others as stated. None where a plan has no such figure."""

    factor: str
    low_setting: str
    high_setting: str
    low: float | None
    high: float | None
    swing: float  # distance of the two; infinite ends count as the figure at the base
    note: str


@dataclass(frozen=True, slots=True)
class Effect:
    """Morris: mean of the absolute elementary effects, their mean and their spread, over the whole range."""

    factor: str
    mu_star: float
    mu: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Index:
    """Sobol: share of the output's variance, alone and with all interactions, with 90 % bootstrap intervals."""

    factor: str
    first: float
    first_low: float
    first_high: float
    total: float
    total_low: float
    total_high: float


@dataclass(frozen=True, slots=True)
class Part:
    """The answer without one part of the model."""

    name: str
    what: str
    value: float | None
    change_frac: float | None  # of the base


@dataclass(frozen=True, slots=True)
class Flip:
    """Where a decision turns over along a path; None where it does not inside the range."""

    path: str
    decision: str
    low_setting: str
    high_setting: str
    at: float | None  # in the range's unit
    at_setting: str
    between: tuple[str, str] | None  # last settings on either side
    low_holds: bool
    high_holds: bool
    text: str


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A study of one figure of the plan."""

    scenario: str
    of: str
    base: float | None
    base_low: float | None  # the plan's own 90 % interval
    base_high: float | None
    method: str
    n_runs: int
    bars: tuple[Bar, ...]
    effects: tuple[Effect, ...]
    indices: tuple[Index, ...]
    parts: tuple[Part, ...]
    flips: tuple[Flip, ...]


class _Study:
    """Points of one question, counted and told."""

    def __init__(self, question: Question, executor: Executor | None, jobs: int | None, told: Told) -> None:
        self.question, self._executor, self._jobs, self._told = question, executor, jobs, told
        self.n_runs = 0

    def scenario(self, settings: Sequence[str]) -> Scenario:
        """Resolved with settings of the scenario and of `MULTIPLIERS`."""
        own = [text for text in settings if text.partition("=")[0] not in MULTIPLIERS]
        scenario = self.question.scenario(own)
        for text in settings:
            path, _, value = text.partition("=")
            if path in MULTIPLIERS:
                scenario = MULTIPLIERS[path](scenario, float(value))
        return scenario

    def rows(self, points: Sequence[tuple[str, ...]]) -> list[SweepPoint]:
        """Plans of all points, in their order."""
        found: dict[int, SweepPoint] = {}
        pool = Pool(self._executor, self._jobs, None, len(points))
        with pool.opened():
            for point in pool.run(list(enumerate(points)), self.scenario):
                found[point.index] = point
                self._told(len(found), len(points))
        self.n_runs += len(points)
        return [found[i] for i in range(len(points))]

    def row(self, settings: tuple[str, ...]) -> dict[str, Cell]:
        """The plan of one point. Raises InputError where there is none."""
        point = self.rows([settings])[0]
        if point.error is not None:
            raise input_error(
                "sensitivity", "the scenario cannot be planned there", got=" ".join(settings), hint=point.error
            )
        return dict(point.row)


def sensitivity(
    path: str | Path,
    vary: Sequence[str] = (),
    *,
    of: str | None = None,
    method: Method = "tornado",
    n_points: int | None = None,
    ablation: bool = True,
    break_even: Sequence[str] = (),
    check: str | None = None,
    against: Sequence[str] = (),
    overrides: Sequence[str] = (),
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Told | None = None,
) -> Sensitivity:
    """How ``of`` (a figure of the plan, "cost.usd_per_month") answers to its assumptions.

    ``vary`` are ranges as in a sweep; without any, the scenario's own main values within 30 % each way. ``n_points`` is
    the number of Morris' trajectories (default 8) or of the Sobol design's base (default 64, a power of two).
    ``break_even`` are ranges along which ``check`` (default: every check) flips, or where the scenario with ``against``
    stops being worse in ``of``.

    Raises InputError for a figure the plan does not have, and factors that cannot be varied.
    """
    question = ask(path, overrides)
    study = _Study(question, executor, jobs, progress or (lambda _done, _total: None))
    study.scenario(())  # its own problems, where they stand in the file
    base = study.row(())
    figure = of or (
        "cost.total_usd" if base.get("training.wall_time_s.value") else "cost.usd_per_million_output_tokens"
    )
    value = _figure(base, figure)
    if value is None and not break_even:
        known = [
            k.removesuffix(".value") for k, v in base.items() if isinstance(v, int | float) and k.endswith(".value")
        ]
        raise input_error("--of", "the plan has no such figure", got=figure, allowed=", ".join(known))
    factors = _factors(question, vary) if vary or not break_even else ()
    bars: tuple[Bar, ...] = ()
    effects: tuple[Effect, ...] = ()
    indices: tuple[Index, ...] = ()
    if factors and value is not None:
        if method == "tornado":
            bars = _tornado(study, factors, figure, value, base)
        elif method == "morris":
            effects = _morris(study, factors, figure, n_points or 8)
        else:
            indices = _sobol(study, factors, figure, n_points or 64)
    parts = _parts(study, figure, value) if ablation and value is not None else ()
    flips = tuple(_flip(study, text, figure, check, tuple(against)) for text in break_even)
    return Sensitivity(
        scenario=str(question.value("name") or Path(path).stem),
        of=figure,
        base=value,
        base_low=_figure(base, figure, "low"),
        base_high=_figure(base, figure, "high"),
        method=method,
        n_runs=study.n_runs,
        bars=bars,
        effects=effects,
        indices=indices,
        parts=parts,
        flips=flips,
    )


def _main_figure(base: dict[str, Cell]) -> str:
    """What a run costs; what a deployment under a given load could serve; else what its tokens cost."""
    if base.get("cost.total_usd.value") is not None:
        return "cost.total_usd"
    asked = base.get("verdicts.load.need") is not None
    return "serving.capacity_requests_per_s" if asked else "cost.usd_per_million_output_tokens"


def _figure(row: dict[str, Cell], path: str, end: str = "value") -> float | None:
    found = row.get(f"{path}.{end}", row.get(path) if end == "value" else None)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _factors(question: Question, vary: Sequence[str]) -> tuple[Factor, ...]:
    if not vary:
        return _usual_factors(question)
    machine = [text for text in vary if text.partition("=")[0].strip() in MULTIPLIERS]
    rest = [text for text in vary if text not in machine]
    found = list(read_factors(question, rest)) if rest else []
    for text in machine:
        path, _, spec = text.partition("=")
        low, dots, high = spec.partition("..")
        try:
            ends = float(low), float(high)
        except ValueError:
            dots = ""
        if not dots or not 0.0 < ends[0] < ends[1] < math.inf:
            raise input_error("--vary", "expected LOW..HIGH, multiples of the machine's own", got=text, hint="0.5..2")
        found.append(Factor(path.strip(), (), *ends))
    return tuple(found)


def _usual_factors(question: Question) -> tuple[Factor, ...]:
    """The main values that the file states as numbers, within `SPREAD`; the machine's three rates, as uncertain."""
    texts = []
    for path in ("serving.traffic.rate", "serving.traffic.users", "price.per_gpu_hour", "price", "routing.zipf",
                 "serving.traffic.input_tokens", "serving.traffic.output_tokens", "training.tokens",
                 "training.overlap", "training.packing"):  # fmt: skip
        stated = question.value(path)
        if isinstance(stated, str | int | float) and not isinstance(stated, bool):
            number, unit = _number(str(stated))
            if number:
                low, high = number * (1.0 - SPREAD), number * (1.0 + SPREAD)
                if path in ("training.overlap", "training.packing"):
                    high = min(high, 100.0 if "%" in unit else 1.0)
                whole = path.endswith(("users", "put_tokens"))
                ends = (round(low), round(high)) if whole else (low, high)
                texts.append(f"{path}={ends[0]:.6g}..{ends[1]:.6g} {unit}".strip())
    found = list(read_factors(question, texts)) if texts else []
    found += [Factor(path, (), 1.0 - SPREAD, 1.0 + SPREAD) for path in MULTIPLIERS]
    return tuple(found)


def _number(text: str) -> tuple[float | None, str]:
    head = text.strip()
    for end in range(len(head), 0, -1):
        try:
            return float(head[:end].replace("_", "")), head[end:].strip()
        except ValueError:
            continue
    return None, ""


def _tornado(
    study: _Study, factors: Sequence[Factor], figure: str, value: float, base: dict[str, Cell]
) -> tuple[Bar, ...]:
    ends = [(f.at(0.0), f.at(1.0)) for f in factors]
    rows = study.rows([(text,) for pair in ends for text in pair])
    bars = [_bar_of_the_model(figure, value, base)]
    for i, (factor, (low, high)) in enumerate(zip(factors, ends, strict=True)):
        at_low, at_high = rows[2 * i], rows[2 * i + 1]
        values = [None if p.error else _figure(dict(p.row), figure) for p in (at_low, at_high)]
        note = "; ".join(p.error for p in (at_low, at_high) if p.error)
        known = [value if x is None else x for x in values]
        bars.append(Bar(factor.path, _value(low), _value(high), values[0], values[1], abs(known[1] - known[0]), note))
    return tuple(sorted(bars, key=lambda bar: (-bar.swing, bar.factor)))


def _bar_of_the_model(figure: str, value: float, base: dict[str, Cell]) -> Bar:
    low, high = _figure(base, figure, "low"), _figure(base, figure, "high")
    swing = 0.0 if low is None or high is None else high - low
    return Bar("the model itself", "5 %", "95 %", low, high, swing, "the plan's own interval")


def _value(setting: str) -> str:
    return setting.partition("=")[2]


def _outputs(study: _Study, factors: Sequence[Factor], figure: str, cube: Array) -> Array:
    """The figure at points of the unit cube (n, d). Raises InputError where a plan has none."""
    points = [tuple(f.at(float(u)) for f, u in zip(factors, row, strict=True)) for row in cube]
    rows = study.rows(points)
    values = [None if p.error else _figure(dict(p.row), figure) for p in rows]
    missing = [p for p, value in zip(rows, values, strict=True) if value is None]
    if missing:
        example = " ".join(missing[0].overrides)
        what = f"{figure} does not exist at {len(missing)} of {len(rows)} points, for example {example}"
        raise input_error("--vary", what, hint=(missing[0].error or "no plan fits there") + "; narrow the ranges")
    return np.array(values, dtype=np.float64)


def _morris(study: _Study, factors: Sequence[Factor], figure: str, n_trajectories: int) -> tuple[Effect, ...]:
    """Elementary effects on a grid of four levels (Morris 1991), mean of their absolute values (Campolongo 2007)."""
    d = len(factors)
    seed = study.question.value("seed")
    rng = np.random.default_rng(seed if isinstance(seed, int) else 0)
    step = _LEVELS / (2.0 * (_LEVELS - 1.0))
    walks, orders, signs = [], [], []
    for _ in range(n_trajectories):
        start = rng.integers(0, _LEVELS // 2, d) / (_LEVELS - 1.0)
        up = rng.integers(0, 2, d).astype(bool)
        at, order = np.where(up, start, start + step), rng.permutation(d)
        walk = [at.copy()]
        for j in order:
            at[j] += step if up[j] else -step
            walk.append(at.copy())
        walks.append(np.array(walk))
        orders.append(order)
        signs.append(np.where(up[order], 1.0, -1.0))
    outputs = _outputs(study, factors, figure, np.concatenate(walks)).reshape(n_trajectories, d + 1)
    effects = np.empty((n_trajectories, d))
    for k in range(n_trajectories):
        effects[k, orders[k]] = np.diff(outputs[k]) * signs[k] / step
    spread = effects.std(axis=0, ddof=1) if n_trajectories > 1 else np.zeros(d)
    found = [
        Effect(f.path, float(np.abs(effects[:, j]).mean()), float(effects[:, j].mean()), float(spread[j]))
        for j, f in enumerate(factors)
    ]
    return tuple(sorted(found, key=lambda e: (-e.mu_star, e.factor)))


def _sobol(study: _Study, factors: Sequence[Factor], figure: str, n: int) -> tuple[Index, ...]:
    """First-order and total indices by Saltelli's design (2010) on scrambled Sobol points."""
    from scipy.stats import sobol_indices

    d = len(factors)
    seed = study.question.value("seed")
    seed = seed if isinstance(seed, int) else 0
    cube = unit_cube("sobol", n, 2 * d, seed)
    a, b = cube[:, :d], cube[:, d:]
    mixed = np.repeat(a[None], d, axis=0)
    for j in range(d):
        mixed[j, :, j] = b[:, j]
    outputs = _outputs(study, factors, figure, np.concatenate([a, b, mixed.reshape(d * n, d)]))
    if np.ptp(outputs) == 0.0:
        raise input_error("--of", f"{figure} does not change over these ranges, so it has no variance to share")
    f_a, f_b = outputs[:n], outputs[n : 2 * n]
    result = sobol_indices(func={"f_A": f_a[None], "f_B": f_b[None], "f_AB": outputs[2 * n :].reshape(d, 1, n)}, n=n)
    interval = result.bootstrap(confidence_level=0.9, n_resamples=_RESAMPLES)
    first, total = np.ravel(result.first_order), np.ravel(result.total_order)
    ends = [np.ravel(x) for ci in (interval.first_order, interval.total_order)
            for x in (ci.confidence_interval.low, ci.confidence_interval.high)]  # fmt: skip
    found = [
        Index(f.path, float(first[j]), float(ends[0][j]), float(ends[1][j]), float(total[j]), float(ends[2][j]),
              float(ends[3][j]))
        for j, f in enumerate(factors)
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda index: (-index.total, index.factor)))


def _parts(study: _Study, figure: str, value: float) -> tuple[Part, ...]:
    scenario = study.scenario(())
    found = []
    latency = figure.startswith(("serving.ttft_s", "serving.tpot_s", "serving.e2e_s"))
    for ablation in ablations(scenario):
        if ablation.of_latency and not latency:
            continue
        without = _without(scenario, ablation, figure)
        study.n_runs += 1
        change = None if without is None or value == 0.0 else without / value - 1.0
        found.append(Part(ablation.name, ablation.what, without, change))
    return tuple(found)


def _without(scenario: Scenario, ablation: Ablation, figure: str) -> float | None:
    return _figure(evaluate(ablation.change(scenario)), figure)


def _flip(study: _Study, text: str, figure: str, check: str | None, against: tuple[str, ...]) -> Flip:
    """Bisection on the decision: verdicts step, so there is no slope to follow."""
    (factor,) = _factors(study.question, [text])
    if factor.values:
        raise input_error("--break-even", "expected a range", got=text, hint=f"{factor.path}=LOW..HIGH")
    name = f"{figure} is not above that with {' '.join(against)}" if against else check or "every check passes"

    def holds(number: float) -> bool:
        setting = factor.setting(number)
        row = study.row((setting,))
        if against:
            mine, other = _figure(row, figure), _figure(study.row((setting, *against)), figure)
            return mine is not None and (other is None or mine <= other)
        if check is None:
            return bool(row["feasible"])
        key = f"verdicts.{check}.ok"
        if key not in row:
            known = sorted(k.split(".")[1] for k in row if k.startswith("verdicts.") and k.endswith(".ok"))
            raise input_error("--check", "no such check here", got=check, allowed=", ".join(known))
        return bool(row[key])

    low, high = factor.low, factor.high
    at_low, at_high = holds(low), holds(high)
    ends = factor.setting(low), factor.setting(high)
    if at_low == at_high:
        said = "holds" if at_low else "fails"
        text = f"{name}: {said} at both ends, {_value(ends[0])} and {_value(ends[1])}"
        return Flip(factor.path, name, _value(ends[0]), _value(ends[1]), None, "", None, at_low, at_high, text)
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high) if factor.log else (low + high) / 2.0
        middle = float(round(middle)) if factor.whole else middle
        if middle in (low, high):
            break
        low, high = (middle, high) if holds(middle) == at_low else (low, middle)
    last_true = low if at_low else high
    sides = _value(factor.setting(low)), _value(factor.setting(high))
    turn = "stops holding" if at_low else "begins to hold"
    text = f"{name}: {turn} between {sides[0]} and {sides[1]}"
    setting = _value(factor.setting(last_true))
    return Flip(factor.path, name, _value(ends[0]), _value(ends[1]), last_true, setting, sides, at_low, at_high, text)
