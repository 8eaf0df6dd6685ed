"""One use of a model, compiled: records in, a request out; a completion in, answers by record out. Pure: no I/O, no clock.

element ─ record() ─► Record ─ key() ─► its question's 16-byte name
records ─ render() ─► Request            the same records give the same bytes in every process
Completion ─ read() ─► Reading           what is certain, what is invalid, what is missing
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import pydantic_core

from beam_llm.config import RESPONSE_FORMATS, Settings, load_dotted
from beam_llm.errors import Failure, Kind, PromptError, UsageError
from beam_llm.prompting import templates as prompts
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.readers import (
    TOO_DEEP,
    CustomReader,
    Found,
    Parser,
    Reader,
    Shape,
    Unusable,
    is_deep,
    list_indices,
    match,
    may_be_deep,
    same,
)
from beam_llm.prompting.readers.json_reader import JsonReader, unfenced, without_surrogates
from beam_llm.prompting.readers.text_readers import DelimitedReader, XmlReader
from beam_llm.prompting.readers.thoughts import may_hold_thoughts, without_thoughts
from beam_llm.prompting.reply_format import KEY_TOKENS, Asking
from beam_llm.prompting.tokens import estimate_tokens
from beam_llm.values import RECORD_KEY_BYTES, Completion, Finish, Message, Record, Request

FINGERPRINT_VERSION = 1
"""Changed only when the same settings must ask anew: every known answer becomes unknown by it."""

ENVELOPE_TOKENS = 8
"""What `Input 12: "…"` adds to a record's own text."""

REPLY_TOKENS = 12
"""What `{"index": 12, "value": …}, ` adds to an answer."""

SHOWN_CHARACTERS = 120
"""How much of a reply is shown in a message, with `log_data`."""
TO_SEE_IT = " (log_data=True, or --log-data, shows it)"


class Reading(NamedTuple):
    """What one reply says about the 1…n records of its prompt.

    Every index of 1…n is in `values`, in `failures` or in `missing`, exactly one of them; with `whole`, all are missing.

    Attributes:
      values: index → typed, validated value.
      failures: index → why its answer is none; `attempts` is 0, for the caller to fill.
      missing: indices that the reply does not answer with certainty, ascending.
      whole: why the reply gives nothing at all: unreadable, refused, truncated or empty; else None.
      warnings: words for counters, sorted: `repaired`, `wrapped`, `truncated`, `zero_based`, `shifted_index`, `unknown_index`,
        `duplicate_index`, `index_type`, `no_index`.
      raws: index → the JSON that the value was made of.
    """

    values: dict[int, Any]
    failures: dict[int, Failure]
    missing: tuple[int, ...]
    whole: Failure | None = None
    warnings: tuple[str, ...] = ()
    raws: Mapping[int, Any] = {}


