"""What a prompt says: the user message about 1…n records."""

from __future__ import annotations

from collections.abc import Sequence

from beam_llm.prompting.media import MediaFields
from beam_llm.prompting.reply_format import ReplyFormat
from beam_llm.prompting.templates import BatchTemplate, PromptTemplate, RecordView
from beam_llm.values import Message, Record


class PromptText:
    """The messages of one question, and where the images stand in them.

    Args:
      own: the user's template for several records; None: they stand in an envelope, behind the
        words on how to reply.
      media: the fields that hold images; None where there are none.
    """

    def __init__(
        self,
        template: PromptTemplate,
        own: BatchTemplate | None,
        reply_format: ReplyFormat,
        media: MediaFields | None,
    ):
        self._template, self._own = template, own
        self._reply_format, self._media = reply_format, media

    def of_one(self, record: Record) -> Message:
        """About one record: what a person would send."""
        text, suffix = self._template.fill(record.inputs), self._reply_format.single_suffix
        if self._media is None:
            return Message("user", text + suffix, self._template.lead)
        text, places = self._media.behind_one(text, record, suffix)
        return Message("user", text, self._template.lead, places)

    def of_several(self, records: Sequence[Record], is_keyed: bool) -> Message:
        """About 1…n records, each in an envelope with its number.

        Raises:
          PromptError: where a user's batch template fails on these records together.
        """
        if self._own is not None:
            # How much of it comes before the first record, is known of no template of the user's.
            return Message("user", self._templated(self._own, records, is_keyed))
        prefix, envelope = self._reply_format.prefix(is_keyed), self._reply_format.envelope
        lines = [envelope(index, record.inputs) for index, record in enumerate(records, 1)]
        if self._media is None:
            return Message("user", prefix + "\n".join(lines), len(prefix))
        text, places = self._media.behind_each(prefix, lines, records)
        return Message("user", text, len(prefix), places)

    def _templated(self, own: BatchTemplate, records: Sequence[Record], is_keyed: bool) -> str:
        fill, reply_format = self._template.fill, self._reply_format
        views = [
            RecordView(index, fill(record.inputs), record.fields)
            for index, record in enumerate(records, 1)
        ]
        words = reply_format.keyed_words if is_keyed else reply_format.array_words
        text = own.render(views, words)
        return text if own.names_reply or not words else f"{text}\n\n{words}"
