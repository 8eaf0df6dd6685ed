"""Result files in, outcomes out: streamed, joined by `custom_id`, whatever their order, doubles, strangers and cuts.

output file ─┐                              ┌─ ends here ─► outcomes
             ├─ line ─► custom_id ─► record ┤
error file ──┘          (no answer at all) ─┼─ left over ─► a follow-up, live calls, or its failure, as `on_leftover` says
                (not sent, the job is too large for the queue) ─► the rest, with what is left over behind it
"""

from __future__ import annotations

import functools
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

import numpy as np
import orjson

from beam_llm.errors import CallError, Failure, Kind, LedgerError, Rejected, Retryable
from beam_llm.jobs.columns import Array
from beam_llm.jobs.documents import read_json
from beam_llm.jobs.failpoints import reached
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.outcomes import LEFT, Outcomes, OutcomeWriter
from beam_llm.jobs.status import ASK, FOLLOW_UP, REST, TERMINAL, folder
from beam_llm.prompting.readers.matching import missing_message
from beam_llm.protocols import BatchProvider, LineEnd, LineReply, Store, Task
from beam_llm.stores import temporary_file
from beam_llm.values import Completion, Finish, Outcome, Reading, Usage

Cost = Callable[[Usage, bool], float | None]

_READ_BYTES = 1 << 20
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([A-Za-z0-9_-]{1,64})"')
"""Inside of a JSON string the quotes have backslashes, so this is found where it is a field, and nowhere else."""
_FINAL_ALONE = frozenset({Kind.REFUSED, Kind.REJECTED, Kind.TOO_LARGE})


@dataclass(frozen=True)
class Ending:
    """How a job ended, as far as lines without an answer are concerned.

    Attributes:
      word: for the ledger: the provider's status, or ours (`lost`, `refused`, `doubtful`, …).
      failure: of a record whose line has no reply.
      final: such records are not asked again.
      faulty_lines: 0-based line → failure, where validation named lines.
      sent: so many lines were sent, the first of the job's; None: all.
    """

    word: str
    failure: Failure
    final: bool
    faulty_lines: Mapping[int, Failure]
    sent: int | None = None

    @property
    def is_of_all(self) -> bool:
        """Whether lines that were not sent yet end with the job, too: they would fare alike, or their user has enough."""
        return self.failure.kind in (Kind.ABORTED, Kind.CANCELLED) or self.word in ("refused", "queue")


