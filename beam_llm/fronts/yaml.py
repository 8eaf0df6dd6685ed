"""`LLMPredict`, `LLMEmbed`, `LLMChat` and `LLMReduce` as steps of Beam YAML: rows in, rows with the
answer or the vector out, and errors as a separate output on request.

`python -m beam_llm.fronts.yaml` prints the path of the file of providers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import apache_beam as beam
from apache_beam import pvalue

from beam_llm.config import EACH, OPTIONS, TASKS, options_of, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.fronts.nested_rows import NestedRow, as_nested, nested_type
from beam_llm.transforms.beam_internals import new_row, row_fields, row_type
from beam_llm.transforms.chat import LLMChat as Sessions
from beam_llm.transforms.fields import fields_of
from beam_llm.transforms.predict import LLMPredict as Transform
from beam_llm.transforms.reduce import LLMReduce as Groups

PROVIDERS_FILE = str(Path(__file__).with_name("providers.yaml"))
ANSWER, VECTOR = "answer", "vector"
"""The output fields where a pipeline names none."""
GOOD = "good"
"""Name of the output of rows with an answer, beside that of failed rows, as in Beam's own steps."""


class Predict(beam.PTransform):
    """Rows → rows with `<output_field>` and `<output_field>_error`; with `error_tag`, two outputs.

    Args:
      settings: of the transform to apply.
      error_tag: name of the output of failed rows, which have `element`, `msg` and `stack`, like
        those of Beam YAML's own steps, and `kind`; None for one output.
    """

    def __init__(self, settings: Any, error_tag: str | None):
        super().__init__(f"{TASKS[settings.task]}({settings.model_name})")
        self.settings = settings
        self._error_tag = error_tag

    def expand(self, rows: pvalue.PCollection) -> Any:
        settings, tag = self.settings, self._error_tag
        options = {name: getattr(settings, name) for name in OPTIONS}
        transform = {"session": Sessions, "reduce": Groups}.get(settings.task, Transform)(**options)
        if tag is None:
            return self._nest_rows(rows | "Predict" >> transform)
        # Good rows have no error: its column would be empty in every one of them.
        good, bad = rows | "Predict" >> transform.with_exception_handling()
        return {GOOD: self._nest_rows(good, drop_error=True), tag: self._shape_errors(bad)}

    def _nest_rows(
        self, rows: pvalue.PCollection, *, drop_error: bool = False
    ) -> pvalue.PCollection:
        """The rows, where an answer that is an object is a row, whose fields the next step can
        name.
        """
        fields = row_fields(rows.element_type)
        field = self.settings.output_field
        nested = nested_type(self.settings.output)
        if fields is None:
            return rows
        left_out = {f"{field}_error"} if drop_error else set()
        columns = [
            (name, Optional[nested] if name == field and nested is not None else kind)
            for name, kind in fields
            if name not in left_out
        ]
        if nested is None and not left_out:
            return rows
        shape = _Shape(field, [name for name, _ in columns], nested)
        return rows | "Shape answers" >> beam.Map(shape).with_output_types(row_type(columns))

    def _shape_errors(self, rows: pvalue.PCollection) -> pvalue.PCollection:
        element = dict(row_fields(rows.element_type) or ()).get("element", Any)
        kinds = [("element", element), ("msg", str), ("stack", str), ("kind", str)]
        return rows | "Shape errors" >> beam.Map(_error_row).with_output_types(row_type(kinds))


class _Shape:
    """Makes a row of the given fields, and turns the answer's JSON text into a row."""

    def __init__(self, field: str, names: list[str], nested: Any):
        self._field = field
        self._names = names
        self._nested = nested

    def __call__(self, row: Any) -> beam.Row:
        values = {name: getattr(row, name) for name in self._names}
        text = values[self._field]
        if self._nested is not None and text is not None:
            values[self._field] = as_nested(self._nested, json.loads(text))
        return new_row(values)


