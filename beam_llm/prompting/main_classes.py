"""Classes of the main program, made ready for its workers.

A worker gets such a class by value, without the module that it stood in: a name in its annotations
that is still a text (`from __future__ import annotations`, or a class that is defined further down)
means nothing there. So it is looked up here, where the pipeline is built.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from typing import Any

import pydantic


def look_up_names(kind: Any) -> None:
    """Replaces names in the annotations of a type's classes by what they name. What can't be
    found stays, and is an error of whoever reads it."""
    _look_up(kind, set())


def _look_up(kind: Any, seen: set[type]) -> None:
    for part in typing.get_args(kind):
        _look_up(part, seen)
    if not isinstance(kind, type) or kind in seen or not _goes_by_value(kind):
        return
    seen.add(kind)
    for part in _parts_of_model(kind) if issubclass(kind, pydantic.BaseModel) else _parts_of(kind):
        _look_up(part, seen)


def _goes_by_value(kind: type) -> bool:
    return kind.__module__ == "__main__" or "<locals>" in kind.__qualname__


def _parts_of_model(kind: type[pydantic.BaseModel]) -> Iterable[Any]:
    if not kind.__pydantic_complete__:
        kind.model_rebuild(raise_errors=False)
    return [field.annotation for field in kind.model_fields.values()]


def _parts_of(kind: type) -> Iterable[Any]:
    own = inspect.get_annotations(kind)
    if not own:
        return ()
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # a name that isn't there, or whatever a user's annotation does
        return ()
    kind.__annotations__ = {name: hints.get(name, own[name]) for name in own}
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        field.type = hints.get(field.name, field.type)
    return list(hints.values())
