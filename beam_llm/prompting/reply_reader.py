"""Reads replies: which records have a certain answer, what it is, and why the others have none.

Completion ─ ended well? ─ a reader's (index, answer) pairs ─ match ─ validate ─► Reading
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from beam_llm.errors import Failure, Kind, list_indices
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.readers import Found, Reader, Shape
from beam_llm.prompting.readers.depth import TOO_DEEP, Unusable, is_deep, may_be_deep
from beam_llm.prompting.readers.doubles import contradicts_itself
from beam_llm.prompting.readers.json_reader import JsonReader
from beam_llm.prompting.readers.json_text import without_fence
from beam_llm.prompting.readers.matching import is_same_json, match
from beam_llm.prompting.readers.thoughts import may_hold_thoughts, without_thoughts
from beam_llm.prompting.text import clean
from beam_llm.prompting.typed_answers import typed_json, typing_function
from beam_llm.values import Completion, Finish, Reading

SHOWN_CHARACTERS = 120
"""How much of a reply is shown in a message, with `log_data`."""
TO_SEE_IT = " (log_data=True, or --log-data, shows it)"


class ReplyReader:
    """Reads one task's replies.

    Args:
      output: the type of an answer.
      shape: where an answer is in a reply.
      reader: reads the reply's format.
      kind: of the reply: `json`, `xml`, `delimited` or `custom`.
      log_data: whether messages may quote a reply.
    """

    def __init__(self, output: Output, shape: Shape, reader: Reader, kind: str, *, log_data: bool):
        self._output, self._shape, self._reader, self._log_data = output, shape, reader, log_data
        self._is_json, self._is_custom = kind == "json", kind == "custom"
        self._typed = typing_function(output, kind)

    def read(self, count: int, completion: Completion, is_single: bool) -> Reading:
        """The answers that the reply gives to the `count` records of its prompt. Never raises.

        Args:
          is_single: the one record was sent without an envelope, so its answer may come without
            one.
        """
        try:
            return self._read(count, completion, is_single)
        except Exception as error:
            # An error in one reply must affect only its own records.
            failure = Failure(Kind.UNREADABLE, f"the reply can't be read: {type(error).__name__}")
            return _no_values(failure)

    def _read(self, count: int, completion: Completion, is_single: bool) -> Reading:
        failure = _failure_by_finish(completion)
        if failure is not None:
            return _no_values(failure)
        text, is_cut = clean(completion.text or ""), completion.finish is Finish.LENGTH
        if is_single and not self._is_custom:
            return (
                self._read_text(text, is_cut)
                if self._output.is_text
                else self._read_single(text, is_cut)
            )
        return self._read_several(text, count, is_cut)

    def plain_answer(self, text: str) -> bytes | None:
        """See `ChatTask.plain_answer`."""
        output = self._output
        if (
            not text
            or text.isspace()
            or may_be_deep(text)
            or (output.is_text and may_hold_thoughts(text))
        ):
            return None
        try:
            if output.is_text:
                return orjson.dumps(text)
            raw = orjson.loads(text)
            if contradicts_itself(text, raw):
                return None
            value = output.validate(raw)
        except Exception:  # a user's validator may raise anything; `read` reports it
            return None
        return text.encode() if output.keeps_replies else orjson.dumps(value)

    def _read_text(self, text: str, is_cut: bool) -> Reading:
        text = without_thoughts(text)
        if is_cut or not text or text.isspace():
            return _no_values(_cut_failure() if is_cut else _no_answer_failure())
        return Reading({1: text}, {}, raws={1: text})

    def _read_several(self, text: str, count: int, is_cut: bool) -> Reading:
        try:
            items, warnings = self._find_answers(text, count, is_cut)
        except ValueError as error:
            return self._read_bare(text, count, is_cut) or _no_values(
                self._unreadable_failure(f"the reply can't be read: {error}", text, is_cut)
            )
        answers = match(items, count, warnings, is_cut)
        values, failures, raws = self._validate_answers(answers)
        if is_cut and len(answers) < count:
            warnings.add("truncated")
        if not items and count == 1 and not is_cut:
            return _no_values(_no_answer_failure(), warnings)
        if not answers:
            seen = (
                f"{len(items)} answer{'s' if len(items) > 1 else ''}, none of them certain"
                if items
                else "no answer"
            )
            failure = self._unreadable_failure(
                f"asked for {list_indices(range(1, count + 1))}, the reply holds {seen}",
                text,
                is_cut,
            )
            return _no_values(failure, warnings)
        return Reading(values, failures, None, tuple(sorted(warnings)), raws)

    def _find_answers(self, text: str, count: int, is_cut: bool) -> Found:
        # The other readers remove thoughts themselves, each as its format allows.
        if self._is_custom:
            text = without_thoughts(text)
        return self._reader.find(text, count, is_cut)

    def _read_bare(self, text: str, count: int, is_cut: bool) -> Reading | None:
        """The answer to a single record, without anything around it. Not for free text, which might
        not be an answer."""
        if count != 1 or is_cut or self._is_custom or self._output.is_text or may_be_deep(text):
            return None
        try:
            value, raw = self._output.parse_text(without_fence(without_thoughts(text)))
        except Exception:  # a user's validator may raise anything
            return None
        return Reading({1: value}, {}, None, ("no_index",), {1: raw})

    def _validate_answers(
        self, answers: dict[int, Any]
    ) -> tuple[dict[int, Any], dict[int, Failure], Mapping[int, Any]]:
        """Values, failures and the values' JSON, by index."""
        values: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        raws: dict[int, Any] = {}
        is_json, typed_parts, typed = self._is_json, self._output.read_value, self._typed
        for index, answer in answers.items():
            try:
                if type(answer) is Unusable:
                    failures[index] = Failure(
                        Kind.INVALID, f"answer {index} is not a value of output: {answer.reason}"
                    )
                elif is_json and type(answer) is str:
                    values[index], answers[index] = typed(answer)
                elif is_json:
                    values[index], answers[index] = typed_parts(answer)
                elif type(answer) is str and may_be_deep(answer) and not self._output.is_text:
                    failures[index] = self._invalid_failure(
                        f"answer {index} is not a value of output: {TOO_DEEP.reason}", answer
                    )
                else:
                    values[index], raws[index] = typed(answer)
            except Exception as error:  # a user's validator may raise anything
                failures[index] = self._invalid_failure(
                    f"answer {index} is not a value of output: {_refusal_reason(error)}", answer
                )
        return values, failures, answers if is_json else raws

    def stored(self, reading: Reading, index: int) -> Any:
        """See `ChatTask.stored`."""
        if self._output.keeps_replies:
            raw = reading.raws[index]
            try:
                orjson.dumps(raw)
                return raw
            except TypeError:  # a custom parser may return something that is not JSON
                pass
        return self._output.dump(reading.values[index])

    def _read_single(self, text: str, is_cut: bool) -> Reading:
        """Reads one answer without an envelope: JSON as requested, JSON with noise around it, or
        the bare value.

        Two different answers in one reply are as good as none: one may be a draft or an example.
        """
        assert isinstance(self._reader, JsonReader)
        found: Reading | None = None
        invalid: Failure | None = None
        is_blank = False
        for value, warning in self._reader.values(text, is_cut):
            is_blank = is_blank or (_is_blank(value) and not is_cut)
            try:
                typed, raw = self._unwrap(value, text)
            except LookupError:
                continue
            except Exception as error:  # a user's validator may raise anything
                invalid = invalid or self._invalid_failure(
                    f"the answer is not a value of output: {_refusal_reason(error)}", value
                )
                continue
            if found is None:
                found = Reading({1: typed}, {}, None, (warning,) if warning else (), {1: raw})
            elif not is_same_json(found.raws[1], raw):
                return _no_values(
                    self._unreadable_failure("the reply holds two different answers", text, is_cut)
                )
        if found is not None:
            return found
        if bare := self._read_bare(text, 1, is_cut):
            return bare._replace(warnings=("wrapped",))
        if is_blank:
            return _no_values(_no_answer_failure())
        if invalid is not None:
            return Reading({}, {1: invalid})
        return _no_values(
            self._unreadable_failure(
                "the reply can't be read: there is no value of output in it", text, is_cut
            )
        )

    def _unwrap(self, value: Any, text: str) -> tuple[Any, Any]:
        """The typed answer, and its JSON, from a JSON value that is the answer itself, or an object
        or an envelope around it.

        Raises:
          ValueError: there is an answer, but it is not a value of output.
          LookupError: there is no answer.
        """
        refused: ValueError | None = None
        if type(value) is Unusable:
            raise ValueError(value.reason)
        if may_be_deep(text) and is_deep(value):
            raise ValueError(TOO_DEEP.reason)
        # A list of objects with an index of their own looks like an envelope, so a value in the
        # requested place takes precedence.
        is_wrapped = (
            not self._output.is_object
            and type(value) is dict
            and value.keys() == {self._shape.value_field}
        )
        if type(value) is not dict or self._output.may_be_object or is_wrapped:
            answer = value[self._shape.value_field] if is_wrapped else value
            try:
                return typed_json(self._output, answer)
            except ValueError as error:
                refused = error
        assert isinstance(self._reader, JsonReader)
        items = self._reader.items(value, 1)
        answers = match(items, 1, set())
        if answers:
            return typed_json(self._output, answers[1])
        if refused is not None and (
            is_wrapped or (items and all(index is None for index, _ in items))
        ):
            raise refused
        raise LookupError("no certain answer")

    def _unreadable_failure(self, message: str, text: str, is_cut: bool) -> Failure:
        if is_cut:
            return _cut_failure()
        if not without_thoughts(text).strip():
            return _no_answer_failure()
        return Failure(Kind.UNREADABLE, message + (self._shown_value(text) or TO_SEE_IT))

    def _invalid_failure(self, message: str, answer: Any) -> Failure:
        return Failure(Kind.INVALID, message + self._shown_value(answer))

    def _shown_value(self, value: Any) -> str:
        """The value quoted, only where the user allows that in messages."""
        if not self._log_data:
            return ""
        shown = repr(value)
        return f": {shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + '…'}"


