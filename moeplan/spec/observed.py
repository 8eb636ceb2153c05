"""What production did, window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# What reaches the system, and what comes out of it.
INPUTS = ("requests_per_s", "input_tokens", "output_tokens", "expert_imbalance")
OUTCOMES = ("ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s", "usd_per_million_output_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Windows, oldest first. ``start_s`` counts from 1970 or from any zero; arrays are of shape (n_windows,).

    ``series`` holds means by name (`INPUTS` and `OUTCOMES`): tokens per request, seconds, requests and tokens per
    second, fullest expert over the mean, dollars. NaN where a window does not say. ``model`` as the server calls it,
    "" where nothing says.
    """

    start_s: npt.NDArray[np.float64]
    series: Mapping[str, npt.NDArray[np.float64]]
    model: str = ""
