"""One use of a chat model, compiled: records in, a request out; a reply in, answers by record out.
Pure: no I/O, no clock.

element ─ record() ─► Record ─ key() ─► its question's 16-byte name
records ─ render() ─► Request            the same records give the same bytes in every process
Completion ─ read() ─► Reading           what is certain, what is invalid, what is missing
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from beam_llm.caps import Caps
from beam_llm.config import Settings
from beam_llm.errors import PromptError, UsageError
from beam_llm.prompting.batching import caps_of
from beam_llm.prompting.media import FRAME_BYTES, media_of
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.prompt_text import PromptText
from beam_llm.prompting.reply_format import ReplyFormat
from beam_llm.prompting.reply_reader import ReplyReader
from beam_llm.prompting.reply_shape import reader_of, reply_kind, shape_of
from beam_llm.prompting.templates import (
    ELEMENT,
    BatchTemplate,
    RecordView,
    prompt_template,
    record_id_of,
)
from beam_llm.prompting.text import clean
from beam_llm.prompting.tokens import estimate_tokens
from beam_llm.protocols import MediaLimits, SchemaDialect
from beam_llm.values import (
    RECORD_KEY_BYTES,
    Completion,
    Media,
    Message,
    Reading,
    Record,
    Request,
    Schema,
)

FINGERPRINT_VERSION = 2
"""Changed only when the same settings need new answers: a change makes all known answers unknown.
"""


class ChatTask:
    """Compiled settings: what every step of a pipeline knows about its question. Built once per
    process; not pickled.

        task = providers.compile_task(settings(
            "openai:gpt-4.1-mini", prompt="Is it spam? {{ text }}", output=bool, batch_size=2
        ))
        records = [task.record({"text": text}, None) for text in ("Win a prize!", "See you at 8.")]
        request = task.render(records)      # one message, and the schema of {"1": bool, "2": bool}
        reading = task.read(2, Completion('{"1": true, "2": false}'))
        reading.values                      # {1: True, 2: False}

    A `protocols.Task`, which says what its attributes and methods are.

    Attributes:
      output: the compiled type of an answer.

    Args:
      enforced_schema: adapts a schema to the provider that enforces it; None where the provider
        enforces none.
      media_limits: which images the provider takes; None: none.

    Raises:
      UsageError: for an output, a template, a path or a parser that can't be used.
    """

    def __init__(
        self,
        settings: Settings,
        enforced_schema: SchemaDialect | None = None,
        media_limits: MediaLimits | None = None,
    ):
        self.settings = settings
        self.output = Output(settings.output)
        self._template = prompt_template(
            "{{ element }}" if settings.prompt is None else settings.prompt
        )
        source = settings.batch_prompt_template
        self._batch_template = BatchTemplate(source) if source is not None else None
        self._template_tokens = _template_tokens(self._batch_template)
        self._may_batch = settings.batch_size != 1
        self._media = media_of(settings, media_limits)
        self._kind = reply_kind(settings)
        self._extra = dict(settings.extra_body or {})
        self._enforced_schema = enforced_schema or _enforce_nothing
        self._build_reply_tools()
        self.fingerprint = _fingerprint(settings, self.output)
        self._hasher = hashlib.sha256(self.fingerprint)
        self._set_up_counting()
        is_plain = self.output.is_text or (self._kind == "json" and self.output.is_object)
        self.answers_plainly = self._is_single(1) and is_plain
        self.texts = len(self._template.names)
        self.sends_one_text = self._is_single(1) and self.texts == 1 and self._media is None

    def _build_reply_tools(self) -> None:
        settings, output, kind = self.settings, self.output, self._kind
        shape = shape_of(settings, output)
        # Called once, to decide whether a schema is sent beside the prompts, or words are put into
        # them.
        enforced_answer = self._enforced_schema(output.schema)
        reader = reader_of(settings, kind, shape, enforced_answer or output.schema)
        self._reply_format = ReplyFormat(
            settings, output, shape, reader, kind, self._template, self._enforced_schema,
            enforced_answer,
        )  # fmt: skip
        own = self._batch_template if self._may_batch else None
        self._text = PromptText(self._template, own, self._reply_format, self._media)
        self._reply_reader = ReplyReader(output, shape, reader, kind, log_data=settings.log_data)

    def _set_up_counting(self) -> None:
        self._record_tokens = self._reply_format.envelope_tokens if self._may_batch else 0
        single, several = self._reply_format.tokens(self._template.shared)
        self._single_tokens, self._batch_tokens = single, several
        self.shared_tokens = max(single, several) if self._may_batch else single
        has_only_a_field = (
            self._batch_template is None and self.settings.record_id is None and self._media is None
        )
        self._quick_field = self._template.only_field if has_only_a_field else None

    @property
    def answer_schema(self) -> Schema:
        """The schema of one answer, in no provider's dialect."""
        return self.output.schema

    def caps(self, window: int | None) -> Caps:
        """How much one prompt holds, by the model's window and the provider's limits on images.

        Raises:
          UsageError: where the prompt alone leaves no room for any record.
        """
        caps = caps_of(self.settings, self.shared_tokens, window)
        return caps if self._media is None else self._media.narrow_caps(caps)

    # Records: once per element

    def record(
        self, fields: Mapping[str, Any], element: Any, count: Callable[[str], int] = estimate_tokens
    ) -> Record:
        """The record of one element: what the model is asked about it.

        Args:
          fields: the element's fields by name; empty for a string.
          element: the complete element.
          count: tokens of a text, an upper estimate.

        Raises:
          PromptError: where the element does not fit the prompt.
        """
        name = self._quick_field
        if name is not None:
            # Most prompts show the text of one field. For them Jinja would take longer than all
            # the other work on a record.
            value = element if name == ELEMENT else fields.get(name)
            if type(value) is str:
                text = value if value.isascii() else clean(value)
                return Record((text,), count(text) + self._record_tokens)
        media, tokens = tuple[Media, ...](), self._record_tokens
        if self._media is not None:
            media = self._media.read(fields, element)
            tokens += self._media.tokens(media)
            fields, element = self._media.mask_images(fields, element)
        inputs = self._template.inputs(fields, element)
        tokens += sum(map(count, inputs))
        if self._batch_template is None:
            if not media:
                self._template.check_inputs(inputs, fields, element)
            record_id = record_id_of(self.settings.record_id, fields)
            return Record(inputs, tokens, None, record_id, media)
        needed = self._batch_template.needed_fields(fields)
        # Rendered for this record alone first, so that an error in the template ends only this
        # record.
        view = RecordView(1, self._template.fill(inputs), needed)
        rendered_tokens = (
            estimate_tokens(self._batch_template.render([view], "")) - self._template_tokens
        )
        return Record(
            inputs,
            max(tokens, rendered_tokens),
            needed,
            record_id_of(self.settings.record_id, fields),
        )

    def key(self, record: Record) -> bytes:
        """16 bytes that name the question: equal for equal content, in every process and at every
        batch size."""
        hasher = self._hasher.copy()
        if self._quick_field is not None and self._media is None:
            # The same as below, for a record that has nothing but one text.
            hasher.update(record.inputs[0].encode())
            return hasher.digest()[:RECORD_KEY_BYTES]
        parts = list(record.inputs)
        if record.fields is not None:
            parts += ["fields", orjson.dumps(record.fields, option=orjson.OPT_SORT_KEYS).decode()]
        if self.settings.independent and record.record_id is not None:
            parts += ["id", record.record_id]
        for media in record.media:
            parts += ["media", *media]
        # A single text needs no frame: whether there is one is the same for all records of a task.
        is_bare = len(parts) == 1 and self._media is None
        hasher.update(parts[0].encode() if is_bare else _frame_texts(parts))
        return hasher.digest()[:RECORD_KEY_BYTES]

    # Requests: once per prompt

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request about 1…n records; for one record, it is what a person would send.

        Args:
          enforced: whether this endpoint enforces schemas, as far as is known. If not, answers to
            several records are requested as a numbered array.
          note: a sentence to add where the same request was sent before and the reply was useless.

        Raises:
          PromptError: where a user's batch template fails on these records together.
        """
        count, reply_format = len(records), self._reply_format
        is_single = self._is_single(count)
        is_keyed = not is_single and enforced and reply_format.is_keyed(count)
        message = (
            self._text.message_about_one(records[0])
            if is_single
            else self._text.message_about_several(records, is_keyed)
        )
        if note:
            message = dataclasses.replace(message, content=f"{message.content}\n\n{note}")
        messages: tuple[Message, ...] = (message,)
        system = self.settings.system_prompt
        if system:
            messages = (Message("system", system, len(system)), *messages)
        schema = (
            reply_format.single_schema
            if is_single
            else reply_format.schema_of_several(count, is_keyed)
        )
        own = sum([record.tokens for record in records])
        return Request(
            model=self.settings.model_name,
            messages=messages,
            schema=schema,
            temperature=self.settings.temperature,
            max_output_tokens=reply_format.max_tokens(count, is_single),
            seed=self.settings.seed,
            # A copy: whoever changes one request's parameters must not change the next one's.
            extra=dict(self._extra),
            input_tokens=(self._single_tokens if is_single else self._batch_tokens) + own,
        )

    def size(self, request: Request) -> int:
        """Bytes of the request's texts, schema and further parameters, in the provider's form."""
        messages = [[message.role, message.content] for message in request.messages]
        schema = request.schema and (self._enforced_schema(request.schema) or request.schema)
        size = len(orjson.dumps([messages, schema, request.extra], default=str))
        for message in request.messages:
            for _, media in message.media:
                size += FRAME_BYTES + len(media.data) + len(media.uri)
        return size

    def _is_single(self, count: int) -> bool:
        """Whether a record is sent without an envelope."""
        if count != 1 or (self._batch_template is not None and self._may_batch):
            return False
        return self.output.is_text or self._kind in ("json", "custom")

    # Replies

    def read(self, count: int, completion: Completion) -> Reading:
        """The answers that the reply gives to the `count` records of its prompt. Never raises,
        whatever a model writes or a user's class does.
        """
        return self._reply_reader.read(count, completion, self._is_single(count))

    def plain_answer(self, text: str) -> bytes | None:
        """The answer to a single record, as JSON for `load`, where the reply ended well and holds
        nothing else. It equals the result of `read` and `stored`, and takes half the time.

        Returns:
          None for any other reply, good ones among them.
        """
        return self._reply_reader.plain_answer(text)

    def stored(self, reading: Reading, index: int) -> Any:
        """The answer as JSON from which `load` restores the same value, whatever validators its
        class has.
        """
        return self._reply_reader.stored(reading, index)

    def dump(self, value: Any) -> Any:
        """The JSON form of a typed value."""
        return self.output.dump(value)

    def load(self, data: Any) -> Any:
        """The typed value of a stored answer.

        Raises:
          ValueError: today's class does not accept it; with a short reason that does not contain
            the value.
        """
        return self.output.load(data)


def _enforce_nothing(schema: Schema) -> Schema | None:
    """For a provider that enforces no schema."""
    return None


def _template_tokens(template: BatchTemplate | None) -> int:
    """Estimated tokens of a batch template's own text, rendered without any record."""
    try:
        return estimate_tokens(template.render([], "")) if template is not None else 0
    except PromptError:
        return 0