def _error_row(row: Any) -> beam.Row:
    fields = fields_of(row.element)
    element = NestedRow(fields) if fields else row.element
    return new_row(
        # No stack: a reply has failed, not the pipeline's code.
        {"element": element, "msg": f"{row.kind}: {row.message}", "stack": "", "kind": row.kind}
    )


def LLMPredict(**config: Any) -> beam.PTransform:  # a transform's name in YAML
    """The step's constructor; its signature and documentation are made from the table of options.

    A YAML pipeline is a program (its steps may contain Python), so it may also name a parser.
    """
    return _build_step(config, ANSWER)


def LLMEmbed(**config: Any) -> beam.PTransform:  # likewise
    """The step's constructor; its signature and documentation are made of the table of options."""
    return _build_step(config, VECTOR, "embed", {"batch_size": "auto"})


def LLMChat(**config: Any) -> beam.PTransform:  # likewise
    """The step's constructor; its signature and documentation are made of the table of options."""
    return _build_step(config, ANSWER, "session")


def LLMReduce(**config: Any) -> beam.PTransform:  # likewise
    """The step's constructor; its signature and documentation are made of the table of options."""
    return _build_step(config, ANSWER, "reduce", {"batch_size": "auto"})


def _build_step(
    config: dict[str, Any],
    field: str,
    task: str | None = None,
    usual: Mapping[str, Any] | None = None,
) -> Predict:
    fixed = {} if task is None else {"task": task}
    error_handling = config.pop("error_handling", None) or {}
    given = {name: value for name, value in config.items() if value is not None}
    # In any of the spellings that a file may use.
    if not any(name in given for name in ("output_field", "output.field", "output-field")):
        given["output_field"] = field
    settings = settings_from_options(
        _to_option_values(given), allow_code=True, usual=usual, fixed=fixed
    )
    return Predict(settings, _error_tag(error_handling))


def _to_option_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """YAML's values as option values: a list of words is an enum."""
    return {
        name: _enum(name, value) if isinstance(value, list) and name in _OUTPUTS else value
        for name, value in config.items()
    }


_OUTPUTS = ("output", "partial_output", "partial.output", "partial-output")


def _enum(name: str, words: list[Any]) -> dict[str, Any]:
    if not all(isinstance(word, str) for word in words):
        raise UsageError(
            f"{name} is {words}: a list has words alone, and YAML takes yes, no, on, off and "
            "numbers for other values: put each word in quotes, such as ['yes', 'no']"
        )
    # Plain strings: Beam's loader gives instances of its own class, which know their line.
    return {"type": "string", "enum": [str(word) for word in words]}


def _error_tag(error_handling: Any) -> str | None:
    if not error_handling:
        return None
    if not isinstance(error_handling, Mapping) or set(error_handling) != {"output"}:
        raise UsageError(
            f"error_handling is {error_handling!r}: it has the name of an output; write "
            "error_handling: {output: failed}"
        )
    tag = str(error_handling["output"])
    if tag == GOOD:
        raise UsageError(
            f"error_handling is {error_handling!r}: {GOOD!r} is where the other rows go"
        )
    return tag


# What Beam makes its documentation and its check of a config from
# ─────────────────────────────────────────────────────────────────────────────────────────────────

_TYPES = {"int": int, "float": float, "bool": bool, "json": Mapping[str, Any], "output": Any}


def _options_of(task: str | None) -> dict[str, Any]:
    """The options that a step has: those of each task about single rows, or those of the step's own
    task.
    """
    if task is None:
        return options_of(*EACH)
    return {name: option for name, option in options_of(task).items() if name != "task"}


def _signature(task: str | None = None) -> inspect.Signature:
    from apache_beam.yaml.yaml_errors import ErrorHandlingConfig

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for name, option in _options_of(task).items():
        rule = option.metadata
        kind: Any = Any if rule.get("also") else _TYPES.get(str(rule["kind"]), str)
        needed = name == "model"
        hint = kind if needed or kind is Any else Optional[kind]
        default = inspect.Parameter.empty if needed else None
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=hint))
    parameters.append(
        inspect.Parameter(
            "error_handling", keyword, default=None, annotation=Optional[ErrorHandlingConfig]
        )
    )
    return inspect.Signature(parameters)


