"""When a prompt is full, by records, tokens and bytes. Plain Python over any stream of records; the
transforms decide how long to wait.

records ─ add ─► [ still open ] ─ full, or a cap would be exceeded ─► closed prompt batches
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from beam_llm.caps import RECORD_OVERHEAD_TOKENS, Caps, tokens_of
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, UsageError
from beam_llm.pricing import window_of
from beam_llm.prompting.tokens import count_tokens
from beam_llm.protocols import Task
from beam_llm.values import Record

AUTO_RECORDS = 100
"""Most records in one prompt with `batch_size="auto"`. Windows would take thousands, but long lists
cost accuracy: answers depend on the place in the list (BatchPrompt, ICLR 2024: naive packing
degrades from a few dozen on). A number in `batch_size` is not bounded."""

UNKNOWN_WINDOW = 128_000
"""The window of a model that no table has. If it is too high, a prompt is refused and split; if it
were too low, good records would be refused without a call."""

ANSWER_SHARE = 3
"""Without `max_output_tokens`, a third of the window is left for the answer. Published models with
a common window reserve about as much (gpt-5: 128,000 of 400,000), and it suffices for answers as
long as their records."""

T = TypeVar("T")


def common_count(count: int) -> int:
    """The largest of certain counts that is at most `count`: 1…16, then multiples of 4, of 16, of
    64.

    A provider compiles every schema it has not seen, which costs the first call some seconds, and
    the schema of a keyed reply depends on how many records it answers. So a prompt that is full by
    its tokens or bytes is closed at one of these counts; the few records above it go into the next
    prompt.
    """
    for most, step in ((16, 1), (64, 4), (256, 16)):
        if count <= most:
            return count - count % step
    return count - count % 64


def prompt_ends(
    token_sums: Sequence[int], byte_sums: Sequence[int] | None, caps: Caps
) -> list[int]:
    """Where the prompts of a sequence of records end. They are cut as by a `Batcher`, except that
    no text is counted again.

    Records are given by their running sums, so that each prompt takes one search, not a step per
    record.

    Args:
      token_sums: running sums of `tokens_of` the records.
      byte_sums: running sums of their bytes; None where no cap needs them.
    """
    ends, start, tokens_before, bytes_before = [], 0, 0, 0
    while start < len(token_sums):
        end = most = min(start + caps.records, len(token_sums))
        if token_sums[end - 1] - tokens_before > caps.tokens:
            end = bisect_right(token_sums, tokens_before + caps.tokens, start, end)
        if (
            byte_sums is not None
            and caps.bytes is not None
            and end > start
            and byte_sums[end - 1] - bytes_before > caps.bytes
        ):
            end = bisect_right(byte_sums, bytes_before + caps.bytes, start, end)
        if end < most:
            # At least one: a record that exceeds a cap on its own gets a prompt of its own.
            end = start + common_count(max(end - start, 1))
        ends.append(end)
        start, tokens_before = end, token_sums[end - 1]
        bytes_before = 0 if byte_sums is None else byte_sums[end - 1]
    return ends


def prompt_caps(settings: Settings, task: Task) -> Caps:
    """The caps of a task's prompts, with the model's window as the price table has it.

    Raises:
      UsageError: where the prompt alone leaves no room for any record.
    """
    return task.caps(window_of(settings))


def caps_of(settings: Settings, shared_tokens: int, window: int | None) -> Caps:
    """The caps that follow from the settings and the model's window.

    Args:
      shared_tokens: input tokens of the prompt without records (instruction, schema, system
        prompt).
      window: tokens of the model's context window; None where it is unknown.

    Raises:
      UsageError: where the prompt alone leaves no room for any record.
    """
    window = settings.context_window or window or UNKNOWN_WINDOW
    records = AUTO_RECORDS if settings.batch_size == "auto" else settings.batch_size
    if settings.batch_size == "auto" and settings.max_output_tokens:
        records = max(1, min(records, window // ANSWER_SHARE // settings.max_output_tokens))
    limit = settings.max_input_tokens or window - _answer_room(settings, records, window)
    if limit - shared_tokens <= RECORD_OVERHEAD_TOKENS:
        source = (
            "max_input_tokens"
            if settings.max_input_tokens
            else f"the model's window of {window:,} less its answer"
        )
        raise UsageError(
            f"the prompt without any record has about {shared_tokens:,} tokens, "
            f"and {source} allows {limit:,}: "
            "shorten prompt or schema, or raise max_input_tokens or context_window"
        )
    return Caps(records, limit - shared_tokens, settings.batch_max_bytes)


def _answer_room(settings: Settings, records: int, window: int) -> int:
    """Tokens kept free for the reply; never more than half the window, so that a large
    `max_output_tokens` still leaves a prompt."""
    wanted = (
        settings.max_output_tokens * records
        if settings.max_output_tokens
        else window // ANSWER_SHARE
    )
    return min(wanted, window // 2)


class Batcher(Generic[T]):
    """Fills prompts greedily and in order, never beyond a cap. One per bundle or buffer; has at
    most one open prompt.

    It adds up the records' own token counts, which are upper estimates, until these exceed the cap.
    Only then are the open prompt's texts counted (exactly, where the extra `tokens` is installed),
    and the prompt is filled up to the real limit.

    Args:
      model: the plain model name, whose vocabulary is used to count exactly.
      count: counts a text, given the model name.
    """

    __slots__ = (
        "_bytes",
        "_caps",
        "_count_text",
        "_exact",
        "_members",
        "_model",
        "_most_of_record",
        "_tokens",
    )

    def __init__(
        self, caps: Caps, model: str = "", count: Callable[[str, str], int] = count_tokens
    ):
        self._caps = caps
        self._most_of_record = caps.most_of_record
        self._model = model
        self._count_text = count
        self._members: list[tuple[Record, T]] = []
        self._tokens = 0
        self._bytes = 0
        self._exact = False

    def add(self, record: Record, payload: T) -> list[list[tuple[Record, T]]]:
        """Adds a record, and returns the prompt batches that are full now, in order: usually none
        or one.
        """
        closed = []
        caps = self._caps
        size = caps.bytes_of(record)
        tokens = record.tokens + RECORD_OVERHEAD_TOKENS
        # An exact sum stays exact: whatever joins the open prompt is then counted exactly, too.
        if self._tokens + tokens > caps.tokens or self._exact:
            tokens = self._exact_tokens(record)
        # Perhaps twice: records above a common count stay open, and may leave no room either.
        while self._members and not caps.hold(self._tokens + tokens, self._bytes + size):
            closed.append(self._close_at_common_count())
        self._tokens += tokens
        self._bytes += size
        self._members.append((record, payload))
        if len(self._members) >= caps.records:
            closed.append(self._close())
        return closed

    def flush(self) -> list[list[tuple[Record, T]]]:
        """The prompt that is still open, if it holds anything."""
        return [self._close()] if self._members else []

    def is_too_large(self, record: Record) -> bool:
        """Whether the record alone exceeds a cap, so that no prompt can hold it."""
        most = self._most_of_record
        # Written out for speed, as in `add`: it runs once per record.
        if record.tokens + RECORD_OVERHEAD_TOKENS > most and self._count(record) > most:
            return True
        return self._caps.bytes is not None and self._caps.bytes_of(record) > self._caps.bytes

    def too_large_failure(self, record: Record) -> Failure:
        """Says how large the record is, what would fit, and what to do."""
        size = self._caps.bytes_of(record)
        if self._caps.bytes is not None and size > self._caps.bytes:
            whose = "the provider, or batch_max_bytes," if record.media else "batch_max_bytes"
            return Failure(
                Kind.TOO_LARGE,
                f"the record has {size:,} bytes; {whose} allows {self._caps.bytes:,}",
            )
        return Failure(
            Kind.TOO_LARGE,
            f"the record has about {self._count(record):,} tokens; "
            f"beside the rest of the prompt {self._most_of_record:,} fit. "
            "Shorten the text, or raise max_input_tokens or context_window",
        )

    def _exact_tokens(self, record: Record) -> int:
        """The record's tokens, counted exactly where possible. The first time, the open prompt's
        are counted as well."""
        if not self._exact:
            self._tokens = sum(self._count(member) for member, _ in self._members)
            self._exact = True
        return self._count(record)

    def _count(self, record: Record) -> int:
        """The record's tokens as exactly as possible, and never more than `record.tokens`."""
        # A batch template writes more than the inputs, and images have tokens, too.
        if record.fields is not None or record.media:
            return tokens_of(record)
        return (
            min(record.tokens, sum(self._count_text(text, self._model) for text in record.inputs))
            + RECORD_OVERHEAD_TOKENS
        )

    def _close_at_common_count(self) -> list[tuple[Record, T]]:
        """Closes the open prompt at a common count; the records above it stay open."""
        kept = common_count(len(self._members))
        above = self._members[kept:]
        closed = self._close()[:kept]
        self._members = above
        # The rest is added up by `_count`, so that the sum stays exact.
        self._exact = bool(above)
        self._tokens = sum(self._count(record) for record, _ in above)
        self._bytes = sum(self._caps.bytes_of(record) for record, _ in above)
        return closed

    def _close(self) -> list[tuple[Record, T]]:
        members = self._members
        self._members = []
        self._tokens = self._bytes = 0
        self._exact = False
        return members
