"""All interfaces of the package in one place. A provider, a staging store or a limiter is any
object with these methods.
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
    """The clock of the job driver, as a parameter, so that tests can set it. (Live calls use their
    event loop's clock.)"""

    def time(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""


@runtime_checkable
class CompletionProvider(Protocol):
    """A client for live calls. It belongs to one event loop, and is made, used and closed on it.

    The function `connect` of a provider's module makes one (`ProviderModule`):

        class Echo:
            async def complete(self, request: Request, timeout_seconds: float) -> Completion:
                if not request.messages:
                    # An error names its remedy: nobody else sees the wire.
                    raise Rejected(Kind.REJECTED, "no messages")
                text = request.messages[-1].content
                return Completion(text, Finish.STOP, Usage(len(text), len(text)), request.model)

            async def close(self) -> None: ...

    Images are in `Message.parts()`. A client that sends schemas may be a `LearnsSchemas`, too. For
    HTTP within bounds, keys, rate-limit headers and errors see `providers/http.py`, `keys.py`,
    `pace.py`, `errors.py` and `typed.py`.
    """

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call, without retries of its own.

        Raises:
          CallError: Retryable, Rejected or Aborted, made here of whatever the server sent.
        """

    async def close(self) -> None:
        """Closes its connections."""


@runtime_checkable
class LearnsSchemas(Protocol):
    """A CompletionProvider that finds out whether its endpoint enforces schemas.

    Attributes:
      enforces_schemas: as far as is known by now. Where False, the answers to several records are
        asked for in a shape that can be read even if the model doesn't quite keep to it. Providers
        without this protocol are taken to enforce schemas.
    """

    @property
    def enforces_schemas(self) -> bool:
        """Whether the endpoint enforces schemas, as far as is known by now."""

    def note_ignored_schema(self, request: Request) -> None:
        """Learns that a reply which ended well was not JSON, although its request had a schema."""


class ProviderModule(Protocol):
    """A provider: the module that its row in `provider_table.PROVIDERS` names.

        def check(settings: Settings) -> None: ...
        def connect(settings: Settings) -> Echo: return Echo()
        def encode(settings: Settings, request: Request) -> bytes:
            return request.messages[-1].content.encode()

    A module shows what else the provider can do by having the function for it: see `HasBatchApi`,
    `HasSchemas`, `TakesImages`, `HasEmbeddings` and `Preloads`.
    """

    def check(self, settings: Settings) -> None:
        """Checks that the provider can do what the settings ask. Called when the pipeline is built:
        it looks up no key and makes no call.

        Raises:
          UsageError: names the option and the fix.
        """

    def connect(self, settings: Settings) -> CompletionProvider:
        """A client for live calls. Called on the worker.

        Raises:
          Aborted: where the API key can't be found.
        """

    def encode(self, settings: Settings, request: Request) -> bytes:
        """The body that `connect`'s client would send for a request, for people to look at."""


@runtime_checkable
class HasBatchApi(Protocol):
    """The module of a provider with a batch API; without it, the provider has live calls only."""

    def connect_batch(self, settings: Settings) -> BatchProvider:
        """A client for the batch API. Called on the worker.

        Raises:
          Aborted: where the API key can't be found.
        """


@runtime_checkable
class HasSchemas(Protocol):
    """The module of a provider that enforces schemas."""

    @property
    def enforced_schema(self) -> SchemaDialect:
        """The function that adapts a schema to this provider."""


@runtime_checkable
class TakesImages(Protocol):
    """The module of a provider that takes images.

        def media_limits(settings):  # of a provider whose models all see
            return MediaLimits(kinds=("image/png", "image/jpeg"), image_bytes=5_000_000)

    Without it, the provider takes no images.
    """

    def media_limits(self, settings: Settings) -> MediaLimits | None:
        """Which images the model takes; None where it is known to take none."""


class EmbeddingModule(ProviderModule, Protocol):
    """A provider's module for embeddings, with the same functions as its module for chat.

        def embed_limits(settings):  # of a provider with one row for all its models
            return EmbedLimits(inputs=2_048, input_tokens=8_192, request_tokens=300_000)

    Its clients find texts in `Request.inputs`.
    """

    def embed_limits(self, settings: Settings) -> EmbedLimits | None:
        """How much the provider embeds at once; None where it doesn't embed, or not in the
        settings' mode."""


@runtime_checkable
class HasEmbeddings(Protocol):
    """The module of a provider that has embeddings."""

    def embedding_module(self) -> EmbeddingModule:
        """The module that takes its place for embeddings; imported here, since chat models don't
        need it.
        """


@runtime_checkable
class Preloads(Protocol):
    """The module of a provider whose clients take a while to import."""

    def preload(self) -> None:
        """Imports what `connect` needs. Called in a thread when the pipeline is built."""


class Task(Protocol):
    """What is asked, compiled from settings: all that engine, planner and driver know of it. Pure,
    and never pickled.

    `prompting.ChatTask` asks chat models, `prompting.EmbedTask` asks for vectors; another kind of
    model is another task.
    Its results depend on settings and records alone, so that a rerun, in another process and
    another order, finds its requests and answers again.

    Attributes:
      settings: the options it was compiled from.
      fingerprint: digest of everything that shapes an answer, except the record.
      shared_tokens: estimated input tokens of a prompt without its records.
      answer_schema: JSON schema of one answer, in no provider's dialect.
      texts: how many texts each record puts into a prompt.
      answers_plainly: `plain_answer` may be able to read a reply to one record.
      sends_one_text: requests about one record differ only in its one text, which is in the prompt
        unchanged.
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
        """The record of one element. Raises PromptError where the element doesn't fit the prompt.

        Args:
          count: an upper estimate of a text's tokens.
        """

    def key(self, record: Record) -> bytes:
        """16 bytes that identify the question: equal for equal content, in every process and at
        every batch size.
        """

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request that asks about 1…n records; the same bytes for the same records. Raises
        PromptError where they fail together.

        Args:
          enforced: whether the endpoint enforces schemas, as far as is known.
          note: a sentence to add to the prompt, where the same was asked before and the reply was
            not usable.
        """

    def size(self, request: Request) -> int:
        """Bytes of the request's texts, schema and further parameters, as the provider writes them;
        used to fill a job's file.
        """

    def read(self, count: int, completion: Completion) -> Reading:
        """What the reply says about the `count` records of its prompt. Never raises, whatever is in
        the reply.
        """

    def plain_answer(self, text: str) -> bytes | None:
        """A faster `read` and `stored` for a reply to a single record that is exactly what was
        asked for: the answer as JSON.

        None for any other reply, including other good ones.
        """

    def stored(self, reading: Reading, index: int) -> Any:
        """The answer as JSON, from which `load` makes the same value."""

    def dump(self, value: Any) -> Any:
        """The JSON form of a typed value, for comparing answers."""

    def load(self, data: Any) -> Any:
        """The typed value of a stored answer. Raises ValueError where the current `output` doesn't
        accept it.
        """


WRITTEN_OUT = 25_000
"""Texts of a job whose vectors come as decimals: with 3,072 numbers each its results have 1.8 GB,
which `max_file_bytes` lets through.
"""


class EmbedLimits(NamedTuple):
    """How much a provider embeds at once (`EmbeddingModule`).

    Attributes:
      inputs: most texts of one request.
      usual_inputs: texts of a request where the user has not chosen its size, if fewer.
      input_tokens: most tokens of one text; None where only the model's window limits it.
      request_tokens: most tokens of a request's texts together; None where that is unknown.
      number_bytes: bytes that one number of a vector takes in a reply.
      shaping_options: keys of `provider_options` that change a text's vector.
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
      kinds: MIME types of image data; empty where images are taken by address only.
      images: most images in one request; None where that is unknown.
      image_bytes: most bytes of one image, before base64.
      request_bytes: most bytes of a request's texts and images together, in base64.
      schemes: URL schemes that the provider fetches images from.
      names_kinds: whether it has to be told the kind of an image that it fetches.
      tokens: width and height in pixels → an upper estimate of an image's input tokens; for zeros,
        the most that any image has.
    """

    kinds: tuple[str, ...]
    images: int | None = None
    image_bytes: int | None = None
    request_bytes: int | None = None
    schemes: tuple[str, ...] = ()
    names_kinds: bool = False
    tokens: Callable[[int, int], int] = lambda width, height: 2_000


class SchemaDialect(Protocol):
    """How a provider enforces a JSON schema: the function `enforced_schema` of its module
    (`HasSchemas`).

        def enforced_schema(schema):  # of a provider whose grammars know no references
            return None if "$defs" in schema else {**schema, "additionalProperties": False}

    It is called once for each shape of a reply. Where it returns None, the prompt describes the
    reply in words, in a shape that can be read even if the model doesn't quite keep to it. The
    provider finds the original schema in `Request.schema`, and applies the same function to it.
    """

    def __call__(self, schema: Schema, /) -> Schema | None:
        """The schema as this provider writes it and strictly enforces it; None where it can't, or
        where the schema exceeds its limits.

        What its grammars can't express (a length, a pattern) may go into descriptions, since every
        answer is validated when it is read. Where they have no optional properties, a property may
        be nullable instead: a null counts as left out. The result depends on the schema only; the
        same dict is passed again and again.
        """


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A provider's batch job as last seen.

        RemoteJob("batch_1", JobState.RUNNING, "in_progress", 1_790_000_000.0, name="ours-0")

    Attributes:
      state: where it stands.
      word: the provider's own word for that, for people.
      created_at: seconds since the epoch by the provider's clock; 0.0 where unknown.
      result_files: the provider's ids of result files, once it has ended (outputs, then errors);
        may be empty.
      name: the name given to `create`; empty for jobs of others; None where the provider shows no
        name.
      staged: the staged input it was created from; None where the provider doesn't show it.
      completed, failed, total: counts of requests; None where the provider doesn't say.
      errors: validation errors, (code, message, 1-based line or None).
      cause: why it failed as a whole, where there is a remedy: QueueFull, InputGone, Aborted, or
        another Retryable for a failure of the provider's own that cost nothing.
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
    """How to find the job of a create whose answer was lost; the most certain way first.

    Attributes:
      TOKEN: the create may be repeated, since the provider makes only one job of a name.
      CONTAINER: a job is made under its name, empty at first, and can be looked up before anything
        is put in.
      METADATA: jobs are listed with the name we gave them.
      LABEL: jobs are listed with a display name, or only with the input they were made of.
      NONE: no list shows which job it is. A provider that `FindsUnnamed` can tell by the job's
        results, once it has ended.
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
      max_records: of one job, in all its requests together; None where the provider doesn't count
        them.
      window_seconds: how long a job may run.
      create_seconds: after this time, a create that was sent has made its job, or never will.
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
    """How a line without a completion ended. It takes precedence over how its job ended.

    A job may read `completed` and hold lines that its provider cancelled.
    """

    REJECTED = "rejected"
    """The provider refuses it, and would again: final for a line of one record; else its records
    are asked one by one.
    """
    EXPIRED = "expired"
    """The provider did not get to it in time. It cost nothing, and may be asked again."""
    CANCELLED = "cancelled"
    """It was cancelled: it is not asked again automatically."""
    FAILED = "failed"
    """Anything else; it may succeed another time."""


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
        """A line with an error; the error's kind and remedy decide its `end`."""
        if error.kind in (Kind.EXPIRED, Kind.CANCELLED):
            end = LineEnd(error.kind)
        else:
            end = LineEnd.REJECTED if isinstance(error, Rejected) else LineEnd.FAILED
        return LineReply(custom_id, None, error, end)


@runtime_checkable
class BatchProvider(Protocol):
    """A client for remote jobs: plain blocking verbs without policy. Raises CallError as a
    CompletionProvider does.

    The life of a job: `stage` its lines, `create` it, `look` until it has ended, `fetch` its
    results. `find` it where a create's answer was lost.

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
        """One line of the job's input file, without the newline. Gives the same bytes for the same
        request.
        """

    def decode_line(self, line: bytes) -> LineReply:
        """One line of a result file. Raises ValueError where the line is not a reply at all
        (truncated, not JSON).
        """

    def stage(self, lines: Path, name: str) -> str | None:
        """Uploads a job's lines to where `create` takes them from. Harmless to repeat.

        Returns:
          Their name there (a file id, a URI); None where `create` sends the lines itself.
        """

    def create(self, name: str, staged: str | None, lines: Path | None) -> RemoteJob:
        """Creates the job, in one try, since a repeat may make a second paid job. With
        `Recovery.TOKEN` a repeat gives the same job, and a caller that lost the answer repeats the
        call with the same name and input.

        Args:
          name: of this attempt; all attempts at the same job have the same name up to its last `-`.
          staged: as `stage` named it.
          lines: the local file, where `staged` is None.

        Raises:
          NotCreated: this call has certainly made no job.
          Exception: any other means that there may be one.
        """

    def find(self, name: str, staged: str | None, since: float) -> Sequence[RemoteJob]:
        """All jobs that were created under a name that begins with `name` and a `-`, or from the
        input `staged`, in any state. Not called for a provider that `FindsUnnamed`.

        Args:
          since: none of them is older, in seconds since the epoch by the provider's clock.

        Raises:
          CannotTell: neither now nor later can the provider say that there is no other one.
          CallError: it can't be asked now.
        """

    def pending(self) -> Sequence[RemoteJob]:
        """Jobs that have not ended, whoever made them, as far as the provider shows them. May stop
        at the first one found.

        Raises:
          CallError: CannotTell, or as for `find`.
        """

    def look(self, job_id: str) -> RemoteJob:
        """The job as it is now.

        Raises:
          UnknownJob: the provider doesn't know it, yet or any more.
        """

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes all result lines of an ended job, good and bad, into one local file. Harmless to
        repeat.

        Lines end with a newline and are in any order; a truncated line is the last one, without its
        newline. How much a server may send is bounded.

        Raises:
          CallError: not everything could be read; the file holds what could.
        """

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation. Harmless where the job has ended."""

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes the files that the provider keeps of a job: its results (`job`) and its staged
        input (`staged`). Harmless where they are gone.
        """

    def now(self) -> float | None:
        """The provider's time, in seconds since the epoch; None where it is not known. The clocks
        of machines may differ by hours; this one is the same for all.
        """

    def close(self) -> None:
        """Closes its connections. Harmless to repeat."""


@runtime_checkable
class HasJsonTexts(Protocol):
    """A BatchProvider whose input lines can be built from one another, without encoding each.

    Attributes:
      texts_are_json_strings: True promises that a message's text is a JSON string in its line, as
        orjson writes it, and that nothing else in the line depends on it.
    """

    texts_are_json_strings: bool


class Slot(enum.Enum):
    """What a variable value in a result line is; everything else in a `LineForm` is fixed.

    Attributes:
      CUSTOM_ID, TEXT: strings; the text is never empty.
      REQUEST_ID: a string of lower-case letters, digits, `_` and `-`, with at least one letter.
      COUNT: a whole number that is part of the reply, such as a count of tokens.
      NAME, NUMBER: an id or a whole number that the decoded reply doesn't depend on.
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
      parts: fixed bytes and slots, in the order of the line, up to its newline. A slot of a string
        excludes its quotes.
      is_clean: whether a text or ids may be used as they are in the line: False where an API key
        may be in them. Called with one character per byte (latin-1).
    """

    parts: tuple[bytes | Slot, ...]
    is_clean: Callable[[str], bool]


@runtime_checkable
class HasLineForms(Protocol):
    """A BatchProvider whose good result lines differ only in a few places, so that a million of
    them can be read in blocks: what `decode_line` says of one holds for all lines with the same
    counts.
    """

    def line_form(self, line: bytes) -> LineForm | None:
        """The form of a good line; None for a line that has no such form, or is not good.

            def line_form(self, line):  # {"custom_id":"r-1","id":"a7","text":"yes","tokens":12}
                found = form_of(line, SLOTS)  # providers/line_forms.py
                return found and LineForm(found, self._holds_no_key)

        It promises for each line of this form that is clean: `decode_line` gives the custom_id, the
        text and the request id that are in the slots; everything else is the same for all lines
        with the same counts.
        """


@runtime_checkable
class FindsUnnamed(Protocol):
    """A BatchProvider whose jobs have no name (`Recovery.NONE`), but which can tell them apart in
    time: by when a job was made, how many lines it has and, once it has ended, by its results.
    Without this method, every lost create of such a provider ends in doubt.
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
          lines: the most lines that the job has.
          since: none of them is older, in seconds since the epoch by the provider's clock.
          is_others: whether the job of an id is known to be another one. Call it only for jobs that
            nothing else tells apart: it reads from the store.

        Raises:
          Retryable: some jobs that have not ended may be this one; it is called again until they
            have ended.
          CannotTell: it can't be known, now or later.
          CallError: it can't be asked now.
        """


@dataclass(slots=True)
class Admission:
    """The right to send one request now, as a Limiter gives it.

    Attributes:
      sent_at: when it was given, by the event loop's clock.
      waited_seconds: how long the request waited for it, in all.
      throttled_seconds: the part of that wait which was for a budget, or because the provider wants
        fewer calls; the rest was for other calls to end.
      exceeds_budget: this request alone has more tokens than the budget of a minute.
      charge: for the limiter's own use.
    """

    sent_at: float = 0.0
    waited_seconds: float = 0.0
    throttled_seconds: float = 0.0
    exceeds_budget: bool = False
    charge: Any = None


class Limiter(Protocol):
    """Decides when the next live request may be sent, by the number in flight, and by requests and
    tokens per minute. It belongs to one event loop.

    Each request is admitted, then possibly one of `settle`, `throttled` and `timed_out` is called,
    and in any case it is released:

        admission = await limiter.admit(tokens)
        try:
            reply = await send()
            limiter.settle(admission, reply.tokens, reply.pace)
        finally:
            limiter.release(admission)

    A limiter that keeps the budgets of all workers in a shared database would be another class with
    these methods.
    """

    @property
    def slots(self) -> int:
        """How many requests may be in flight now; may change with every reply."""

    @property
    def counts_tokens(self) -> bool:
        """Whether `tokens` matters; where it doesn't, it need not be estimated."""

    async def admit(self, tokens: float, *, is_follow_up: bool = False) -> Admission:
        """Waits until a request may be sent.

        Args:
          tokens: estimated tokens of prompt and answer.
          is_follow_up: the ask has sent a request before. Such requests go first, so that the
            oldest asks end first.
        """

    def settle(self, admission: Admission, tokens: int, pace: Pace | None) -> None:
        """A reply came: it used this many tokens, and `pace` is what its headers say about the next
        minute.
        """

    def throttled(self, admission: Admission, retry_after_seconds: float | None) -> None:
        """The provider refused the request because there are too many."""

    def timed_out(self, admission: Admission) -> None:
        """No reply came in time."""

    def release(self, admission: Admission) -> None:
        """The request has ended in some way; another one may take its place."""


class Store(Protocol):
    """The staging location: named objects of bytes, shared by every worker and every later run.

        store.create("log/7", b"mine")     # True for exactly one of all who try, anywhere
        store.read("log/7", 1, 3)          # b"in"

    Everything depends on this: `create` is atomic; a reader sees all of an object or nothing; what
    was written is visible to everybody from then on, in lists too. Only a `put` of the same name
    changes an object.

    Names are relative and `/`-separated. Their segments consist of letters, digits, `_`, `-`, `.`
    and `=`, have up to 200 characters, and don't begin with a dot; any other name raises
    ValueError. No name is the folder of another one. Other failures raise the store's own
    exceptions: nothing fails silently.

    A store is pickled by its location, and may be used by several threads at once.

    Attributes:
      location: what it was opened with; for messages, and for opening it elsewhere.
    """

    location: str

    def create(self, name: str, data: bytes) -> bool:
        """Creates the object atomically; False where it exists. Of several concurrent calls,
        exactly one returns True.
        """

    def put(self, name: str, data: bytes) -> None:
        """Writes or replaces the object, all of it or nothing."""

    def put_file(self, name: str, path: str) -> None:
        """Like `put`, streamed from a local file."""

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none."""

    def get_file(self, name: str, path: str) -> bool:
        """Streams the object to a local path. Where there is none: returns False, and leaves no
        file there."""

    def read(self, name: str, start: int, end: int) -> bytes | None:
        """Bytes [start, end) of the object, fewer where it ends earlier; None where there is none.
        Transfers no more than it returns.
        """

    def list(self, prefix: str, start_after: str = "") -> Iterable[str]:
        """Names with the prefix that sort after `start_after`, in the order of their characters."""

    def delete(self, name: str) -> None:
        """Removes the object; harmless where it is gone."""

    def path_of(self, name: str) -> Path | None:
        """The local file that the object is, or would be, for reading it in place; None where
        objects are not local files.
        """

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Removes what killed processes left half-written, which `list` doesn't show; spares what
        is being written now.

        Args:
          dry_run: nothing is removed.

        Returns:
          What it removes, for people.
        """