class Collected:
    """What was found in the files of one job, written down as it is read.

    Args:
      earlier: outcomes (failures, usage) of the same records in the job before, if this is a follow-up.
      asked: the first so many lines are this job's; those behind them were left over before, and stay so. None: all are.
    """

    def __init__(
        self,
        manifest: Manifest,
        task: Task,
        provider: BatchProvider,
        cost: Cost,
        ending: Ending,
        file: IO[bytes],
        earlier: Earlier,
        asked: int | None = None,
    ):
        self._manifest, self._task, self._provider, self._ending, self._earlier = manifest, task, provider, ending, earlier
        # Replies are much alike: labels and numbers are few, and so are the tokens they take.
        self._cost = functools.lru_cache(1024)(lambda usage: cost(usage, True))
        self._most_bytes = task.settings.max_reply_bytes
        self._plain_answer = functools.lru_cache(1024)(task.plain_answer)
        self._plainly = task.answers_plainly and earlier.is_empty
        assert manifest.line_starts is not None
        self._starts: list[int] = manifest.line_starts.tolist()
        self._line_of = {custom_id: line for line, custom_id in enumerate(manifest.custom_ids())}
        self._answered = bytearray(len(self._starts) - 1)
        self._half = len(self._answered) // 2
        self._errors: dict[int, LineReply] = {}
        self._nobodys = 0
        self.outcomes = OutcomeWriter(manifest.keys, file)
        self._asked = manifest.lines if asked is None else asked
        self._sent = self._asked if ending.sent is None or ending.is_of_all else ending.sent
        self.left = bytearray(len(manifest))
        self.unsent = bytearray(len(manifest))
        self.regroup = bytearray(len(manifest))
        self.facts: Counter[str] = Counter()
        self._input_tokens = self._output_tokens = self._cached_tokens = 0
        self.cost_usd: float | None = 0.0

    @property
    def replies(self) -> int:
        """Lines of the job that have one."""
        return sum(self._answered)

    @property
    def lines(self) -> int:
        """Lines of the job that came back, good or bad; also those of which one can't see whose they are."""
        return self.replies + len(self._errors) + self._nobodys

    @property
    def usage(self) -> tuple[int, int, int]:
        """Input, output and cached tokens of all replies."""
        return _tokens(self._input_tokens), _tokens(self._output_tokens), _tokens(self._cached_tokens)

    def read_file(self, path: str) -> bool:
        """Takes one result file. Returns whether its last line was cut.

        Whatever stands in a line is the trouble of its own records: nothing raises but the ledger and the disk.
        """
        cut, lines = False, 0
        for line in result_lines(path, self._most_bytes):
            if line.isspace():
                continue
            try:
                reply = self._provider.decode_line(line)
                number = self._line_of.get(reply.custom_id)
            except Exception as error:
                cut = self._take_unreadable(line, error)
                lines += not cut
                continue
            lines += 1
            if number is None:
                self.facts["unknown_ids"] += 1
            else:
                self._take(number, reply)
        self.facts["lines"] += lines
        return cut

    def _take_unreadable(self, line: bytes, error: Exception) -> bool:
        """A line that is no reply: its records' error, where it can be seen whose it is. Returns whether it was cut."""
        self.facts["unreadable_lines"] += 1
        is_long = len(line) >= self._most_bytes
        if not is_long and not line.endswith(b"\n"):
            return True
        found = _CUSTOM_ID.search(line)
        number = self._line_of.get(found[1].decode()) if found else None
        if number is None:
            self._nobodys += 1
        else:
            self._take(number, LineReply.failed("", _unreadable_line(line, error, self._most_bytes)))
        return False

    def _take(self, line: int, reply: LineReply) -> None:
        completion = reply.completion
        if self._answered[line]:
            self.facts["duplicate_ids"] += 1
        elif completion is not None:
            self._answered[line] = 1
            if self._errors:
                self._errors.pop(line, None)
            try:
                self._read(line, completion)
            except LedgerError:
                raise
            except Exception as error:
                self._put_unreadable(line, error)
            if line == self._half:
                reached("collect.half")
        elif line in self._errors:
            self.facts["duplicate_ids"] += 1
        else:
            self._errors[line] = reply

    def _read(self, line: int, completion: Completion) -> None:
        """One answered line: an outcome for each of its records, final or left over."""
        start = self._starts[line]
        count = self._starts[line + 1] - start
        text, finish, usage, model, request_id, refusal, _, word, _ = completion
        paid = self._cost(usage)
        is_plain = self._plainly and count == 1 and finish is Finish.STOP and text is not None and not refusal
        value = self._plain_answer(text) if is_plain else None
        if value is None:
            self._read_closely(start, count, completion, None if paid is None else paid / count)
        else:  # by far the most: no objects on the way
            self.outcomes.put_answer(start, value, usage, paid, model, request_id, word)
        self._input_tokens += usage[0]
        self._output_tokens += usage[1]
        self._cached_tokens += usage[2]
        self.cost_usd = None if paid is None or self.cost_usd is None else self.cost_usd + paid

    def _put_unreadable(self, line: int, error: Exception) -> None:
        """Ends the records of a reply that something in it, or in the user's own class, made impossible to read or to keep."""
        self.facts["unreadable_replies"] += 1
        # A foreign exception's words may quote the record, or a key.
        failure = Failure(Kind.UNREADABLE, f"the reply can't be read or kept ({type(error).__name__})", 1)
        for position in range(self._starts[line], self._starts[line + 1]):
            self.regroup[position] = 1
            self._put(position, Outcome(None, failure), final=False)

    def _read_closely(self, start: int, count: int, completion: Completion, cost: float | None) -> None:
        reading = self._task.read(count, completion)
        for warning in reading.warnings:
            self.facts[f"warnings_{warning}"] += 1
        rest = completion.model, completion.request_id, completion.finish_reason
        for index, usage in enumerate(completion.usage.split(count), 1):
            position = start + index - 1
            if index not in reading.values:
                outcome = Outcome(None, _failure_of(reading, index, count), usage, cost, *rest)
                self.regroup[position] = 1
                self._put(position, outcome, final=count == 1 and outcome.failure is not None and outcome.failure.kind in _FINAL_ALONE)
            else:
                self._put(position, Outcome(self._task.stored(reading, index), None, usage, cost, *rest), final=True)

    def finish(self) -> None:
        """Ends the records whose lines have no answer."""
        for line, answered in enumerate(self._answered):
            if answered:
                continue
            if line >= self._asked or (line >= self._sent and line not in self._errors and line not in self._ending.faulty_lines):
                self._keep(line)
                continue
            count = self._starts[line + 1] - self._starts[line]
            failure, final, alone = self._unanswered(line, self._errors.get(line), count)
            for position in range(self._starts[line], self._starts[line + 1]):
                self.regroup[position] = alone
                self._put(position, Outcome(None, failure, cost_usd=0.0), final)

    def _keep(self, line: int) -> None:
        """A line that was not sent: passed on as it is, with what is known of its records from before."""
        for position in range(self._starts[line], self._starts[line + 1]):
            self.left[position], self.unsent[position] = 1, line < self._asked
            before = self._earlier.outcome(self._manifest, position)
            if before is not None:
                self.outcomes.put(position, before)

    def _unanswered(self, line: int, reply: LineReply | None, count: int) -> tuple[Failure, bool, bool]:
        """(why, whether that is final, whether its records are to be asked one by one). A line's own end goes before the job's."""
        ending = self._ending
        fault = ending.faulty_lines.get(line)
        if fault is not None:
            return fault, count == 1, True
        if reply is None:
            return ending.failure, ending.final, False
        failure, end = _failure_in(reply), reply.end
        if end in (LineEnd.EXPIRED, LineEnd.CANCELLED):
            if ending.word == "deadline":  # it was our own cancellation
                return ending.failure, ending.final, False
            return failure, ending.final or end is LineEnd.CANCELLED, False
        if ending.final:
            return failure, True, False
        return (failure, count == 1, True) if end is LineEnd.REJECTED else (failure, False, False)

    def _put(self, position: int, outcome: Outcome, final: bool) -> None:
        if not final:
            self.left[position] = 1
        self.outcomes.put(position, self._earlier.added(self._manifest, position, outcome))


