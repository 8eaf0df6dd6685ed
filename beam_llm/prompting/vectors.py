"""Vectors as bytes: 32-bit floats, little-endian, as models make them and servers send them. A list
of Python's own floats takes eight times as much memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FLOAT = np.dtype("<f4")
_NUMBERS = {float, int}


def pack(numbers: Sequence[Any]) -> bytes | None:
    """The numbers as bytes; None where one of them is not a number, or too large for 32 bits.

    pack([0.5, 1])      # b"\\x00\\x00\\x00?\\x00\\x00\\x80?"
    pack(["0.5"])       # None
    """
    if not set(map(type, numbers)) <= _NUMBERS:
        return None
    try:
        wide = np.array(numbers, dtype=np.float64)
    except OverflowError:
        return None
    # NaN passes: the reader reports it for the record.
    if (np.abs(wide) > np.finfo(FLOAT).max).any():
        return None
    return wide.astype(FLOAT).tobytes()


def unpack(data: bytes) -> list[float]:
    """The numbers that `pack` packed. Raises ValueError where the bytes are cut off."""
    found: list[float] = np.frombuffer(data, dtype=FLOAT).tolist()
    return found


def is_finite(data: bytes) -> bool:
    """Whether none of the numbers is infinite or NaN."""
    return bool(np.isfinite(np.frombuffer(data, dtype=FLOAT)).all())


def is_zero(data: bytes) -> bool:
    """Whether all of the numbers are 0."""
    return not np.frombuffer(data, dtype=FLOAT).any()
