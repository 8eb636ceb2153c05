"""Numba inner loops: arrays and scalars in, arrays out, seeds passed in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

# A tuple of arrays given to a function has each of its arrays counted, twice a call, by instructions that lock memory.
# Kernels that create no array need no counts.
inner = numba.njit(_nrt=False)


def compiled(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    """``function`` compiled on its first call; the machine code is kept for the next process where a folder allows it.

    numba refuses to cache where neither the package's folder nor the user's cache can be written (a container under an
    arbitrary user id); the kernel is then compiled in every process.
    """
    try:
        kept: Callable[..., Any] = numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:
        kept = numba.njit(nogil=True, **options)(function)
    return kept


def source_number() -> int:
    """A number that changes with the text of any file of this folder; not zero."""
    text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return 1 + int.from_bytes(hashlib.sha256(text).digest()[:6], "big")
