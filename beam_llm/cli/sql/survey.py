"""One pass over a plan's source before anything is paid for: how many rows it has, and what each
contains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from beam_llm.cli.files.records import DIGEST_BYTES, Source
from beam_llm.cli.files.survey import with_done
from beam_llm.cli.inputs import any_task
from beam_llm.cli.sql.groups import GroupSurvey, survey_groups
from beam_llm.cli.sql.rows import read_input
from beam_llm.cli.sql.sorting import survey_sorted_rows
from beam_llm.config import Settings
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.plan import Grouping, Plan, Rows
from beam_llm.fronts.sql.tables import Table
from beam_llm.providers import compile_reduce


class SourceSurvey(NamedTuple):
    """The rows that one pass over a source found.

    Attributes:
      counts: how many rows per source WHERE and LIMIT leave in.
      digests: of these rows, 16 bytes each, in order.
    """

    counts: tuple[int, ...]
    digests: bytes

    @property
    def rows(self) -> int:
        """How many rows WHERE and LIMIT leave in."""
        return len(self.digests) // DIGEST_BYTES

    def files(self, sources: Sequence[Source], done: bytes) -> Iterator[tuple[int, Source, bytes]]:
        """Each source, with what is to be read from it: see `with_done`."""
        return with_done(sources, self.counts, done)


def survey_source(plan: Plan, sources: Sequence[Source]) -> SourceSurvey | GroupSurvey:
    """Reads all sources once.

    Raises:
      DataError: a line that can't be read, a value that isn't of its column's type, or one on which
        an expression fails.
    """
    if plan.grouping is not None:
        return survey_groups(plan, sources)
    if plan.sorts_input:
        return survey_sorted_rows(plan, sources)
    evaluator = Evaluator(plan.read_stage)
    digests = bytearray()
    counts = []
    for source in sources:
        before = len(digests)
        # LIMIT applies to all files together, in their order.
        limit = plan.read_limit
        left = None if limit is None else limit - before // DIGEST_BYTES
        for row in islice(read_input(plan, source, evaluator), left):
            digests += row.digest
        counts.append((len(digests) - before) // DIGEST_BYTES)
    return SourceSurvey(tuple(counts), bytes(digests))


def question_of(plan: Plan) -> bytes:
    """32 bytes that identify what a plan does to its rows: another question has another set of kept
    answers.
    """
    asks = [
        (ask.label, ask.model_column, ask.inputs, ask.record_id, ask.outputs,
         *([] if ask.when is None else [ask.when]))
        for ask in plan.asks
    ]  # fmt: skip
    tasks = [_fingerprint(branch.settings) for ask in plan.asks for branch in ask.branches]
    parts = (
        _source_name(plan.source), plan.columns, plan.stages, asks, tasks, plan.outputs, plan.limit,
        *([] if plan.grouping is None else [_of_grouping(plan.grouping)]), *plan.order,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()


def _of_grouping(grouping: Grouping) -> tuple[object, ...]:
    """The parts of a grouping that have a fixed order: a set's differs between processes."""
    return grouping.compute, grouping.keys, grouping.aggregates


def _fingerprint(settings: Settings) -> bytes:
    """Everything that shapes an answer; where each record chooses its model, also the model's
    template.
    """
    if settings.task == "reduce":
        task, size = compile_reduce(settings), (settings.batch_size, settings.max_input_tokens)
        words = (settings.instruction, settings.combine_instruction, settings.on_bad_record)
        shape = repr((settings.model, settings.prompt, *words, *size))
        return task.final.fingerprint + task.partial.fingerprint + shape.encode()
    return any_task(settings).fingerprint + settings.model.encode()


def _source_name(source: Table | Rows) -> str:
    """The source as part of the question. Files of a table may come and go: answers belong to
    records, not to files.
    """
    return source.path or source.transform if isinstance(source, Table) else repr(source)
