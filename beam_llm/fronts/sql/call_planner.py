"""Plans the calls of models in a query: which models, with which inputs and settings, and the
columns of their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlglot import exp

from beam_llm.config import Settings
from beam_llm.errors import LLMError, UsageError
from beam_llm.fronts.sql.catalog import Catalog
from beam_llm.fronts.sql.expressions import Scope, Value, cast, column_in_flight
from beam_llm.fronts.sql.layers import Layers
from beam_llm.fronts.sql.models import (
    OWN_OUTPUT,
    Columns,
    Model,
    is_literal_prompt,
    output_of,
    settings_of,
)
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.plan import Ask, Branch
from beam_llm.fronts.sql.syntax import Call, Expression
from beam_llm.fronts.sql.types import NULL, STRING, SqlType
from beam_llm.prompting.templates import prompt_template

MOST_CALLS = 20
"""The most calls of models in one query, including those of its views."""

Argument = tuple[str, Value, int]
"""An argument's name, value and place."""


@dataclass
class Answer:
    """The result of one call: its columns by name, the complete answer, the error, and the metadata
    columns by name.
    """

    columns: list[tuple[str, Value]]
    value: Value
    error: Value
    metadata: list[tuple[str, Value]]


@dataclass(frozen=True)
class PreparedCall:
    """One call with its settings, and with everything that it takes from the rows it is about.

    Attributes:
      model: the model whose OUTPUT the answer has.
      branches: the models that may be asked, with their settings.
      model_name: the value that names the model; None where there is only one model.
      inputs: the values that the model is asked about, by their names in the prompt.
      record_id: see `Ask`.
    """

    call: Call
    model: Model
    branches: tuple[Branch, ...]
    model_name: Value | None
    inputs: tuple[tuple[str, Value], ...]
    record_id: tuple[str, str] | None


