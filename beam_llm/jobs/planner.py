"""The planner: which records are known, and which job the others go into. The only writer of the log beside follow-ups.

    parts ─► keys ─ known? ─┬─ a job has it: this run's rows of that job
                            └─ new: distinct records ─ caps ─► lines ─ limits ─► jobs ─ append ─► this run's rows of them

Columns all the way: a few numpy passes per plan, nothing per record but those and, for prompts of several records, one cut per line.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import orjson

from beam_llm.batching import RECORD_OVERHEAD_TOKENS, Caps
from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.jobs.chain import Chain
from beam_llm.jobs.columns import KEY, Array, find
from beam_llm.jobs.job import may_be_asked_again
from beam_llm.jobs.ledger import JOB, Intent, Ledger
from beam_llm.jobs.manifest import Manifest, compact
from beam_llm.jobs.parts import PartReader, PartRef
from beam_llm.jobs.points import reached
from beam_llm.protocols import BatchLimits, Clock, Store
from beam_llm.task import Task
from beam_llm.values import Record

ALL_PHASES = 9
_FRAME_BYTES = 400
"""Of a JSONL line around its messages: custom_id, url, parameters; an estimate from above."""


class BatchJobRef(NamedTuple):
    """One job as this run sees it. Small: it travels through the pipeline and is kept in checkpoints.

    Attributes:
      job_id: the provider's id; None until there is one.
      records: elements of this run which the job answers.
      number: in the ledger; 0 for elements with an error of their own, which are in no job.
      manifest: this run's rows.
      state: `planned`, `queued`, `created` or `done`, as it was when the ref was made.
      min_timestamp: the earliest element's, microseconds since the epoch.
      reused: so many of its phases were paid for before this run (their answers cost nothing now).
    """

    job_id: str | None
    records: int
    staging_location: str
    number: int
    manifest: str
    model: str
    state: str
    min_timestamp: int
    reused: int = 0


def plan(store: Store, task: Task, caps: Caps, limits: BatchLimits, parts: Sequence[PartRef], clock: Clock) -> list[BatchJobRef]:
    """Finds or plans a job for every record of `parts`. Planning the same parts again finds what was planned, and gives the same refs.

    Returns:
      One ref per job that this run needs, in order of number; one with number 0 for records with early errors.

    Raises:
      LedgerError: the staging location is damaged or of a newer format.
    """
    if not parts:
        return []
    return _Plan(Ledger(store), task, caps, limits, parts, clock).refs()


class _Plan:
    def __init__(self, ledger: Ledger, task: Task, caps: Caps, limits: BatchLimits, parts: Sequence[PartRef], clock: Clock):
        self._ledger, self._task, self._caps, self._limits, self._clock = ledger, task, caps, limits, clock
        self._settings: Settings = task.settings
        self._pool = _Pool.load(ledger.store, parts)
        self._min_timestamp = min(part.min_timestamp for part in parts)
        self._chains: dict[int, Chain] = {}

    def refs(self) -> list[BatchJobRef]:
        reached("intent.before")
        numbers = self._known_jobs()
        self._claim(numbers)
        return self._refs_of(numbers)

    def _known_jobs(self) -> Array:
        """Per row the job that has it; 0: new, or not to be asked at all."""
        known = self._ledger.known()
        self._last = known.last
        numbers = known.jobs_of(self._pool.keys)
        numbers[self._pool.failed] = 0
        for number in np.unique(numbers).tolist():
            if number:
                self._forget_unpaid(numbers, number)
        return numbers

    def _forget_unpaid(self, numbers: Array, number: int) -> None:
        """Records that a finished job left without an answer, at no cost, are new again."""
        rows = np.flatnonzero(numbers == number)
        keys = self._pool.keys[rows]
        for again in self._chain(number).unpaid(may_be_asked_again(self._settings)):
            numbers[rows[find(np.sort(again), keys) >= 0]] = 0

    def _chain(self, number: int) -> Chain:
        if number not in self._chains:
            self._chains[number] = Chain(self._ledger, number)
        return self._chains[number]

    def _claim(self, numbers: Array) -> None:
        """Appends intents for the new rows, job by job, and notes their numbers.

        The loser of a race reads what came between, leaves to the winner what it claimed, and cuts the rest anew. Nothing was
        staged yet, so a lost race costs two small manifests.
        """
        leaders = self._pool.leaders(np.flatnonzero((numbers == 0) & ~self._pool.failed))
        distinct = np.unique(leaders.leader) if leaders.repeats else leaders.rows
        while len(distinct):
            lines = self._lines(distinct)
            lost = False
            for first_line, end_line in pairwise(self._job_cuts(distinct, lines)):
                members = distinct[lines[first_line] : lines[end_line]]
                rows = leaders.rows_of(members)
                line_starts = (lines[first_line : end_line + 1] - lines[first_line]).astype(np.uint32)
                intent = self._intent(members, line_starts, rows)
                signed = self._ledger.append(intent)
                if signed is None:
                    lost = True
                    break
                reached("intent.after")
                self._last = intent.number
                numbers[rows] = intent.number
            if not lost:
                return
            self._leave_to_winner(distinct, numbers, leaders)
            distinct = distinct[numbers[distinct] == 0]

    def _leave_to_winner(self, distinct: Array, numbers: Array, leaders: _Leaders) -> None:
        open_rows = distinct[numbers[distinct] == 0]
        known, seen = self._ledger.known(), self._last
        claimed = known.jobs_of(self._pool.keys[open_rows])
        claimed[claimed <= seen] = 0  # an old job that is to be asked again, not a new claim
        self._last = known.last
        for number in np.unique(claimed).tolist():
            if number:
                numbers[leaders.rows_of(open_rows[claimed == number])] = number

    def _intent(self, members: Array, line_starts: Array, rows: Array) -> Intent:
        pool, store = self._pool, self._ledger.store
        lines = compact(pool.keys[members], pool.part_of(members), pool.row_of(members), pool.names, line_starts)
        return Intent(
            number=self._last + 1,
            kind=JOB,
            parent=0,
            lines=lines.write(store),
            rows=self._rows_manifest(rows),
            records=len(members),
            line_count=len(line_starts) - 1,
            tokens=int(pool.tokens[members].sum(dtype=np.int64)) + self._task.shared_tokens * (len(line_starts) - 1),
            task=self._task.fingerprint.hex(),
            model=self._settings.model,
            host=host_of(self._settings),
            created_at=self._clock.time(),
        )

    def _rows_manifest(self, rows: Array) -> str:
        """This run's rows of one job in canonical order, so that the same rows always have the same manifest."""
        pool = self._pool
        manifest = compact(pool.keys[rows], pool.part_of(rows), pool.row_of(rows), pool.names)
        order = np.lexsort((manifest.row, manifest.part))
        return replace(manifest, keys=manifest.keys[order], part=manifest.part[order], row=manifest.row[order]).write(self._ledger.store)

    def _lines(self, distinct: Array) -> Array:
        """First record of each line, and the end."""
        pool, caps = self._pool, self._caps
        if caps.records == 1:
            return np.arange(len(distinct) + 1, dtype=np.int64)
        return cut_lines(pool.tokens[distinct], pool.sizes[distinct], caps)

    def _job_cuts(self, distinct: Array, lines: Array) -> list[int]:
        """First line of each job, and the end."""
        settings, limits = self._settings, self._limits
        frame, per_record = self._line_frame(distinct)
        records = np.diff(lines)
        sizes = _sums(self._pool.sizes[distinct], lines) + records * per_record + frame
        tokens = _sums(self._pool.tokens[distinct], lines) + records * RECORD_OVERHEAD_TOKENS + self._task.shared_tokens
        return cut_jobs(
            sizes,
            tokens,
            max_requests=min(settings.job_max_records or limits.max_requests, limits.max_requests),
            max_bytes=min(settings.job_max_bytes or limits.max_bytes, limits.max_bytes),
            max_tokens=settings.job_max_tokens,
        )

    def _line_frame(self, distinct: Array) -> tuple[int, int]:
        """Bytes of a line without its records' texts, and what each record adds beside its text; measured on one rendered record."""
        record, size = self._pool.sample(int(distinct[0]), self._ledger.store)
        one, two, three = (_rendered_bytes(self._task, record, count) for count in (1, 2, 3))
        per_record = max(three - two - size, 0) + 24
        return max(one - size, two - 2 * size - per_record, 0) + _FRAME_BYTES, per_record

    def _refs_of(self, numbers: Array) -> list[BatchJobRef]:
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        return [self._ref(int(numbers[rows[0]]), rows) for rows in np.split(order, cuts) if len(rows)]

    def _ref(self, number: int, rows: Array) -> BatchJobRef:
        ledger, manifest = self._ledger, self._rows_manifest(rows)
        model = ledger.intent(number).model if number else self._settings.model
        ref = BatchJobRef(None, len(rows), ledger.location, number, manifest, model, "planned", self._min_timestamp)
        if not number:
            return ref._replace(state="done")
        chain = self._chain(number)
        finished = chain.finished_links()
        if not finished and ledger.appended_here(number) and manifest != ledger.intent(number).rows:
            finished = ALL_PHASES  # this process's own earlier plan has the job, and reports what it costs
        state = "done" if chain.is_finished() else "created" if chain.job_id else "planned"
        return ref._replace(job_id=chain.job_id, state=state, reused=finished)


