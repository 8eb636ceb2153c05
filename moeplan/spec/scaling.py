"""Published scaling laws: loss of a language model from its size, sparsity and training tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """One law with its range of validity; ``None`` where its experiments do not bound a quantity."""

    name: str
    form: Literal["dense", "granular", "sparse", "routed"]
    coefficients: Mapping[str, float]
    active_params: tuple[float, float] | None
    total_params: tuple[float, float] | None
    tokens: tuple[float, float] | None
    sparsities: tuple[float, ...]  # studied
    source: str
    spread: str