class CallPlanner:
    """Plans the calls of one query; the same call in two places is made once.

    Args:
      value: gives the value of an expression in a scope.
    """

    def __init__(
        self, catalog: Catalog, layers: Layers, value: Callable[[Expression, Scope], Value]
    ):
        self._catalog = catalog
        self._source = catalog.source
        self._layers = layers
        self._value = value
        # By call: its number, the rows for which it is needed, and its answer.
        self._answers: dict[Any, tuple[int, Value | None, Answer]] = {}

    def ask(
        self, call: Call, scope: Scope, arguments: list[Argument], when: Value | None
    ) -> Answer:
        """The answer of a call with these arguments.

        Args:
          when: the rows for which the call is needed; None for all.
        """
        return self.answer(self.prepare(call, scope, arguments), when)

    def prepare(self, call: Call, scope: Scope, arguments: list[Argument]) -> PreparedCall:
        """The call with its settings and arguments."""
        models, model_name = self._models(call, scope)
        first = models[0]
        prompted = list(arguments)
        if call.prompt is not None and not is_literal_prompt(call):
            prompted.append(("prompt", self._value(call.prompt, scope), call.prompt.start))
        inputs = self._inputs(call, first, prompted)
        branches = []
        for model in models:
            if _shape(model) != _shape(first):
                self._refuse_different_types(call, first, model)
            settings = self._settings(model, call, tuple(name for name, _, _ in inputs))
            branches.append(Branch(model.name, settings))
        given = tuple((name, value) for name, value, _ in inputs)
        record_id = self._record_id(call, branches, [name for name, _ in given], scope)
        return PreparedCall(call, first, tuple(branches), model_name, given, record_id)

    def with_inputs_in_flight(self, prepared: PreparedCall) -> PreparedCall:
        """A group's call, with its arguments as columns in flight of the rows before they become
        groups.
        """
        inputs = (
            (name, self._layers.in_flight(value), value.type) for name, value in prepared.inputs
        )
        columns = tuple((name, column_in_flight(column, kind)) for name, column, kind in inputs)
        return replace(prepared, inputs=columns)

    def answer(self, prepared: PreparedCall, when: Value | None = None) -> Answer:
        """The answer of the call, which is NULL where the call is not needed."""
        # The same call in SELECT and in WHERE is made, and paid for, once.
        function, branches = prepared.call.function, repr(prepared.branches)
        key = (prepared.inputs, branches, prepared.model_name, function)
        if key not in self._answers:
            place = len(self._layers.asks)
            answer = self._new_ask(prepared, when)
            self._answers[key] = place, when, answer
            return answer
        place, other, answer = self._answers[key]
        if other != when:  # the call occurs in another branch, too
            either = self._rows_of_either(other, when, place)
            self._answers[key] = place, either, answer
            ask = replace(self._layers.asks[place], **self._row_columns(prepared, either, place))
            self._layers.asks[place] = ask
        return answer

    def _row_columns(
        self, prepared: PreparedCall, when: Value | None, place: int
    ) -> dict[str, Any]:
        """The columns in flight that an `Ask` takes from the rows. No argument is computed for a
        row that takes another branch: it may fail there (`IF(n > 0, …10 / n…, '')`).
        """

        def column(value: Value) -> str:
            if when is not None and value.column is None:
                sql = f"CASE WHEN {when.sql} THEN {value.sql} END"
                value = value._replace(sql=sql, uses=when.uses | value.uses)
            return self._layers.in_flight(value, place)

        return {
            "model_column": None if prepared.model_name is None else column(prepared.model_name),
            "inputs": tuple((name, column(one), one.type) for name, one in prepared.inputs),
            "when": None if when is None else self._layers.in_flight(when, place),
        }

    def _rows_of_either(
        self, first: Value | None, second: Value | None, place: int
    ) -> Value | None:
        """The condition of the rows of two places; None, for all rows, where it can't be computed
        before the call.
        """
        if first is None or second is None:
            return None
        # The call's own answer, which is NULL until the call is made, doesn't matter here: where
        # the second place depends on it, the first place has made the call (`CASE WHEN … THEN …
        # WHEN call = 'x' THEN 1 WHEN call = 'y' THEN 2 END`).
        own = {column for _, column, _ in self._layers.asks[place].outputs}
        if self._layers.level(second._replace(uses=second.uses - own)) > place:
            return None
        sql = f"CASE WHEN {first.sql} THEN TRUE ELSE {second.sql} END"
        return second._replace(sql=sql, uses=first.uses | second.uses)

    def _refuse_different_types(self, call: Call, first: Model, other: Model) -> None:
        self._source.fail(
            call.model_start,
            f"the models {first.name!r} and {other.name!r} have different INPUT or OUTPUT",
            "give them the same types, or write IF or CASE over the names of those that are meant",
            call.end,
        )

    def _models(self, call: Call, scope: Scope) -> tuple[list[Model], Value | None]:
        """The models that a call may ask, and the value that names one of them for each row."""
        if not isinstance(call.model, Expression):
            return [self._catalog.model_of(call)], None
        tree = call.model.tree
        name = str(tree.name) if isinstance(tree, exp.Column) else ""
        if name in self._catalog.models and scope.find([name])[0] is None:
            self._source.fail(
                call.model_start,
                f"{name!r} is a model, not a column",
                f"write '{name}', or MODEL {name}",
                call.model.end,
            )
        value = self._value(call.model, scope)
        if value.type.kind != "STRING":
            self._source.fail(
                call.model_start, f"a model's name is STRING, and this is {value.type}",
                "write 'm', or an expression that gives the name",
            )  # fmt: skip
        literals = _possible_texts(call.model.tree)
        # Where the expression doesn't show the names, any model may be asked, and all of them have
        # to fit.
        names = sorted(self._catalog.models) if literals is None else literals
        if not names:
            self._source.fail(call.model_start, "there is no model yet", "write CREATE MODEL")
        return [self._catalog.model(name, call.model_start) for name in names], value

    def _inputs(
        self, call: Call, model: Model, arguments: list[tuple[str, Value, int]]
    ) -> list[tuple[str, Value, int]]:
        """The values that the model is asked about, by their names in the prompt."""
        declared = model.inputs
        # AI_COMPLETE's prompt, where it is a column, follows the inputs and is not one of them.
        extra = arguments[len(call.arguments or call.descriptor) :]
        own = arguments[: len(arguments) - len(extra)]
        if declared is not None and call.function == "ML_PREDICT" and len(declared) != len(own):
            self._source.fail(
                call.start,
                f"the model {model.name!r} has {len(declared)} INPUT columns, and is given "
                f"{len(own)}",
                f"give {', '.join(name for name, _ in declared)}",
                call.end,
            )
        named: list[tuple[str, Value, int]] = []
        for number, (name, value, start) in enumerate(own):
            if declared is not None and number < len(declared):
                name, kind = declared[number]
                if not kind.takes(value.type):
                    self._source.fail(
                        start,
                        f"INPUT {name} of {model.name!r} is {kind}, and this is {value.type}",
                        f"write CAST(… AS {kind})",
                    )
                value = cast(value, kind)
            usual = "input" if len(own) == 1 else f"input{number + 1}"
            free = name or usual
            # One column may be given twice, and the prompt has to distinguish them.
            while any(free == other for other, _, _ in named):
                free += "_"
            # A bare NULL has no type, which a column in flight needs.
            named.append((free, value if value.type.kind != "NULL" else cast(value, STRING), start))
        return [*named, *extra]

    def _settings(self, model: Model, call: Call, inputs: tuple[str, ...]) -> Settings:
        catalog = self._catalog
        settings, notices = settings_of(
            self._source, model, catalog.defaults, catalog.permissions, call, inputs
        )
        catalog.notices += [notice for notice in notices if notice not in catalog.notices]
        # Most calls of a file have the same settings, and checking them takes long.
        use = (repr(settings), inputs)
        if use not in catalog.checked:
            self._check(settings, call)
            self._check_prompt(settings, model, call, inputs)
            catalog.checked.add(use)
        return settings

    def _check(self, settings: Settings, call: Call) -> None:
        from beam_llm.transforms.options import arguments_of
        from beam_llm.transforms.predict import LLMPredict
        from beam_llm.transforms.reduce import LLMReduce

        try:
            # Made only for its checks, so that an error names the call's place, before anything
            # runs.
            transform = LLMReduce if settings.task == "reduce" else LLMPredict
            transform(**arguments_of(settings))
        except UsageError as error:
            raise self._source.with_place(call.start, error) from None
        except LLMError as error:
            raise type(error)(f"{self._source.place(call.start)}: {error}") from None

    def _check_prompt(
        self, settings: Settings, model: Model, call: Call, inputs: tuple[str, ...]
    ) -> None:
        """Refuses a prompt with a field that no row has: every row would be an error, after files
        have been written.
        """
        required = prompt_template(str(settings.prompt)).required if settings.prompt else ()
        for name in required:
            if name not in inputs:
                self._source.fail(
                    call.start,
                    f"the prompt of {model.name!r} names the field {name!r}, which it isn't given",
                    nearest(name, inputs, "it is given"),
                    call.end,
                )

    def _new_ask(self, prepared: PreparedCall, when: Value | None) -> Answer:
        call, model = prepared.call, prepared.model
        if len(self._layers.asks) >= MOST_CALLS:
            self._source.fail(
                call.start, f"there are more than {MOST_CALLS} calls here", "write several INSERTs"
            )
        given = self._row_columns(prepared, when, len(self._layers.asks))
        number = self._layers.open_stage()
        named, value = self._new_columns(output_of(model, call)[0], number)
        error = self._layers.new_column(f"a{number}!", number, STRING)
        names = " or ".join(branch.model for branch in prepared.branches)
        ask = Ask(
            f"Ask {names} ({number})",
            prepared.branches,
            record_id=prepared.record_id,
            outputs=_fields_of(named, value),
            error=str(error.column),
            **given,
        )
        self._layers.asks.append(ask)
        return Answer(named, value, error, self._metadata(call, model, error))

    def _new_columns(self, columns: Columns, number: int) -> tuple[list[tuple[str, Value]], Value]:
        """The columns in flight of an answer's fields, and that of the complete answer: a single
        column is both.
        """
        new_column = self._layers.new_column
        named = [(name, new_column(f"a{number}.{name}", number, kind)) for name, kind in columns]
        if len(named) == 1:
            return named, named[0][1]
        return named, new_column(f"a{number}", number, SqlType("ROW", fields=columns))

    def _metadata(self, call: Call, model: Model, error: Value) -> list[tuple[str, Value]]:
        """OUTPUT's metadata columns: the error, and NULL, with a notice, for everything else."""
        metadata = []
        for name, kind, key in model.metadata if call.function not in OWN_OUTPUT else ():
            value = error if key == "error-string" else Value("NULL", frozenset(), NULL)
            metadata.append((name, cast(value, kind)))
            if key != "error-string":
                self._catalog.notices.append(
                    f"{self._source.place(model.start)}: the metadata {key!r} is not known here: "
                    f"{name} is NULL"
                )
        return metadata

    def _record_id(
        self,
        call: Call,
        branches: list[Branch],
        inputs: list[str],
        scope: Scope,
    ) -> tuple[str, str] | None:
        """The name and column of 'record.id', where it is not one of the inputs."""
        name = branches[0].settings.record_id
        if name is None or name in inputs:
            return None
        column, several, _ = scope.find([name])
        if several:
            self._source.fail(
                call.start,
                f"'record.id' is {name!r}, and there are several columns of that name here",
                "rename one of them with AS",
            )
        return None if column is None else (name, self._layers.in_flight(column.value))


