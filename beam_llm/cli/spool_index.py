"""Finds each record's best answer in a spool's files."""

from __future__ import annotations

import tempfile
from array import array
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

from beam_llm.cli.files.records import DIGEST_BYTES
from beam_llm.cli.files.survey import each_digest
from beam_llm.cli.stored import Check, StoredAnswer, answer_of, encode_answer, parse_line

_NOWHERE = -1


class SpoolIndex:
    """Maps each record to its answer. The answers are in a temporary file; memory holds 9 bytes a
    record, whatever the answers' size.

    Args:
      digests: of the records, 16 bytes each.

    Attributes:
      unfit: answers that the present output type refuses; their records count as not answered.
    """

    def __init__(self, digests: bytes):
        records = len(digests) // DIGEST_BYTES
        self._file = tempfile.TemporaryFile(prefix="beam-llm-")  # noqa: SIM115 - closed by __exit__
        self._end = 0
        self._digests = digests
        self._ordinals_of: dict[bytes, tuple[deque[int], deque[int]]] | None = None
        self._offset_of = array("q", [_NOWHERE]) * records
        self._good = bytearray(records)
        self.unfit = 0

    def __enter__(self) -> SpoolIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add_lines(self, lines: Iterable[bytes], check: Check | None = None) -> None:
        """Adds a spool file's answers: a value is never replaced by an error, and an answer is only
        given to its own record.
        """
        for line in lines:
            answer = parse_line(line)
            if answer is None or (ordinal := self._ordinal(answer)) is None:
                continue
            if answer.error is not None and self._good[ordinal]:
                continue
            if check is not None and answer.error is None:
                try:
                    line = encode_answer(answer._replace(value=check(answer.value)))
                except ValueError:
                    self.unfit += 1
                    continue
            # Appended, also where it replaces an error: the index then points to the newer line.
            self._file.write(line)
            self._offset_of[ordinal] = self._end
            self._end += len(line)
            self._good[ordinal] = answer.error is None

    def _ordinal(self, answer: StoredAnswer) -> int | None:
        """The record that an answer belongs to: the one in its old place, where that is still the
        same, otherwise an equal one elsewhere.
        """
        digest = bytes.fromhex(answer.digest)
        start = answer.ordinal * DIGEST_BYTES
        is_there = (
            0 <= answer.ordinal < len(self._good)
            and self._digests[start : start + DIGEST_BYTES] == digest
        )
        # Once answers are matched by content, this record may have got the answer of an equal one:
        # then this answer is for that one.
        if is_there and not (self._good[answer.ordinal] and self._ordinals_of is not None):
            return answer.ordinal
        queues = self._equal_records(digest)
        if queues is None:
            return None
        if answer.error is None:
            queue = queues[0]
            while queue and self._good[queue[0]]:
                queue.popleft()
        else:
            queue = queues[1]
            while queue and self._offset_of[queue[0]] != _NOWHERE:
                queue.popleft()
        return queue[0] if queue else None

    def _equal_records(self, digest: bytes) -> tuple[deque[int], deque[int]] | None:
        """Ordinals of the records with a digest, in two queues: the first will be reduced to
        records without a value, the other to records without a line.
        """
        if self._ordinals_of is None:  # only where a record has moved
            self._ordinals_of = defaultdict(lambda: (deque(), deque()))
            for ordinal, one in enumerate(each_digest(self._digests)):
                for queue in self._ordinals_of[one]:
                    queue.append(ordinal)
        return self._ordinals_of.get(digest)

    def done(self) -> bytes:
        """One byte per record: 1 where it has a value and needn't be asked again."""
        return bytes(self._good)

    def missing(self) -> int:
        """Records without any line, good or bad."""
        return self._offset_of.count(_NOWHERE)

    def answers(self) -> Iterator[StoredAnswer]:
        """The answer of each record, by ordinal; none may be missing."""
        return map(self.answer, range(len(self._offset_of)))

    def answers_so_far(self) -> Iterator[StoredAnswer]:
        """The answer of each record that has one, by ordinal."""
        for ordinal, offset in enumerate(self._offset_of):
            if offset != _NOWHERE:
                yield self.answer(ordinal)

    def answer(self, ordinal: int) -> StoredAnswer:
        """The answer of one record that has one."""
        self._file.seek(self._offset_of[ordinal])
        return answer_of(self._file.readline())._replace(ordinal=ordinal)
