"""Turns result lines into outcomes: lines are streamed, and matched by `custom_id` in whatever
order they come. Duplicate, unknown and truncated lines do no harm.

                                      ┌─ ends here ─► outcomes
line ─► custom_id ─► line of the job ─┤
             (no answer to it at all) ┴─ left over ─► a follow-up, live calls, or its failure
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import IO

from beam_llm.errors import (
    CallError,
    Failure,
    Kind,
    LedgerError,
    Rejected,
    Retryable,
    missing_message,
)
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.manifest import LineManifest
from beam_llm.ledger.outcomes import OutcomeWriter
from beam_llm.protocols import BatchProvider, LineReply, RemoteJob, Task
from beam_llm.results.bill import Bill
from beam_llm.results.endings import JobEnd
from beam_llm.results.prior_outcomes import PriorOutcomes
from beam_llm.values import Completion, Finish, JobState, Outcome, Reading

_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([A-Za-z0-9_-]{1,64})"')
"""Matches a field only: inside a JSON string, the quotes would have backslashes."""
# Final for a record that was asked alone; among several, another record may have been at fault.
_FINAL_ALONE = frozenset({Kind.REFUSED, Kind.REJECTED, Kind.TOO_LARGE})


class ResultReader:
    """Turns the results of one job into outcomes, line by line, and writes them as it reads.

        reader = ResultReader(task, provider, bill, manifest, end, file, prior)
        read_results(reader, path)  # or reader.read_line(line), line by line
        reader.finish()

    Args:
      bill: adds up what the replies used and cost.
      file: where rows of outcomes are written.
      prior: the outcomes so far, which the job's parent passed on with the records.

    Attributes:
      most_bytes: the most bytes of a line; of a longer line only the beginning is read.
      line_of: custom_id → line of the job.
      answered: 1 for each line that has a reply.
      left: 1 for each record that does not end here.
      regroup: 1 for each record that has to be asked alone.
      facts: counts of what was wrong with its lines, and of its replies' warnings.
    """

    def __init__(
        self,
        task: Task,
        provider: BatchProvider,
        bill: Bill,
        manifest: LineManifest,
        end: JobEnd,
        file: IO[bytes],
        prior: PriorOutcomes,
    ):
        self.task, self.provider, self.bill = task, provider, bill
        self._manifest, self._end, self._prior = manifest, end, prior
        self.most_bytes = task.settings.max_reply_bytes
        self._plain_answer = functools.lru_cache(1024)(task.plain_answer)
        # The fast path doesn't add what the parent job has cost, so a follow-up job can't use it.
        self._reads_plain_answers = task.answers_plainly and prior.is_empty
        self._starts: list[int] = manifest.line_starts.tolist()
        # By id, never by position: providers state that results may come in another order.
        self.line_of = {custom_id: line for line, custom_id in enumerate(manifest.custom_ids())}
        self.answered = bytearray(len(self._starts) - 1)
        self._half = len(self.answered) // 2
        self._errors: dict[int, LineReply] = {}
        self._unmatched = 0
        self._unknown_ids: set[str] = set()
        self._is_cut = False
        self.outcomes = OutcomeWriter(manifest.keys, file)
        self.left = bytearray(len(manifest))
        self.regroup = bytearray(len(manifest))
        self.facts: Counter[str] = Counter()

    @property
    def replies(self) -> int:
        """How many lines of the job have a reply."""
        return sum(self.answered)

    @property
    def lines(self) -> int:
        """How many lines came back, good or bad, including lines that match no line of the job.

        Unknown ids count only if some id is known: a file without any known id is another job's.
        """
        found = self.replies + len(self._errors)
        return found + self._unmatched + (len(self._unknown_ids) if found else 0)

    @property
    def has_plain_lines(self) -> bool:
        """Whether each line has one record, whose answer may be known from its text alone."""
        return self._reads_plain_answers and len(self.answered) == len(self._manifest)

    def read_line(self, line: bytes) -> None:
        """Takes one line. Whatever is wrong with it becomes an error of its own records; only the
        ledger and the disk raise."""
        if line.isspace():
            return
        try:
            reply = self.provider.decode_line(line)
            number = self.line_of.get(reply.custom_id)
        except Exception as error:
            self._is_cut = self._take_unreadable(line, error)
            return
        if number is None:
            self.facts["unknown_ids"] += 1
            if len(self._unknown_ids) < len(self.answered):
                self._unknown_ids.add(reply.custom_id)
        else:
            self._take(number, reply)

    def take_answers(self, lines: list[int], rows: list[str], endings: list[int]) -> None:
        """Takes many lines, each with a final answer to its one record, which are marked as
        answered already.

        Args:
          rows, endings: as for `OutcomeWriter.put_answers`.
        """
        self.outcomes.put_answers(lines, rows, endings)
        for line in lines if self._errors else ():
            self._errors.pop(line, None)
        if self._half in lines:
            failpoint("collect.half")

    def _take_unreadable(self, line: bytes, error: Exception) -> bool:
        """Takes a line that is not a reply: it becomes an error of its records, if its id can be
        found. Returns whether the line was cut off."""
        self.facts["unreadable_lines"] += 1
        # A line without its newline was cut off on the way, or by `result_blocks` (too long).
        is_long = len(line) >= self.most_bytes
        if not is_long and not line.endswith(b"\n"):
            return True
        found = _CUSTOM_ID.search(line)
        number = self.line_of.get(found[1].decode()) if found else None
        if number is None:
            self._unmatched += 1
        else:
            self._take(number, LineReply.failed("", _unreadable_line(line, error, self.most_bytes)))
        return False

    def _take(self, line: int, reply: LineReply) -> None:
        completion = reply.completion
        if self.answered[line]:
            self.facts["duplicate_ids"] += 1
        elif completion is not None:
            self.answered[line] = 1
            # A reply takes precedence over an error of the same line, whichever comes first.
            if self._errors:
                self._errors.pop(line, None)
            try:
                self._read(line, completion)
            except LedgerError:
                raise
            except Exception as error:
                self._put_unreadable(line, error)
            if line == self._half:
                failpoint("collect.half")
        elif line in self._errors:
            self.facts["duplicate_ids"] += 1
        else:
            self._errors[line] = reply

    def _read(self, line: int, completion: Completion) -> None:
        """Reads one answered line: an outcome for each of its records, final or left over."""
        start = self._starts[line]
        count = self._starts[line + 1] - start
        # Unpacked at once, since this is done for every line of every job.
        text, finish, usage, model, request_id, refusal, _, word, _, billed, _ = completion
        paid = self.bill.price(usage, billed)
        # Before the reply is read, since it is paid for whatever it says.
        self.bill.add(usage, paid)
        is_plain = (
            self._reads_plain_answers
            and count == 1
            and finish is Finish.STOP
            and text is not None
            and not refusal
        )
        value = self._plain_answer(text) if is_plain else None
        if value is None:
            self._read_closely(start, count, completion, None if paid is None else paid / count)
        else:  # by far the most common case: makes no objects
            self.outcomes.put_answer(start, value, usage, paid, model, request_id, word)

    def _put_unreadable(self, line: int, error: Exception) -> None:
        """Ends the records of a reply that can't be read or stored, because of something in the
        reply or in the user's own class."""
        self.facts["unreadable_replies"] += 1
        # Not the exception's own text, which may quote the record, or a key.
        failure = Failure(
            Kind.UNREADABLE, f"the reply can't be read or kept ({type(error).__name__})", 1
        )
        for position in range(self._starts[line], self._starts[line + 1]):
            self.regroup[position] = 1
            self._put(position, Outcome(None, failure), final=False)

    def _read_closely(
        self, start: int, count: int, completion: Completion, cost: float | None
    ) -> None:
        reading = self.task.read(count, completion)
        for warning in reading.warnings:
            self.facts[f"warnings_{warning}"] += 1
        rest = completion.model, completion.request_id, completion.finish_reason
        for index, usage in enumerate(completion.usage.split(count), 1):
            position = start + index - 1
            if index not in reading.values:
                outcome = Outcome(None, _failure_of(reading, index, count), usage, cost, *rest)
                self.regroup[position] = 1
                self._put(
                    position,
                    outcome,
                    final=count == 1
                    and outcome.failure is not None
                    and outcome.failure.kind in _FINAL_ALONE,
                )
            else:
                self._put(
                    position,
                    Outcome(self.task.stored(reading, index), None, usage, cost, *rest),
                    final=True,
                )

    def finish(self) -> None:
        """Ends the records whose lines have no answer."""
        for line, answered in enumerate(self.answered):
            if answered:
                continue
            count = self._starts[line + 1] - self._starts[line]
            failure, final, alone = self._end.of_line(line, self._errors.get(line), count)
            # A line that can't be read was answered nevertheless, and one in doubt may have been.
            may_be_paid = failure.kind in (Kind.UNREADABLE, Kind.DOUBTFUL)
            outcome = Outcome(None, failure, cost_usd=None if may_be_paid else 0.0)
            for position in range(self._starts[line], self._starts[line + 1]):
                self.regroup[position] = alone
                is_final = final or self._is_unreadable_again(position, failure)
                self._put(position, outcome, is_final)

    def _is_unreadable_again(self, position: int, failure: Failure) -> bool:
        """Whether this record's previous answer couldn't be read either: a further one would
        probably be paid for in vain, too."""
        unreadable = Kind.UNREADABLE
        return failure.kind == unreadable and self._prior.has_failed_as(
            unreadable, self._manifest, position
        )

    def is_short_of(self, job: RemoteJob, *, is_early: bool = False) -> bool:
        """Whether the results of an ended job must hold more than was found.

        Failed lines are not always listed, and some servers count them as completed.

        Args:
          is_early: they have hardly been read before. A file that was cut between two lines looks
            like one in which a server lists some lines under unknown ids, or not at all; it is
            longer the next time.
        """
        matched = self.replies + len(self._errors)
        # Each line has a reply or an error, whatever the provider counts.
        if matched == len(self.answered):
            return False
        if job.state not in (JobState.COMPLETED, JobState.EXPIRED, JobState.CANCELLED):
            return False
        # Azure may give no counts.
        if job.completed is None:
            is_empty = job.state is JobState.COMPLETED and not self.lines
            return self._is_cut or is_early or is_empty
        # Where the file was cut off, the missing lines are behind the cut.
        found = matched if is_early else self.lines
        has_less = found < job.completed + (job.failed or 0)
        return self.replies < job.completed and (has_less or self._is_cut)

    def _put(self, position: int, outcome: Outcome, final: bool) -> None:
        if not final:
            self.left[position] = 1
        self.outcomes.put(position, self._prior.with_prior(self._manifest, position, outcome))


def _unreadable_line(line: bytes, error: Exception, most_bytes: int) -> CallError:
    if len(line) >= most_bytes:  # the next one would be as long
        return Rejected(
            Kind.UNREADABLE,
            f"its result line is larger than {most_bytes:,} bytes (max_reply_bytes): not read",
        )
    return Retryable(
        Kind.UNREADABLE,
        f"its result line of {len(line):,} bytes can't be read ({type(error).__name__})",
    )


def _failure_of(reading: Reading, index: int, count: int) -> Failure:
    missing = Failure(Kind.MISSING, missing_message(index, count, reading.values))
    return reading.reply_failure or reading.failures.get(index) or missing
