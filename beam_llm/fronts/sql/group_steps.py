"""Groups in Beam: the rows of a source → one row per group, with its aggregates and, for each call
over all its rows, one answer of a model.

    rows ─ key ─ GroupByKey ─ AggregateRows ─┬─ groups ────────────────────────┬─ join ─ rows
                                             └─ texts of a call ─ LLMReduce ───┘
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints import Dict, Tuple

from beam_llm.errors import Failure, Kind, UsageError
from beam_llm.fronts.sql.compute import Aggregator, Evaluator, ExpressionError
from beam_llm.fronts.sql.in_flight import (
    DROPPED,
    META,
    AnswerDoFn,
    InFlight,
    has_input,
    inputs_of,
    keep_columns,
    meta_of,
    with_answer,
    with_outcome,
)
from beam_llm.fronts.sql.plan import Ask, Grouping, Plan
from beam_llm.transforms.options import arguments_of
from beam_llm.transforms.reduce import LLMReduce
from beam_llm.values import Prediction

Keyed = Tuple[str, InFlight]


def key_of(grouping: Grouping, row: Mapping[str, Any]) -> str:
    """The key that a row is grouped by, as text: every runner has a coder for it, and NULL is a
    key, too.
    """
    return json.dumps([row.get(column) for column in grouping.keys], sort_keys=True)


def digest_of_group(key: str, total: int) -> bytes:
    """16 bytes that identify a group's content, whatever order its rows come in.

    Args:
      total: the sum of its rows' digests.
    """
    text = f"{total:x} {key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def seed_element(place: str) -> tuple[str, dict[str, Any]]:
    """An element that makes the one group of all rows exist where there is no row."""
    return place, {DROPPED: True}


def _place_of_group(key: str, places: list[str]) -> str:
    """A group's ordinal and digest, made from its rows' places, which have the group's ordinal and
    their own digests. With the digest, an answer over rows that have changed meanwhile is not taken
    for the answer over the rows before.
    """
    parts = [place.partition(" ") for place in places]
    ordinal = parts[0][0]
    if not ordinal:  # rows of a Beam source have no place
        return ""
    total = sum(int(digest, 16) for _, _, digest in parts if digest)
    return f"{ordinal} {digest_of_group(key, total).hex()}"


class GroupRows(beam.PTransform):
    """Rows of the source → rows of groups, with the answers of all calls over a group's rows.

    Raises:
      UsageError: the source is unbounded.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def expand(self, rows: pvalue.PCollection) -> pvalue.PCollection:
        plan = self._plan
        assert plan.grouping is not None
        if not rows.is_bounded:
            raise UsageError(
                f"{plan.place}: groups of a source that doesn't end are not run here: LLMReduce in "
                "Python answers window by window"
            )
        tags = [f"texts{number}" for number in range(len(plan.group_asks))]
        aggregate = beam.ParDo(AggregateRows(plan, tags)).with_outputs(*tags, main="groups")
        outputs = (
            rows
            | "Key by group" >> beam.ParDo(KeyRow(plan.grouping)).with_output_types(Keyed)
            | "Group" >> beam.GroupByKey()
            | "Aggregate" >> aggregate
        )
        # Beam gives tagged outputs no type of their own.
        outputs["groups"].element_type = Keyed
        answers = {
            tag: self._ask_groups(outputs[tag], ask)
            for tag, ask in zip(tags, plan.group_asks, strict=True)
        }
        return (
            {"groups": outputs["groups"], **answers}
            | "Groups with answers" >> beam.CoGroupByKey()
            | "Join answers" >> beam.ParDo(JoinAnswers(plan, tags)).with_output_types(InFlight)
        )

    def _ask_groups(self, texts: pvalue.PCollection, ask: Ask) -> pvalue.PCollection:
        texts.element_type = Tuple[str, Dict[str, Any]]
        settings = ask.branches[0].settings
        take = beam.ParDo(TakeGroupAnswer(ask, settings.output))
        return (
            texts
            | ask.label >> LLMReduce(**arguments_of(settings))
            | f"Take answers: {ask.label}" >> take.with_output_types(Tuple[str, Dict[str, Any]])
        )


class KeyRow(beam.DoFn):
    """`(place, row)` → the same, keyed by its group."""

    def __init__(self, grouping: Grouping):
        self._grouping = grouping

    def process(self, element: tuple[str, dict[str, Any]]) -> Iterator[Any]:
        yield key_of(self._grouping, element[1]), element


class AggregateRows(beam.DoFn):
    """All rows of a group → its row, keyed, and under a tag for each call the inputs of that call.

    A group that HAVING leaves out by its aggregates is not asked about. Nor are texts that are
    NULL, as in any aggregate; where all of them are, the answer is NULL as well.
    """

    def __init__(self, plan: Plan, tags: list[str]):
        self._plan = plan
        self._tags = tags

    def setup(self) -> None:
        assert self._plan.grouping is not None
        self._aggregator = Aggregator(self._plan.grouping.aggregates)
        self._evaluator = Evaluator(self._plan.stages[0])

    def process(self, keyed: tuple[str, Iterable[Any]]) -> Iterator[Any]:
        key, elements = keyed[0], list(keyed[1])
        place = _place_of_group(key, [place for place, _ in elements])
        rows = [row for _, row in elements if DROPPED not in row]
        group = self._group(rows)
        yield key, (place, group)
        if DROPPED in group or META in group:
            return
        for tag, ask in zip(self._tags, self._plan.group_asks, strict=True):
            for row in rows:
                if has_input(ask, row):
                    yield pvalue.TaggedOutput(tag, (key, inputs_of(ask, row)))

    def _group(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        plan = self._plan
        assert plan.grouping is not None
        group = {column: rows[0].get(column) for column in plan.grouping.keys}
        try:
            group |= self._aggregator.values(rows)
            found = group if plan.stages[0].is_empty else self._evaluator.row(group)
        except ExpressionError as error:
            # Only this group fails; no model was asked about it.
            failure = Failure(Kind.INVALID, f"an aggregate failed: {error}", 1)
            errors = {ask.error: str(failure) for ask in plan.group_asks}
            return {**group, **errors, META: [meta_of(failure)]}
        return {DROPPED: True} if found is None else keep_columns(found, plan.keeps[0])


class TakeGroupAnswer(AnswerDoFn):
    """A group's Prediction → `(key, the answer's columns)`."""

    def process(self, prediction: Prediction) -> Iterator[tuple[str, dict[str, Any]]]:
        yield prediction.element.key, with_answer(self._ask, {}, prediction, self._output)


class JoinAnswers(beam.DoFn):
    """A group's row and its answers → `(place, row)`."""

    def __init__(self, plan: Plan, tags: list[str]):
        self._plan = plan
        self._tags = tags

    def process(self, joined: tuple[str, Mapping[str, Any]]) -> Iterator[Any]:
        parts = joined[1]
        for place, row in parts["groups"]:
            if DROPPED not in row and META not in row:
                for tag, ask in zip(self._tags, self._plan.group_asks, strict=True):
                    row = _join_answer(ask, row, list(parts[tag]))
            yield place, row


def _join_answer(ask: Ask, row: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    answer = answers[0] if answers else with_outcome(ask, {}, None, None)
    return {**row, **answer, META: [*row.get(META, ()), *answer[META]]}