def result_lines(path: str, most_bytes: int) -> Iterator[bytes]:
    """The lines of a result file, which end at b"\\n" and nowhere else; of one that is too long only the beginning."""
    with open(path, "rb", buffering=_READ_BYTES) as file:
        for line in iter(functools.partial(file.readline, most_bytes), b""):
            yield line
            while len(line) == most_bytes and not line.endswith(b"\n"):
                line = file.readline(most_bytes)


def _unreadable_line(line: bytes, error: Exception, most_bytes: int) -> CallError:
    if len(line) >= most_bytes:  # another would be as long
        return Rejected(Kind.UNREADABLE, f"its result line is larger than {most_bytes:,} bytes (max_reply_bytes): it was not read")
    return Retryable(Kind.UNREADABLE, f"its result line of {len(line):,} bytes can't be read ({type(error).__name__})")


def _failure_in(reply: LineReply) -> Failure:
    """What the provider says of a line without a completion, in its words where there are any."""
    error = reply.error
    if error is None:
        return Failure(Kind.UNREADABLE, "the provider's error line says nothing", 1)
    kind = error.kind if isinstance(error, CallError) else Kind.UNAVAILABLE
    return Failure(kind, str(error) or kind, 1)


def _tokens(count: Any) -> int:
    """A sum of what a provider counted, as a number that JSON can hold."""
    try:
        return min(max(int(count), 0), 2**53)
    except (TypeError, ValueError, OverflowError):
        return 0


