"""The text of a prompt: the user message about 1…n records."""

from __future__ import annotations

from collections.abc import Sequence

from beam_llm.prompting.media import MediaFields
from beam_llm.prompting.reply_format import ReplyFormat
from beam_llm.prompting.templates import BatchTemplate, PromptTemplate, RecordView
from beam_llm.values import Message, Record


class PromptText:
    """The messages of one question, with the places of images in them.

    Args:
      batch_template: the user's template for several records; where it is None, each record is put
        into an envelope, after the words on how to reply.
      media: the fields that hold images; None where there are none.
    """

    def __init__(
        self,
        template: PromptTemplate,
        batch_template: BatchTemplate | None,
        reply_format: ReplyFormat,
        media: MediaFields | None,
    ):
        self._template, self._batch_template = template, batch_template
        self._reply_format, self._media = reply_format, media

    def message_about_one(self, record: Record) -> Message:
        """The message about one record, as a person would send it."""
        text, suffix = self._template.fill(record.inputs), self._reply_format.single_suffix
        if self._media is None:
            return Message("user", text + suffix, self._template.lead)
        text, places = self._media.place_after_text(text, record, suffix)
        return Message("user", text, self._template.lead, places)

    def message_about_several(self, records: Sequence[Record], is_keyed: bool) -> Message:
        """The message about 1…n records, each in an envelope with its number.

        Raises:
          PromptError: where a user's batch template fails on these records together.
        """
        if self._batch_template is not None:
            # With a user's template it isn't known how much of the text comes before the first
            # record.
            return Message("user", self._render_template(self._batch_template, records, is_keyed))
        prefix, envelope = self._reply_format.prefix(is_keyed), self._reply_format.envelope
        lines = [envelope(index, record.inputs) for index, record in enumerate(records, 1)]
        if self._media is None:
            return Message("user", prefix + "\n".join(lines), len(prefix))
        text, places = self._media.place_after_lines(prefix, lines, records)
        return Message("user", text, len(prefix), places)

    def _render_template(
        self, batch_template: BatchTemplate, records: Sequence[Record], is_keyed: bool
    ) -> str:
        fill, reply_format = self._template.fill, self._reply_format
        views = [
            RecordView(index, fill(record.inputs), record.fields)
            for index, record in enumerate(records, 1)
        ]
        words = reply_format.keyed_words if is_keyed else reply_format.array_words
        text = batch_template.render(views, words)
        return text if batch_template.names_reply or not words else f"{text}\n\n{words}"