def _documentation(head: str, meanings: Mapping[str, str], task: str | None = None) -> str:
    lines = []
    for name, option in _options_of(task).items():
        meaning = meanings.get(name) or str(option.metadata["meaning"])
        default = option.default
        shown = isinstance(default, (int, float, str)) and default != "" and name not in meanings
        lines.append(f"  {name}: {meaning}" + (f" (default {default})" if shown else ""))
    lines.append("  error_handling: where rows that got no answer go; without it they have")
    lines.append("    <output_field>_error beside an empty <output_field>")
    return "\n".join([head, "", "Args:", *lines])


_PREDICTS = """Asks a language model about every row; each comes out with its answer, or the reason.

The prompt is a Jinja2 template over the row's fields. Beam runs a pipeline's file through Jinja2
first, so the prompt stands between {% raw %} and {% endraw %}. The answer is a field of the row, of
the type that `output` says: an object is a row, whose fields the next step can name, where each has
one type (or null) and a name that is Python's, and else JSON text."""
_EMBEDS = """Asks an embedding model about every row; each comes out with a vector, or the reason.

The prompt is a Jinja2 template over the row's fields that gives the text. Beam runs a pipeline's
file through Jinja2 first, so it stands between {% raw %} and {% endraw %}. The vector is a field of
the row: a list of numbers."""
_CHATS = """Answers rows as messages of sessions, each after what was said in its session before;
each row comes out with its reply, or the reason.

`session` names the field with the session. The prompt is a Jinja2 template over the row's fields
that gives the message. Beam runs a pipeline's file through Jinja2 first, so it stands between
{% raw %} and {% endraw %}."""

_REDUCES = """Asks a language model one question about all rows of a group; each group comes out
with one answer, or the reason.

`group_by` names the fields that make the groups, and `instruction` says what the answer is. The
prompt is a Jinja2 template over a row's fields that gives its text. Beam runs a pipeline's file
through Jinja2 first, so it stands between {% raw %} and {% endraw %}. What comes out has the fields
of `group_by`, `records`, `left_out` and the answer."""

_ANSWER_TYPES = (
    "the {}: string, integer, number, boolean, enum:a|b|c, a list of words, or a JSON schema "
    "(default string)"
)


LLMPredict.__doc__ = _documentation(
    _PREDICTS,
    {
        "output": _ANSWER_TYPES.format("answer"),
        "output_field": f"the answer's field; its error is in <field>_error (default {ANSWER})",
    },
)
LLMPredict.__signature__ = _signature()  # type: ignore[attr-defined]
LLMEmbed.__doc__ = _documentation(
    _EMBEDS,
    {
        "batch_size": "most texts in one request (default auto: as many as the provider takes)",
        "output_field": f"the vector's field; its error is in <field>_error (default {VECTOR})",
    },
    "embed",
)
LLMEmbed.__signature__ = _signature("embed")  # type: ignore[attr-defined]
LLMChat.__doc__ = _documentation(
    _CHATS,
    {
        "output": _ANSWER_TYPES.format("reply"),
        "output_field": f"the reply's field; its error is in <field>_error (default {ANSWER})",
    },
    "session",
)
LLMChat.__signature__ = _signature("session")  # type: ignore[attr-defined]
LLMReduce.__doc__ = _documentation(
    _REDUCES,
    {
        "output": _ANSWER_TYPES.format("answer"),
        "output_field": f"the answer's field; its error is in <field>_error (default {ANSWER})",
        "batch_size": "most records in one prompt (default auto: as many as fit)",
    },
    "reduce",
)
LLMReduce.__signature__ = _signature("reduce")  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(PROVIDERS_FILE)