def _failure_of(reading: Reading, index: int, count: int) -> Failure:
    missing = Failure(Kind.MISSING, missing_message(index, count, reading.values))
    return reading.reply_failure or reading.failures.get(index) or missing


class Earlier:
    """What the link before says of records that it left over: their usage is theirs, whoever answers them in the end."""

    def __init__(self, store: Store | None = None, name: str | None = None):
        known = Outcomes(store, name) if store is not None and name is not None else None
        self._known = known if known is not None and len(known) else None

    @property
    def is_empty(self) -> bool:
        return self._known is None

    def added(self, manifest: Manifest, position: int, outcome: Outcome) -> Outcome:
        failure = outcome.failure
        if self._known is None:
            if failure is None or failure.attempts:
                return outcome
            return outcome._replace(failure=failure._replace(attempts=1))
        before = self.outcome(manifest, position) or Outcome(cost_usd=0.0)
        tries = (before.failure.attempts if before.failure else 0) + max(failure.attempts if failure else 0, 1)
        cost = None if outcome.cost_usd is None or before.cost_usd is None else outcome.cost_usd + before.cost_usd
        return outcome._replace(
            usage=outcome.usage + before.usage,
            cost_usd=cost,
            failure=failure._replace(attempts=tries) if failure is not None else None,
        )

    def outcome(self, manifest: Manifest, position: int) -> Outcome | None:
        """What is known of a record; None for one that was not asked yet."""
        at = -1 if self._known is None else int(self._known.positions(manifest.keys[position : position + 1])[0])
        return self._known.outcome(at) if self._known is not None and at >= 0 else None

    def close(self) -> None:
        if self._known is not None:
            self._known.close()


def next_step(on_leftover: str, is_follow_up: bool) -> str | None:
    """Where leftovers go: one more job, then live calls, or nowhere."""
    if on_leftover == "fail":
        return None
    return FOLLOW_UP if on_leftover == "follow_up" and not is_follow_up else ASK


def store_end(
    store: Store,
    intent: Intent,
    manifest: Manifest,
    found: Collected,
    path: str,
    goes_to: str | None,
    slice_size: int,
    document: str = "done",
) -> dict[str, Any]:
    """Writes outcomes, leftovers and, last, `document`. Returns what it says, be it ours or a quicker collector's."""
    found.outcomes.flush()
    unsent = np.frombuffer(found.unsent, dtype=np.bool_)
    left = unsent if goes_to is None else np.frombuffer(found.left, dtype=np.bool_)
    name = f"{folder(intent.number)}answers-{uuid.uuid4().hex[:12]}"
    reached("answers.before")
    store.put_file(f"{name}.rows", path)
    doc: dict[str, Any] = {"format": 1, "intent": intent.fingerprint, "outcomes": name}
    doc |= {"ended": found._ending.word, "next": None}
    if left.any():
        doc |= _leftovers(store, name, manifest, found, left, unsent)
        doc |= {"next": REST if unsent.any() else goes_to, "slice": slice_size}
    else:
        index, doc["counts"] = found.outcomes.whole()
        store.put(f"{name}.index", index)
    doc |= {
        "facts": dict(found.facts),
        "usage": found.usage,
        "cost_usd": found.cost_usd,
    }
    reached("done.before")
    if not store.create(folder(intent.number) + document, orjson.dumps(doc)):
        _remove(store, name)
        kept = read_json(store, folder(intent.number) + document)
        if kept is None:
            raise LedgerError(f"{folder(intent.number)}{document} can't be read back")
        return kept
    reached("done.after")
    return doc