class Task:
    """Settings, compiled. Built once per process; not pickled.

    Attributes:
      settings: as given.
      output: the compiled type of an answer.
      fingerprint: digest of all that shapes an answer, except the record.
      shared_tokens: estimated input tokens of a prompt without its records.
      answers_plainly: a reply to one record is what `plain_answer` takes.
      texts: how many texts of each record a prompt shows.
      sends_one_text: requests about one record differ in nothing but its one text, which stands in the prompt as it is.

    Raises:
      UsageError: for an output, a template, a path or a parser that can't be used.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.output = Output(settings.output)
        self._template = prompts.PromptTemplate("{{ element }}" if settings.prompt is None else settings.prompt)
        self._batch_template = prompts.BatchTemplate(settings.batch_prompt_template) if settings.batch_prompt_template is not None else None
        self._format = settings.response_format if settings.response_format in RESPONSE_FORMATS else "custom"
        self._shape = _shape(settings, self.output)
        self._reader, self._typed = self._reading_tools()
        self._asking = Asking(settings, self.output, self._shape, self._reader, self._format, self._template)
        self._batchless_tokens = _batchless_tokens(self._batch_template)
        self._extra = dict(settings.extra_body or {})
        self.fingerprint = _fingerprint(settings, self.output)
        self._hasher = hashlib.sha256(self.fingerprint)
        self._may_batch = settings.batch_size != 1
        envelope_tokens = ENVELOPE_TOKENS + 4 * (len(self._template.names) - 1) + (KEY_TOKENS if self._asking.keyed else 0)
        self._record_tokens = envelope_tokens if self._may_batch else 0
        self._quick_field = self._template.only_field if self._batch_template is None and settings.record_id is None else None
        self.answers_plainly = self._is_single(1) and (self.output.is_text or (self._format == "json" and self.output.is_object))
        self.texts = len(self._template.names)
        self.sends_one_text = self._is_single(1) and self.texts == 1
        self._single_tokens, self._batch_tokens = self._asking.tokens(self._template.shared)
        self.shared_tokens = max(self._single_tokens, self._batch_tokens) if self._may_batch else self._single_tokens

    def _reading_tools(self) -> tuple[Reader, Callable[[Any], tuple[Any, Any]]]:
        """The reader of replies, and what makes a typed value, and its JSON, of an answer as that reader gives it."""
        path, output = self.settings.response_path, self.output
        if self._format == "json":
            return JsonReader(self._shape, path), self._typed_json
        if self._format == "xml":
            return XmlReader(self._shape, path, output.schema), self._typed_xml
        if self._format == "delimited":
            return DelimitedReader(path), self._typed_line
        return CustomReader(_parser(self.settings.response_format)), self._typed_custom

    # Records

    def record(self, fields: Mapping[str, Any], element: Any, count: Callable[[str], int] = estimate_tokens) -> Record:
        """What one element asks.

        Args:
          fields: the element's fields by name; empty for a string.
          element: the whole of it.
          count: tokens of a text, from above.

        Raises:
          PromptError: where the element does not fit the prompt.
        """
        name = self._quick_field
        if name is not None:
            # Most prompts: one field's text. Jinja would take longer than all the rest of a record's way together.
            value = element if name == prompts.ELEMENT else fields.get(name)
            if type(value) is str:
                text = value if value.isascii() else prompts.clean(value)
                return Record((text,), count(text) + self._record_tokens)
        inputs = self._template.inputs(fields, element)
        tokens = sum(map(count, inputs)) + self._record_tokens
        if self._batch_template is None:
            return Record(inputs, tokens, None, self._record_id(fields))
        needed = self._batch_template.needed(fields)
        tokens = max(tokens, self._templated_tokens(self._batch_template, prompts.RecordView(1, self._template.fill(inputs), needed)))
        return Record(inputs, tokens, needed, self._record_id(fields))

    def _templated_tokens(self, template: prompts.BatchTemplate, view: prompts.RecordView) -> int:
        """What a record adds to a prompt that a batch template writes; tried out on it alone, so that its error stays its own."""
        return estimate_tokens(template.render([view], "")) - self._batchless_tokens

    def _record_id(self, fields: Mapping[str, Any]) -> str | None:
        name = self.settings.record_id
        if name is None:
            return None
        if name not in fields:
            raise PromptError(
                f"record_id names the field {name!r}, which this element does not have; it has {', '.join(map(repr, fields)) or 'none'}"
            )
        return prompts.clean(str(prompts.show(fields[name])))

    def key(self, record: Record) -> bytes:
        """16 bytes that name the question: equal for equal content, in every process and at every batch size."""
        hasher = self._hasher.copy()
        parts = list(record.inputs)
        if record.fields is not None:
            parts += ["fields", orjson.dumps(record.fields, option=orjson.OPT_SORT_KEYS).decode()]
        if self.settings.independent and record.record_id is not None:
            parts += ["id", record.record_id]
        # A text alone needs no frame; which of the two it is, is the same for all records of one task.
        hasher.update(parts[0].encode() if len(parts) == 1 else _framed(parts))
        return hasher.digest()[:RECORD_KEY_BYTES]

    # Requests

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request that asks about 1…n records; about one, what a person would send.

        Args:
          enforced: the provider holds replies to their schema. Where it does not, several records' answers are
            asked for as an array of numbered ones, which can be read when it is not quite as asked.
          note: a sentence to add, where the same was asked before and the reply was no good.

        Raises:
          PromptError: where a user's batch template fails on these records together.
        """
        count = len(records)
        is_single = self._is_single(count)
        keyed = not is_single and self._asking.keys_replies(count, enforced)
        text = self._single_text(records[0]) if is_single else self._batch_text(records, keyed)
        if note:
            text = f"{text}\n\n{note}"
        system = self.settings.system_prompt
        messages = (Message("user", text),) if not system else (Message("system", system), Message("user", text))
        return Request(
            model=self.settings.model_name,
            messages=messages,
            schema=self._asking.single_schema if is_single else self._asking.batch_schema(count, keyed),
            temperature=self.settings.temperature,
            max_output_tokens=self._max_output_tokens(count, is_single),
            seed=self.settings.seed,
            extra=dict(self._extra),
            input_tokens=(self._single_tokens if is_single else self._batch_tokens) + sum([record.tokens for record in records]),
        )

    def _is_single(self, count: int) -> bool:
        """Whether the record goes without an envelope."""
        if count != 1 or (self._batch_template is not None and self._may_batch):
            return False
        return self.output.is_text or self._format in ("json", "custom")

    def _single_text(self, record: Record) -> str:
        return self._template.fill(record.inputs) + self._asking.single_suffix

    def _batch_text(self, records: Sequence[Record], keyed: bool) -> str:
        if self._batch_template is not None and self._may_batch:
            return self._templated(records, self._asking.keyed_words if keyed else self._asking.reply_words)
        envelope = self._asking.envelope
        lines = [envelope(index, record.inputs) for index, record in enumerate(records, 1)]
        return self._asking.prefix(keyed) + "\n".join(lines)

    def _templated(self, records: Sequence[Record], words: str) -> str:
        template = self._batch_template
        assert template is not None
        views = [prompts.RecordView(index, self._template.fill(record.inputs), record.fields) for index, record in enumerate(records, 1)]
        text = template.render(views, words)
        return text if template.names_reply or not words else f"{text}\n\n{words}"

    def _max_output_tokens(self, count: int, is_single: bool) -> int | None:
        each = self.settings.max_output_tokens
        if each is None:
            return None
        if is_single and (self.output.is_text or self.output.is_object or self._format == "custom"):
            return each
        return count * (each + REPLY_TOKENS)

    # Replies

    def read(self, count: int, completion: Completion) -> Reading:
        """What the reply says about the `count` records of its prompt. Never raises, whatever a model writes or a user's class does."""
        try:
            return self._read(count, completion)
        except Exception as error:  # a guard: one reply's trouble is its records', whoever else waits for the caller
            return _nothing(count, Failure(Kind.UNREADABLE, f"the reply can't be read: {type(error).__name__}"))

    def _read(self, count: int, completion: Completion) -> Reading:
        whole = _no_reply(completion)
        if whole is not None:
            return _nothing(count, whole)
        text, is_cut = _usable(completion.text or ""), completion.finish is Finish.LENGTH
        if self._is_single(count) and self._format != "custom":
            return self._read_text(text, is_cut) if self.output.is_text else self._read_single(text, is_cut)
        return self._read_batch(text, count, is_cut)

    def plain_answer(self, text: str) -> bytes | None:
        """The answer to a single record, as JSON for `output.load`, where a reply that ended well is nothing but what was asked for.

        What `read` and `stored` give, in half the time.

        Returns:
          None for any other reply, good ones among them.
        """
        output = self.output
        if not text or text.isspace() or may_be_deep(text) or (output.is_text and may_hold_thoughts(text)):
            return None
        try:
            if output.is_text:
                return orjson.dumps(text)
            value = output.validate(orjson.loads(text))
        except Exception:  # a user's validator may raise anything; `read` says what
            return None
        return text.encode() if output.keeps_replies else orjson.dumps(value)

    def _read_text(self, text: str, is_cut: bool) -> Reading:
        text = without_thoughts(text)
        if is_cut or not text or text.isspace():
            return _nothing(1, _cut() if is_cut else _no_answer())
        return Reading({1: text}, {}, (), raws={1: text})

    def _read_batch(self, text: str, count: int, is_cut: bool) -> Reading:
        try:
            items, warnings = self._found(text, count, is_cut)
        except ValueError as error:
            return self._bare(text, count, is_cut) or _nothing(count, self._unreadable(f"the reply can't be read: {error}", text, is_cut))
        answers = match(items, count, warnings, is_cut)
        values, failures, raws = self._validated(answers)
        if is_cut and len(answers) < count:
            warnings.add("truncated")
        if not items and count == 1 and not is_cut:
            return _nothing(1, _no_answer(), warnings)
        if not answers:
            seen = f"{len(items)} answer{'s' if len(items) > 1 else ''}, none of them certain" if items else "no answer"
            whole = self._unreadable(f"asked for {list_indices(range(1, count + 1))}, the reply holds {seen}", text, is_cut)
            return _nothing(count, whole, warnings)
        missing = () if len(answers) == count else tuple([index for index in range(1, count + 1) if index not in answers])
        return Reading(values, failures, missing, None, tuple(sorted(warnings)), raws)

    def _found(self, text: str, count: int, is_cut: bool) -> Found:
        if self._format == "custom":
            text = without_thoughts(text)
        return self._reader.find(text, count, is_cut)

    def _bare(self, text: str, count: int, is_cut: bool) -> Reading | None:
        """The answer to a single record without anything around it; of free text it can't be told whether it is one."""
        if count != 1 or is_cut or self._format == "custom" or self.output.is_text or may_be_deep(text):
            return None
        try:
            value, raw = self.output.spelled(unfenced(without_thoughts(text)))
        except Exception:  # a user's validator may raise anything
            return None
        return Reading({1: value}, {}, (), None, ("no_index",), {1: raw})

    def _validated(self, answers: Mapping[int, Any]) -> tuple[dict[int, Any], dict[int, Failure], Mapping[int, Any]]:
        """Values, failures and the values' JSON, by index."""
        values: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        raws: dict[int, Any] = {}
        is_json, validate, typed = self._format == "json", self.output.validate, self._typed
        for index, answer in answers.items():
            try:
                if type(answer) is Unusable:
                    failures[index] = Failure(Kind.INVALID, f"answer {index} is not a value of output: {answer.reason}")
                elif is_json:
                    values[index] = validate(answer)
                elif type(answer) is str and may_be_deep(answer) and not self.output.is_text:
                    failures[index] = self._invalid(f"answer {index} is not a value of output: {TOO_DEEP.reason}", answer)
                else:
                    values[index], raws[index] = typed(answer)
            except Exception as error:  # a user's validator may raise anything
                failures[index] = self._invalid(f"answer {index} is not a value of output: {_reason(error)}", answer)
        return values, failures, answers if is_json else raws

    def stored(self, reading: Reading, index: int) -> Any:
        """The answer in the form of which `output.load` makes the same value again, whatever validators the output's class has."""
        if self.output.keeps_replies:
            raw = reading.raws[index]
            try:
                orjson.dumps(raw)
                return raw
            except TypeError:  # a custom parser may give what is no JSON
                pass
        return self.output.dump(reading.values[index])

    def _read_single(self, text: str, is_cut: bool) -> Reading:
        """One answer without an envelope: JSON as asked for, JSON with noise around it, or the bare value.

        Two different answers in one reply are none: one may be a draft, or an example.
        """
        assert isinstance(self._reader, JsonReader)
        found: Reading | None = None
        invalid: Failure | None = None
        is_blank = False
        for value, warning in self._reader.values(text, is_cut):
            is_blank = is_blank or (_is_blank(value) and not is_cut)
            try:
                typed, raw = self._unwrapped(value, text)
            except LookupError:
                continue
            except Exception as error:  # a user's validator may raise anything
                invalid = invalid or self._invalid(f"the answer is not a value of output: {_reason(error)}", value)
                continue
            if found is None:
                found = Reading({1: typed}, {}, (), None, (warning,) if warning else (), {1: raw})
            elif not same(found.raws[1], raw):
                return _nothing(1, self._unreadable("the reply holds two different answers", text, is_cut))
        if found is not None:
            return found
        if bare := self._bare(text, 1, is_cut):
            return bare._replace(warnings=("wrapped",))
        if is_blank:
            return _nothing(1, _no_answer())
        if invalid is not None:
            return Reading({}, {1: invalid}, ())
        return _nothing(1, self._unreadable("the reply can't be read: there is no value of output in it", text, is_cut))

    def _unwrapped(self, value: Any, text: str) -> tuple[Any, Any]:
        """The typed answer, and its JSON, inside a JSON value that may be the answer, or an object or an envelope around it.

        Raises:
          ValueError: it is there, and no value of output.
          LookupError: it is not there.
        """
        refused: ValueError | None = None
        if may_be_deep(text) and is_deep(value):
            raise ValueError(TOO_DEEP.reason)
        # A list of objects that have an index of their own looks like an envelope: what stands where it was asked for goes before.
        is_wrapped = not self.output.is_object and type(value) is dict and value.keys() == {self._shape.value_field}
        if type(value) is not dict or self.output.is_object or is_wrapped:
            answer = value[self._shape.value_field] if is_wrapped else value
            try:
                return self.output.validate(answer), answer
            except ValueError as error:
                refused = error
        assert isinstance(self._reader, JsonReader)
        items = self._reader.items(value, 1)
        answers = match(items, 1, set())
        if answers:
            return self.output.validate(answers[1]), answers[1]
        if refused is not None and (is_wrapped or (items and all(index is None for index, _ in items))):
            raise refused
        raise LookupError("no certain answer")

    def _typed_json(self, answer: Any) -> tuple[Any, Any]:
        return self.output.validate(answer), answer

    def _typed_xml(self, answer: Any) -> tuple[Any, Any]:
        return self.output.spelled(answer.strip()) if isinstance(answer, str) else self._typed_json(answer)

    def _typed_line(self, answer: str) -> tuple[Any, Any]:
        try:
            return self.output.spelled(answer)
        except ValueError:
            # A remark in the lines below; a number or a label is on the first.
            return self.output.spelled(answer.strip().partition("\n")[0])

    def _typed_custom(self, answer: Any) -> tuple[Any, Any]:
        answer = without_surrogates(answer)
        try:
            typed, raw = self._typed_json(answer)
        except ValueError:
            if not isinstance(answer, str):
                raise
            typed, raw = self.output.spelled(answer)
        try:
            orjson.dumps(raw)
        except TypeError:  # what can't be written has to be found here, at its record
            raw = _plain_or(raw, lambda: self.output.dump(typed))
        return typed, raw

    # Failures

    def _unreadable(self, message: str, text: str, is_cut: bool) -> Failure:
        if is_cut:
            return _cut()
        if not without_thoughts(text).strip():
            return _no_answer()
        return Failure(Kind.UNREADABLE, message + (self._datum(text) or TO_SEE_IT))

    def _invalid(self, message: str, answer: Any) -> Failure:
        return Failure(Kind.INVALID, message + self._datum(answer))

    def _datum(self, value: Any) -> str:
        """The reply's own words, only where the user allows them in messages."""
        if not self.settings.log_data:
            return ""
        shown = repr(value)
        return f": {shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + '…'}"


