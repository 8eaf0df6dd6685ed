"""A plan's steps in Beam: rows in flight go through calls of models, each made by `LLMPredict`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, LLMError
from beam_llm.fronts.sql.compute import Compute, Evaluator, ExpressionError
from beam_llm.fronts.sql.group_steps import GroupRows
from beam_llm.fronts.sql.in_flight import (
    DROPPED,
    META,
    AnswerDoFn,
    InFlight,
    has_input,
    inputs_of,
    is_needed,
    keep_columns,
    meta_of,
    with_answer,
    with_outcome,
)
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.plan import Ask, Branch, Plan
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.options import arguments_of
from beam_llm.transforms.predict import LLMPredict
from beam_llm.values import Prediction


class RunStages(beam.PTransform):
    """Rows after stage 0 → rows with everything that the outputs need, in one or more PCollections.

    They are not flattened: where a runner stores what goes into a Flatten, as Beam's FnApiRunner
    does, no answer would be kept before the last one has come.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def expand(self, rows: pvalue.PCollection) -> tuple[pvalue.PCollection, ...]:
        plan = self._plan
        if plan.grouping is not None:
            rows = rows | "Group rows" >> GroupRows(plan)
        row_sets: tuple[pvalue.PCollection, ...] = (rows,)
        for number, ask in enumerate(plan.asks):
            results = row_sets if ask.of_groups else self._ask_model(ask, row_sets)
            stage = EvaluateStage(plan.stages[number + 1], plan.keeps[number + 1], ask.error)
            row_sets = tuple(
                result
                | f"Reckon after {ask.label}: {place}"
                >> beam.ParDo(stage).with_output_types(InFlight)
                for place, result in enumerate(results)
            )
        return row_sets

    def _ask_model(
        self, ask: Ask, row_sets: tuple[pvalue.PCollection, ...]
    ) -> tuple[pvalue.PCollection, ...]:
        rows = (
            row_sets[0]
            if len(row_sets) == 1
            else row_sets | f"All rows for {ask.label}" >> beam.Flatten()
        )
        return rows | ask.label >> AskModel(ask)


class AskModel(beam.PTransform):
    """One call for every row; a PCollection per model.

    No call is made for a row that a condition left out, for one that takes another branch, or for
    one without any input, whose answer is NULL with the reason. Where there is one model, such rows
    go through the transform as records without fields, of which no prompt and so no call can be
    made; otherwise they bypass it.
    """

    def __init__(self, ask: Ask):
        super().__init__()
        self._ask = ask

    def expand(self, rows: pvalue.PCollection) -> tuple[pvalue.PCollection, ...]:
        ask = self._ask
        if len(ask.branches) == 1 and _skips_empty_records(ask.branches[0].settings):
            prepared = rows | "Prepare" >> beam.ParDo(PrepareCall(ask)).with_output_types(InFlight)
            return (self._predict(prepared, ask.branches[0]),)
        tags = [f"model{number}" for number in range(len(ask.branches))]
        prepare = beam.ParDo(PrepareCall(ask, by_model=True)).with_outputs(*tags, main="others")
        outputs = rows | "Prepare" >> prepare
        row_sets = []
        for tag, branch in zip(tags, ask.branches, strict=True):
            # Beam gives tagged outputs no type of their own.
            outputs[tag].element_type = InFlight
            row_sets.append(self._predict(outputs[tag], branch))
        outputs["others"].element_type = InFlight
        take = beam.ParDo(TakeAnswer(ask, str)).with_output_types(InFlight)
        return (*row_sets, outputs["others"] | "Take others" >> take)

    def _predict(self, prepared: pvalue.PCollection, branch: Branch) -> pvalue.PCollection:
        take = beam.ParDo(TakeAnswer(self._ask, branch.settings.output))
        return (
            prepared
            | f"Predict by {branch.model}" >> LLMPredict(**arguments_of(branch.settings))
            | f"Take answers of {branch.model}" >> take.with_output_types(InFlight)
        )


