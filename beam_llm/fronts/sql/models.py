"""Models of a SQL file, and the settings of each use of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from beam_llm.config import Settings, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.fronts.sql.functions import AGGREGATE_CALLS
from beam_llm.fronts.sql.options import ResolvedOptions, resolve_options
from beam_llm.fronts.sql.places import SourceText, SqlError
from beam_llm.fronts.sql.syntax import (
    Call,
    ColumnDefinition,
    CreateModel,
    Option,
    literal_text,
)
from beam_llm.fronts.sql.tables import Permissions
from beam_llm.fronts.sql.types import DOUBLE, STRING, SqlType, object_schema

Columns = tuple[tuple[str, SqlType], ...]
VECTOR = SqlType("ARRAY", fields=(("0", DOUBLE),))
OWN_OUTPUT = ("AI_CLASSIFY", "AI_EMBED", "AI_SUMMARIZE_AGG")
"""Functions that have output columns of their own, whatever OUTPUT the model has."""

SUMMARIZE = "Summarize these texts."
"""The instruction of AI_SUMMARIZE_AGG, which takes none as an argument."""


@dataclass(frozen=True)
class Model:
    """A model that a file has created.

    Attributes:
      inputs: the columns of INPUT; None where it has none and takes any.
      outputs: the columns of OUTPUT without metadata columns; `value STRING` where it has none.
      metadata: the metadata columns of OUTPUT, with their keys.
      declared: OUTPUT as written; None where it has none.
      options: the options as written, for SHOW CREATE MODEL.
      resolved_options: the same options under this package's keys.
    """

    name: str
    temporary: bool
    inputs: Columns | None
    outputs: Columns
    metadata: tuple[tuple[str, SqlType, str], ...]
    declared: tuple[ColumnDefinition, ...] | None
    comment: str | None
    options: tuple[Option, ...]
    resolved_options: ResolvedOptions
    start: int

    def with_options(self, source: SourceText, options: tuple[Option, ...]) -> Model:
        """The model with other options."""
        # Read again, so that ALTER refuses a wrong option as CREATE does.
        return replace(
            self, options=options, resolved_options=resolve_options(source, options, "a model")
        )


def model_of(source: SourceText, created: CreateModel) -> Model:
    """The model that a CREATE MODEL makes.

    Raises:
      SqlError: an option that is unknown or not allowed.
    """
    for column in created.outputs or ():
        _check_reserved(source, created, column)
    plain = tuple(column for column in created.outputs or () if column.metadata is None)
    if created.outputs is not None and not plain:
        source.fail(
            created.outputs[0].start, "OUTPUT has metadata only", "add a column for the answer"
        )
    metadata = tuple(
        (column.name, column.type, column.metadata)
        for column in created.outputs or ()
        if column.metadata is not None
    )
    inputs = created.inputs
    return Model(
        created.name,
        created.temporary,
        None if inputs is None else tuple((column.name, column.type) for column in inputs),
        tuple((column.name, column.type) for column in plain) or (("value", STRING),),
        metadata,
        created.outputs,
        created.comment,
        created.options,
        resolve_options(source, created.options, "a model"),
        created.start,
    )


def _check_reserved(source: SourceText, created: CreateModel, column: ColumnDefinition) -> None:
    plain = [one for one in created.outputs or () if one.metadata is None]
    if column.metadata is None and column.name == "value" and len(plain) > 1:
        source.fail(
            column.start,
            "'value' is the whole answer of a model with several OUTPUT columns",
            "give this column another name",
        )
    if column.metadata is None and column.name == "error":
        source.fail(
            column.start,
            "'error' is the reason of a row without an answer",
            "give this column another name, or write METADATA FROM 'error-string' after its type",
        )


def output_of(model: Model, call: Call | None) -> tuple[Columns, Any]:
    """The columns of an answer, and the `output` that the model is asked for."""
    if call is not None and call.function == "AI_CLASSIFY":
        labels = {"type": "string", "enum": list(call.labels)}
        schema = object_schema((("category", STRING), ("confidence", DOUBLE)))
        schema["properties"]["category"] = labels
        schema["properties"]["confidence"] = {"type": "number", "minimum": 0, "maximum": 1}
        return (("category", STRING), ("confidence", DOUBLE)), schema
    if call is not None and call.function == "AI_EMBED":
        return (("embedding", VECTOR),), None
    if call is not None and call.function == "AI_SUMMARIZE_AGG":
        return (("summary", STRING),), str
    if len(model.outputs) == 1:
        return model.outputs, model.outputs[0][1].answer
    return model.outputs, object_schema(model.outputs)


def settings_of(
    source: SourceText,
    model: Model,
    defaults: Mapping[str, str],
    permissions: Permissions,
    call: Call | None = None,
    inputs: tuple[str, ...] = ("input",),
) -> tuple[Settings, tuple[str, ...]]:
    """The checked settings of a use of the model, and notices about them.

    Args:
      defaults: the options given by SET, under this package's keys.
      call: the use; None for the model alone.
      inputs: the names of the call's inputs.

    Raises:
      SqlError: a wrong option, at its place.
    """
    config = resolve_options(source, call.config if call else (), "a call")
    # The call's options override the model's, and those override SET's.
    given = {**defaults, **model.resolved_options.values}
    places = {**model.resolved_options.places, **config.places}
    together = {**given, **config.values}
    _check_references(source, together, places, permissions)
    prompt = _prompt(together.get("prompt"), inputs, call)
    values: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    usual: dict[str, Any] = {}
    # Without a call, a model embeds if it has an option that only embedding models have.
    if call.function == "AI_EMBED" if call else "dimensions" in together:
        values["task"], usual = "embed", {"batch_size": "auto"}
    else:
        if call is not None and call.function in AGGREGATE_CALLS:
            values |= {"task": "reduce", "instruction": call.instruction or SUMMARIZE}
            usual = {"batch_size": "auto"}
        values |= _output(source, model, call, places.get("output"))
    try:
        settings = settings_from_options(
            given, config.values, allow_code=permissions.code, usual=usual, **values
        )
    except UsageError as error:
        # Errors of settings name options in Python's spelling, and no line.
        place = _start_of(str(error), places, call or model)
        raise source.with_place(place, error) from None
    return settings, (*model.resolved_options.notices, *config.notices)


def _output(
    source: SourceText, model: Model, call: Call | None, given: Option | None
) -> dict[str, Any]:
    """The setting `output`, unless the option `output` gives it."""
    if given is None or (call and call.function in OWN_OUTPUT):
        return {"output": output_of(model, call)[1]}
    if len(model.outputs) > 1:
        source.fail(
            given.start, "the model's OUTPUT says what the answer is, not 'output'", "take it out"
        )
    return {}


def _start_of(message: str, places: Mapping[str, Option], use: Model | Call) -> int:
    """The place of the option that an error begins with; else that of the use."""
    name = re.match(r"\w+", message)
    for key, option in places.items():
        if name and key.replace(".", "_") == name[0]:
            return option.value_start
    return use.start


def _check_references(
    source: SourceText,
    given: Mapping[str, str],
    places: Mapping[str, Option],
    permissions: Permissions,
) -> None:
    """Refuses references where they are not resolved: only API keys are references, and only on the
    worker.
    """
    for key in ("base.url", "staging.location", "provider", "model"):
        if "${" in given.get(key, ""):
            source.fail(
                places[key].value_start if key in places else 0,
                f"{key!r} holds a reference, which only 'api.key' can",
                "write the value itself",
            )
    # The file also names the server, so its author could have any file of this machine sent there.
    if given.get("api.key", "").startswith("file:") and not permissions.key_files:
        at = places["api.key"].value_start if "api.key" in places else 0
        raise SqlError(
            f"{source.place(at)}: 'api.key' names a file, which a SQL file can't by itself: "
            "write '${NAME}' or 'env:NAME', or allow it on the command line: --allow-key-files"
        )


# Names that Jinja reads as a variable: not its keywords, nor `element`, which is the record here.
_SAFE_NAME = re.compile(
    r"(?!(?:in|not|and|or|is|if|else|true|false|none|self|element)\Z)[A-Za-z]\w*"
)


def _variable(name: str) -> str:
    """The template's expression for an input."""
    if _SAFE_NAME.fullmatch(name) and name not in ("True", "False", "None"):
        return "{{ " + name + " }}"
    return "{{ element[" + _quote(name) + "] }}"