def _failure_by_finish(completion: Completion) -> Failure | None:
    finish = completion.finish
    if completion.refusal or finish is Finish.REFUSED:
        return Failure(Kind.REFUSED, "the model refused to answer")
    if finish is Finish.FILTERED:
        return Failure(Kind.REFUSED, "the provider's content filter stopped the reply")
    if finish is Finish.FAILED:
        word = f" ({completion.finish_reason[:40]!r})" if completion.finish_reason else ""
        return Failure(
            Kind.UNREADABLE,
            f"the provider says that the reply failed{word}; what there is of it is not an answer",
        )
    if not completion.text or completion.text.isspace():
        return _cut_failure() if finish is Finish.LENGTH else _no_answer_failure()
    return None


def _no_answer_failure() -> Failure:
    return Failure(Kind.MISSING, "the reply is empty, or holds no answer at all")


def _refusal_reason(error: Exception) -> str:
    """The reason that a message may give for a refused value: our own reason, or only the name of a
    user's exception.
    """
    return (
        str(error) if isinstance(error, ValueError) else f"its class raised {type(error).__name__}"
    )


def _is_blank(value: Any) -> bool:
    """`null`, `{}`, `[]`, `{"answers": []}`: JSON with nothing in it."""
    if isinstance(value, dict):
        value = list(value.values())
    return value is None or (isinstance(value, list) and all(map(_is_blank, value)))


def _cut_failure() -> Failure:
    return Failure(
        Kind.TRUNCATED,
        "the reply ended at its token limit before an answer was complete; raise max_output_tokens",
    )


def _no_values(failure: Failure, warnings: set[str] | None = None) -> Reading:
    return Reading({}, {}, failure, tuple(sorted(warnings or ())))
