"""What a sweep varies: ``PATH=A,B,C`` or ``PATH=LOW..HIGH[:N][:log]``, checked before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from moeplan.errors import InputError, Problem, did_you_mean, input_error
from moeplan.files.scenario.question import Question
from moeplan.files.scenario.schema import ScenarioFile
from moeplan.files.scenario.schema_types import Section
from moeplan.files.scenario.schema_walk import section_in

VARY = "--vary"
MAX_POINTS = 10_000_000

_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*(.*?)\s*\.\.\s*({_NUMBER})\s*([^:]*?)\s*(?::\s*(\d+)\s*)?(?::\s*(log)\s*)?")


@dataclass(frozen=True, slots=True)
class Factor:
    """One value of a scenario that varies: over listed values, or over a range in the file's own unit."""

    path: str
    values: tuple[str, ...]  # as written, ready for PATH=VALUE; empty for a range
    low: float = 0.0
    high: float = 0.0
    unit: str = ""
    n: int | None = None  # steps of a grid over the range
    log: bool = False
    whole: bool = False

    def at(self, quantile: float) -> str:
        """``PATH=VALUE`` at a quantile in [0, 1] of the uniform distribution over the values or the (log) range."""
        if self.values:
            value = self.values[min(int(quantile * len(self.values)), len(self.values) - 1)]
        elif self.whole and not self.log:  # every whole number equally likely
            value = self._text(min(self.low + math.floor(quantile * (self.high - self.low + 1)), self.high))
        elif self.log:
            value = self._text(self.low * (self.high / self.low) ** quantile)
        else:
            value = self._text(self.low + quantile * (self.high - self.low))
        return f"{self.path}={value}"

    def setting(self, number: float) -> str:
        """``PATH=VALUE`` for a number of the range's unit."""
        return f"{self.path}={self._text(number)}"

    def grid(self) -> tuple[str, ...]:
        """``PATH=VALUE`` of every grid value, without repetition. Raises InputError for a range without a count."""
        if self.values:
            return tuple(f"{self.path}={value}" for value in self.values)
        if self.n is None:
            hint = f"say how many: {self.path}={self._text(self.low)}..{self._text(self.high)}:5, or list them"
            raise input_error(VARY, "a grid over a range needs a number of steps", got=self.path, hint=hint)
        if self.n == 1:
            return (self.setting(self.low),)
        steps = [i / (self.n - 1) for i in range(self.n)]
        low, high = self.low, self.high
        numbers = [low * (high / low) ** q if self.log else low + q * (high - low) for q in steps]
        return tuple(dict.fromkeys(self.setting(number) for number in numbers))

    def _text(self, number: float) -> str:
        text = str(round(number)) if self.whole else f"{number:.12g}"
        return f"{text} {self.unit}".strip()


def read_factors(question: Question, texts: Sequence[str]) -> tuple[Factor, ...]:
    """The factors of ``--vary``. Raises InputError with every one that is malformed, unknown, empty or repeated."""
    problems: list[Problem] = []
    factors: list[Factor] = []
    if not texts:
        raise input_error(VARY, "nothing to vary", hint="for example --vary 'serving.traffic.rate=2 req/s, 4 req/s'")
    for text in texts:
        try:
            factors.append(_factor(question, text))
        except InputError as error:
            problems.extend(error.problems)
    paths = [factor.path for factor in factors]
    for path in sorted({p for p in paths if paths.count(p) > 1}):
        problems.append(Problem(VARY, None, None, path, "varied twice", hint="one --vary for each path"))
    for path in paths:
        above = next((other for other in paths if path.startswith(other + ".")), None)
        if above is not None:
            problems.append(Problem(VARY, None, None, path, f"contradicts --vary {above}, which replaces it"))
    if problems:
        raise InputError(problems)
    return tuple(factors)


