"""How Predictions cross a shuffle: their plain parts as they are, values and elements by pickle if
need be. And the coder of state.
"""

from __future__ import annotations

import pickle
from typing import Any

from apache_beam import coders

from beam_llm.errors import Failure
from beam_llm.transforms.beam_internals import dumps_by_value, loads
from beam_llm.values import Prediction, Usage

STATE_CODER = coders.FastPrimitivesCoder()
"""The coder of all state in this package: numbers, strings, bytes, and tuples and dicts of these,
in a format that Beam keeps stable.
"""


class AnyObjectCoder(coders.Coder):
    """Pickles by reference, or by value where that doesn't work.

    A class of the user's main program exists on a remote worker only inside what was pickled by
    value: plain pickle, Beam's choice for unknown types, does not find it there.
    """

    def encode(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        # What is raised depends on the reason: a local class is an AttributeError, a lock a
        # TypeError.
        except (pickle.PicklingError, AttributeError, TypeError):
            return dumps_by_value(value)

    def decode(self, encoded: bytes) -> Any:
        return loads(encoded)


class PredictionCoder(coders.Coder):
    """A Prediction as a tuple of its fields. Not deterministic (elements need not be), so no key of
    a GroupByKey.
    """

    def __init__(self) -> None:
        self._fields = coders.FastPrimitivesCoder(AnyObjectCoder())

    def encode(self, value: Prediction) -> bytes:
        parts = _to_parts(value)
        try:
            return bytes(self._fields.encode(parts))
        except UnicodeEncodeError:  # half a character in the element: only pickle writes that
            return bytes(self._fields.encode(_Pickled(parts)))

    def decode(self, encoded: bytes) -> Prediction:
        return _from_parts(self._fields.decode(encoded))

    def to_type_hint(self) -> Any:
        return Prediction


class JobRefCoder(coders.FastPrimitivesCoder):
    """Job refs as Beam's usual coder writes them, under a coder's name of their own.

    A job server of the portable runners (Flink's) expands each splittable DoFn beside the others,
    and names what it adds after the coder of the DoFn's input: two whose inputs have the same coder
    get the same names, and one of them the other's restrictions. Beside a PeriodicImpulse the
    pipeline failed so, every other time. Source: Beam's `SplittableParDoExpander.java`
    (`mainInputPCollection.getCoderId() + "/PairWithRestriction"`), read 2026-11.
    """


class _Pickled(tuple[Any, ...]):
    """Not a tuple to Beam's coder, so that it is pickled as a whole."""


def _to_parts(p: Prediction) -> tuple[Any, ...]:
    error = None if p.error is None else tuple(p.error)
    return (
        p.element,
        p.value,
        error,
        tuple(p.usage),
        p.cost_usd,
        p.model,
        p.request_id,
        p.finish_reason,
        p.reused,
    )


def _from_parts(parts: tuple[Any, ...]) -> Prediction:
    """The Prediction of these parts, by position: the order of `_to_parts` is the format."""
    element, value, error, usage, *rest = parts
    return Prediction(
        element, value, None if error is None else Failure(*error), Usage(*usage), *rest
    )
