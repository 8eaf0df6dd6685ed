"""Envelopes: what has to come back with an answer (the element, its timestamp and its windows, as
Beam's WindowedValue), as bytes.

An element that is in several windows is one record, asked once. To a DoFn that asks for the window,
Beam shows such an element once per window, one call after the other, with the same object;
`Arrivals` joins those calls again. A DoFn that does not ask sees it once, but can't yield in its
windows at that moment (see `in_one_window`). In between, envelopes are in windows that have nothing
to do with their elements': `one_window`, or `flushed_windowing` where they are grouped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import typing
from typing import Any

import apache_beam as beam
import orjson
from apache_beam import coders, pvalue
from apache_beam.transforms.trigger import (
    AccumulationMode,
    AfterAny,
    AfterCount,
    AfterProcessingTime,
    AfterWatermark,
    Always,
)
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner, WindowedValue

from beam_llm.errors import LedgerError
from beam_llm.protocols import Store
from beam_llm.transforms.beam_internals import (
    dumps_by_value,
    is_same_element,
    loads,
    without_pane,
)
from beam_llm.transforms.plain_coders import (
    NeedsPickle,
    build_coder,
    describe_coder,
    plain,
    with_halves_marked,
)

# Few, since they precede every element.
CODER_NAME_BYTES = 8


class Arrivals:
    """Joins the calls for one element. It is one element behind: the newest is held back until a
    call shows another one.

    For a DoFn that asks for the window, and so sees an element once per window.
    """

    def __init__(self) -> None:
        self._held: WindowedValue | None = None

    def put(self, arrived: WindowedValue) -> WindowedValue | None:
        """Takes an element in one of its windows; returns the element, in all its windows, that is
        complete now, if any.

        Args:
          arrived: an element in one window.
        """
        held = self._held
        if held is not None and is_same_element(held, arrived):
            self._held = WindowedValue(
                held.value, held.timestamp, (*held.windows, *arrived.windows)
            )
            return None
        self._held = arrived
        return held

    def last(self) -> WindowedValue | None:
        """The element held back, if any; afterwards there is none."""
        held, self._held = self._held, None
        return held


NEVER_TOO_LATE_SECONDS = 10**9


def one_window() -> beam.Windowing:
    """The windowing for values that carry their elements' windows inside: one global window, as in
    Beam's own Reshuffle.

    Nothing is ever late in it: on the BundleBasedDirectRunner, what a timer sends at the end of
    time is behind the watermark.
    """
    return beam.Windowing(
        GlobalWindows(),
        triggerfn=Always(),
        accumulation_mode=AccumulationMode.DISCARDING,
        timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        allowed_lateness=NEVER_TOO_LATE_SECONDS,
    )


def flushed_windowing(windowfn: Any, count: int, seconds: float) -> beam.Windowing:
    """A windowing whose groups fire at `count` elements, `seconds` after the first one, and at the
    window's end. Late elements fire at once, and are never dropped.

    Whole seconds, rounded up: Beam's AfterProcessingTime can't be written down otherwise
    (`trigger.py`, to_runner_api).
    """
    early = AfterAny(AfterCount(count), AfterProcessingTime(math.ceil(seconds)))
    return beam.Windowing(
        windowfn,
        triggerfn=AfterWatermark(early=early, late=AfterCount(1)),
        accumulation_mode=AccumulationMode.DISCARDING,
        timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        allowed_lateness=NEVER_TOO_LATE_SECONDS,
    )


class EnvelopeCoder:
    """Envelopes as bytes that another pipeline can open: each begins with the name of its coder,
    which lies in the staging location.

    It is made when the pipeline is built, and part of its graph: a run reads its own envelopes with
    the coders it was built with.

    Args:
      element_coder, window_coder: of the elements and their windows.
    """

    def __init__(self, element_coder: coders.Coder, window_coder: coders.Coder):
        self._window_coder = window_coder
        self._coder = coders.WindowedValueCoder(plain(element_coder), window_coder)
        self._document = _document(element_coder, window_coder, self._coder)
        self.name = _named(self._document)

    @classmethod
    def of(cls, elements: pvalue.PCollection) -> EnvelopeCoder:
        """The coder for the elements of a PCollection."""
        window_coder = elements.windowing.windowfn.get_window_coder()
        return cls(coders.registry.get_coder(elements.element_type), window_coder)

    @property
    def of_any(self) -> EnvelopeCoder:
        """The coder for elements that this one can't encode. Only encoding shows that an element
        isn't of its declared type, or has a text with a lone surrogate."""
        return EnvelopeCoder(coders.FastPrimitivesCoder(), self._window_coder)

    def save(self, store: Store) -> None:
        """Writes the coder once, so that `EnvelopeReader` finds it."""
        # It is named by its content: where another process was first, the same document is there
        # already.
        store.create(_coder_object(self.name), self._document)

    def open(self, store: Store | None = None) -> EnvelopeImpl:
        """The encoder and decoder, for use in one process; not to be pickled.

        Args:
          store: where `of_any` is saved at the first element that needs it.
        """
        return EnvelopeImpl(self, self._coder.get_impl(), store)


