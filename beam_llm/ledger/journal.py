"""The record of one job: typed documents, named in one place, read by one reader.

    jobs/<job>/lease-<k>      who may submit it, until when; taken over by creating k + 1
               uploaded-<u>   the job's input is at the provider
               creating-<a>   written right before attempt a's create: from here on a remote job
                              may exist. Only who created this object may send that create, so no
                              two processes ever send the same one
               created-<a>    the acknowledgement: the remote job's id
               closed-<a>     attempt a came to nothing; the next may begin
               deadline-<a>   waiting has ended, cancellation was asked for
               twice          several remote jobs were made: which one stays
               done           how it ended: outcomes are stored, and its children are named
               done-again     how it ended after all, where `done` is a doubt
               slice-<s>      the next records of a job of live calls are answered

A job is named by its log entry, `7`, or by its parent: `7.f` asks again for what 7 left over,
`7.f.l` asks by live calls for what that left over, `7.a` and `7.b` are the halves of a 7 that was
too large for the provider's queue, `7.b.f` is the follow-up of a half.
"""

from __future__ import annotations

import enum
import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from beam_llm.errors import LedgerError
from beam_llm.ledger.columns import FORMAT, newer_format
from beam_llm.ledger.status import JobStatus, read_status
from beam_llm.protocols import Store
from beam_llm.values import Usage, sum_of_costs

FOLLOW_UP, FIRST_HALF, SECOND_HALF, LIVE = "f", "a", "b", "l"
"""The last segment of a child's name."""


class CloseReason(enum.StrEnum):
    """Why an attempt came to nothing."""

    NOT_FOUND = "not found"
    RESUBMITTED = "doubt, resubmitted"
    # The attempt was marked, and then another process had the lease.
    LEASE_LOST = "lease lost"
    ABORTED = "aborted"
    REFUSED = "refused"
    QUEUE = "queue"
    INPUT_GONE = "input gone"
    # There were two remote jobs of one intent, and the other one stays.
    DOUBLE = "double"

    @property
    def is_a_guess(self) -> bool:
        """Whether the attempt may have made a job all the same, which may show up later."""
        return self in (CloseReason.NOT_FOUND, CloseReason.RESUBMITTED)

    @property
    def sent_nothing(self) -> bool:
        """Whether the attempt certainly has made no job."""
        return self in (CloseReason.LEASE_LOST, CloseReason.ABORTED)


@dataclass(frozen=True)
class Document:
    """A small JSON object in the staging location: its members are the fields of its class, and at
    the end a seal, a digest of everything before it.

    A field with a default may be missing in stored documents, so a field that is added later needs
    a default.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)
    word: ClassVar[str] = ""
    digits: ClassVar[int] = 4
    """Digits of the count behind the word; 0 where there is only one such document."""

    def dumps(self) -> bytes:
        body = orjson.dumps({"format": FORMAT, **asdict(self)})
        return b'%b%b%b"}' % (body[:-1], _SEAL, _digest(body))


_SEAL = b',"seal":"'


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _is_whole(data: bytes) -> bool:
    """Whether a document is as it was sealed. Documents without a seal are accepted: early versions
    wrote none."""
    members, found, seal = data.rpartition(_SEAL)
    return not found or seal == _digest(members + b"}") + b'"}'


D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Lease(Document):
    """Who may submit a job, until when.

    By `place` and `process`, other processes on the same machine see whether the owner still lives.
    `shared`: times are by the provider's clock.
    """

    word = "lease"
    owner: str
    expires_at: float
    process: int
    seconds: float | None = None
    shared: bool = False
    place: str = ""


@dataclass(frozen=True)
class Uploaded(Document):
    """The job's input is staged with the provider under that name."""

    word = "uploaded"
    file_id: str


@dataclass(frozen=True)
class Creating(Document):
    """A create may be sent from now on. With `adopts` none is sent: the attempt takes over that
    remote job, which another attempt has made. `place`: project and region that it goes to, if
    named. `account`: a digest of the API key that it is sent with."""

    word = "creating"
    at: float
    shared: bool = False
    file_id: str | None = None
    adopts: str | None = None
    place: str = ""
    account: str = ""


@dataclass(frozen=True)
class Created(Document):
    """The provider has taken the job."""

    word = "created"
    job_id: str
    created_at: float


@dataclass(frozen=True)
class Refusal:
    """What is known of a refusal by a full queue: the limit that the provider stated, and whether
    no other job was pending (None: unknown)."""

    limit: int | None = None
    alone: bool | None = None


