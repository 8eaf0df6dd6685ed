"""The data types of the package, as immutable values. No I/O, no third-party imports.

Those made once per record or per reply are NamedTuples: a frozen dataclass takes four times as long
to make.

element ─ transforms ─► Record(s) ─ task ─► Request ─ provider ─► Completion ─ task ─► Prediction
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from beam_llm.errors import Failure

RECORD_KEY_BYTES = 16

Schema = dict[str, Any]
"""A JSON schema (2020-12) as `json.loads` gives it, with its definitions in `$defs` at the root."""


class Media(NamedTuple):
    """An image beside a prompt's text. Its data is in base64, the form in which all providers take
    it.

    Attributes:
      name: of the element's field that holds it.
      kind: its MIME type, such as `image/png`; may be empty where it has a `uri`.
      data: its bytes in base64; empty where it has a `uri`.
      uri: where the provider finds it; empty where it has `data`.
    """

    name: str
    kind: str
    data: str = ""
    uri: str = ""

    @property
    def data_url(self) -> str:
        """Its address; for data, a `data:` URL."""
        return self.uri or f"data:{self.kind};base64,{self.data}"


class Record(NamedTuple):
    """What one element asks: the texts that it puts into a prompt. Knows nothing of Beam.

    Attributes:
      inputs: the rendered texts, one for each variable part of the template.
      tokens: an upper estimate of the input tokens of `inputs`; their bytes, where nothing depends
        on it.
      fields: the element's fields, only where a custom batch template needs them, else None.
      record_id: the user's id as text, where `record_id` names a field, else None.
      media: its images, in the order of their fields.
    """

    inputs: tuple[str, ...]
    tokens: int
    fields: Mapping[str, Any] | None = None
    record_id: str | None = None
    media: tuple[Media, ...] = ()


class PromptBatch(NamedTuple):
    """The 1…n records that share one prompt, each with its element; or elements that failed before
    any call.

    Attributes:
      records: what to ask; empty where there are `failures`.
      elements: what the records were made of, in whatever form their pipeline passes them; one per
        record, or one per failure.
      failures: why these elements can't be asked.
    """

    records: tuple[Record, ...]
    elements: tuple[Any, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt: its role, its text, and the images in it.

        Message("user", "Is  on this page?", media=((3, logo),))
        # reads: "Is ", the image, " on this page?"

    Attributes:
      content: its text, all of it.
      shared: how many characters at its start are the same in all prompts of the question, for
        providers that want to be told what to cache.
      media: its images, each with the number of characters of `content` before it, ascending.
    """

    role: str
    content: str
    shared: int = field(default=0, compare=False)
    media: tuple[tuple[int, Media], ...] = ()

    def parts(self) -> list[str | Media]:
        """Its texts and images in reading order. Blank texts are left out, as some providers refuse
        them."""
        parts: list[str | Media] = []
        start = 0
        for end, media in self.media:
            parts += (self.content[start:end], media)
            start = end
        parts.append(self.content[start:])
        return [part for part in parts if not isinstance(part, str) or part.strip()]


@dataclass(frozen=True, slots=True)
class Request:
    """A provider-neutral request. Equal content gives equal bytes in every process.

        Request("gpt-4.1-mini", (Message("user", "Label: I love it."),), schema, temperature=0.0)

    Attributes:
      messages: what a chat model is asked; empty where `inputs` are asked about.
      schema: JSON schema that the reply has to follow, in no provider's dialect; None where the
        reply is free text, or the prompt describes it in words.
      max_output_tokens: of the whole reply (already multiplied by the records in it), or None.
      extra: further parameters, passed to the provider unchanged (`extra_body`).
      input_tokens: an estimate, for budgets and limits; not sent.
      inputs: texts to embed, instead of messages.
      dimensions: numbers per vector, or None for the model's default.
    """

    model: str
    messages: tuple[Message, ...]
    schema: Schema | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    input_tokens: int = 0
    inputs: tuple[str, ...] = ()
    dimensions: int | None = None

    def limited_to(self, max_output_tokens: int) -> Request:
        """The same with another limit. Written out, since it is done once per call, and `replace`
        takes three times as long.
        """
        return Request(
            self.model,
            self.messages,
            self.schema,
            self.temperature,
            max_output_tokens,
            self.seed,
            self.extra,
            self.input_tokens,
            self.inputs,
            self.dimensions,
        )