class EnvelopeImpl:
    """An EnvelopeCoder at work."""

    def __init__(self, coder: EnvelopeCoder, impl: Any, store: Store | None = None):
        self.name = coder.name
        self._coder, self._store = coder, store
        self._of_any: EnvelopeImpl | None = None
        self._encode = impl.encode
        self.decode = impl.decode
        """Of an envelope without its coder's name."""

    def encode(self, arrived: WindowedValue) -> bytes:
        """The element with its timestamp and windows."""
        try:
            return self.name + self._encode(without_pane(arrived))
        except Exception:  # a coder may raise anything for an element of another type
            return self._encode_odd(arrived)

    def _encode_odd(self, arrived: WindowedValue) -> bytes:
        # Made, and its coder saved, at the first such element: most runs have none.
        if self._of_any is None:
            coder = self._coder.of_any
            if self._store is not None:
                coder.save(self._store)
            self._of_any = coder.open()
        odd = arrived.with_value(with_halves_marked(arrived.value))
        return self._of_any.name + self._of_any._encode(without_pane(odd))


class EnvelopeReader:
    """Opens envelopes by whatever coder they name.

    Args:
      own: this pipeline's coder, for the envelopes of its own run. Other coders are built from
        their description in the staging location, which runs no code.
      allow_pickle: whether to read elements and coders that only pickle can carry. Whoever can
        write to the location can then run code here.
    """

    def __init__(
        self, store: Store, own: EnvelopeCoder | None = None, *, allow_pickle: bool = False
    ):
        self._store, self._allow_pickle = store, allow_pickle
        self._decoders: dict[bytes, Any] = {}
        for coder in () if own is None else (own.of_any, own):
            self._decoders[coder.name] = coder.open().decode
        self._name = b""
        self._decode: Any = None

    def decode(self, data: bytes) -> WindowedValue:
        """The element with its timestamp and windows.

        Raises:
          LedgerError: the element can't be read, or only by pickle.
        """
        if data[:CODER_NAME_BYTES] != self._name:
            self._turn_to(data[:CODER_NAME_BYTES])
        try:
            return self._decode(data[CODER_NAME_BYTES:])
        except LedgerError:
            raise
        except Exception as error:
            raise LedgerError(
                f"an element in the staging location can't be read ({type(error).__name__})"
            ) from error

    def _turn_to(self, name: bytes) -> None:
        """Makes `name`'s decoder the current one. Neighbours nearly always have the same coder."""
        if name not in self._decoders:
            self._decoders[name] = self._load(name).get_impl().decode
        self._name, self._decode = name, self._decoders[name]

    def _load(self, name: bytes) -> coders.Coder:
        object_name = _coder_object(name)
        document = self._store.get(object_name)
        if document is None:
            raise LedgerError(
                f"the staging location lacks {object_name}: the elements' coder, without "
                "which they can't be read"
            )
        if _named(document) != name:
            raise LedgerError(
                f"{object_name} is damaged or was cut ({len(document)} bytes): its digest "
                "does not match its name"
            )
        try:
            return _build_coder(orjson.loads(document), self._allow_pickle)
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{object_name} does not describe a coder: {error}") from error


def _document(
    element_coder: coders.Coder, window_coder: coders.Coder, whole: coders.Coder
) -> bytes:
    element, window = describe_coder(element_coder), describe_coder(window_coder)
    if element is None or window is None:
        return orjson.dumps(
            {"format": 1, "pickled": base64.b64encode(dumps_by_value(whole)).decode()}
        )
    return orjson.dumps({"format": 1, "element": element, "window": window})


def _build_coder(document: Any, allow_pickle: bool) -> coders.Coder:
    if "pickled" in document:
        if not allow_pickle:
            raise NeedsPickle()
        return typing.cast(coders.Coder, loads(base64.b64decode(document["pickled"])))
    return coders.WindowedValueCoder(
        build_coder(document["element"], allow_pickle), build_coder(document["window"])
    )


def _named(document: bytes) -> bytes:
    return hashlib.sha256(document).digest()[:CODER_NAME_BYTES]


def _coder_object(name: bytes) -> str:
    return f"coders/{name.hex()}"
