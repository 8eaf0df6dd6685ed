"""All records of the input as a prompt takes them, and the sample of them that is asked."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from beam_llm.cli.files.records import Source, digest_of
from beam_llm.cli.files.sources import read_all
from beam_llm.cli.files.survey import each_digest
from beam_llm.cli.inputs import misfit_of, record_of
from beam_llm.config import Settings, replace_options
from beam_llm.errors import UsageError
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.values import Record

Fields = Mapping[str, Any]


class Population:
    """The records of the input, as prompts take them.

    Attributes:
      size: how many there are.
      unusable: of these, how many don't fit the prompt.
    """

    def __init__(self, sources: Sequence[Source], settings: Settings, hidden: str | None):
        self._sources = sources
        self._hidden = hidden
        # Any size above 1 will do: a record's length is that of its text among others.
        task = compile_task(replace_options(settings, batch_size=2))
        # Nothing else is held of a record than these 24 bytes.
        self._lengths = array("q")
        self._digests = bytearray()
        together: Fields = {}
        self.size = self.unusable = 0
        for fields, _ in self.rows():
            self.size += 1
            record = record_of(task, fields)
            # One that doesn't fit keeps its place, so that a sample's places are the input's.
            self._lengths.append(-1 if record is None else record.tokens)
            if record is None:
                self.unusable += 1
                together = {**together, **fields}
            self._digests += digest_of(fields)
        if not self.size:
            raise UsageError("the input holds no records: there is nothing to compare")
        if self.unusable == self.size and (error := misfit_of(task, together)):
            raise UsageError(f"{error} (no record fits; fields: {', '.join(together) or 'none'})")

    def rows(self) -> Iterator[tuple[Fields, Any]]:
        """Each record's fields without the right answer, and the right answer."""
        for row in read_all(self._sources):
            fields = dict(row.fields)
            truth = fields.pop(self._hidden, None) if self._hidden is not None else None
            yield fields, truth

    def sample(self, count: int, seed: int) -> list[tuple[Fields, Any]]:
        """Records that fit the prompt, spread over their lengths, in the input's order."""
        lengths = np.array(self._lengths)
        usable = np.flatnonzero(lengths >= 0)
        digests = zip(each_digest(bytes(self._digests)), self._lengths, strict=True)
        chosen = draw_stratified(
            lengths[usable], (digest for digest, length in digests if length >= 0), count, seed
        )
        places = set(usable[chosen].tolist())
        # Read again: only lengths and digests of all records are held in memory.
        return [row for place, row in enumerate(self.rows()) if place in places]

    def records(self, task: Task) -> Iterator[Record]:
        """All records that fit the prompt, read again."""
        found = (record_of(task, fields) for fields, _ in self.rows())
        return (record for record in found if record is not None)


def draw_stratified(
    lengths: Sequence[int] | np.ndarray[Any, Any], digests: Iterable[bytes], count: int, seed: int
) -> list[int]:
    """Chooses the records of a sample: one from each of `count` groups of records of like length.

    Within its group a record is chosen by its content, not by its place: the same file in another
    order gives the same texts.

    Args:
      lengths: of each record, in any unit.
      digests: of each record's content.
      seed: another seed chooses other records.

    Returns:
      Their places, ascending; all of them where there are no more than `count`.
    """
    total = len(lengths)
    if count >= total:
        return list(range(total))
    lots = np.fromiter((_lot(digest, seed) for digest in digests), np.uint64, total)
    by_length = np.lexsort((lots, np.asarray(lengths)))
    groups = (
        by_length[total * number // count : total * (number + 1) // count]
        for number in range(count)
    )
    # Among equal lots, that of the first place wins.
    return sorted(int(group[np.lexsort((group, lots[group]))[0]]) for group in groups)


def _lot(digest: bytes, seed: int) -> int:
    # Not `random` with a seed, which would choose by place.
    salt = str(seed).encode()[:16]
    return int.from_bytes(hashlib.blake2b(digest, digest_size=8, salt=salt).digest())
