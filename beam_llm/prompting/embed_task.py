"""One use of an embedding model, compiled: records in, a request out; a reply in, vectors by record
out. Pure: no I/O, no clock.

element ─ record() ─► Record ─ key() ─► its text's 16-byte name
records ─ render() ─► Request            one input per record, in their order
Completion ─ read() ─► Reading           vectors by the places that the reply writes
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from beam_llm.caps import Caps
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, PromptError, UsageError
from beam_llm.prompting.batching import UNKNOWN_WINDOW
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.templates import prompt_template, record_id_of
from beam_llm.prompting.tokens import estimate_tokens
from beam_llm.prompting.vectors import is_finite, is_zero, unpack
from beam_llm.protocols import EmbedLimits
from beam_llm.values import (
    RECORD_KEY_BYTES,
    Completion,
    Reading,
    Record,
    Request,
    Schema,
    Vector,
)

FINGERPRINT_VERSION = 1
"""Changed only when the same settings need new vectors: a change makes all known vectors unknown.
"""

LARGEST_VECTOR = 3_072
"""Numbers in a vector where the user has not chosen: as many as text-embedding-3-large and
gemini-embedding-001 give. Of the models in use only Qwen3's have more (4,096). Source: the models'
cards, 2026-11.
"""

REPLY_SHARE = 0.8
"""The fraction of `max_reply_bytes` that the vectors of one request may take."""

LIVE_NUMBERS = 2**18
"""Numbers in the vectors of one live request where the user has not chosen its size: 8 MB as
Python's floats, with dozens of replies at a time in a worker. More saves nothing: 30,000 vectors of
1,536 numbers took 12 s in requests of 1,893 texts and 1.3 GB, and 11 s in requests of 128.
"""

REQUEST_SHARE = 0.9
"""How much of a provider's limit on a request's tokens is used: an estimate may be a tenth too low,
and a refused request is sent again in pieces.
"""


class EmbedTask:
    """Compiled settings: what every step of a pipeline knows about its vectors. Built once per
    process; not pickled.

        task = providers.compile_task(settings(
            "openai:text-embedding-3-small", task="embed", prompt="{{ text }}", batch_size="auto"
        ))
        records = [task.record({"text": text}, None) for text in ("Win a prize!", "See you at 8.")]
        task.render(records).inputs         # ("Win a prize!", "See you at 8.")
        reply = Completion(None, vectors=(Vector(1, pack([1.0])), Vector(0, pack([0.5]))))
        task.read(2, reply).values          # {1: [0.5], 2: [1.0]}

    A `protocols.Task`, which says what its attributes and methods are. A text's key depends on the
    text and the model alone, so another template that renders the same text finds its vector.

    Args:
      limits: how much the provider embeds at once.

    Raises:
      UsageError: for a template that can't be used, or a `batch_size` beyond the provider's.
    """

    answers_plainly = False
    sends_one_text = True
    shared_tokens = 0
    texts = 1
    answer_schema: Schema = {"type": "array", "items": {"type": "number"}}  # noqa: RUF012

    def __init__(self, settings: Settings, limits: EmbedLimits):
        self.settings = settings
        self.output = Output(settings.output)
        self._caps = _caps(settings, limits)
        self._template = prompt_template(
            "{{ element }}" if settings.prompt is None else settings.prompt
        )
        self._extra = dict(settings.extra_body or {})
        self.fingerprint = _fingerprint(settings, limits)
        self._hasher = hashlib.sha256(self.fingerprint)

    def caps(self, window: int | None) -> Caps:
        """How much one request holds, by the provider's limits; the window doesn't matter."""
        return self._caps

    def record(
        self, fields: Mapping[str, Any], element: Any, count: Callable[[str], int] = estimate_tokens
    ) -> Record:
        """The text of one element.

        Raises:
          PromptError: where the element does not fit the template, or has no text.
        """
        text = self._template.fill(self._template.inputs(fields, element))
        if not text:
            raise PromptError("the text is empty, and an empty text has no vector")
        return Record((text,), count(text), None, record_id_of(self.settings.record_id, fields))

    def key(self, record: Record) -> bytes:
        """16 bytes that name the text: equal for equal texts, in every process and at every batch
        size."""
        hasher = self._hasher.copy()
        if self.settings.independent and record.record_id is not None:
            own = record.record_id.encode()
            hasher.update(b"%d:%b" % (len(own), own))
        hasher.update(record.inputs[0].encode())
        return hasher.digest()[:RECORD_KEY_BYTES]

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request for the vectors of 1…n records. `enforced` and `note` are ignored: there are
        no instructions to change.
        """
        return Request(
            model=self.settings.model_name,
            messages=(),
            # A copy: whoever changes one request's parameters must not change the next one's.
            extra=dict(self._extra),
            input_tokens=sum([record.tokens for record in records]),
            inputs=tuple([record.inputs[0] for record in records]),
            dimensions=self.settings.dimensions,
        )

    def size(self, request: Request) -> int:
        """Bytes of the request's texts and further parameters."""
        return len(orjson.dumps([request.inputs, request.dimensions, request.extra], default=str))

    def read(self, count: int, completion: Completion) -> Reading:
        """The vectors that the reply gives to the `count` texts of its request. Never raises.

        A place is taken as written or not at all: no place is shifted, and the order of the vectors
        means nothing. A vector for a place that was not asked about shows that the reply belongs to
        another request, so none of it is used. Of two different vectors for one text, neither is
        used.
        """
        vectors = completion.vectors
        if vectors is None:
            return _unreadable_reading("the reply holds no vectors")
        unknown_places = [
            v.place for v in vectors if v.place is not None and not 0 <= v.place < count
        ]
        if unknown_places:
            reason = (
                f"the reply has a vector for text {unknown_places[0]}; asked for 0 to {count - 1}"
            )
            return _unreadable_reading(reason, "unknown_index")
        numbers_by_index, warnings = _numbers_by_index(vectors)
        expected = self.settings.dimensions or _usual_length(numbers_by_index)
        values: dict[int, list[float]] = {}
        failures: dict[int, Failure] = {}
        for index, numbers in numbers_by_index.items():
            problem = self._vector_problem(numbers, expected)
            if problem is not None:
                failures[index] = Failure(Kind.INVALID, problem)
            elif numbers is not None:
                values[index] = unpack(numbers)
        kept = {index: numbers_by_index[index] for index in values}
        return Reading(values, failures, None, tuple(sorted(warnings)), kept)

    def _vector_problem(self, numbers: bytes | None, expected: int | None) -> str | None:
        """Why these are not the numbers of a vector; None where they are."""
        if numbers is None or not numbers:
            return "the reply has something else where the vector's numbers should be"
        if expected is None:
            return "the reply's vectors differ in length; give dimensions to say which is right"
        if len(numbers) != 4 * expected:
            source = "dimensions is" if self.settings.dimensions else "the others in the reply have"
            return f"the vector has {len(numbers) // 4:,} numbers; {source} {expected:,}"
        if not is_finite(numbers):
            return "a number of the vector is infinite or not a number"
        # A zero vector has no direction: it is equally near to every text, or divides by zero.
        return (
            "all numbers of the vector are 0, so it says nothing about the text"
            if is_zero(numbers)
            else None
        )

    def plain_answer(self, text: str) -> bytes | None:
        """None: a vector is not a text."""
        return None

    def stored(self, reading: Reading, index: int) -> str:
        """The vector's bytes in base64, from which `load` restores the same numbers: a third of the
        size of JSON, and read ten times as fast.
        """
        return base64.b64encode(reading.raws[index]).decode()

    def dump(self, value: Any) -> Any:
        """The JSON form of a vector: a list of its numbers."""
        return list(value)

    def load(self, data: Any) -> list[float]:
        """The vector from the result of `stored`.

        Raises:
          ValueError: it is not a vector, or has other dimensions than are requested today.
        """
        if not isinstance(data, str):
            raise ValueError("not a stored vector")
        try:
            numbers = unpack(base64.b64decode(data, validate=True))
        except ValueError:
            raise ValueError("not a stored vector") from None
        if self.settings.dimensions not in (None, len(numbers)):
            raise ValueError(f"a vector of {len(numbers):,} numbers")
        return numbers


