"""The end of a job: its results are read, and the outcome of each record is written down, once and
for all.

    result lines ─► ResultReader ─┬─ ends here ─► answers-<x>.index ──────────────────┐
                                  └─ left over ─► answers-<x>-left.index, and a child ├─► done
                                                  that asks again: 7.f, or 7.f.l live ┘

Several processes may collect at once. The first one to create `done` decides; the others delete
what they wrote.
"""

from __future__ import annotations

import contextlib
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np

from beam_llm import events
from beam_llm.errors import CallError, Kind, Retryable, guarded
from beam_llm.jobs.job import Job
from beam_llm.ledger.columns import Array
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import (
    FIRST_HALF,
    FOLLOW_UP,
    LIVE,
    SECOND_HALF,
    Child,
    Created,
    Done,
    DoneAgain,
)
from beam_llm.ledger.manifest import LineManifest
from beam_llm.ledger.outcomes import LEFT
from beam_llm.protocols import RemoteJob
from beam_llm.results.bill import Bill
from beam_llm.results.endings import JobEnd
from beam_llm.results.prior_outcomes import PriorOutcomes
from beam_llm.results.result_file import read_results
from beam_llm.results.result_reader import ResultReader
from beam_llm.stores import temporary_file
from beam_llm.values import Usage

_LOG = logging.getLogger(__name__)


def collect(
    job: Job,
    end: JobEnd,
    remote: RemoteJob | None = None,
    *,
    is_whole: bool = False,
    is_early: bool = False,
    again: bool = False,
) -> Done:
    """Reads the results, if any, and writes down the outcome of each record of the job.

    Args:
      remote: the job whose results are read; None where there are none.
      is_whole: as many answers have to be there as the provider counts. Otherwise, whatever is
        there is taken for all that will ever come.
      is_early: with `is_whole`: see `ResultReader.is_short_of`.
      again: the job has ended before, in doubt. Its end is written anew only if there is a result
        line, or if the provider says that it has answered nothing.

    Returns:
      The end that counts: this one, or that of a process that was quicker.

    Raises:
      CallError: with `is_whole` or `again`: there are fewer results so far than there should be.
    """
    manifest = LineManifest.read(job.store, job.intent.lines)
    with (
        contextlib.closing(PriorOutcomes(job.store, job.prior)) as prior,
        temporary_file() as path,
        open(path, "wb") as file,
    ):
        bill = Bill(job.context.cost, has_prices=bool(job.settings.prices))
        reader = ResultReader(job.task, job.provider, bill, manifest, end, file, prior)
        if remote is not None:
            _read_results(job, reader, remote, is_whole, is_early)
        has_done_nothing = remote is not None and remote.completed == 0
        if again and not reader.lines and not has_done_nothing:
            raise Retryable(Kind.UNAVAILABLE, "there are no results")
        reader.finish()
        done = _write(job, manifest, reader, end, path, DoneAgain if again else Done)
    _report(job, done)
    _trace(job, done)
    return done


def _report(job: Job, done: Done) -> None:
    """Counts the warnings of replies, and logs what was wrong with result lines."""
    odd = []
    for fact, count in done.facts.items():
        if fact.startswith("warnings_"):
            job.context.counted[fact] += count
        else:
            odd.append(f"{count:,} {fact.replace('_', ' ')}")
    if odd:
        _LOG.warning("job %s: among its results were %s", job.name, ", ".join(odd))


def _trace(job: Job, done: Done) -> None:
    """Reports the job to tracing, where that is on."""
    settings, intent = job.settings, job.intent
    created = job.journal.newest(Created) if settings.tracing else None
    if created is None:
        return
    failed = sum(count for kind, count in done.counts.items() if kind)
    events.trace(
        "job",
        created_at=created.created_at,
        ended_at=done.at,
        provider=settings.provider,
        base_url=settings.base_url,
        model=settings.model_name,
        task=settings.task,
        job=intent.job,
        job_id=created.job_id,
        ended=done.ended,
        records=intent.records,
        requests=intent.line_count,
        answered=done.counts.get("", 0),
        failed=failed,
        cost_usd=done.cost_usd,
        error=None if done.counts.get("") or done.passed_on else done.ended,
        **Usage(*done.usage)._asdict(),
    )


def _read_results(
    job: Job, reader: ResultReader, remote: RemoteJob, is_whole: bool, is_early: bool
) -> None:
    with temporary_file() as path:
        try:
            guarded(job.provider.fetch, remote, Path(path))
        except CallError as error:
            if is_whole:
                raise
            _LOG.warning("the results of %s can't all be read: %s", remote.job_id, error.message)
        failpoint("collect.file")
        read_results(reader, path)
    if is_whole and reader.is_short_of(remote, is_early=is_early):
        counted = "" if remote.completed is None else f" of {remote.completed} counted"
        found = f"{reader.replies} replies and {reader.lines} lines{counted}"
        raise Retryable(Kind.UNAVAILABLE, f"its files hold {found}")


