"""Elements of every kind that a user may have, with the same two fields."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pydantic


class Named(NamedTuple):
    id: int
    text: str


@dataclasses.dataclass(frozen=True)
class Plain:
    id: int
    text: str


class Typed(pydantic.BaseModel):
    id: int
    text: str