def _factor(question: Question, text: str) -> Factor:
    path, equals, spec = text.partition("=")
    path = path.strip()
    if not equals or not path or not spec.strip():
        raise input_error(VARY, "expected PATH=VALUES", got=text, hint="PATH=A,B,C or PATH=LOW..HIGH")
    number = numeric_kind(question, path, spec)
    match = _RANGE.fullmatch(spec)
    if match is None:
        if ".." in spec and number is not None:
            raise _bad(path, "not a range", spec, "LOW..HIGH, LOW..HIGH:5, LOW..HIGH:5:log, in one unit")
        return Factor(path, _listed(path, spec))
    if number is None:
        raise _bad(path, "not a number, it has no range", spec, "list its values: PATH=A,B,C")
    low, high = float(match[1]), float(match[3])
    low_unit, high_unit = match[2], match[4]
    if low_unit and low_unit not in (high_unit, high_unit.partition(" ")[0]):  # "50M..150M tokens"
        raise _bad(path, "a range in two units", spec, f"both ends in {high_unit or low_unit}")
    n = int(match[5]) if match[5] else None
    if not (math.isfinite(low) and math.isfinite(high)) or low > high or (low == high and n != 1):
        raise _bad(path, "an empty range", spec, "the lower end first")
    if n is not None and not 1 <= n <= MAX_POINTS:
        raise _bad(path, "no steps" if n == 0 else "too many steps", spec, f"1 to {MAX_POINTS}")
    if match[6] and low <= 0.0:
        raise _bad(path, "a logarithmic range starts above zero", spec, "")
    whole = number is int and low.is_integer() and high.is_integer()
    return Factor(path, (), low, high, high_unit, n, bool(match[6]), whole)


def _bad(path: str, what: str, got: str, allowed: str) -> InputError:
    return InputError([Problem(VARY, None, None, path, what, got, allowed)])


def _listed(path: str, spec: str) -> tuple[str, ...]:
    """Values between commas; commas inside brackets, braces and quotes belong to a value."""
    found, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(spec):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "[{(":
            depth += 1
        elif c in ")}]":
            depth -= 1
        elif c == "," and depth == 0:
            found.append(spec[start:i].strip())
            start = i + 1
    found.append(spec[start:].strip())
    if not all(found):
        raise _bad(path, "an empty value in the list", spec, "PATH=A,B,C")
    repeated = sorted({value for value in found if found.count(value) > 1})
    if repeated:
        raise _bad(path, "a value is listed twice", repeated[0], "")
    return tuple(found)


def numeric_kind(question: Question, path: str, spec: str = "0") -> type[int] | type[float] | None:
    """int or float for a path of the scenario language that holds a number, None for any other value.

    ``spec`` tells which key a short form stands for. Raises InputError for a path that does not exist.
    """
    section: type[Section] | None = ScenarioFile
    parts = path.split(".")
    annotation: Any = None
    for depth, part in enumerate(parts):
        if part.isdecimal() and annotation is not None:  # into a list
            continue
        if section is None:
            raise _bad(path, f"{'.'.join(parts[:depth])} is a single value", part, "")
        field = section.model_fields.get(part)
        if field is None:
            if annotation is not None and "exchange_rates" in parts[:depth]:
                return float
            known = list(section.model_fields)
            hint = did_you_mean(part, known)
            raise InputError([Problem(VARY, None, None, path, "unknown key", part, ", ".join(known), hint)])
        annotation = field.annotation
        section = section_in(annotation)
        if part == "exchange_rates":
            return float
    while section is not None:
        key = section.shorthand_key(spec.strip())
        if key is None:
            return None
        annotation = section.model_fields[key].annotation
        section = section_in(annotation)
    return _number_in(annotation)


def _number_in(annotation: Any) -> type[int] | type[float] | None:
    if annotation in (int, float):
        return annotation  # type: ignore[no-any-return]
    if getattr(annotation, "__name__", "") == "Limit":  # a budget: money, or money a month
        return float
    if hasattr(annotation, "__metadata__"):
        return _number_in(annotation.__origin__)
    if get_origin(annotation) in (Union, UnionType):
        found = [kind for part in get_args(annotation) if (kind := _number_in(part)) is not None]
        return found[0] if found else None
    return None