@dataclass(frozen=True, eq=False)
class _Leaders:
    """Rows to be asked, and for each the first row with equal content (itself, mostly)."""

    rows: Array
    leader: Array
    repeats: bool

    def rows_of(self, members: Array) -> Array:
        """All rows led by `members`."""
        if not self.repeats:
            return members
        return self.rows[np.isin(self.leader, members)]


class _Pool:
    """The columns of all parts of a plan, one after the other: 29 bytes a record."""

    def __init__(self, names: list[str], counts: Array):
        total = int(counts.sum())
        self.names = names
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.keys = np.zeros(total, dtype=KEY)
        self.tokens = np.zeros(total, dtype=np.uint32)
        self.sizes = np.zeros(total, dtype=np.uint32)
        self.failed = np.zeros(total, dtype=bool)

    @staticmethod
    def load(store: Store, parts: Sequence[PartRef]) -> _Pool:
        pool = _Pool([part.name for part in parts], np.array([part.rows for part in parts], dtype=np.int64))
        for number, part in enumerate(parts):
            reader = PartReader(store, part.name)
            here = slice(pool.starts[number], pool.starts[number + 1])
            pool.keys[here], pool.tokens[here], pool.sizes[here] = reader.keys, reader.tokens, reader.sizes
            pool.failed[here] = reader.failed
        return pool

    def part_of(self, rows: Array) -> Array:
        return (np.searchsorted(self.starts, rows, side="right") - 1).astype(np.uint32)

    def row_of(self, rows: Array) -> Array:
        return (rows - self.starts[self.part_of(rows)]).astype(np.uint32)

    def sample(self, row: int, store: Store) -> tuple[Record, int]:
        """One record, and its size."""
        part = int(self.part_of(np.array([row]))[0])
        reader = PartReader(store, self.names[part])
        try:
            return reader.record(row - int(self.starts[part])), int(self.sizes[row])
        finally:
            reader.close()

    def leaders(self, rows: Array) -> _Leaders:
        """Finds equal keys. Sorts by 8 of the 16 bytes, which halves time and memory, and looks at the others where those agree."""
        keys = self.keys[rows] if len(rows) < len(self.keys) else self.keys
        halves = np.ascontiguousarray(keys.view("<u8").reshape(-1, 2)[:, 0])
        order = np.argsort(halves, kind="stable")
        same = halves[order[1:]] == halves[order[:-1]]
        del halves
        if not same.any():
            return _Leaders(rows, rows, False)
        if not (keys[order[1:][same]] == keys[order[:-1][same]]).all():
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
        group_starts = np.concatenate([[True], ~same])
        firsts = order[group_starts]
        leader = np.empty(len(rows), dtype=np.int64)
        leader[order] = firsts[np.cumsum(group_starts) - 1]
        return _Leaders(rows, rows[leader], True)