class Usage(NamedTuple):
    """Tokens of one reply, or a record's share of them.

        Usage(103, 20).split(2)  # [Usage(52, 10), Usage(51, 10)]

    Attributes:
      input_tokens: of the whole prompt, however much of it was cached.
      output_tokens: of the whole reply, thoughts among them.
      cached_tokens: input tokens that were read from the provider's cache, at a discount.
      cache_write_tokens: input tokens that were written to the cache, where that has a price.
      reasoning_tokens: output tokens that were thoughts.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]  # a sum, as of numbers
        # Written out, since it is done once per record, and `map` takes twice as long.
        return Usage(
            self[0] + other[0],
            self[1] + other[1],
            self[2] + other[2],
            self[3] + other[3],
            self[4] + other[4],
        )

    def split(self, members: int) -> list[Usage]:
        """Divides the tokens among `members` records; the shares add up to the whole (largest
        remainder method).
        """
        parts = [divmod(total, members) for total in self]
        shares: list[Usage] = []
        # Between two of these positions, all shares are the same.
        for end in sorted({*(more for _, more in parts), members}):
            if (start := len(shares)) < end:
                share = Usage(*[each + (start < more) for each, more in parts])
                shares += [share] * (end - start)
        return shares


def sum_of_costs(costs: Iterable[float | None]) -> float | None:
    """The sum of costs in US dollars; None where one of them is unknown."""
    known = list(costs)
    return None if None in known else sum(cost for cost in known if cost is not None)


class Pace(NamedTuple):
    """What a provider's rate-limit headers say about the next minute; None where they don't."""

    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    reset_requests_seconds: float | None = None
    reset_tokens_seconds: float | None = None


class Finish(enum.Enum):
    """How a reply ended. A closed set: each provider maps its own words to it."""

    STOP = "stop"
    """The model finished."""
    LENGTH = "length"
    """Cut at its token limit."""
    FILTERED = "filtered"
    """Stopped by the provider's filter."""
    REFUSED = "refused"
    """The model declined to answer."""
    EMPTY = "empty"
    """No text at all: no choice, or only thoughts or tool calls."""
    FAILED = "failed"
    """The provider says that something went wrong; the text, if any, is incomplete."""
    OTHER = "other"
    """A word that we don't know. A valid answer is accepted, an incomplete one is not."""


class Vector(NamedTuple):
    """One embedding of a reply.

    Attributes:
      place: index of its text in the request's `inputs`, from 0, as the reply gives it; None where
        it gives none.
      numbers: 32-bit floats, little-endian; None where the reply has something else in their place.
    """

    place: int | None
    numbers: bytes | None


class Completion(NamedTuple):
    """A provider-neutral reply to one Request.

        Completion("positive", Finish.STOP, Usage(31, 2), "gpt-4.1-mini-2025-04-14", "chatcmpl-1")

    Attributes:
      text: the reply's text; None where there was none (a refusal, empty choices, null content).
      finish: how it ended, mapped to our words.
      finish_reason: how it ended, in the provider's own word.
      refusal: the model's refusal in its own words, else None.
      service_tier: the tier in which the provider says it was served (`default`, `flex`,
        `priority`), which decides its price.
      billed_usd: the reply's cost as the provider states it, with all discounts; None where it
        doesn't.
      vectors: for a request with `inputs`, in any order; None for all others.
    """

    text: str | None
    finish: Finish = Finish.STOP
    usage: Usage = Usage()
    model: str = ""
    request_id: str | None = None
    refusal: str | None = None
    pace: Pace | None = None
    finish_reason: str = ""
    service_tier: str | None = None
    billed_usd: float | None = None
    vectors: tuple[Vector, ...] | None = None

    @property
    def length(self) -> int:
        """How much there is to read: characters of its text, or bytes of its vectors."""
        if self.vectors is not None:
            return sum(len(vector.numbers or b"") for vector in self.vectors)
        return len(self.text or "")