def _all_inputs(inputs: tuple[str, ...]) -> str:
    """The template of all inputs as one JSON object."""
    pairs = (f"{_quote(name)}: {_variable(name)[3:-3]}" for name in inputs)
    return "{{ {" + ", ".join(pairs) + "} }}"


def _quote(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _prompt(given: str | None, inputs: tuple[str, ...], call: Call | None) -> str | None:
    """The prompt that replaces the given one: without one, the input itself, or several inputs as
    one JSON object; None where the given one stays.
    """
    own = (
        given
        if given is not None
        else _variable(inputs[0])
        if len(inputs) == 1
        else _all_inputs(inputs)
    )
    if call is not None and call.function == "AI_CLASSIFY" and given is None:
        labels = ", ".join(call.labels)
        instruction = f"Classify this into one of: {labels}. Confidence is from 0 to 1."
        return f"{_literal_template(instruction)}\n\n{own}"
    if call is not None and call.function == "AI_COMPLETE" and call.prompt is not None:
        prompt = literal_text(call.prompt.tree)
        if prompt is None:
            return f"{_variable('prompt')}\n\n{_variable(inputs[0])}"
        return f"{_literal_template(prompt)}\n\n{_variable(inputs[0])}"
    return None if given is not None else own


def is_literal_prompt(call: Call) -> bool:
    """Whether AI_COMPLETE's prompt is the same for every row."""
    return call.prompt is not None and literal_text(call.prompt.tree) is not None


def _literal_template(text: str) -> str:
    """A template that renders exactly the text."""
    # Nothing in it is Jinja's, nor is there a `{` at its end, where the input's own `{{` follows.
    if not re.search(r"\{[{%#]", text) and not text.endswith("{"):
        return text
    return "".join(
        '{{ "' + part + '" }}' if part == "{" else part for part in re.split(r"(\{)", text)
    )