def _leftovers(store: Store, name: str, manifest: Manifest, found: Collected, left: Array, unsent: Array) -> dict[str, Any]:
    """Splits outcomes into those that stand and those that are passed on: two indexes over the same rows.

    Lines that were not sent go first, as they are; then what is left over of the others.
    """
    final_index, final_counts = found.outcomes.part(~left)
    left_index, _ = found.outcomes.part(left)
    store.put(f"{name}.index", final_index)
    store.put(f"{name}{LEFT}.index", left_index)
    regroup = np.frombuffer(found.regroup, dtype=np.uint8)
    rest, others = (_regrouped(manifest, mask, regroup) for mask in (unsent, left & ~unsent))
    positions = np.concatenate([np.flatnonzero(unsent), np.flatnonzero(left & ~unsent)])
    passed_on = manifest.chosen(positions, np.concatenate([rest, others[1:] + rest[-1]]))
    return {
        "rest_lines": len(rest) - 1,
        "rest_records": int(rest[-1]),
        "left": f"{name}{LEFT}",
        "left_lines": passed_on.write(store),
        "left_records": len(positions),
        "counts": final_counts,
    }


def _regrouped(manifest: Manifest, left: Array, alone: Array) -> Array:
    """Lines of the follow-up: a line that was never answered stays as it is; where the line was at fault, each record has its own."""
    assert manifest.line_starts is not None
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


def _remove(store: Store, name: str) -> None:
    for ending in (".index", ".rows", f"{LEFT}.index"):
        store.delete(name + ending)


def ended_as(status: str, errors: Iterator[tuple[str, str, int | None]], past_deadline: bool) -> Ending:
    """What a provider's terminal status means for lines without a reply.

    Args:
      status: at the deadline any status; one that isn't terminal leaves a doubt, as an answer may still come, and be paid for.
    """
    if past_deadline and status not in TERMINAL:
        said = "the job neither ended nor was cancelled by its deadline, so an answer may yet be paid for; on_doubt='resubmit' asks again"
        return Ending("deadline", Failure(Kind.DOUBTFUL, said, 1), True, {})
    if past_deadline:
        return Ending("deadline", Failure(Kind.TIMED_OUT, "the job had not come to this record by its deadline", 1), True, {})
    if status == "cancelled":
        return Ending(status, Failure(Kind.CANCELLED, "the job was cancelled before it came to this record", 1), True, {})
    if status == "expired":
        return Ending(status, Failure(Kind.EXPIRED, "the job expired before it came to this record", 1), False, {})
    if status == "failed":
        return _failed(list(errors))
    return Ending(status, Failure(Kind.UNAVAILABLE, f"the job ended as {status} without an answer to this record", 1), False, {})


_NOT_OURS = ("model_not_found", "billing", "quota", "permission", "unauthorized", "access")


def _failed(errors: list[tuple[str, str, int | None]]) -> Ending:
    """Validation failed: nothing ran. Where it names lines, those are at fault and the others can be asked again."""
    code, message, _ = errors[0] if errors else ("failed", "the provider gave no reason", None)
    said = f"the provider's validation failed: {code}: {message}"
    if any(word in code for word in _NOT_OURS):
        return Ending("failed", Failure(Kind.ABORTED, said, 1), True, {})
    faulty = {
        line - 1: Failure(Kind.REJECTED, f"line {line} failed the provider's validation: {error_code}: {text}", 1)
        for error_code, text, line in errors
        if line is not None
    }
    if faulty:
        return Ending("failed", Failure(Kind.UNAVAILABLE, f"{said} (another record's line)", 1), False, faulty)
    return Ending("failed", Failure(Kind.REJECTED, said, 1), True, {})


__all__ = ["Collected", "Cost", "Earlier", "Ending", "ended_as", "next_step", "store_end", "temporary_file"]