def _write(
    job: Job, manifest: LineManifest, reader: ResultReader, end: JobEnd, path: str, kind: type[Done]
) -> Done:
    """Writes the outcomes, the leftovers, and at last `done`."""
    store, name = job.store, job.journal.new_answers()
    reader.outcomes.flush()
    left = np.frombuffer(reader.left, dtype=np.bool_)
    failpoint("answers.before")
    store.put_file(f"{name}.rows", path)
    goes_on = _going_on(job, manifest, reader, left, end) if left.any() else None
    if goes_on is None:
        index, counts = reader.outcomes.index()
    else:  # two indexes over the same rows: records that end here, and those passed on
        index, counts = reader.outcomes.index_of(~left)
        store.put(f"{name}{LEFT}.index", reader.outcomes.index_of(left)[0])
    store.put(f"{name}.index", index)
    done = kind(
        intent=job.intent.fingerprint,
        outcomes=name,
        ended=end.word,
        counts=counts,
        at=job.time(),
        children=() if goes_on is None else (goes_on,),
        left=None if goes_on is None else f"{name}{LEFT}",
        ends_all=(end.failure.kind, end.failure.message) if end.ends_all_halves else None,
        facts=dict(reader.facts),
        usage=tuple(reader.bill.usage),
        cost_usd=reader.bill.cost_usd,
    )
    return write_end(job, done)


def split(job: Job, at_line: int, line_tokens: Array) -> Done:
    """Ends a job that the queue won't take as it is: the lines before `at_line` and those from it
    on become jobs of their own.

    Nothing was sent of it, so no record ends here; the outcomes that its parent passed on go to
    both.

    Args:
      line_tokens: estimated tokens of each line.
    """
    manifest = LineManifest.read(job.store, job.intent.lines)
    halves = [
        Child(name, part.write(job.store), len(part), part.lines, int(tokens.sum()))
        for name, part, tokens in (
            (FIRST_HALF, manifest.some_lines(0, at_line), line_tokens[:at_line]),
            (SECOND_HALF, manifest.some_lines(at_line, manifest.lines), line_tokens[at_line:]),
        )
    ]
    done = Done(
        intent=job.intent.fingerprint,
        outcomes=None,
        ended="split",
        counts={},
        at=job.time(),
        children=tuple(halves),
        left=job.prior,
        # An attempt may have made a job all the same; the halves watch for it.
        doubted=bool(job.guesses()),
    )
    return write_end(job, done)


def write_end(job: Job, done: Done) -> Done:
    """Ends the job; returns the end that counts. Where another process was quicker, that is its
    end, and the outcomes written for this one are removed.
    """
    failpoint("done.before")
    if job.journal.add(done):
        failpoint("done.after")
        return done
    if done.outcomes is not None:
        for ending in (".index", ".rows", f"{LEFT}.index"):
            job.store.delete(done.outcomes + ending)
    return job.journal.require(type(done))


def _going_on(
    job: Job, manifest: LineManifest, reader: ResultReader, left: Array, end: JobEnd
) -> Child | None:
    """The child that asks again for records that do not end here; None where nothing does, and they
    end as they are.

    First a follow-up job, then live calls. Live calls at once where a job would be too small for
    the provider, or would end the same way.
    """
    settings, intent = job.settings, job.intent
    if settings.on_leftover == "fail":
        return None
    starts = _regrouped_starts(manifest, left, np.frombuffer(reader.regroup, dtype=np.uint8))
    passed_on = manifest.chosen(np.flatnonzero(left)).in_lines(starts)
    name, records = passed_on.write(job.store), len(passed_on)
    is_job = passed_on.lines >= job.provider.traits.min_requests
    goes_live = end.goes_live or not is_job or intent.is_second_try
    child = FOLLOW_UP if settings.on_leftover == "follow_up" and not goes_live else LIVE
    # Estimated by the share of records: for exact counts the parts would have to be read.
    tokens = intent.tokens * records // max(intent.records, 1)
    return Child(child, name, records, passed_on.lines, tokens)


def _regrouped_starts(manifest: LineManifest, left: Array, alone: Array) -> Array:
    """Where the follow-up's lines begin: each record of a line that was at fault gets a line of its
    own, the others stay together as they were."""
    starts, count = [0], 0
    for start, end in pairwise(manifest.line_starts.tolist()):
        members = np.flatnonzero(left[start:end]) + start
        if not len(members):
            continue
        if alone[members].any():
            starts.extend(range(count + 1, count + len(members) + 1))
        else:
            starts.append(count + len(members))
        count += len(members)
    return np.array(starts, dtype=np.uint32)
