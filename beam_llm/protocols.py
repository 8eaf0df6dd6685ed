"""Every seam of the package on one page. A provider, a staging store or a limiter is whatever has
these methods.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from beam_llm.caps import Caps
from beam_llm.config import Settings
from beam_llm.errors import CallError, Kind, Rejected
from beam_llm.values import Completion, JobState, Pace, Reading, Record, Request, Schema


class Clock(Protocol):
    """Time as a parameter: the job driver reads no other. (Live calls read their event loop's.)"""

    def time(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


@runtime_checkable
class CompletionProvider(Protocol):
    """Live calls. Lives on one event loop; made, used and closed there.

    The function `connect` of a provider's module makes one (`ProviderModule`):

        class Echo:
            async def complete(self, request: Request, timeout_seconds: float) -> Completion:
                if not request.messages:
                    # An error names its remedy: nobody else sees the wire.
                    raise Rejected(Kind.REJECTED, "no messages")
                text = request.messages[-1].content
                return Completion(text, Finish.STOP, Usage(len(text), len(text)), request.model)

            async def close(self) -> None: ...

    One that takes images finds them in `Message.parts()`. One that asks for schemas may be a
    `LearnsSchemas`, too. HTTP with bounds, keys, waits and errors: `providers/http.py`, `keys.py`,
    `pace.py`, `errors.py`, `typed.py`.
    """

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """One call, no retries of its own.

        Raises:
          CallError: Retryable, Rejected or Aborted; translated once, here, from the wire.
        """

    async def close(self) -> None:
        """Gives back connections."""


@runtime_checkable
class LearnsSchemas(Protocol):
    """A CompletionProvider that finds out whether its endpoint holds replies to their request's
    schema.

    Attributes:
      enforces_schemas: as far as is known by now. Where it is False, several records' answers are
        asked for in a shape that can be read when it is not quite as asked. Taken for True of a
        provider that doesn't say.
    """

    @property
    def enforces_schemas(self) -> bool:
        """Whether it holds replies to their schema, as far as is known by now."""

    def note_ignored_schema(self, request: Request) -> None:
        """Learns from a reply that ended well and is not JSON, although its request had a
        schema.
        """


class ProviderModule(Protocol):
    """A provider: the module that its row in `provider_table.PROVIDERS` names.

        def check(settings: Settings) -> None: ...
        def connect(settings: Settings) -> Echo: return Echo()
        def encode(settings: Settings, request: Request) -> bytes:
            return request.messages[-1].content.encode()

    What else a provider can do, its module says by having the function for it: see
    `HasBatchApi`, `HasSchemas`, `TakesImages`, `HasEmbeddings` and `Preloads`.
    """

    def check(self, settings: Settings) -> None:
        """Whether it can do what the settings ask; for use when the pipeline is built, so no key is
        looked up and nothing is called.

        Raises:
          UsageError: names the option and the fix.
        """

    def connect(self, settings: Settings) -> CompletionProvider:
        """A client for live calls. Called on the worker.

        Raises:
          Aborted: where the API key can't be found.
        """

    def encode(self, settings: Settings, request: Request) -> bytes:
        """The body that `connect`'s client would send for a request; for a person to see."""


@runtime_checkable
class HasBatchApi(Protocol):
    """The module of a provider with a batch API; one without it has live calls alone."""

    def connect_batch(self, settings: Settings) -> BatchProvider:
        """A client for the batch API. Called on the worker.

        Raises:
          Aborted: where the API key can't be found.
        """


@runtime_checkable
class HasSchemas(Protocol):
    """The module of a provider that holds replies to schemas; one without it holds them to none."""

    @property
    def enforced_schema(self) -> SchemaDialect:
        """A function of a schema."""


@runtime_checkable
class TakesImages(Protocol):
    """The module of a provider that takes images.

        def media_limits(settings):  # of a provider whose models all see
            return MediaLimits(kinds=("image/png", "image/jpeg"), image_bytes=5_000_000)

    One without it takes none.
    """

    def media_limits(self, settings: Settings) -> MediaLimits | None:
        """Which images the settings' model takes; None where it is known to take none."""


class EmbeddingModule(ProviderModule, Protocol):
    """What a provider is asked where vectors are wanted: a module with the same functions.

        def embed_limits(settings):  # of a provider with one row for all its models
            return EmbedLimits(inputs=2_048, input_tokens=8_192, request_tokens=300_000)

    Its clients find texts in `Request.inputs`.
    """

    def embed_limits(self, settings: Settings) -> EmbedLimits | None:
        """How much it embeds at once; None where it doesn't, or not in the settings' mode."""


@runtime_checkable
class HasEmbeddings(Protocol):
    """The module of a provider that embeds; one without it has no embeddings."""

    def embedding_module(self) -> EmbeddingModule:
        """What takes its place where vectors are asked for; chat models need none of it, so it is
        imported here.
        """


@runtime_checkable
class Preloads(Protocol):
    """The module of a provider whose clients take a while to import."""

    def preload(self) -> None:
        """Imports what `connect` needs; in a thread, when the pipeline is built."""


class Task(Protocol):
    """A question, compiled: all that engine, planner and driver know of what is asked. Pure, and
    never pickled.

    `prompting.ChatTask` asks chat models, `prompting.EmbedTask` asks for vectors; another kind of
    model is another task.
    What it does is a function of settings and records alone, so that a rerun, in another process
    and in another order, finds its own requests and answers again.

    Attributes:
      settings: the options that it was compiled from.
      fingerprint: digest of all that shapes an answer, except the record.
      shared_tokens: estimated input tokens of a prompt without its records.
      answer_schema: of one answer, in no provider's dialect.
      texts: how many texts of each record a prompt shows.
      answers_plainly: `plain_answer` may know a reply to one record.
      sends_one_text: requests about one record differ in nothing but its one text, which stands in
        the prompt as it is.
    """

    @property
    def settings(self) -> Settings: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def shared_tokens(self) -> int: ...
    @property
    def answer_schema(self) -> Schema: ...
    @property
    def texts(self) -> int: ...
    @property
    def answers_plainly(self) -> bool: ...
    @property
    def sends_one_text(self) -> bool: ...

    def caps(self, window: int | None) -> Caps:
        """How much one prompt holds.

        Args:
          window: tokens of the model's context window; None where unknown.

        Raises:
          UsageError: where the prompt alone leaves no room for any record.
        """

    def record(
        self, fields: Mapping[str, Any], element: Any, count: Callable[[str], int] = ...
    ) -> Record:
        """What one element asks. Raises PromptError where it doesn't fit the prompt.

        Args:
          count: tokens of a text, from above.
        """

    def key(self, record: Record) -> bytes:
        """16 bytes that name the question: equal for equal content, in every process and at every
        batch size.
        """

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request that asks about 1…n records; the same bytes for the same records. Raises
        PromptError where they fail together.

        Args:
          enforced: the endpoint holds replies to their schema, as far as is known.
          note: a sentence to add, where the same was asked before and the reply was no good.
        """

    def size(self, request: Request) -> int:
        """Bytes of the request's texts, schema and further parameters, in the provider's form; for
        filling a job's file.
        """

    def read(self, count: int, completion: Completion) -> Reading:
        """What the reply says about the `count` records of its prompt. Never raises, whatever
        stands in it.
        """

    def plain_answer(self, text: str) -> bytes | None:
        """What `read` and `stored` give for a single record's reply that is nothing but what was
        asked for, as JSON, and sooner.

        None for any other reply, good ones among them.
        """

    def stored(self, reading: Reading, index: int) -> Any:
        """The answer as JSON from which `load` makes the same value."""

    def dump(self, value: Any) -> Any:
        """The JSON form of a typed value, for comparing answers."""

    def load(self, data: Any) -> Any:
        """The typed value of a stored answer. Raises ValueError where today's type does not take
        it.
        """


WRITTEN_OUT = 25_000
"""Texts of a job whose vectors come as decimals: with 3,072 numbers each its results have 1.8 GB,
which `max_file_bytes` lets through.
"""


class EmbedLimits(NamedTuple):
    """How much a provider embeds at once (`EmbeddingModule`).

    Attributes:
      inputs: most texts of one request.
      usual_inputs: of a request whose size nobody has chosen, where that is less.
      input_tokens: most tokens of one text; None where only the model's window says.
      request_tokens: most tokens of a request's texts together; None where nobody says.
      number_bytes: what a number of a vector takes in a reply.
      shaping_options: keys of `provider_options` on which a vector depends.
    """

    inputs: int
    usual_inputs: int | None = None
    input_tokens: int | None = None
    request_tokens: int | None = None
    number_bytes: float = 12.0
    shaping_options: tuple[str, ...] = ()


class MediaLimits(NamedTuple):
    """Which images a provider takes beside a prompt's text (`TakesImages`).

    Attributes:
      kinds: MIME types of images; none: they are taken by their address alone.
      images: most in one request; None where nobody says.
      image_bytes: most bytes of one image, before base64.
      request_bytes: most bytes of a request's texts and images together, in base64.
      schemes: of addresses that it fetches images from.
      names_kinds: it has to be told the kind of an image that it fetches.
      tokens: width and height in pixels → input tokens of an image, from above; of zeros, the most
        that an image may have.
    """

    kinds: tuple[str, ...]
    images: int | None = None
    image_bytes: int | None = None
    request_bytes: int | None = None
    schemes: tuple[str, ...] = ()
    names_kinds: bool = False
    tokens: Callable[[int, int], int] = lambda width, height: 2_000


class SchemaDialect(Protocol):
    """How a provider holds replies to a JSON schema: the function `enforced_schema` of its module
    (`HasSchemas`).

        def enforced_schema(schema):  # of a provider whose grammars know no references
            return None if "$defs" in schema else {**schema, "additionalProperties": False}

    It is asked once for every shape of a reply. Where it says None, the reply is asked for in
    words, and in a shape that can be read when it is not quite as asked. The provider itself meets
    the schema in `Request.schema`, and applies the same function to it.
    """

    def __call__(self, schema: Schema, /) -> Schema | None:
        """The schema as this provider writes and enforces it, to the letter; None where it can't,
        or where the schema is beyond its limits.

        What it has no grammar for (a length, a pattern) it may put into descriptions: every answer
        is validated when it is read. Where its grammars have no optional properties, one may be
        null instead; a null counts as left out. It gives the same schema for the same schema, and
        is called with the same dict again and again.
        """


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A provider's batch job as last seen.

        RemoteJob("batch_1", JobState.RUNNING, "in_progress", 1_790_000_000.0, name="ours-0")

    Attributes:
      state: where it stands.
      word: the provider's own word for that, for people.
      created_at: seconds since the epoch by the provider's clock, 0.0 where unknown.
      result_files: provider file ids to read, once it has ended (outputs, then errors); may be
        empty.
      name: what it was created as, empty for jobs of others; None where the provider shows no name.
      staged: the staged input it was created from; None where the provider doesn't show it.
      completed, failed, total: request counts; None where the provider does not say.
      errors: validation errors, (code, message, 1-based line or None).
      cause: why it failed as a whole, where the provider says so in a way that has a remedy:
        QueueFull, InputGone, Aborted, or another Retryable: its own failure, and nothing was paid.
    """

    job_id: str
    state: JobState
    word: str = ""
    created_at: float = 0.0
    result_files: tuple[str, ...] = ()
    name: str | None = None
    staged: str | None = None
    completed: int | None = None
    failed: int | None = None
    total: int | None = None
    errors: tuple[tuple[str, str, int | None], ...] = ()
    cause: CallError | None = None


class Recovery(enum.Enum):
    """How a job is found again whose create got no answer, surest first.

    Attributes:
      TOKEN: the create may be repeated: the provider makes one job for one name.
      CONTAINER: a job is a named thing, empty at first: look for it before anything is put in.
      METADATA: jobs are listed with the name we gave them.
      LABEL: jobs are listed with a display name, or only with the input they were made of.
      NONE: no list tells it; where the provider `FindsUnnamed`, a job that has ended does.
    """

    TOKEN = "token"
    CONTAINER = "container"
    METADATA = "metadata"
    LABEL = "label"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class BatchTraits:
    """What a provider's batch API can do, as data.

        BatchTraits(50_000, 200_000_000, recovery=Recovery.LABEL, caveats=("jobs take two days",))

    Attributes:
      max_requests, max_bytes: of one job.
      max_records: of one job, in all its requests together, where the provider counts them; else
        None.
      window_seconds: how long a job may run.
      create_seconds: after so long a create that was sent has made its job, or never will.
      min_requests: of one job.
      recovery: how a lost create is found again.
      caveats: sentences for users, shown before money is spent.
    """

    max_requests: int
    max_bytes: int
    window_seconds: float = 86_400.0
    create_seconds: float = 120.0
    min_requests: int = 1
    recovery: Recovery = Recovery.METADATA
    caveats: tuple[str, ...] = ()
    max_records: int | None = None


class LineEnd(enum.Enum):
    """How a line without a completion ended by its own word, which goes before the job's.

    A job may read `completed` and hold lines that its provider cancelled.
    """

    REJECTED = "rejected"
    """The provider refuses it and will again: final where one record is in it, else its records are
    asked one by one.
    """
    EXPIRED = "expired"
    """The provider did not come to it in time; nothing is paid, and it may be asked again."""
    CANCELLED = "cancelled"
    """Somebody ended it: it is not asked again by itself."""
    FAILED = "failed"
    """Anything else; it may go better another time."""


class LineReply(NamedTuple):
    """One line of a result file: the completion, or the error, of the request named `custom_id`.

        LineReply("r-1", Completion("positive", Finish.STOP, Usage(31, 2)))
        LineReply.failed("r-2", Rejected(Kind.REJECTED, "HTTP 400: the context is too long"))

    Attributes:
      end: how the line ended, where it has an error.
    """

    custom_id: str
    completion: Completion | None = None
    error: Exception | None = None
    end: LineEnd | None = None

    @staticmethod
    def failed(custom_id: str, error: CallError) -> LineReply:
        """A line with an error, whose end follows from the error's kind and remedy."""
        if error.kind in (Kind.EXPIRED, Kind.CANCELLED):
            end = LineEnd(error.kind)
        else:
            end = LineEnd.REJECTED if isinstance(error, Rejected) else LineEnd.FAILED
        return LineReply(custom_id, None, error, end)


@runtime_checkable
class BatchProvider(Protocol):
    """Remote jobs: plain verbs, no policy, blocking. Raises CallError like a CompletionProvider.

    A job's way: `stage` its lines, `create` it, `look` until it has ended. Where a create's answer
    was lost, `find`.

        staged = provider.stage(lines, "ours-0")
        job = provider.create("ours-0", staged, lines)
        while not (job := provider.look(job.job_id)).state.has_ended:
            time.sleep(60.0)
        provider.fetch(job, results)
        replies = [provider.decode_line(line) for line in results.read_bytes().split(b"\n") if line]
        provider.forget(job, staged)

    The function `connect_batch` of a provider's module makes one (`HasBatchApi`). Control calls,
    lists of jobs and ids of others: `providers/control.py`, `job_search.py`, `ids.py`.
    `testing.contracts.BatchProviderContract` tests one. `HasJsonTexts` and `HasLineForms` are
    optional: they make jobs of a million lines faster.
    """

    traits: BatchTraits

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """One line of the job's input file, without the newline; the same bytes for the same
        request.
        """

    def decode_line(self, line: bytes) -> LineReply:
        """One line of a result file. Raises ValueError where the line is no reply at all (cut, not
        JSON).
        """

    def stage(self, lines: Path, name: str) -> str | None:
        """Puts a job's lines where `create` takes them from. Harmless to repeat.

        Returns:
          What names them there (a file id, a URI); None where `create` sends the lines itself.
        """

    def create(self, name: str, staged: str | None, lines: Path | None) -> RemoteJob:
        """Creates the job, in one try: a repeat may be a second paid job. On the rung TOKEN it is
        the same job, and whoever lost the answer repeats it, with the same name and input.

        Args:
          name: of this attempt; what it begins with, up to its last `-`, is common to all attempts
            at the same job.
          staged: as `stage` named it.
          lines: the local file, where `staged` is None.

        Raises:
          NotCreated: this call has made no job, for certain.
          Exception: any other: there may be one.
        """

    def find(self, name: str, staged: str | None, since: float) -> Sequence[RemoteJob]:
        """All jobs that were created under a name that begins with `name` and a `-`, or from the
        input `staged`, in any state. Not asked of a provider that `FindsUnnamed`.

        Args:
          since: none of them is older, in seconds since the epoch by the provider's clock.

        Raises:
          CannotTell: the provider can't say, now or later, that there is no further one.
          CallError: it can't be asked now.
        """

    def pending(self) -> Sequence[RemoteJob]:
        """Jobs that have not ended, whoever made them, as far as the provider shows them; perhaps
        only the first it comes across.

        Raises:
          CallError: CannotTell, or as for `find`.
        """

    def look(self, job_id: str) -> RemoteJob:
        """The job as it is now.

        Raises:
          UnknownJob: the provider doesn't know it (yet, or any more).
        """

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes every result line of an ended job, good and bad, into one local file. Harmless to
        repeat.

        Lines end with a newline and come in any order; a line that was cut comes last, without one.
        How much a server may send is bounded.

        Raises:
          CallError: not all of it can be read; the file holds what can.
        """

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended."""

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes what the provider keeps of a job: its results (`job`), its staged input
        (`staged`). Harmless where that is gone.
        """

    def now(self) -> float | None:
        """The provider's own time, seconds since the epoch; None where it is not known. Machines
        differ by hours, it doesn't.
        """

    def close(self) -> None:
        """Gives back connections; harmless to repeat."""


@runtime_checkable
class HasJsonTexts(Protocol):
    """A BatchProvider whose input lines can be built from one another, without encoding each.

    Attributes:
      texts_are_json_strings: True promises that a message's text is a JSON string in its line, as
        orjson writes it, and that nothing else in the line depends on it.
    """

    texts_are_json_strings: bool


class Slot(enum.Enum):
    """What one value in a result line is to its reader; all else of a `LineForm` is fixed.

    Attributes:
      CUSTOM_ID, TEXT: strings; the text is never empty.
      REQUEST_ID: a string of small letters, digits, `_` and `-`, with a letter in it.
      COUNT: a whole number that shapes the reply: of tokens.
      NAME, NUMBER: an id, or a whole number, that nothing of the reply depends on.
    """

    CUSTOM_ID = "custom_id"
    REQUEST_ID = "request_id"
    TEXT = "text"
    COUNT = "count"
    NAME = "name"
    NUMBER = "number"


class LineForm(NamedTuple):
    """What the good lines of a result file have in common.

    Attributes:
      parts: in the order of the line, up to its newline: bytes that all have, and slots; strings
        without their quotes.
      is_clean: whether a text or ids can be taken as they stand in their slots: False where a key
        may be in them. Gets them with a character for each byte (latin-1).
    """

    parts: tuple[bytes | Slot, ...]
    is_clean: Callable[[str], bool]


@runtime_checkable
class HasLineForms(Protocol):
    """A BatchProvider whose good result lines differ in few places. A million of them are read by
    the block then: what `decode_line` says of one is said of all that have its counts.
    """

    def line_form(self, line: bytes) -> LineForm | None:
        """The form of a good line; None where it has none, or is not good.

            def line_form(self, line):  # {"custom_id":"r-1","id":"a7","text":"yes","tokens":12}
                found = form_of(line, SLOTS)  # providers/line_forms.py
                return found and LineForm(found, self._holds_no_key)

        It promises of every line that has this form, and is clean: `decode_line` gives its
        custom_id, its text and its request id as they stand in their slots, and else what it gives
        for any other line with the same counts.
        """


@runtime_checkable
class FindsUnnamed(Protocol):
    """A BatchProvider whose jobs have no name (`Recovery.NONE`), and that can tell them apart all
    the same, given time: by when a job was made, how many lines it has and, once it has ended, what
    its results say. One without this method leaves every lost create in doubt.
    """

    def find_unnamed(
        self, name: str, lines: int, since: float, is_others: Callable[[str], bool]
    ) -> Sequence[RemoteJob]:
        """All jobs that were created under a name that begins with `name` and a `-`, in any state,
        each with its name.

            def find_unnamed(self, name, lines, since, is_others):
                jobs = [job for job in self._list(since) if job.total <= lines]
                ours = [job for job in jobs if job.state.has_ended and self._is_of(job, name)]
                running = [job for job in jobs if not job.state.has_ended]
                if not ours and not all(is_others(job.job_id) for job in running):
                    raise Retryable(Kind.DOUBTFUL, f"{len(running)} jobs may be this one")
                return ours

        Args:
          lines: that the job has at most.
          since: none of them is older, in seconds since the epoch by the provider's clock.
          is_others: whether a job is known, by its id, to be another one; asked only where nothing
            else tells it.

        Raises:
          Retryable: jobs that have not ended may be among them; it is asked again until they have.
          CannotTell: it can't be told, now or later.
          CallError: it can't be asked now.
        """


@dataclass(slots=True)
class Admission:
    """The right to send one request now, as a Limiter gives it.

    Attributes:
      sent_at: when it was given, by the event loop's clock.
      waited_seconds: for it, in all.
      throttled_seconds: of these, for a budget or because the provider asks for less; the rest was
        for other calls to end.
      exceeds_budget: the request alone has more tokens than a whole minute may have.
      charge: whatever the limiter needs to know again; nobody else looks at it.
    """

    sent_at: float = 0.0
    waited_seconds: float = 0.0
    throttled_seconds: float = 0.0
    exceeds_budget: bool = False
    charge: Any = None


class Limiter(Protocol):
    """When the next live request may be sent: so many in flight, so many requests and tokens a
    minute. Lives on one event loop.

    Each request is admitted, then perhaps one of `settle`, `throttled`, `timed_out`, and in any
    case released:

        admission = await limiter.admit(tokens)
        try:
            reply = await send()
            limiter.settle(admission, reply.tokens, reply.pace)
        finally:
            limiter.release(admission)

    One that keeps its budgets in a shared database, for all workers of a job, is another class with
    these methods.
    """

    @property
    def slots(self) -> int:
        """How many requests may be in flight at this moment; it may change with every reply."""

    @property
    def counts_tokens(self) -> bool:
        """Whether `tokens` plays a part; where it doesn't, nobody has to estimate them."""

    async def admit(self, tokens: float, *, is_follow_up: bool = False) -> Admission:
        """Waits until a request may be sent.

        Args:
          tokens: estimated, of prompt and answer.
          is_follow_up: it belongs to an ask that has sent before. These go first, so that the
            oldest asks end first.
        """

    def settle(self, admission: Admission, tokens: int, pace: Pace | None) -> None:
        """A reply came: what it really took, and what the provider's headers say about the minute
        to come.
        """

    def throttled(self, admission: Admission, retry_after_seconds: float | None) -> None:
        """The provider refused the request because we are too fast."""

    def timed_out(self, admission: Admission) -> None:
        """No reply came in time."""

    def release(self, admission: Admission) -> None:
        """The request has ended, in whatever way; another may take its place."""


class Store(Protocol):
    """The staging location: named objects of bytes, shared by every worker and every later run.

        store.create("log/7", b"mine")     # True for exactly one of all who try, anywhere
        store.read("log/7", 1, 3)          # b"in"

    What everything rests on: `create` is atomic; whoever reads an object sees all of it or none;
    what was written is seen by all from then on, in lists too. An object never changes but by
    `put`, and only by another `put` of the same name.

    Names are relative and `/`-separated; segments are of letters, digits, `_`, `-`, `.` and `=`, up
    to 200 characters, and don't begin with a dot. No name is the folder of another one. Any other
    name raises ValueError. Failures that a name is not at fault for raise the store's own
    exceptions; nothing is silently left undone.

    A store is pickled by its location, and used by several threads at once.

    Attributes:
      location: what it was opened by; for people, and for opening it elsewhere.
    """

    location: str

    def create(self, name: str, data: bytes) -> bool:
        """Creates the object atomically; False where one exists. Of many racers exactly one gets
        True.
        """

    def put(self, name: str, data: bytes) -> None:
        """Writes or replaces the object, all of it or nothing."""

    def put_file(self, name: str, path: str) -> None:
        """Like `put`, streamed from a local file."""

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none."""

    def get_file(self, name: str, path: str) -> bool:
        """Streams the object to a local path; False, and no file there, where there is none."""

    def read(self, name: str, start: int, end: int) -> bytes | None:
        """Bytes [start, end) of the object, fewer where it ends before; None where there is none.
        Costs what it returns.
        """

    def list(self, prefix: str, start_after: str = "") -> Iterable[str]:
        """Names with the prefix that sort after `start_after`, in the order of their characters."""

    def delete(self, name: str) -> None:
        """Removes the object; harmless where it is gone."""

    def path_of(self, name: str) -> Path | None:
        """Where the object lies, or would lie, as a local file that may be read in place; None
        where objects are not local files.
        """

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Removes what killed processes left half-written, of which no list shows anything; spares
        what is being written.

        Args:
          dry_run: nothing is removed.

        Returns:
          What it removes, for people.
        """
