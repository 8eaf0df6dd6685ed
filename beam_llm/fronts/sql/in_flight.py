"""Rows in flight: their columns, the inputs of a call, and how the call ended.

An element is `(place, row)`: the place where the record was read, as text, and its columns in
flight. Under `META` a row keeps how each of its calls ended.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.typehints import Dict, Tuple

from beam_llm.errors import Failure, Kind
from beam_llm.fronts.sql.plan import Ask
from beam_llm.fronts.sql.types import value_of
from beam_llm.prompting.output_types import Output
from beam_llm.values import Prediction, Usage

META = "$"
DROPPED = "$dropped"
"""A row with this key was left out by a condition on an answer."""

InFlight = Tuple[str, Dict[str, Any]]


def is_needed(ask: Ask, row: dict[str, Any]) -> bool:
    """Whether the row takes the branch that the call is in."""
    return ask.when is None or row.get(ask.when) is True


def has_input(ask: Ask, row: dict[str, Any]) -> bool:
    """Whether there is something to ask about. No model is asked about a row whose inputs are all
    NULL, or whose answer isn't needed.
    """
    return is_needed(ask, row) and any(row.get(column) is not None for _, column, _ in ask.inputs)


def inputs_of(ask: Ask, row: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a call, as the prompt's fields."""
    fields = {name: row.get(column) for name, column, _ in ask.inputs}
    if ask.record_id is not None:
        name, column = ask.record_id
        fields[name] = row.get(column)
    return fields


class AnswerDoFn(beam.DoFn):
    """Base of the DoFns that receive the answers of a call.

    Args:
      output: the type that the call's model was asked for.
    """

    def __init__(self, ask: Ask, output: Any):
        self._ask = ask
        self._declared = output

    def setup(self) -> None:
        self._output = Output(self._declared)


def with_answer(
    ask: Ask, row: dict[str, Any], prediction: Prediction, output: Output
) -> dict[str, Any]:
    """The row with an answer. An answer that is not of its column's type becomes an error."""
    failure, value = prediction.error, None
    if failure is None:
        try:
            value = output.dump(prediction.value)
            values = {
                column: value_of(kind, value if name is None else value[name])
                for name, column, kind in ask.outputs
            }
            return with_outcome(ask, {**row, **values}, prediction, None)
        except (ValueError, KeyError, TypeError) as error:
            # The reply is paid for, so this is the row's error and not the pipeline's.
            failure = Failure(Kind.INVALID, f"the answer doesn't fit its column: {error}", 1)
    return with_outcome(ask, row, prediction, failure)


def with_outcome(
    ask: Ask, row: dict[str, Any], prediction: Prediction | None, failure: Failure | None
) -> dict[str, Any]:
    """The row with a note of how its call ended: kind, message, tokens, cost, model."""
    known = {column: row.get(column) for _, column, _ in ask.outputs}
    if failure is not None:
        known = dict.fromkeys(known)
    meta = meta_of(failure, prediction)
    return {**row, **known, ask.error: meta[1], META: [*row.get(META, ()), meta]}


def meta_of(failure: Failure | None, prediction: Prediction | None = None) -> list[Any]:
    """How a call ended, by position to keep it small: every row carries it, and
    `cli/sql/pipeline.py` reads it.
    """
    meta: list[Any] = [None, None] if failure is None else [failure.kind, str(failure)]
    if prediction is None:
        return [*meta, *Usage(), 0.0, False, ""]
    return [
        *meta, *prediction.usage, prediction.cost_usd, prediction.reused, prediction.model
    ]  # fmt: skip


def keep_columns(row: dict[str, Any], keeps: frozenset[str]) -> dict[str, Any]:
    """The row with only the columns that are needed from here on."""
    return {name: value for name, value in row.items() if name in keeps or name in (META, DROPPED)}