def _frame_texts(texts: Sequence[str]) -> bytes:
    """The texts as bytes that keep them apart."""
    encoded = [text.encode() for text in texts]
    return b"".join([b"%d:%b" % (len(text), text) for text in encoded])


def _fingerprint(settings: Settings, output: Output) -> bytes:
    """sha256 over everything that shapes an answer, except the record, its batch and the limits of
    calls.

    It includes the neutral schema, so answers stay known when a provider's dialect changes.
    """
    # A user's parser is identified by its name, since its code has no stable form.
    parser: Any = settings.response_format
    shaping = {
        "version": FINGERPRINT_VERSION,
        "model": settings.model,
        "base_url": settings.base_url,
        "parameters": [
            settings.temperature,
            settings.max_output_tokens,
            settings.seed,
            dict(settings.extra_body or {}),
        ],
        "schema": None if output.is_text else output.schema,
        "system_prompt": settings.system_prompt,
        "prompt": settings.prompt,
        "batch_prompt_template": settings.batch_prompt_template,
        "response": [
            f"{parser.__module__}.{parser.__qualname__}" if callable(parser) else parser,
            settings.response_path,
            settings.response_index_field,
            settings.response_value_field,
        ],
        "fresh": settings.fresh,
    }
    # Only added where there are media, so that known answers without media stay known.
    if settings.media:
        shaping["media"] = list(settings.media)
    try:
        data = orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise UsageError(
            f"extra_body can't be sent as JSON ({error}); "
            "use strings, numbers, lists and dicts only"
        ) from None
    return hashlib.sha256(data).digest()