def _fields_of(
    named: list[tuple[str, Value]], answer: Value
) -> tuple[tuple[str | None, str, SqlType], ...]:
    """The column of each field of an answer, and that of the complete answer: see `Ask.outputs`."""
    fields = named if len(named) > 1 else []
    return (
        *((name, str(value.column), value.type) for name, value in fields),
        (None, str(answer.column), answer.type),
    )


def _shape(model: Model) -> tuple[Any, ...]:
    """The types of a model's INPUT and OUTPUT."""
    inputs = None if model.inputs is None else [kind for _, kind in model.inputs]
    return inputs, [kind for _, kind in model.outputs]


def _possible_texts(tree: Any) -> list[str] | None:
    """The texts that an expression may give, such as those in the branches of IF, CASE and
    COALESCE; None where they are not known.
    """
    if isinstance(tree, exp.Literal) and tree.is_string:
        return [str(tree.this)]
    if isinstance(tree, exp.Null):
        return []
    branches: list[Any]
    if isinstance(tree, exp.Paren):
        branches = [tree.this]
    elif isinstance(tree, exp.Case):
        branches = [one.args["true"] for one in tree.args["ifs"]]
        branches += [tree.args["default"]] if tree.args.get("default") is not None else []
    elif isinstance(tree, exp.If):
        branches = [tree.args["true"], tree.args.get("false")]
    elif isinstance(tree, exp.Anonymous) and str(tree.this).upper() == "IF":
        branches = tree.expressions[1:]
    elif isinstance(tree, exp.Anonymous) and str(tree.this).upper() in ("COALESCE", "IFNULL"):
        branches = tree.expressions
    else:
        return None
    found: dict[str, None] = {}
    for branch in branches:
        names = _possible_texts(branch) if branch is not None else []
        if names is None:
            return None
        found.update(dict.fromkeys(names))
    return list(found)
