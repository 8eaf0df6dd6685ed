"""One look through a plan's source before anything is paid: how many rows, and what each was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from beam_llm.cli.files.records import DIGEST_BYTES, Source
from beam_llm.cli.inputs import any_task
from beam_llm.cli.sql.rows import read_input
from beam_llm.config import Settings
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.plan import Plan, Rows
from beam_llm.fronts.sql.tables import Table


class Looked(NamedTuple):
    """What one look found.

    Attributes:
      counts: rows per source that WHERE and LIMIT leave in.
      digests: of these, 16 bytes each, in order.
    """

    counts: tuple[int, ...]
    digests: bytes

    @property
    def rows(self) -> int:
        """How many rows WHERE and LIMIT leave in."""
        return len(self.digests) // DIGEST_BYTES

    def files(self, sources: Sequence[Source], done: bytes) -> Iterator[tuple[int, Source, bytes]]:
        """Per source its first ordinal, what it is, and which of its rows are done."""
        first = 0
        for source, count in zip(sources, self.counts, strict=True):
            yield first, source, done[first : first + count]
            first += count


def look(plan: Plan, sources: Sequence[Source]) -> Looked:
    """Reads everything once.

    Raises:
      DataError: a line that can't be read, a value that isn't of its column's type, or one that an
        expression fails on.
    """
    evaluator = Evaluator(plan.stages[0])
    digests = bytearray()
    counts = []
    for source in sources:
        before = len(digests)
        # LIMIT is of all files together, in their order.
        left = None if plan.limit is None else plan.limit - before // DIGEST_BYTES
        for row in islice(read_input(plan, source, evaluator), left):
            digests += row.digest
        counts.append((len(digests) - before) // DIGEST_BYTES)
    return Looked(tuple(counts), bytes(digests))


def question_of(plan: Plan) -> bytes:
    """Names what a plan does to its rows: another question, another set of kept answers."""
    asks = [
        (ask.label, ask.model_column, ask.inputs, ask.record_id, ask.outputs) for ask in plan.asks
    ]
    tasks = [_fingerprint(branch.settings) for ask in plan.asks for branch in ask.branches]
    parts = (
        _source_name(plan.source), plan.columns, plan.stages, asks, tasks, plan.outputs, plan.limit,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()


def _fingerprint(settings: Settings) -> bytes:
    """Everything that shapes an answer; of a model that a record chooses, its template too."""
    return any_task(settings).fingerprint + settings.model.encode()


def _source_name(source: Table | Rows) -> str:
    """Files of a table may come and go: answers belong to their records."""
    return source.path or source.transform if isinstance(source, Table) else repr(source)
