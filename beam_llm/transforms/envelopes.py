"""What has to come back with an answer: the element, its timestamp and its windows, kept as they were.

An element that is in several windows is one record, asked once. Beam shows a DoFn such an element once per window, one call after the
other, with the same object; `Envelopes` joins those calls again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.transforms.window import WindowedValue
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN

from beam_llm.errors import LedgerError
from beam_llm.protocols import Store

CODER_NAME_BYTES = 8


class Envelope:
    """One element with its timestamp and all windows it is in."""

    __slots__ = ("element", "timestamp", "windows")

    def __init__(self, element: Any, timestamp: Any, windows: list[Any]):
        self.element = element
        self.timestamp = timestamp
        self.windows = windows

    def around(self, value: Any) -> WindowedValue:
        """`value` at this element's timestamp, in this element's windows."""
        return WindowedValue(value, self.timestamp, self.windows)

    def carrying(self, value: Any) -> WindowedValue:
        """A parcel at this element's timestamp, in one of its windows: for what another DoFn opens.

        One, because Beam multiplies the windows of every WindowedValue that a DoFn yields by the number of windows its *input* is in, if
        the DoFn does not ask for the window (`common.py`, `windows *= len(windowed_input_element.windows)`; Beam 2.77): a parcel in three
        windows would bring each of its elements three times.
        """
        return WindowedValue(value, self.timestamp, self.windows[:1])


class Envelopes:
    """Puts elements into envelopes, one behind: the newest is held back until the next call shows another element."""

    def __init__(self) -> None:
        self._held: Envelope | None = None

    def put(self, element: Any, timestamp: Any, window: Any) -> Envelope | None:
        """The envelope that is complete now, if any."""
        held = self._held
        if held is not None and held.element is element and held.timestamp == timestamp and window not in held.windows:
            held.windows.append(window)
            return None
        self._held = Envelope(element, timestamp, [window])
        return held

    def last(self) -> Envelope | None:
        """The one held back; there is none afterwards."""
        held, self._held = self._held, None
        return held


class EnvelopeCoder:
    """Envelopes as bytes that another pipeline can open: each begins with the name of its coder, which lies in the staging location.

    Args:
      coder: of the elements and their windows.
    """

    def __init__(self, element_coder: coders.Coder, window_coder: coders.Coder):
        self._coder = coders.WindowedValueCoder(element_coder, window_coder)
        self._pickled = pickler.dumps(self._coder)
        self.name = hashlib.sha256(self._pickled).digest()[:CODER_NAME_BYTES]
        self._impl = self._coder.get_impl()

    def save(self, store: Store) -> None:
        """Writes the coder once, so that `EnvelopeReader` finds it."""
        store.create(_coder_object(self.name), self._pickled)

    def encode(self, arrived: WindowedValue) -> bytes:
        """The element as it arrived, without its pane: that says how it came here, and must not make it another element."""
        if arrived.pane_info is not PANE_INFO_UNKNOWN:
            arrived = WindowedValue(arrived.value, arrived.timestamp, arrived.windows)
        return self.name + self._impl.encode(arrived)


class EnvelopeReader:
    """Opens envelopes by whatever coder they name."""

    def __init__(self, store: Store):
        self._store = store
        self._impls: dict[bytes, Any] = {}

    def decode(self, data: bytes) -> WindowedValue:
        """The element with its timestamp and windows, by whose `with_value` an answer takes its place."""
        name = data[:CODER_NAME_BYTES]
        impl = self._impls.get(name)
        if impl is None:
            impl = self._impls[name] = self._load(name)
        return impl.decode(data[CODER_NAME_BYTES:])

    def _load(self, name: bytes) -> Any:
        pickled = self._store.get(_coder_object(name))
        if pickled is None:
            raise LedgerError(f"the staging location lacks {_coder_object(name)}: the elements' coder, without which they can't be read")
        return pickler.loads(pickled).get_impl()


def _coder_object(name: bytes) -> str:
    return f"coders/{name.hex()}"


def oldest(envelopes: Iterable[Envelope]) -> Timestamp:
    """The smallest timestamp, up to which the watermark has to be held back."""
    return min(Timestamp.of(envelope.timestamp) for envelope in envelopes)
