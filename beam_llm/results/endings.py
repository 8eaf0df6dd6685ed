"""What the end of a job means for records without an answer. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from beam_llm.errors import Aborted, CallError, Failure, Kind, QueueFull, Retryable, plural
from beam_llm.protocols import BatchTraits, LineEnd, LineReply, RemoteJob
from beam_llm.values import JobState


@dataclass(frozen=True)
class JobEnd:
    """What the end of a job means for its lines that have no reply.

    Attributes:
      word: the word for the ledger: the remote job's state, or our own word (`lost`, `refused`,
        `doubtful`, …).
      failure: the failure of a record whose line has no reply.
      final: whether such records are final, that is, not asked again.
      faulty_lines: 0-based line → failure, where validation named lines.
      goes_live: whether live calls ask again, since another job would end the same way.
    """

    word: str
    failure: Failure
    final: bool = True
    faulty_lines: Mapping[int, Failure] = field(default_factory=dict)
    goes_live: bool = False

    @property
    def ends_all_halves(self) -> bool:
        """Whether the other halves of the same job end the same way if nothing of them was sent:
        they would fail alike, or the user has cancelled the job."""
        return self.failure.kind in (Kind.ABORTED, Kind.CANCELLED) or self.word in (
            "refused",
            "queue",
        )

    def of_line(self, line: int, reply: LineReply | None, count: int) -> tuple[Failure, bool, bool]:
        """What the end means for a line of `count` records without an answer. The line's own end
        takes precedence over the job's.

        Args:
          line: 0-based.
          reply: what its result line says, if there is one.

        Returns:
          Why there is no answer, whether that is final, and whether the line's records have to be
          asked one by one.
        """
        fault = self.faulty_lines.get(line)
        if fault is not None:
            return fault, count == 1, True
        if reply is None:
            return self.failure, self.final, False
        failure = _failure_in(reply)
        if reply.end in (LineEnd.EXPIRED, LineEnd.CANCELLED):
            if self.word == "deadline":  # we cancelled it ourselves
                return self.failure, self.final, False
            return failure, self.final or reply.end is LineEnd.CANCELLED, False
        if self.final:
            return failure, True, False
        is_at_fault = reply.end is LineEnd.REJECTED
        return failure, is_at_fault and count == 1, is_at_fault


def _failure_in(reply: LineReply) -> Failure:
    """The failure of a line without a completion, in the provider's words where there are any."""
    error = reply.error
    if error is None:
        return Failure(Kind.UNREADABLE, "the provider's error line says nothing", 1)
    kind = error.kind if isinstance(error, CallError) else Kind.UNAVAILABLE
    return Failure(kind, str(error) or kind, 1)


def end_of(job: RemoteJob, past_deadline: bool) -> JobEnd:
    """What a remote job's state means for lines without a reply.

    Args:
      past_deadline: whether its deadline has passed, so that we have cancelled it. If it has not
        ended since, the records end in doubt: an answer may still come, and be paid for.
    """
    if past_deadline:
        return end_at_deadline(job.state)
    if job.state is JobState.FAILED:
        return _failed(job)
    word = job.state.value
    if job.state is JobState.CANCELLED:
        kind, why = Kind.CANCELLED, "the job was cancelled before it came to this record"
    # Lines that expire are not billed, so nothing is paid twice by asking again.
    elif job.state is JobState.EXPIRED:
        kind, why = Kind.EXPIRED, "the job expired before it came to this record"
    else:
        kind, why = Kind.UNAVAILABLE, f"the job ended as {word} without an answer to this record"
    return JobEnd(word, Failure(kind, why, 1), final=job.state is JobState.CANCELLED)


def end_when_too_small(requests: int, traits: BatchTraits) -> JobEnd:
    """The end of a job that has too few requests for the provider. Nothing was sent."""
    has = f"the job has {plural(requests, 'request')}"
    least = f"the provider takes no job of less than {traits.min_requests:,}"
    reason = f"{has}, and {least}; on_leftover='online' asks them by live calls"
    return JobEnd("too small", Failure(Kind.UNAVAILABLE, reason), final=False, goes_live=True)


def end_at_deadline(state: JobState) -> JobEnd:
    """The end of a job whose deadline has passed, by its state at that time, or by its last known
    state where the provider can't be asked."""
    if state.has_ended:
        why = "the job had not come to this record by its deadline"
        return JobEnd("deadline", Failure(Kind.TIMED_OUT, why, 1))
    doubt = (
        "the job neither ended nor was cancelled by its deadline, so an answer may yet be paid for"
    )
    reason = f"{doubt}; on_doubt='resubmit' asks again"
    return JobEnd("deadline", Failure(Kind.DOUBTFUL, reason, 1))


def _failed(job: RemoteJob) -> JobEnd:
    """The end of a job that failed in validation (so nothing ran) or while it was running. Where
    errors name lines, those are at fault, and the others can be asked again."""
    message = ": ".join(filter(None, job.errors[0][:2])) if job.errors else ""
    message = message or "failed: the provider gave no reason"
    reason = f"the provider's validation failed: {message}"
    if isinstance(job.cause, Aborted):
        return JobEnd("failed", Failure(Kind.ABORTED, reason, 1))
    # A failure of the provider's own is not the lines' fault, and a job that has answers was valid.
    is_providers_own = isinstance(job.cause, Retryable) and not isinstance(job.cause, QueueFull)
    if is_providers_own or job.completed:
        reason = f"the provider failed: {message}"
        return JobEnd("failed", Failure(Kind.UNAVAILABLE, reason, 1), final=False)
    faulty = {
        line - 1: Failure(
            Kind.REJECTED, f"line {line} failed the provider's validation: {error_code}: {text}", 1
        )
        for error_code, text, line in job.errors
        if line is not None
    }
    if faulty:
        return JobEnd(
            "failed",
            Failure(Kind.UNAVAILABLE, f"{reason} (another record's line)", 1),
            False,
            faulty,
        )
    return JobEnd("failed", Failure(Kind.REJECTED, reason, 1))
