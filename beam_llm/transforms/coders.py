"""How Predictions cross a shuffle: their plain parts as they are, values and elements by whatever of Python can carry them. And state."""

from __future__ import annotations

import pickle
from typing import Any

from apache_beam import coders
from apache_beam.coders.coder_impl import CallbackCoderImpl
from apache_beam.coders.coders import FastCoder
from apache_beam.internal import pickler

from beam_llm.errors import Failure
from beam_llm.values import Prediction, Usage

STATE_CODER = coders.FastPrimitivesCoder()
"""Of all state in this package: plain ints, floats, bytes and tuples of them, a format that Beam keeps."""


class AnyObjectCoder(coders.Coder):
    """Pickle by reference; by value where that can't be.

    A class of the user's main program exists on a remote worker only inside what was pickled by value: plain pickle, Beam's
    choice for unknown types, does not find it there.
    """

    def encode(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError):
            return bytes(pickler.dumps(value))

    def decode(self, encoded: bytes) -> Any:
        # Beam's pickler compresses and then writes base64, which never begins with pickle's protocol mark.
        return pickle.loads(encoded) if encoded[:1] == pickle.PROTO else pickler.loads(encoded)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> Any:
        return Any

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class PredictionCoder(FastCoder):
    """A Prediction as a tuple of its fields. Not deterministic (elements need not be), so no key of a GroupByKey."""

    def __init__(self) -> None:
        self._fields = coders.FastPrimitivesCoder(AnyObjectCoder())

    def _create_impl(self) -> Any:
        impl = self._fields.get_impl()
        return CallbackCoderImpl(lambda prediction: impl.encode(_parts(prediction)), lambda data: _whole(impl.decode(data)))

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> Any:
        return Prediction

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def _parts(p: Prediction) -> tuple[Any, ...]:
    error = None if p.error is None else tuple(p.error)
    usage = (p.usage.input_tokens, p.usage.output_tokens, p.usage.cached_tokens)
    return p.element, p.value, error, usage, p.cost_usd, p.model, p.request_id, p.finish_reason, p.reused


def _whole(parts: tuple[Any, ...]) -> Prediction:
    element, value, error, usage, *rest = parts
    return Prediction(element, value, None if error is None else Failure(*error), Usage(*usage), *rest)