@dataclass(frozen=True)
class Closed(Document):
    """The attempt came to nothing, for that reason; the next one may begin at `retry_at`."""

    word = "closed"
    reason: CloseReason
    at: float = 0.0
    retry_at: float = 0.0
    job_id: str | None = None
    file_id: str | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Deadline(Document):
    """The deadline has passed, and cancellation was asked for at `at`."""

    word = "deadline"
    at: float


@dataclass(frozen=True)
class Twice(Document):
    """There are several remote jobs: `kept` stays (None: the one that another process has made),
    `cancelled` were cancelled."""

    word, digits = "twice", 0
    kept: str | None
    cancelled: tuple[str, ...]


@dataclass(frozen=True)
class Child:
    """A further job for some of a job's records. `name` is the last segment of its name."""

    name: str
    lines: str
    records: int
    line_count: int
    tokens: int


@dataclass(frozen=True)
class Done(Document):
    """How a job ended, and which jobs go on. Whoever creates this object decides, once and for all.

    Attributes:
      intent: fingerprint of the job that this is the end of.
      outcomes: name of the outcomes of the records that end here; None where none do.
      ended: the remote job's state, or our word: `split`, `lost`, `refused`, `doubtful`, ….
      counts: records that end here by kind of failure; `""`: answered.
      children: jobs, or live calls, for what does not end here.
      left: name of the outcomes so far of records that are passed on: failures, usage, cost.
      doubted: it was split although an attempt may have made a remote job of the whole, which may
        show up later.
      ends_all: (kind, message), where the other halves end the same way if nothing was sent of
        them.
      facts: counts of what was wrong with its result lines, and of its replies' warnings.
      usage: tokens of all replies, as in `Usage`.
    """

    word, digits = "done", 0
    intent: str
    outcomes: str | None
    ended: str
    counts: dict[str, int]
    at: float = 0.0
    children: tuple[Child, ...] = ()
    left: str | None = None
    doubted: bool = False
    ends_all: tuple[str, str] | None = None
    facts: dict[str, int] = field(default_factory=dict)
    usage: tuple[int, ...] = (0, 0, 0, 0, 0)
    cost_usd: float | None = 0.0

    @property
    def passed_on(self) -> int:
        """Records that do not end here."""
        return sum(child.records for child in self.children)

    @property
    def may_end_again(self) -> bool:
        """Whether answers may still come, or be there by now: it ended in doubt, and no child asks
        again."""
        in_doubt = self.ended in ("deadline", "unread", "lost", "doubtful")
        return in_doubt and not self.children


@dataclass(frozen=True)
class DoneAgain(Done):
    word = "done-again"


@dataclass(frozen=True)
class Slice(Document):
    """The next `records` records of a job of live calls are answered."""

    word, digits = "slice", 6
    outcomes: str
    records: int
    cost_usd: float | None = 0.0
    usage: tuple[int, ...] = (0, 0, 0, 0, 0)


def spent(slices: Sequence[Slice]) -> tuple[Usage, float | None]:
    """The usage and cost of all slices together."""
    usage = sum((Usage(*each.usage) for each in slices), Usage())
    return usage, sum_of_costs(each.cost_usd for each in slices)


@dataclass(frozen=True)
class _Head:
    format: int


_adapters: dict[type[Any], TypeAdapter[Any]] = {}
"""Of the types read so far: to make one takes a millisecond."""


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def parse(name: str, data: bytes, kind: type[D]) -> D:
    """The document in an object's bytes.

    Raises:
      LedgerError: it is damaged or incomplete, or has a format that this version doesn't know.
        Names the object.
    """
    # The format is checked first: in a newer one, members that this version doesn't know are no
    # damage.
    try:
        version = _adapter(_Head).validate_json(data, strict=True).format
    except ValidationError as error:
        raise LedgerError(
            f"{name} is damaged or was cut ({len(data)} bytes): {_first(error)}"
        ) from None
    if version > FORMAT:
        raise newer_format(name, version)
    try:
        found: D = _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise LedgerError(f"{name} is damaged: {_first(error)}") from None
    # A damaged value may still be valid: another job's id, another task.
    if not _is_whole(data):
        raise LedgerError(f"{name} is damaged: its seal does not match what it holds")
    return found