def _batchless_tokens(template: prompts.BatchTemplate | None) -> int:
    """Estimated tokens of a batch template's own text: what it writes about no record at all."""
    try:
        return estimate_tokens(template.render([], "")) if template is not None else 0
    except PromptError:
        return 0


def _plain_or(raw: Any, otherwise: Callable[[], Any]) -> Any:
    """What a user's parser gave, as JSON: bytes become text, sets lists; else what its class writes."""
    try:
        return pydantic_core.to_jsonable_python(raw)
    except Exception:  # whatever a user's object does
        return otherwise()


def _no_reply(completion: Completion) -> Failure | None:
    finish = completion.finish
    if completion.refusal or finish is Finish.REFUSED:
        return Failure(Kind.REFUSED, "the model refused to answer")
    if finish is Finish.FILTERED:
        return Failure(Kind.REFUSED, "the provider's content filter stopped the reply")
    if finish is Finish.FAILED:
        word = f" ({completion.finish_reason[:40]!r})" if completion.finish_reason else ""
        return Failure(Kind.UNREADABLE, f"the provider says that the reply failed{word}; what there is of it is not an answer")
    if not completion.text or completion.text.isspace():
        return _cut() if finish is Finish.LENGTH else _no_answer()
    return None


def _usable(text: str) -> str:
    """The text without lone surrogates, which nothing that keeps or sends it can take."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return str(without_surrogates(text))


def _no_answer() -> Failure:
    return Failure(Kind.MISSING, "the reply is empty, or holds no answer at all")


def _reason(error: Exception) -> str:
    """What may be said of a value that was refused: a reason of ours, or no more than the name of a user's exception."""
    return str(error) if isinstance(error, ValueError) else f"its class raised {type(error).__name__}"


