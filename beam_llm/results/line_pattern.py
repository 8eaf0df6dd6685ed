"""Reads result lines of one form in blocks, with one regular expression over many lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from beam_llm.protocols import LineForm, Slot

# Each matches only characters that JSON doesn't escape: matches need no decoding, except texts.
_NAME, _INTEGER = "[A-Za-z0-9_.:-]{1,64}", "(?:0|[1-9][0-9]{0,14})"
_SLOTS = {
    Slot.CUSTOM_ID: "(?P<custom_id>[A-Za-z0-9_-]{1,64})",
    Slot.REQUEST_ID: "(?P<request_id>[a-z0-9_-]{0,40}?[a-z][a-z0-9_-]{0,80}+)",
    # Without `\u` and `\/`, so that an API key in the text would stand in the line unescaped.
    Slot.TEXT: r'(?P<text>(?!")[^"\\\x00-\x1f]*+(?:\\["\\bfnrt][^"\\\x00-\x1f]*+)*+)',
    Slot.COUNT: _INTEGER,
    Slot.NAME: _NAME,
    Slot.NUMBER: _INTEGER,
}
_REQUIRED_ONCE = (Slot.CUSTOM_ID, Slot.REQUEST_ID, Slot.TEXT)
_FIELDS = ("custom_id", "request_id", "text", "counts", "other")


class LinePattern:
    """Finds lines of one form.

    Attributes:
      is_clean: as in `LineForm`.

    Raises:
      ValueError: the form lacks a slot, or has counts in two places.
    """

    def __init__(self, form: LineForm):
        parts = form.parts
        counts = [at for at, part in enumerate(parts) if part is Slot.COUNT]
        first, last = (counts[0], counts[-1]) if counts else (0, -1)
        inside = {part for part in parts[first : last + 1] if isinstance(part, Slot)}
        if any(parts.count(slot) != 1 for slot in _REQUIRED_ONCE) or inside != {Slot.COUNT}:
            raise ValueError("this form can't be read by the block")
        self.is_clean = form.is_clean
        pieces = [
            "(?P<counts>" * (at == first)
            + (_SLOTS[part] if isinstance(part, Slot) else re.escape(part.decode("latin-1")))
            + ")" * (at == last)
            for at, part in enumerate(parts)
        ]
        self._pattern = re.compile(f"{''.join(pieces)}\n|(?P<other>[^\n]*)\n")
        self._order = [self._pattern.groupindex[name] - 1 for name in _FIELDS]
        self._is_ordered = self._order == sorted(self._order)

    def find(self, block: str) -> Sequence[tuple[str, ...]]:
        """Returns `(custom_id, request_id, text, counts, "")` of each line, in order; for a line of
        another form, four empty strings and the line.

        Args:
          block: lines with their newlines, one character for each byte (latin-1).
        """
        found = self._pattern.findall(block)
        if self._is_ordered:
            return found
        return [tuple([groups[at] for at in self._order]) for groups in found]
