"""Jobs that the provider's queue refuses: whether such a job is sent again as it is, is split in
two, or ends.

    all its lines are as large as one that was given up ──────► LIKE_GIVEN_UP: they end
    several lines, above the limit that is known ─────────────► CUT: two, at the end of a part
                                                                that fits
                   refused 3 times with nothing else pending ─► HALVE: two
                   else ──────────────────────────────────────► SEND
    one line,      no limit stated, refused 6 times alone ────► REFUSED: its records go one by one
                   above the stated limit, refused 3 times
                   alone, or far above it ────────────────────► TOO_LARGE: it ends
                   else ──────────────────────────────────────► SEND

The limit is on the tokens of all jobs together, our counts are estimates, and other jobs of the
organization may be invisible to us. So we split generously (it costs one more job), and give a
record up only after it was tried alone.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np

from beam_llm.caps import RECORD_OVERHEAD_TOKENS
from beam_llm.errors import CallError, Failure, Kind, QueueFull, guarded
from beam_llm.jobs.job import Job
from beam_llm.jobs.step import Waiting
from beam_llm.ledger.columns import Array
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import Closed, CloseReason, Refusal
from beam_llm.ledger.log import find_intent
from beam_llm.ledger.manifest import LineManifest
from beam_llm.ledger.model_limit import ModelLimit
from beam_llm.ledger.parts import by_part
from beam_llm.planning.cutting import cut_jobs
from beam_llm.protocols import RemoteJob
from beam_llm.results.endings import JobEnd

_LOG = logging.getLogger(__name__)

PATIENCE = 3
"""Refusals in a row with nothing else pending, after which the job itself is taken to be too
large."""
# How many refusals are read: twice as many as the most patient rule needs.
_LOOK_BACK = 12


class Verdict(enum.Enum):
    """What happens to a job next; the table above says when."""

    SEND = "send"
    CUT = "cut"
    HALVE = "halve"
    TOO_LARGE = "too large"
    REFUSED = "refused"
    # All of its lines are at least as large as a line of the same job that was given up.
    LIKE_GIVEN_UP = "like one given up"


class Observed(NamedTuple):
    """Everything that the decision about a job depends on.

    Attributes:
      lines, tokens: of the job; tokens are an estimate.
      stated: the limit that the provider named in the last refusal.
      limit: the lowest limit known, whether the provider named it or trying found it.
      alone: how many of the last refusals in a row came with nothing else pending.
      unseen: at the last refusal the provider couldn't say what else was pending.
      like_given_up: see `Verdict`.
    """

    lines: int
    tokens: int
    stated: int | None = None
    limit: int | None = None
    alone: int = 0
    unseen: bool = False
    like_given_up: bool = False


def decide(seen: Observed) -> Verdict:
    """The first rule that fits."""
    if seen.limit is not None and seen.like_given_up:
        return Verdict.LIKE_GIVEN_UP
    if seen.lines > 1:
        if seen.limit is not None and seen.tokens > seen.limit:
            return Verdict.CUT
        # Our estimate may be half the truth, so a job above half the stated limit may be above it.
        may_be_above = seen.stated is None or seen.tokens > seen.stated // 2
        return Verdict.HALVE if seen.alone >= PATIENCE and may_be_above else Verdict.SEND
    if seen.stated is None:
        return Verdict.REFUSED if seen.alone >= 2 * PATIENCE else Verdict.SEND
    is_refused_alone = seen.tokens > seen.stated and seen.alone >= PATIENCE
    # Where others may fill the queue unseen, the estimate itself has to be far above the limit.
    is_far_above = seen.tokens > 2 * seen.stated and seen.unseen
    return Verdict.TOO_LARGE if is_refused_alone or is_far_above else Verdict.SEND


class Split(NamedTuple):
    """The job becomes two: the lines before `at_line`, and those from it on.

    Attributes:
      line_tokens: estimated tokens of each line.
    """

    at_line: int
    line_tokens: Array


class QueueLimit:
    """Decides about one job that the queue refuses. For the holder of its lease only."""

    def __init__(self, job: Job):
        self._job = job
        self._known = ModelLimit(job.store, job.intent.host, job.intent.model)

    def queue_up(self, attempt: int, job_id: str | None, error: CallError) -> Waiting:
        """Closes an attempt for which the provider had no room, and puts the job in line to be
        tried again."""
        job, refusal = self._job, None
        if isinstance(error, QueueFull):
            if error.limit_tokens is not None:
                self._note(stated=error.limit_tokens)
            refusal = Refusal(error.limit_tokens, self._is_alone())
        # A job that was taken and then failed for the queue counts as refused, although its calls
        # were answered: so the pauses keep growing, in the next process as well.
        job.tries = max(job.tries, self._times_in_a_row(attempt))
        pause = job.pause_after(error)
        facts = {"retry_at": job.time() + pause, "job_id": job_id, "refusal": refusal}
        job.close(attempt, CloseReason.QUEUE, **facts)
        failpoint("queued")
        job.context.line.enter(job.intent, pause)
        return job.wait(pause, "queued")

    def seconds(self, attempt: int) -> float:
        """Seconds until the job may try the queue again, whichever process was told to wait; zero
        or less: it may try now."""
        job, line = self._job, self._job.context.line
        closed = job.journal.read(Closed, attempt - 1) if job.intent not in line else None
        if closed is not None and closed.reason is CloseReason.QUEUE:
            line.enter(job.intent, closed.retry_at - job.time())
        return line.seconds(job.intent)

    def decide(self, attempt: int) -> Split | JobEnd | None:
        """What happens to the job instead of being sent as it is; None: it is to be sent."""
        refusals = self._refusals(attempt)
        last = refusals[0].refusal if refusals else None
        limit = self._limit(last.limit if last else None)
        # So it is with most jobs: the tokens of their records need not be read.
        if limit is None and last is None:
            return None
        sizes = self._line_tokens()
        seen = Observed(
            lines=len(sizes),
            tokens=int(sizes.sum()),
            stated=last.limit if last else None,
            limit=limit,
            alone=self._times_alone(refusals),
            unseen=last is not None and last.alone is None,
            like_given_up=self._is_like_given_up(sizes),
        )
        return self._carry_out(decide(seen), seen, sizes)

    def _carry_out(self, verdict: Verdict, seen: Observed, sizes: Array) -> Split | JobEnd | None:
        match verdict:
            case Verdict.SEND:
                return None
            case Verdict.CUT:
                assert seen.limit is not None
                ends = cut_jobs(sizes, sizes, max_requests=seen.lines, max_bytes=seen.limit)
                # Cut at the middle one of the places where parts that fit end, so that a job of
                # many parts needs few rounds of halving.
                why = f"limit of {seen.limit:,} enqueued tokens"
                return self._split_job(ends[(len(ends) - 1) // 2], sizes, why)
            case Verdict.HALVE:
                middle = seen.lines // 2
                # The best guess, since this half was not refused yet. `completed` raises it again.
                self._note(found=int(sizes[:middle].sum()))
                return self._split_job(
                    middle, sizes, "queue, which refused it with nothing else pending"
                )
            case Verdict.TOO_LARGE:
                records = len(self._manifest())
                self._note(too_large=(self._job.intent.undivided, seen.tokens, records))
                return _too_large(sizes, seen.stated)
            case Verdict.LIKE_GIVEN_UP:
                return _too_large(sizes, seen.limit)
            case Verdict.REFUSED:
                self._note(found=None)  # it was not the size
                return self._end_as_refused(seen.tokens)

    def _split_job(self, at_line: int, sizes: Array, why: str) -> Split:
        counts = at_line, len(sizes) - at_line
        goes = "job %s: goes as two, of %d and %d lines, for the provider's %s"
        _LOG.info(goes, self._job.name, *counts, why)
        failpoint("split")
        return Split(at_line, sizes)

    def _end_as_refused(self, tokens: int) -> JobEnd:
        """Ends a job of one line that is always refused: several records are asked again one by
        one, a single record ends with its error."""
        refused = f"the provider's queue refused even one request of about {tokens:,} tokens"
        reason = f"{refused} with nothing else pending, naming no limit"
        failure = Failure(Kind.RATE_LIMITED, reason)
        if len(self._manifest()) == 1:
            return JobEnd("queue", failure)
        return JobEnd("too_large", failure, faulty_lines={0: failure})

    def completed(self) -> None:
        """Notes that a job of this size was completed: where the limit was only found by trying,
        twice as much may be tried next."""
        limit = self._known.read()
        if limit is not None and limit.found:
            tokens = int(self._line_tokens().sum())
            if 2 * tokens > limit.found:
                self._note(found=2 * tokens)

    def _note(self, **news: int | tuple[str, int, int] | None) -> None:
        if self._known.note(self._job.time(), **news):
            failpoint("limit.noted")

    def _manifest(self) -> LineManifest:
        return LineManifest.read(self._job.store, self._job.intent.lines)

    def _line_tokens(self) -> Array:
        """Estimated input tokens of each line, computed as the planner does."""
        manifest = self._manifest()
        tokens = np.zeros(len(manifest), dtype=np.int64)
        for reader, here in by_part(self._job.store, manifest):
            tokens[here] = reader.tokens[manifest.row[here]]
        of_records = np.add.reduceat(tokens, manifest.line_starts[:-1].astype(np.int64))
        overhead = manifest.records_per_line().astype(np.int64) * RECORD_OVERHEAD_TOKENS
        sums: Array = of_records + overhead + self._job.task.shared_tokens
        return sums

    def _refusals(self, attempt: int) -> list[Closed]:
        """The latest attempts that the queue refused, newest first."""
        return list(
            islice((each for each in self._closed_attempts(attempt) if each.refusal), _LOOK_BACK)
        )

    def _times_in_a_row(self, attempt: int) -> int:
        """How many of the latest attempts in a row the provider had no room for, up to
        `_LOOK_BACK`."""
        latest = islice(self._closed_attempts(attempt), _LOOK_BACK)
        return sum(1 for _ in takewhile(lambda each: each.reason is CloseReason.QUEUE, latest))

    def _closed_attempts(self, attempt: int) -> Iterator[Closed]:
        """How earlier attempts were closed, newest first."""
        for earlier in range(attempt - 1, -1, -1):
            closed = self._job.journal.read(Closed, earlier)
            if closed is not None:
                yield closed

    def _times_alone(self, refusals: list[Closed]) -> int:
        """How many of the last refusals in a row came with nothing else pending."""
        alone = list(takewhile(lambda each: each.refusal and each.refusal.alone, refusals))
        # In a shorter time, another job may be pending and just not be listed yet.
        is_sure = alone and alone[0].at - alone[-1].at >= self._job.settings.list_lag_seconds
        return len(alone) if is_sure else 0

    def _limit(self, stated: int | None) -> int | None:
        """The lower one of the last refusal's limit and the ledger's. A user's own `job_max_tokens`
        overrides the ledger's."""
        own = self._job.settings.job_max_tokens
        known = self._known.tokens(self._job.time()) if own is None else None
        return min((limit for limit in (stated, known) if limit is not None), default=None)

    def _is_like_given_up(self, sizes: Array) -> bool:
        known = self._known.read()
        if known is None or known.too_large is None:
            return False
        job, tokens, records = known.too_large
        return (
            job == self._job.intent.undivided
            and bool(sizes.min() >= tokens)
            and bool(self._manifest().records_per_line().min() >= records)
        )

    def _is_alone(self) -> bool | None:
        """Whether no other job is pending, as far as the provider lists jobs; None where it
        doesn't."""
        try:
            pending = guarded(self._job.provider.pending)
        except CallError:
            return None
        return all(self._is_of_another_model(job) for job in pending)

    def _is_of_another_model(self, job: RemoteJob) -> bool:
        """Whether the job is known to be another model's, since limits are per model. The model of
        a job that isn't in this ledger is unknown."""
        ledger, _, rest = (job.name or "").partition("-")
        number = rest.partition("-")[0].partition(".")[0]
        if ledger != self._job.intent.fingerprint.partition("-")[0] or not number.isdigit():
            return False
        other = find_intent(self._job.store, int(number))
        return other is not None and (other.model, other.host) != (
            self._job.intent.model,
            self._job.intent.host,
        )


def _too_large(sizes: Array, limit: int | None) -> JobEnd:
    """The end of a job whose lines are each too large: each line's error names its own size."""
    why = f"exceeds the provider's limit of {limit:,} enqueued tokens for batch jobs"
    failures = {
        line: Failure(Kind.TOO_LARGE, f"a request of about {size:,} tokens {why}")
        for line, size in enumerate(sizes.tolist())
    }
    return JobEnd("too_large", failures[0], faulty_lines=failures)