def cut_lines(tokens: Array, sizes: Array, caps: Caps) -> Array:
    """Greedily fills prompts: first record of each line, and the end. A record that passes a cap alone has a line of its own."""
    spent = np.cumsum(tokens, dtype=np.int64) + RECORD_OVERHEAD_TOKENS * np.arange(1, len(tokens) + 1)
    token_sums = spent.tolist()
    byte_sums = np.cumsum(sizes, dtype=np.int64).tolist() if caps.bytes is not None else None
    starts, at, count = [0], 0, len(tokens)
    spent_tokens = spent_bytes = 0
    while at < count:
        end = min(at + caps.records, count)
        if token_sums[end - 1] - spent_tokens > caps.tokens:
            end = bisect_right(token_sums, spent_tokens + caps.tokens, at, end)
        if byte_sums is not None and caps.bytes is not None and byte_sums[max(end, at + 1) - 1] - spent_bytes > caps.bytes:
            end = bisect_right(byte_sums, spent_bytes + caps.bytes, at, max(end, at + 1))
        at = max(end, at + 1)
        spent_tokens = token_sums[at - 1]
        spent_bytes = byte_sums[at - 1] if byte_sums is not None else 0
        starts.append(at)
    return np.array(starts, dtype=np.int64)


def cut_jobs(sizes: Array, tokens: Array, *, max_requests: int, max_bytes: int, max_tokens: int | None) -> list[int]:
    """Greedily fills jobs with lines: first line of each, and the end. A line that passes a limit alone has a job of its own.

    Args:
      sizes, tokens: of each line.
    """
    byte_sums, token_sums = np.cumsum(sizes), np.cumsum(tokens)
    cuts, at, count = [0], 0, len(sizes)
    while at < count:
        end = min(at + max_requests, count)
        end = min(end, int(np.searchsorted(byte_sums, (byte_sums[at - 1] if at else 0) + max_bytes, side="right")))
        if max_tokens is not None:
            end = min(end, int(np.searchsorted(token_sums, (token_sums[at - 1] if at else 0) + max_tokens, side="right")))
        at = max(end, at + 1)
        cuts.append(at)
    return cuts


