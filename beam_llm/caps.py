"""How much one prompt may hold: the only rule for when it is full."""

from __future__ import annotations

from typing import NamedTuple

from beam_llm.values import Record

RECORD_OVERHEAD_TOKENS = 9
"""What a record costs beside its text: `Input 123: "…"` and the line break."""


class Caps(NamedTuple):
    """How much one prompt may hold.

    Used in the three places that fill prompts: `Batcher` record by record, a stream's buffers,
    which know only their sums, and `prompt_ends` over the columns of a million records.

        caps = Caps(records=20, tokens=8_000, bytes=None)
        caps.hold(7_990 + tokens_of(record), 0)  # may it join 7,990 tokens of others?

    Attributes:
      records: most records.
      tokens: most input tokens of the records together, including their numbering; the shared part
        is already subtracted.
      bytes: most UTF-8 bytes of the records' texts and images (in base64) together, or None.
      record_tokens: most input tokens of each record, where that is less than for all together.
    """

    records: int
    tokens: int
    bytes: int | None
    record_tokens: int | None = None

    @property
    def most_of_record(self) -> int:
        """Input tokens that a record may have, including its numbering."""
        each = self.tokens if self.record_tokens is None else self.record_tokens
        return min(self.tokens, each + RECORD_OVERHEAD_TOKENS)

    def hold(self, tokens: int, size: int) -> bool:
        """Whether a prompt may hold records that have so many tokens (`tokens_of`) and bytes
        (`bytes_of`) together."""
        return tokens <= self.tokens and (self.bytes is None or size <= self.bytes)

    def bytes_of(self, record: Record) -> int:
        """The bytes that the record adds to a prompt; 0 where no cap needs them, as counting takes
        time.
        """
        if self.bytes is None:
            return 0
        size = sum(map(utf8_bytes, record.inputs))
        return size + sum(len(media.data) for media in record.media) if record.media else size


def tokens_of(record: Record) -> int:
    """The tokens that the record adds to a prompt, including its numbering."""
    return record.tokens + RECORD_OVERHEAD_TOKENS


def utf8_bytes(text: str) -> int:
    """The text's size in UTF-8: also a bound that no tokenizer exceeds. Cheap enough to ask of
    everything."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
