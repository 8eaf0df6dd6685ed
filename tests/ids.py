"""Test ids that are the same in every process."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """The value's repr without addresses, and a set's in order."""
    if isinstance(value, set):
        return f"set of {sorted(value)}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
