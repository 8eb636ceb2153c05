"""Where a sweep puts its points: a full grid, or samples of the factors' unit cube."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from moeplan.errors import input_error
from moeplan.files.scenario.vary import MAX_POINTS, Factor

Design = Literal["grid", "random", "lhs", "sobol"]
DESIGNS: tuple[Design, ...] = ("grid", "random", "lhs", "sobol")


def design_points(
    factors: Sequence[Factor], design: Design, n_points: int | None, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Overrides of each point; same factors, design, count and seed give the same points.

    Raises InputError for a grid with a count, a sample without one, or more points than can be kept.
    """
    if design == "grid":
        if n_points is not None:
            raise input_error("--points", "a grid has as many points as its factors' values", got=n_points)
        axes = [factor.grid() for factor in factors]
        n = math.prod(len(axis) for axis in axes)
        if n > MAX_POINTS:
            raise input_error("--vary", "too many points", got=n, allowed=f"at most {MAX_POINTS}")
        return tuple(product(*axes))
    if n_points is None:
        raise input_error("--points", f"a {design} design needs a number of points")
    if not 1 <= n_points <= MAX_POINTS:
        raise input_error("--points", "not a number of points", got=n_points, allowed=f"1 to {MAX_POINTS}")
    cube = unit_cube(design, n_points, len(factors), seed)
    return tuple(tuple(f.at(float(u)) for f, u in zip(factors, row, strict=True)) for row in cube)


def unit_cube(design: Design, n: int, d: int, seed: int) -> npt.NDArray[np.float64]:
    """``n`` points of the unit cube (n, d): uniform, Latin hypercube (McKay 1979), or scrambled Sobol (Owen 1998)."""
    if design == "random":
        return np.random.default_rng(seed).random((n, d))
    from scipy.stats import qmc

    if design == "lhs":
        return np.asarray(qmc.LatinHypercube(d, seed=seed).random(n))
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        what = "a Sobol sequence is balanced only at powers of two"
        raise input_error("--points", what, got=n, allowed=f"{below}, {2 * below}")
    return np.asarray(qmc.Sobol(d, seed=seed).random(n))
