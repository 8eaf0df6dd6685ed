"""A plan's steps in Beam: rows in flight through calls of models, each by the one transform.

An element is `(place, row)`: where the record was read, as text, and its columns in flight. Under
`META` a row keeps how each of its calls ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints import Dict, Tuple

from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, LLMError
from beam_llm.fronts.sql.compute import Compute, Evaluator, ExpressionError
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.plan import Ask, Branch, Plan
from beam_llm.fronts.sql.types import value_of
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.text import clean
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.options import arguments_of
from beam_llm.transforms.predict import LLMPredict
from beam_llm.values import Prediction

META = "$"
DROPPED = "$dropped"
"""A row with this key was left out by a condition on an answer."""

InFlight = Tuple[str, Dict[str, Any]]


class RunStages(beam.PTransform):
    """Rows that stage 0 has been through → rows with all that the outputs need, in one or more
    PCollections.

    They are not flattened: where a runner stores what goes into a Flatten, as Beam's FnApiRunner
    does, no answer would be kept before the last one is there.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def expand(self, rows: pvalue.PCollection) -> tuple[pvalue.PCollection, ...]:
        plan = self._plan
        ways: tuple[pvalue.PCollection, ...] = (rows,)
        for number, ask in enumerate(plan.asks):
            together = (
                ways[0] if len(ways) == 1 else ways | f"All rows for {ask.label}" >> beam.Flatten()
            )
            asked = together | ask.label >> AskModel(ask)
            stage = EvaluateStage(plan.stages[number + 1], plan.keeps[number + 1], ask.error)
            ways = tuple(
                way
                | f"Reckon after {ask.label}: {place}"
                >> beam.ParDo(stage).with_output_types(InFlight)
                for place, way in enumerate(asked)
            )
        return ways


class AskModel(beam.PTransform):
    """One call for every row; a PCollection per model.

    A row that a condition left out goes by, as does one without any input, which is NULL with the
    reason. Where there is one model they go through the transform as records without fields, for
    which no prompt can be made and no call is; else by a way of their own.
    """

    def __init__(self, ask: Ask):
        super().__init__()
        self._ask = ask

    def expand(self, rows: pvalue.PCollection) -> tuple[pvalue.PCollection, ...]:
        ask = self._ask
        if len(ask.branches) == 1 and _asks_nothing_of_no_fields(ask.branches[0].settings):
            prepared = rows | "Prepare" >> beam.ParDo(PrepareCall(ask)).with_output_types(InFlight)
            return (self._predicted(prepared, ask.branches[0]),)
        tags = [f"model{number}" for number in range(len(ask.branches))]
        prepare = beam.ParDo(PrepareCall(ask, parts=True)).with_outputs(*tags, main="others")
        parted = rows | "Prepare" >> prepare
        ways = []
        for tag, branch in zip(tags, ask.branches, strict=True):
            # Beam gives tagged outputs no type of their own.
            parted[tag].element_type = InFlight
            ways.append(self._predicted(parted[tag], branch))
        parted["others"].element_type = InFlight
        take = beam.ParDo(TakeAnswer(ask, str)).with_output_types(InFlight)
        return (*ways, parted["others"] | "Take others" >> take)

    def _predicted(self, prepared: pvalue.PCollection, branch: Branch) -> pvalue.PCollection:
        take = beam.ParDo(TakeAnswer(self._ask, branch.settings.output))
        return (
            prepared
            | f"Predict by {branch.model}" >> LLMPredict(**arguments_of(branch.settings))
            | f"Take answers of {branch.model}" >> take.with_output_types(InFlight)
        )


def _asks_nothing_of_no_fields(settings: Settings) -> bool:
    """Whether no prompt can be made of a record without fields, so that it is not asked about."""
    try:
        return isinstance(RecordReader(settings).record(("", {})), Failure)
    except LLMError:  # a model that the record's fields have to choose
        return False


class PrepareCall(beam.DoFn):
    """`(place, row)` → what is asked about, with the row and why it isn't asked, if so, as its key.

    Args:
      parts: each model's rows under a tag, and those that aren't asked under none.
    """

    def __init__(self, ask: Ask, *, parts: bool = False):
        self._ask = ask
        self._parts = parts
        self._tags = {branch.model: f"model{number}" for number, branch in enumerate(ask.branches)}

    def process(self, element: tuple[str, dict[str, Any]]) -> Iterator[Any]:
        place, row = element
        failure = None if DROPPED in row else self._failure(row)
        # The row rides along as the record's key; as text, since every runner has a coder for it.
        key = json.dumps([place, row, failure])
        if failure is not None or DROPPED in row:
            yield key, {}
            return
        asked = key, inputs_of(self._ask, row)
        model = row.get(self._ask.model_column or "") or self._ask.branches[0].model
        yield pvalue.TaggedOutput(self._tags[model], asked) if self._parts else asked

    def _failure(self, row: dict[str, Any]) -> Failure | None:
        ask = self._ask
        if ask.model_column is not None:
            model = row.get(ask.model_column)
            if model not in self._tags:
                hint = nearest(str(model), self._tags, "models")
                return Failure(Kind.PROMPT, f"unknown model {model!r}: {hint}")
        if all(row.get(column) is None for _, column, _ in ask.inputs):
            return Failure(Kind.PROMPT, self._why_null(row))
        return None

    def _why_null(self, row: dict[str, Any]) -> str:
        """An input is NULL by itself, or for the call that it comes from has failed."""
        names = ", ".join(name for name, _, _ in self._ask.inputs)
        earlier = [meta[1] for meta in row.get(META, ()) if meta[1]]
        return f"{names} is NULL" + (f" ({earlier[0]})" if earlier else "")