def _numbers_by_index(vectors: Sequence[Vector]) -> tuple[dict[int, bytes | None], set[str]]:
    """The numbers by the index of their record, 1…n, and the warnings. Records for which two
    vectors differ are left out.
    """
    numbers_by_index: dict[int, bytes | None] = {}
    warnings: set[str] = set()
    clashing: set[int] = set()
    for place, numbers in vectors:
        if place is None:
            warnings.add("no_index")
        elif place + 1 not in numbers_by_index:
            numbers_by_index[place + 1] = numbers
        else:
            warnings.add("duplicate_index")
            if numbers_by_index[place + 1] != numbers:
                clashing.add(place + 1)
    return {
        index: numbers_by_index[index] for index in numbers_by_index if index not in clashing
    }, warnings


def _usual_length(numbers_by_index: Mapping[int, bytes | None]) -> int | None:
    """The length that more than half of the vectors have; None where no length is that common."""
    lengths = Counter(len(numbers) for numbers in numbers_by_index.values() if numbers)
    [(length, times)] = lengths.most_common(1) or [(0, 0)]
    return length // 4 if 2 * times > lengths.total() else None


def _unreadable_reading(reason: str, *warnings: str) -> Reading:
    return Reading({}, {}, Failure(Kind.UNREADABLE, reason), warnings)