def _first(error: ValidationError) -> str:
    """Which field is wrong, and how; without its value, which may be anything."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place!r}: {first['msg']}" if place else str(first["msg"])


def read(store: Store, name: str, kind: type[D]) -> D | None:
    """The document of that name; None where there is none. Raises as `parse` does."""
    data = store.get(name)
    return None if data is None else parse(name, data, kind)


def folder(job: str) -> str:
    """The folder of a job's documents. Folders sort as the log entries do, each job's children
    right behind it."""
    number, dot, path = job.partition(".")
    return f"jobs/{int(number):020d}{dot}{path}/"


_IN_A_JOB = re.compile(r"jobs/(\d{20})((?:\.[a-z])*)/(.+)", re.ASCII)


def job_of(name: str) -> str | None:
    """The job that an object below `jobs/` belongs to; None for what no ledger has put there, such
    as a file of the operating system's, or a bucket's folder marker."""
    found = _IN_A_JOB.fullmatch(name)
    return f"{int(found[1])}{found[2]}" if found else None


def acknowledged_creates(store: Store) -> Iterator[tuple[str, str]]:
    """(job, the provider's id) of every acknowledged create in a ledger, newest job first."""
    # There is no index of the provider's ids, since a job is seldom looked up by one.
    for name in reversed([name for name in store.list("jobs/") if f"/{Created.word}-" in name]):
        job, count = job_of(name), name.rpartition("-")[2]
        created = read(store, name, Created) if job and count.isdecimal() else None
        if job and created is not None:
            yield job, created.job_id


class Journal:
    """The documents of one job.

    journal = Journal(store, "7.f")
    journal.status().phase
    journal.newest(Created).job_id
    """

    def __init__(self, store: Store, job: str):
        self.store, self.job, self.folder = store, job, folder(job)
        # Documents read so far. They never change, and a job that has waited for hours behind a
        # full queue has many hundreds, all of which are needed at every further attempt.
        self._known: dict[tuple[type[Document], int], Document] = {}

    def name(self, kind: type[Document], count: int = 0) -> str:
        return f"{self.folder}{kind.word}" + (f"-{count:0{kind.digits}d}" if kind.digits else "")

    def read(self, kind: type[D], count: int = 0) -> D | None:
        """One document; None where there is none. Raises LedgerError as `parse` does."""
        # -1 stands for the attempt before the first one, or for no upload.
        if count < 0:
            return None
        known = self._known.get((kind, count))
        if isinstance(known, kind):
            return known
        found = read(self.store, self.name(kind, count), kind)
        if found is not None:
            self._known[kind, count] = found
        return found

    def require(self, kind: type[D], count: int = 0) -> D:
        """One document that has to be there. Raises LedgerError also where it is missing."""
        found = self.read(kind, count)
        if found is None:
            raise LedgerError(f"{self.name(kind, count)} can't be read back")
        return found

    def add(self, document: Document, count: int = 0) -> bool:
        """Creates a document; False where another process has created it before."""
        return self.store.create(self.name(type(document), count), document.dumps())

    def new_answers(self) -> str:
        """A name for outcomes of this job, new each time: several processes may write them."""
        return f"{self.folder}answers-{uuid.uuid4().hex[:12]}"

    def counts(self, kind: type[Document]) -> list[int]:
        """The counts of its documents of one kind, ascending."""
        prefix = f"{self.folder}{kind.word}-"
        counts = (name.removeprefix(prefix) for name in self.store.list(prefix))
        return sorted(int(count) for count in counts if count.isdecimal())

    def newest(self, kind: type[D]) -> D | None:
        counts = self.counts(kind)
        return self.read(kind, counts[-1]) if counts else None

    def all(self, kind: type[D]) -> list[D]:
        found = (self.read(kind, count) for count in self.counts(kind))
        return [document for document in found if document is not None]

    def status(self) -> JobStatus:
        """Where the job stands."""
        return read_status(name.removeprefix(self.folder) for name in self.store.list(self.folder))

    def end(self, fingerprint: str) -> Done | None:
        """How the job ended; None where it has not.

        Args:
          fingerprint: the job's own.

        Raises:
          LedgerError: the end belongs to another job of the same name: the log lost an entry, and
            gave its number away again.
        """
        done = self._own_end(Done, fingerprint)
        if done is None or not done.may_end_again:
            return done
        return self._own_end(DoneAgain, fingerprint) or done

    def _own_end(self, kind: type[Done], fingerprint: str) -> Done | None:
        done = self.read(kind)
        if done is not None and done.intent != fingerprint:
            other = f"is of another job than the log's {self.job}: one of them was lost or replaced"
            raise LedgerError(f"{self.name(kind)} {other}")
        return done
