"""Prepares classes of the main program for its workers.

A worker gets such a class by value, without its module. A name in its annotations that is still a
string (`from __future__ import annotations`, or a class that is defined further down) can't be
resolved there, so it is looked up here, where the pipeline is built.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from typing import Any

import pydantic


def look_up_names(kind: Any) -> None:
    """Replaces names in the annotations of a type's classes by the objects they name. A name that
    can't be found stays, and fails where it is read.
    """
    _look_up_in(kind, set())


def _look_up_in(kind: Any, seen: set[type]) -> None:
    for part in typing.get_args(kind):
        _look_up_in(part, seen)
    if not isinstance(kind, type) or kind in seen or not _is_pickled_by_value(kind):
        return
    seen.add(kind)
    for part in (
        _field_annotations(kind)
        if issubclass(kind, pydantic.BaseModel)
        else _resolved_annotations(kind)
    ):
        _look_up_in(part, seen)


def _is_pickled_by_value(kind: type) -> bool:
    return kind.__module__ == "__main__" or "<locals>" in kind.__qualname__


def _field_annotations(kind: type[pydantic.BaseModel]) -> Iterable[Any]:
    if not kind.__pydantic_complete__:
        kind.model_rebuild(raise_errors=False)
    return [field.annotation for field in kind.model_fields.values()]


def _resolved_annotations(kind: type) -> Iterable[Any]:
    own = inspect.get_annotations(kind)
    if not own:
        return ()
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # an unknown name, or anything a user's annotation raises
        return ()
    kind.__annotations__ = {name: hints.get(name, own[name]) for name in own}
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        field.type = hints.get(field.name, field.type)
    return list(hints.values())