def _is_blank(value: Any) -> bool:
    """`null`, `{}`, `[]`, `{"answers": []}`: JSON with nothing in it."""
    if isinstance(value, dict):
        value = list(value.values())
    return value is None or (isinstance(value, list) and all(map(_is_blank, value)))


def _cut() -> Failure:
    return Failure(Kind.TRUNCATED, "the reply ended at its token limit before an answer was complete; raise max_output_tokens")


def _nothing(count: int, whole: Failure, warnings: set[str] | None = None) -> Reading:
    return Reading({}, {}, tuple(range(1, count + 1)), whole, tuple(sorted(warnings or ())))


def _shape(settings: Settings, output: Output) -> Shape:
    index_field, value_field = settings.response_index_field, settings.response_value_field or "value"
    if index_field == value_field:
        raise UsageError(f"response_value_field is {value_field!r}, like response_index_field: an answer needs a field of its own")
    is_flat = settings.response_value_field is None and index_field not in output.properties
    if settings.response_format == "xml":
        # Fields become elements, which not every name can be; JSON inside the answer then.
        is_flat = is_flat and all(re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII) for name in output.properties)
    return Shape(index_field, value_field, output.properties if is_flat else (), output.is_object)


def _parser(declared: Any) -> Parser:
    parser: Parser = declared if callable(declared) else load_dotted("response_format", declared)
    return parser


def _framed(texts: Sequence[str]) -> bytes:
    """The texts as bytes from which they can be told apart."""
    encoded = [text.encode() for text in texts]
    return b"".join([b"%d:%b" % (len(text), text) for text in encoded])


def _fingerprint(settings: Settings, output: Output) -> bytes:
    """sha256 over all that shapes an answer except the record, its batch and the limits of calls."""
    parser: Any = settings.response_format
    shaping = {
        "version": FINGERPRINT_VERSION,
        "model": settings.model,
        "base_url": settings.base_url,
        "parameters": [settings.temperature, settings.max_output_tokens, settings.seed, dict(settings.extra_body or {})],
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
    try:
        return hashlib.sha256(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).digest()
    except TypeError as error:
        raise UsageError(f"extra_body can't be sent as JSON ({error}); use strings, numbers, lists and dicts only") from None
