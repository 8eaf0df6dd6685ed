"""Instances of classes that are nothing but named fields, taken apart and put together again:
NamedTuples, dataclasses, pydantic models.

What a pickle would say of them is a class's name and its fields' values; so much can be written as
plain data. Reading it runs nothing that was not loaded before: a class is looked for among the
modules that the program has imported, and what isn't found there comes back as a row of the same
fields.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import pydantic


def fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of an instance that its class and these make up whole; None for all else."""
    kind = type(value)
    # A class inside a function, or one replaced under its name, could not be found again.
    if _found(kind.__module__, kind.__qualname__) is not kind:
        return None
    names = _names(kind)
    if names is None:
        return None
    if isinstance(value, pydantic.BaseModel):
        is_whole = (
            not value.__pydantic_extra__
            and not value.__pydantic_private__
            and value.__dict__.keys() == set(names)
        )
        return dict(value.__dict__) if is_whole else None
    held = getattr(value, "__dict__", None)
    if held is not None and not isinstance(value, tuple) and held.keys() != set(names):
        return None
    return {name: getattr(value, name) for name in names}


def make_instance(
    module: str, qualname: str, fields: Mapping[str, Any], *, load: bool = False
) -> Any:
    """The instance, or a `beam.Row` of its fields where no class of that name and with these fields
    is loaded.

    Args:
      load: the module may be imported: what is read was written by this run itself.
    """
    if load:
        importlib.import_module(module)
    kind = _found(module, qualname)
    if kind is None or set(_names(kind) or ()) != fields.keys():
        return beam.Row(**fields)
    # Past `__init__` and validators in all three cases: code of the class must not run here.
    if issubclass(kind, pydantic.BaseModel):
        return kind.model_construct(**fields)
    if issubclass(kind, tuple):
        return tuple.__new__(kind, [fields[name] for name in _names(kind) or ()])
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)  # of a frozen one, too
    return made


def _found(module: str, qualname: str) -> type | None:
    """The class of that name among what is imported by now."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _names(kind: type) -> tuple[str, ...] | None:
    """Names of the fields of a class that is of one of the three kinds."""
    if issubclass(kind, pydantic.BaseModel):
        return tuple(kind.model_fields)
    if issubclass(kind, tuple):
        return tuple(kind._fields) if hasattr(kind, "_fields") else None
    return (
        tuple(field.name for field in dataclasses.fields(kind))
        if dataclasses.is_dataclass(kind)
        else None
    )