def _sums(values: Array, starts: Array) -> Array:
    """Sum per line."""
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    found: Array = sums[starts[1:]] - sums[starts[:-1]]
    return found


def _rendered_bytes(task: Task, record: Record, count: int) -> int:
    request = task.render([record] * count)
    messages = [[message.role, message.content] for message in request.messages]
    return len(orjson.dumps([messages, request.schema, request.extra], default=str))


def host_of(settings: Settings) -> str:
    """Host and port of the base URL, and nothing else of it."""
    parts = urlsplit(settings.base_url or "")
    return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")


def find_ref(store: Store, job_id: str) -> BatchJobRef:
    """The ref of the job that the provider calls `job_id`, for the elements of the run that planned it.

    A follow-up's id leads to the job it followed: that one has the elements.

    Raises:
      UsageError: no job in this staging location has that id.
    """
    ledger = Ledger(store)
    number = _number_of(ledger, job_id)
    intent = ledger.intent(number)
    while not intent.root:
        intent = ledger.intent(intent.parent)
    chain, rows = Chain(ledger, intent.number), Manifest.read(store, intent.rows)
    oldest = min((int(PartReader(store, name).facts["min_timestamp"]) for name in rows.parts), default=0)
    return BatchJobRef(chain.job_id, len(rows), ledger.location, intent.number, intent.rows, intent.model, "created", oldest)


def _number_of(ledger: Ledger, job_id: str) -> int:
    store = ledger.store
    for name in store.list("jobs/"):
        if "/created-" in name:
            found = store.get(name)
            if found is not None and orjson.loads(found)["job_id"] == job_id:
                return int(name.split("/")[1])
    raise UsageError(f"no job in {ledger.location!r} has the id {job_id!r}; `beam-llm jobs ls` lists those there are")