class Reading(NamedTuple):
    """What one reply says about the 1…n records of its prompt.

    An index of 1…n that is in neither `values` nor `failures` has no certain answer; with a
    `reply_failure`, no index has one.

    Attributes:
      values: index → typed, validated value.
      failures: index → why its answer is not a value; `attempts` is 0, for the caller to fill in.
      reply_failure: set where no answer could be read, because the reply is unreadable, refused,
        truncated or empty.
      warnings: words for counters, sorted: `repaired`, `wrapped`, `truncated`, `zero_based`,
        `shifted_index`, `unknown_index`, `duplicate_index`, `index_type`, `no_index`.
      raws: index → the JSON that the value was made of.
    """

    values: dict[int, Any]
    failures: dict[int, Failure]
    reply_failure: Failure | None = None
    warnings: tuple[str, ...] = ()
    raws: Mapping[int, Any] = {}


class Outcome(NamedTuple):
    """How one record ends: the answer, or why there is none. Knows nothing of its element.

    Attributes:
      value: validated against `output`; typed if it comes from a live call, in its JSON form if
        from the ledger.
      usage: this record's share of all replies it was part of, including those after which it was
        asked again.
      cost_usd: the share's price; 0.0 where the answer was re-used; None where the model's price is
        unknown, or where it is unknown what was paid (a result line that can't be read, a job in
        doubt).
      reused: the answer was known already; nothing was paid for it now.
    """

    value: Any = None
    failure: Failure | None = None
    usage: Usage = Usage()
    cost_usd: float | None = None
    model: str = ""
    request_id: str | None = None
    finish_reason: str | None = None
    reused: bool = False


class JobState(enum.Enum):
    """The state of a remote job. Each provider maps its own words to it; an unknown word is
    RUNNING.

    In the last four, which `has_ended`, nothing will change any more, and result files may be read.
    """

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (JobState.WAITING, JobState.RUNNING)


class Prediction(NamedTuple):
    """One element's result: the unchanged element, with a typed `value` or an `error`.

        predictions = rows | LLMPredict("openai:gpt-4.1-mini", "Label: {{ text }}")
        predictions | beam.Map(lambda p: (p.element["id"], p.error.kind if p.error else p.value))

    Attributes:
      element: the input element, unchanged; also if it is a `(key, value)` pair.
      value: typed by `output`, or None where there is an error.
      error: None, or what went wrong: `kind`, `message`, `attempts`.
      usage: tokens that this record cost (its share of the prompts it was in).
      cost_usd: price of that usage; None where the model's price, or what was paid (a job in
        doubt), is unknown; 0.0 where `reused`.
      model: the model that answered, as the provider named it.
      request_id: the provider's id of the reply.
      finish_reason: why the reply ended.
      reused: the answer is an earlier one to the same question, paid for then.
    """

    element: Any
    value: Any = None
    error: Failure | None = None
    usage: Usage = Usage()
    cost_usd: float | None = None
    model: str = ""
    request_id: str | None = None
    finish_reason: str | None = None
    reused: bool = False

    @classmethod
    def of(cls, element: Any, value: Any, outcome: Outcome) -> Prediction:
        """The Prediction of an element, with the typed `value` of its record's outcome.

        Takes the outcome's fields by name, so that a further field doesn't shift the others. That
        costs 0.15 µs more than `*outcome`; the generated `__new__` would cost 0.25 µs more.
        """
        return tuple.__new__(
            cls,
            (
                element,
                value,
                outcome.failure,
                outcome.usage,
                outcome.cost_usd,
                outcome.model,
                outcome.request_id,
                outcome.finish_reason,
                outcome.reused,
            ),
        )

    @property
    def key(self) -> Any:
        """The key of a `(key, value)` element, else None."""
        return self.element[0] if type(self.element) is tuple and len(self.element) == 2 else None