def _skips_empty_records(settings: Settings) -> bool:
    """Whether no prompt can be made of a record without fields, so that no call is made for it."""
    try:
        return isinstance(RecordReader(settings).record(("", {})), Failure)
    except LLMError:  # a model that the record's fields have to choose
        return False


class PrepareCall(beam.DoFn):
    """`(place, row)` → the call's inputs, keyed by the row and the reason why no call is made for
    it, if there is one.

    Args:
      by_model: puts each model's rows under a tag, and those without a call into the main output.
    """

    def __init__(self, ask: Ask, *, by_model: bool = False):
        self._ask = ask
        self._by_model = by_model
        self._tags = {branch.model: f"model{number}" for number, branch in enumerate(ask.branches)}

    def process(self, element: tuple[str, dict[str, Any]]) -> Iterator[Any]:
        place, row = element
        # Where the call isn't needed nothing has failed: that is an empty reason.
        needs_call = DROPPED not in row and is_needed(self._ask, row)
        failure = self._failure(row) if needs_call else ()
        # The record's key carries the row; as text, since every runner has a coder for it.
        key = json.dumps([place, row, failure])
        if failure is not None:
            yield key, {}
            return
        output = key, inputs_of(self._ask, row)
        model = row.get(self._ask.model_column or "") or self._ask.branches[0].model
        yield pvalue.TaggedOutput(self._tags[model], output) if self._by_model else output

    def _failure(self, row: dict[str, Any]) -> Failure | None:
        ask = self._ask
        if ask.model_column is not None:
            model = row.get(ask.model_column)
            if model not in self._tags:
                hint = nearest(str(model), self._tags, "models")
                return Failure(Kind.PROMPT, f"unknown model {model!r}: {hint}")
        if not has_input(ask, row):
            return Failure(Kind.PROMPT, self._null_reason(row))
        return None

    def _null_reason(self, row: dict[str, Any]) -> str:
        """The reason why there is no input: it is NULL itself, or an earlier call has failed."""
        names = ", ".join(name for name, _, _ in self._ask.inputs)
        earlier = [meta[1] for meta in row.get(META, ()) if meta[1]]
        return f"{names} is NULL" + (f" ({earlier[0]})" if earlier else "")


class TakeAnswer(AnswerDoFn):
    """A Prediction, or a row without a call → the row with the answer in its columns."""

    def process(self, element: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        key = element.element[0] if isinstance(element, Prediction) else element[0]
        place, row, failure = json.loads(key)
        if DROPPED in row:
            yield place, row
        elif failure is not None:
            reason = Failure(*failure) if failure else None
            yield place, with_outcome(self._ask, row, None, reason)
        else:
            yield place, with_answer(self._ask, row, element, self._output)


class EvaluateStage(beam.DoFn):
    """Computes what comes after a call, row by row. A failure is the row's own error, since its
    answer is paid for.
    """

    def __init__(self, compute: Compute, keeps: frozenset[str], error: str):
        self._compute = compute
        self._keeps = keeps
        self._error = error
        self._evaluator: Evaluator | None = None

    def process(self, element: tuple[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        place, row = element
        if DROPPED not in row and not self._compute.is_empty:
            row = self._evaluate(row)
        yield place, keep_columns(row, self._keeps)

    def _evaluate(self, row: dict[str, Any]) -> dict[str, Any]:
        # Not in `setup`: most stages compute nothing, and need no DuckDB.
        if self._evaluator is None:
            self._evaluator = Evaluator(self._compute)
        try:
            found = self._evaluator.row(row)
        except ExpressionError as error:
            failure = Failure(Kind.INVALID, f"an expression failed: {error}", 1)
            metas = [*row.get(META, ()), meta_of(failure)]
            return {**row, self._error: str(failure), META: metas}
        return {META: row.get(META, []), DROPPED: True} if found is None else found