def _caps(settings: Settings, limits: EmbedLimits) -> Caps:
    """How much one request holds, by the provider's limits and the largest reply."""
    if settings.batch_size != "auto" and settings.batch_size > limits.inputs:
        most = f"{limits.inputs:,} texts a request at most"
        if limits.inputs == 1:
            most = "one text a request, since a reply to several doesn't say which vector is whose"
        raise UsageError(
            f"batch_size is {settings.batch_size:,}: {settings.provider}: embeds {most}; write "
            "batch_size='auto'"
        )
    vector_bytes = limits.number_bytes * (settings.dimensions or LARGEST_VECTOR)
    fitting = int(settings.max_reply_bytes * REPLY_SHARE / vector_bytes)
    records = max(min(_records_per_request(settings, limits), fitting), 1)
    each = settings.context_window or limits.input_tokens or UNKNOWN_WINDOW
    together = int((limits.request_tokens or 0) * REQUEST_SHARE) or each * records
    tokens = min(together, settings.max_input_tokens or together)
    return Caps(records, tokens, settings.batch_max_bytes, each)


def _records_per_request(settings: Settings, limits: EmbedLimits) -> int:
    """How many texts a request should have, provided that the reply can hold their vectors."""
    if settings.batch_size != "auto":
        return settings.batch_size
    usual = limits.usual_inputs or limits.inputs
    # A job's replies are read one after the other.
    is_live = settings.mode == "online"
    return min(usual, LIVE_NUMBERS // (settings.dimensions or LARGEST_VECTOR)) if is_live else usual


def _fingerprint(settings: Settings, limits: EmbedLimits) -> bytes:
    """sha256 over everything that shapes a vector, except its text."""
    given = settings.provider_options or {}
    options = {name: given[name] for name in limits.shaping_options if name in given}
    shaping = {
        "version": FINGERPRINT_VERSION,
        "task": settings.task,
        "model": settings.model,
        "base_url": settings.base_url,
        "dimensions": settings.dimensions,
        "extra_body": dict(settings.extra_body or {}),
        "fresh": settings.fresh,
        # Left out where there are none, so that vectors from before these options stay known.
        **({"provider_options": options} if options else {}),
    }
    return hashlib.sha256(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS)).digest()
