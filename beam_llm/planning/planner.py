"""The planner: which records are known, and which job the others go into. The only writer of the
log.

    parts ─► keys ─┬─ known: a job of the log has the record ─────────────────────────┐
                   └─ new: cut into lines (prompts), and these into jobs,             ├─► refs
                           each appended to the log, which claims its records' keys ──┘

A ref names a job and the elements of this run that it answers. All work is done on columns, in a
few numpy passes, since a plan may have millions of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from beam_llm.caps import RECORD_OVERHEAD_TOKENS, Caps
from beam_llm.config import Settings
from beam_llm.errors import Kind
from beam_llm.ledger.columns import Array, find
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.log import Ledger
from beam_llm.ledger.manifest import compact
from beam_llm.ledger.model_limit import ModelLimit
from beam_llm.ledger.parts import PartRef
from beam_llm.ledger.refs import BatchJobRef, host_of
from beam_llm.planning.cutting import cut_jobs, cut_lines
from beam_llm.planning.record_pool import Leaders, RecordPool
from beam_llm.protocols import BatchTraits, Clock, Store, Task

# More phases than any tree has: all of them count as paid for.
ALL_PHASES = 1_000_000
FRAME_BYTES = 400
"""Bytes of a JSONL line around its messages (custom_id, url, parameters); an upper estimate."""
_UNPAID = frozenset(
    {Kind.EXPIRED, Kind.RATE_LIMITED, Kind.TIMED_OUT, Kind.UNAVAILABLE, Kind.ABORTED, Kind.BUDGET}
)


def plan(
    store: Store,
    task: Task,
    caps: Caps,
    traits: BatchTraits,
    parts: Sequence[PartRef],
    clock: Clock,
) -> list[BatchJobRef]:
    """Finds or plans a job for each record of `parts`. Planning the same parts again finds the same
    jobs, and gives the same refs.

    Returns:
      One ref per job that this run needs, ordered by number; number 0 is for records that failed
      before any call.

    Raises:
      LedgerError: the staging location is damaged or of a newer format.
      UsageError: a part was spooled for another question: the pipeline was updated meanwhile.
    """
    if not parts:
        return []
    return _Plan(Ledger(store), task, caps, traits, parts, clock).refs()


class _Cut(NamedTuple):
    """A job that is to be made: records `start` to `end` of the new ones, and where each of its
    lines begins among them."""

    start: int
    end: int
    line_starts: Array
    tokens: int


class _Plan:
    """One call of `plan`. Rows are numbered across all parts; arrays have one item per row."""

    def __init__(
        self,
        ledger: Ledger,
        task: Task,
        caps: Caps,
        traits: BatchTraits,
        parts: Sequence[PartRef],
        clock: Clock,
    ):
        self._ledger, self._clock = ledger, clock
        self._task, self._caps, self._traits = task, caps, traits
        self._settings = task.settings
        # Ordered by name, so that the same parts give the same jobs in whatever order they come,
        # and rows are in a manifest's canonical order.
        ordered = sorted(parts, key=lambda part: part.name)
        self._pool = RecordPool(ledger.store, ordered, task.fingerprint)
        self._min_timestamp = min(part.min_timestamp for part in parts)
        self._trees: dict[int, JobTree] = {}
        self._rows_named: dict[int, str] = {}

    def refs(self) -> list[BatchJobRef]:
        failpoint("intent.before")
        numbers = self._known_jobs()
        self._claim(numbers)
        return self._refs_of(numbers)

    def _known_jobs(self) -> Array:
        """The number of each row's job; 0 for rows that are new, or not to be asked at all."""
        known = self._ledger.known_keys()
        self._last = known.last
        numbers = known.jobs_of(self._pool.keys)
        # Rows that failed early share a key of zeros, which no record has.
        numbers[self._pool.failed] = 0
        free = _may_be_asked_again(self._settings)
        for number in np.unique(numbers).tolist():
            # Records that a finished job left without an answer, at no cost, count as new.
            for again in self._tree(number).unpaid(free) if number else ():
                rows = np.flatnonzero(numbers == number)
                numbers[rows[find(np.sort(again), self._pool.keys[rows]) >= 0]] = 0
        return numbers

    def _tree(self, number: int) -> JobTree:
        if number not in self._trees:
            self._trees[number] = JobTree(self._ledger, number)
        return self._trees[number]

    def _claim(self, numbers: Array) -> None:
        """Appends jobs to the log until all new rows are claimed, and sets their numbers.

        Where another planner has appended first, the rows that it claimed belong to its job, and
        the rest are cut anew. Nothing was staged yet, so losing the race costs only two small
        manifests.
        """
        leaders = self._pool.leaders(
            np.flatnonzero((numbers == 0) & ~self._pool.failed).astype(np.int32)
        )
        distinct = np.unique(leaders.leader) if leaders.repeats else leaders.rows
        while len(distinct):
            for cut in self._jobs(distinct):
                members = distinct[cut.start : cut.end]
                rows = leaders.rows_of(members)
                intent = self._intent(members, cut, rows)
                if self._ledger.append(intent) is None:
                    break
                failpoint("intent.after")
                self._last, self._rows_named[intent.number] = intent.number, intent.rows
                numbers[rows] = intent.number
            else:  # every append was won
                return
            self._leave_to_winner(distinct, numbers, leaders)
            distinct = distinct[numbers[distinct] == 0]

    def _leave_to_winner(self, distinct: Array, numbers: Array, leaders: Leaders) -> None:
        """Sets the numbers of rows that another planner has claimed since the log was last read."""
        open_rows = distinct[numbers[distinct] == 0]
        known, seen = self._ledger.known_keys(), self._last
        claimed = known.jobs_of(self._pool.keys_of(open_rows))
        claimed[claimed <= seen] = 0  # an old job, whose record is asked again: no new claim
        self._last = known.last
        for number in np.unique(claimed).tolist():
            if number:
                numbers[leaders.rows_of(open_rows[claimed == number])] = number

    def _intent(self, members: Array, cut: _Cut, rows: Array) -> Intent:
        pool, store = self._pool, self._ledger.store
        distinct = compact(pool.keys_of(members), *pool.places_of(members), pool.names)
        lines = distinct.in_lines(cut.line_starts)
        return Intent(
            number=self._last + 1,
            lines=lines.write(store),
            rows=self._rows_manifest(rows),
            records=len(members),
            line_count=lines.lines,
            tokens=cut.tokens,
            task=self._task.fingerprint.hex(),
            model=self._settings.model,
            host=host_of(self._settings),
            created_at=self._clock.time(),
        )

    def _rows_manifest(self, rows: Array) -> str:
        """This run's rows of one job in canonical order, so that the same rows always have the same
        manifest."""
        pool = self._pool
        manifest = compact(pool.keys_of(rows), *pool.places_of(rows), pool.names)
        part, row = manifest.part, manifest.row
        # They nearly always are in order, and checking is cheaper than sorting.
        if ((part[1:] > part[:-1]) | ((part[1:] == part[:-1]) & (row[1:] >= row[:-1]))).all():
            return manifest.write(self._ledger.store)
        # The same part came twice: two bundles with the very same elements.
        order = np.lexsort((row, part))
        return replace(manifest, keys=manifest.keys[order], part=part[order], row=row[order]).write(
            self._ledger.store
        )

    def _jobs(self, distinct: Array) -> list[_Cut]:
        """Cuts new records into lines, and lines into jobs."""
        settings, traits, caps = self._settings, self._traits, self._caps
        tokens, sizes = self._pool.weights(distinct)
        lines = (
            np.arange(len(distinct) + 1, dtype=np.int32)
            if caps.records == 1
            else cut_lines(tokens, sizes, caps)
        )
        frame, per_record = self._line_frame(distinct)
        if caps.records > 1:
            tokens, sizes = (np.add.reduceat(column, lines[:-1]) for column in (tokens, sizes))
        counts = np.diff(lines).astype(np.uint32)
        sizes += counts * np.uint32(per_record) + np.uint32(frame)
        tokens += counts * np.uint32(RECORD_OVERHEAD_TOKENS) + np.uint32(self._task.shared_tokens)
        cuts = cut_jobs(
            sizes,
            tokens,
            max_requests=min(settings.job_max_records or traits.max_requests, traits.max_requests),
            max_bytes=min(settings.job_max_bytes or traits.max_bytes, traits.max_bytes),
            max_tokens=settings.job_max_tokens or self._learned_limit(),
            min_requests=traits.min_requests,
            counts=counts,
            max_records=traits.max_records,
        )
        return [
            _Cut(
                int(lines[a]),
                int(lines[b]),
                (lines[a : b + 1] - lines[a]).astype(np.uint32),
                int(tokens[a:b].sum(dtype=np.int64)),
            )
            for a, b in pairwise(cuts)
        ]

    def _learned_limit(self) -> int | None:
        """The known limit on enqueued tokens, if any: a larger job would be refused and split."""
        model = ModelLimit(self._ledger.store, host_of(self._settings), self._settings.model)
        return model.tokens(self._clock.time())

    def _line_frame(self, distinct: Array) -> tuple[int, int]:
        """Bytes of a line without its records' texts, and what each record adds in addition to its
        text; measured on one rendered record."""
        record, size = self._pool.sample(int(distinct[0]))
        task = self._task
        # A template may treat a single record differently, so the third record shows what each
        # further one adds.
        one, two, three = (task.size(task.render([record] * count)) for count in (1, 2, 3))
        per_record = max(three - two - size, 0) + 24
        return max(one - size, two - 2 * size - per_record, 0) + FRAME_BYTES, per_record

    def _refs_of(self, numbers: Array) -> list[BatchJobRef]:
        """One ref for each job of this run's rows, with the rows that it answers."""
        # A number and its row in one word, sorted in place: an argsort takes twice the memory.
        words = np.left_shift(numbers, 32, dtype="<u8")
        words |= np.arange(len(numbers), dtype=np.uint32)
        words.sort()
        rows, owners = (words.view("<u4")[half::2] for half in (0, 1))
        borders = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(rows)]
        return [
            self._ref(int(owners[start]), rows[start:end].astype(np.int32))
            for start, end in pairwise(borders)
        ]

    def _ref(self, number: int, rows: Array) -> BatchJobRef:
        ledger, manifest = self._ledger, self._rows_named.get(number) or self._rows_manifest(rows)
        ref = BatchJobRef(
            job_id=None,
            records=len(rows),
            staging_location=ledger.location,
            number=number,
            manifest=manifest,
            model=self._settings.model,
            state="done",
            min_timestamp=self._min_timestamp,
        )
        if not number:
            return ref
        tree, intent = self._tree(number), ledger.intent(number)
        reused = tree.finished_nodes()
        if not reused and ledger.was_appended_here(number) and manifest != intent.rows:
            # An earlier plan of this very process has the job, and its ref reports the cost.
            reused = ALL_PHASES
        state = "done" if tree.is_finished() else "created" if tree.job_id else "planned"
        return ref._replace(job_id=tree.job_id, model=intent.model, state=state, reused=reused)


def _may_be_asked_again(settings: Settings) -> frozenset[str]:
    """Failures that cost nothing and may pass: a plan treats such records as new.

    Records that were paid for (refused, unreadable, invalid) or that the provider rejected are not
    asked again. Cancelled and doubtful ones only if the user says so: a doubtful one may have been
    paid for.
    """
    kinds = set(_UNPAID)
    if settings.retry_cancelled:
        kinds.add(Kind.CANCELLED)
    if settings.on_doubt == "resubmit":
        kinds.add(Kind.DOUBTFUL)
    return frozenset(kinds)
