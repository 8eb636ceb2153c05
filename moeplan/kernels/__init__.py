"""Numba inner loops: arrays and scalars in, arrays out, seeds passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled on its first call; the machine code is kept for the next process where a folder allows it.

    numba refuses to cache where neither the package's folder nor the user's cache can be written (a container under an
    arbitrary user id); the kernel is then compiled in every process.
    """
    try:
        kept: Callable[..., Any] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        kept = numba.njit(nogil=True)(function)
    return kept
