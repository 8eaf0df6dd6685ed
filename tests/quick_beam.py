"""Beam reckons the same things again and again while a pipeline is built and run: the arguments of a
DoFn's methods, the options that a class of options sees, whether this is a notebook. They are half
of the CPU of a small pipeline, and the tests run thousands (cProfile of five, Beam 2.77).
`remember` has each reckoned once a process.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import weakref
from argparse import Namespace
from typing import Any

from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core

beams_arguments_of = core.get_function_args_defaults
beams_view_as = PipelineOptions.view_as

# By function, without the ones that are gone; a method's `self` is bound.
_arguments: dict[bool, weakref.WeakKeyDictionary[Any, tuple[list[str], list[Any]]]] = {
    is_bound: weakref.WeakKeyDictionary() for is_bound in (False, True)
}
_seen: dict[tuple[type, tuple[str, ...]], dict[str, Any]] = {}


def remember() -> None:
    """From now on, in this process; harmless twice."""
    core.get_function_args_defaults = arguments_of
    PipelineOptions.view_as = view_as
    if importlib.util.find_spec("IPython") is None:
        sys.modules["IPython"] = None  # type: ignore[assignment] # Python's own way to say so


def arguments_of(function: Any) -> tuple[list[str], list[Any]]:
    """`get_function_args_defaults`, remembered for functions and methods."""
    is_bound = type(function) is types.MethodType
    key = function.__func__ if is_bound else function
    if type(key) is not types.FunctionType:
        return beams_arguments_of(function)
    found = _arguments[is_bound].get(key)
    if found is None:
        found = _arguments[is_bound][key] = beams_arguments_of(function)
    return list(found[0]), list(found[1])


def view_as(self: PipelineOptions, cls: Any) -> Any:
    """`PipelineOptions.view_as`, whose flags are parsed once for each class of Beam's."""
    # Classes of others may have anything in their options; None stands for this process's own flags.
    if cls.__module__ != pipeline_options.__name__ or self._flags is None:
        return beams_view_as(self, cls)
    key = (cls, tuple(self._flags))
    if key not in _seen:
        parsed = beams_view_as(self, cls)._visible_options  # Beam's own place for them
        _seen[key] = _copied(vars(parsed))
    values = _copied(_seen[key])
    view = cls.__new__(cls)
    view._flags = self._flags  # Beam's, set as its own view sets it
    view._visible_options = Namespace(**values)  # Beam's, likewise
    for name, value in values.items():
        self._all_options.setdefault(name, value)
    view._all_options = self._all_options  # Beam's: shared by all views
    return view


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """With lists of its own, as they are added to by who gets them."""
    return {
        name: list(value) if isinstance(value, list) else value for name, value in values.items()
    }
