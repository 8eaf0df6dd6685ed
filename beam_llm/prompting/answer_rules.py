"""What no answer can be, whatever its type, and the error for types that can't be used."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any

import pydantic

from beam_llm.errors import UsageError

USABLE = (
    "str, int, float, bool, Literal[…], an Enum, list[…], a pydantic model, a dataclass, "
    "a TypedDict or a JSON schema"
)

MOST_INTEGER = 2**63 - 1
"""The largest integer that Beam's rows, Parquet and the ledger can hold."""
UNUSABLE_NUMBER = "a number is not finite, or needs more than 64 bits"
TOO_DEEP = "nested too deeply"


def has_usable_numbers(value: Any) -> bool:
    """Whether no number inside is NaN, infinite or beyond 64 bits: JSON can't write the first two,
    and ledgers and rows can't hold the last.

    pydantic reads the string "nan" as a number in a model's fields, and integers of any length.
    """
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(-MOST_INTEGER <= value <= MOST_INTEGER)
    if kind in (str, bool, types.NoneType):
        return True
    if isinstance(value, Mapping):
        return all(map(has_usable_numbers, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(has_usable_numbers, value))
    if isinstance(value, pydantic.BaseModel):
        return all(map(has_usable_numbers, value.__dict__.values()))
    if dataclasses.is_dataclass(value):
        return all(
            has_usable_numbers(getattr(value, field.name)) for field in dataclasses.fields(value)
        )
    return True


def unusable_type(declared: Any, why: str) -> UsageError:
    """The error for a type that no answer can have; it names the types that can be used."""
    return UsageError(
        f"output is {_short_repr(declared)}: it can't be used as the type of an answer "
        f"({why}); use {USABLE}"
    )


def _short_repr(declared: Any) -> str:
    try:
        text = repr(declared)
    except Exception:  # raised by the user's own class
        text = f"a {type(declared).__name__}"
    return text if len(text) <= 80 else text[:77] + "…"