def inputs_of(ask: Ask, row: dict[str, Any]) -> dict[str, Any]:
    """What is asked about, as the prompt's fields."""
    fields = {name: row.get(column) for name, column, _ in ask.inputs}
    if ask.record_id is not None:
        name, column = ask.record_id
        fields[name] = row.get(column)
    return fields


class TakeAnswer(beam.DoFn):
    """A Prediction, or what wasn't asked, → its row with the answer in its columns."""

    def __init__(self, ask: Ask, output: Any):
        self._ask = ask
        self._declared = output

    def setup(self) -> None:
        self._output = Output(self._declared)

    def process(self, element: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        key = element.element[0] if isinstance(element, Prediction) else element[0]
        place, row, failure = json.loads(key)
        if DROPPED in row:
            yield place, row
        elif failure is not None:
            yield place, ended(self._ask, row, None, Failure(*failure))
        else:
            yield place, answered(self._ask, row, element, self._output)


def answered(
    ask: Ask, row: dict[str, Any], prediction: Prediction, output: Output
) -> dict[str, Any]:
    """The row with an answer; one that is not of its column's type is an error."""
    failure, value = prediction.error, None
    if failure is None:
        try:
            value = output.dump(prediction.value)
            values = {
                column: value_of(kind, value if name is None else value[name])
                for name, column, kind in ask.outputs
            }
            return ended(ask, {**row, **values}, prediction, None)
        except (ValueError, KeyError, TypeError) as error:
            # The reply is paid for, so this is the row's error and not the pipeline's.
            failure = Failure(Kind.INVALID, f"the answer has no place in its column: {error}", 1)
    return ended(ask, row, prediction, failure)


def ended(
    ask: Ask, row: dict[str, Any], prediction: Prediction | None, failure: Failure | None
) -> dict[str, Any]:
    """The row with how its call ended: kind, message, tokens, cost, model."""
    known = {column: row.get(column) for _, column, _ in ask.outputs}
    meta: list[Any] = [None, None] if failure is None else [failure.kind, str(failure)]
    if prediction is not None:
        usage = prediction.usage
        meta += [
            usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cache_write_tokens,
            usage.reasoning_tokens, prediction.cost_usd, prediction.reused, prediction.model,
        ]  # fmt: skip
    else:
        # By position, since it rides in every row: `cli/sql/pipeline.py` reads it.
        meta += [0, 0, 0, 0, 0, 0.0, False, ""]
    if failure is not None:
        known = dict.fromkeys(known)
    return {**row, **known, ask.error: meta[1], META: [*row.get(META, ()), meta]}


class EvaluateStage(beam.DoFn):
    """What is reckoned after a call, row by row. What fails there is the row's own error: its
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
            row = self._evaluated(row)
        yield place, kept(row, self._keeps)

    def _evaluated(self, row: dict[str, Any]) -> dict[str, Any]:
        # Not in `setup`: most stages reckon nothing, and need no DuckDB.
        if self._evaluator is None:
            self._evaluator = Evaluator(self._compute)
        try:
            found = self._evaluator.row(row)
        except ExpressionError as error:
            failure = Failure(Kind.INVALID, f"an expression failed: {error}", 1)
            meta = [failure.kind, str(failure), 0, 0, 0, 0, 0, 0.0, False, ""]
            return {**row, self._error: str(failure), META: [*row.get(META, ()), meta]}
        return {META: row.get(META, []), DROPPED: True} if found is None else found


def kept(row: dict[str, Any], keeps: frozenset[str]) -> dict[str, Any]:
    """The row with what is needed from here on."""
    return {name: value for name, value in row.items() if name in keeps or name in (META, DROPPED)}


def cleaned(value: Any) -> Any:
    """A value without halves of characters, which no coder and no DuckDB takes."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {cleaned(name): cleaned(member) for name, member in value.items()}
    return list(map(cleaned, value)) if isinstance(value, list) else value
