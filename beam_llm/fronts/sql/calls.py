"""ML_PREDICT and the AI_* functions in all their forms, positional and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from beam_llm.fronts.sql.functions import AGGREGATE_CALLS
from beam_llm.fronts.sql.grammar import parse_expression
from beam_llm.fronts.sql.options import is_map, parse_map
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.syntax import Call, Expression, Option, Query, literal_text
from beam_llm.fronts.sql.tokens import Cursor, Token

QueryParser = Callable[[Cursor], Query]

_NAMES: dict[str, tuple[str, ...]] = {
    "ML_PREDICT": ("INPUT", "MODEL", "ARGS", "CONFIG"),
    "AI_COMPLETE": ("MODEL", "INPUT", "PROMPT", "CONFIG"),
    "AI_CLASSIFY": ("MODEL", "INPUT", "LABELS", "CONFIG"),
    "AI_EMBED": ("MODEL", "INPUT", "CONFIG"),
    "AI_AGG": ("MODEL", "INPUT", "INSTRUCTION", "CONFIG"),
    "AI_SUMMARIZE_AGG": ("MODEL", "INPUT", "CONFIG"),
}
_FORMS = {
    "ML_PREDICT": "write ML_PREDICT('m', column), or in FROM "
    "ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(column))",
    "AI_COMPLETE": "write AI_COMPLETE('m', column, 'instruction')",
    "AI_CLASSIFY": "write AI_CLASSIFY(MODEL => MODEL m, INPUT => column, LABELS => ARRAY['a', "
    "'b'])",
    "AI_EMBED": "write AI_EMBED('m', column)",
    "AI_AGG": "write AI_AGG('m', column, 'instruction')",
    "AI_SUMMARIZE_AGG": "write AI_SUMMARIZE_AGG('m', column)",
}


@dataclass
class _Parts:
    """A call's arguments so far, while it is parsed."""

    function: str
    start: int
    model: str | Expression | None = None
    model_start: int = 0
    arguments: list[Expression] = field(default_factory=list)
    table: str | None = None
    table_start: int = 0
    query: Query | None = None
    descriptor: list[tuple[str, int]] = field(default_factory=list)
    config: list[Option] = field(default_factory=list)
    prompt: Expression | None = None
    labels: list[str] = field(default_factory=list)
    instruction: str | None = None
    has_config: bool = False


def parse_call(cursor: Cursor, query: QueryParser | None) -> Call:
    """Parses the call at the cursor.

    Args:
      query: parses a query in the table form's TABLE(…); None where that form is not allowed.

    Raises:
      SqlError: it has too few, too many or unknown arguments.
    """
    name = cursor.take()
    parts = _Parts(name.word, name.start)
    cursor.need_op("(", f"after {name.word}")
    if name.word in AGGREGATE_CALLS and cursor.now.word == "DISTINCT":
        cursor.fail(
            f"DISTINCT in {name.word} is not run here",
            "take it out: each text weighs as often as it is there",
        )
    if not cursor.is_op(")"):
        cursor.parse_list(lambda: _argument(cursor, parts, query))
    end = cursor.need_op(")", f"at the end of {name.word}").end
    return _build_call(cursor, parts, end)


def _argument(cursor: Cursor, parts: _Parts, query: QueryParser | None) -> None:
    if cursor.ahead().value == "=>" and cursor.now.kind == "name":
        name = cursor.take()
        cursor.take()
        _named_argument(cursor, parts, name, query)
    else:
        _positional_argument(cursor, parts, query)


def _named_argument(cursor: Cursor, parts: _Parts, name: Token, query: QueryParser | None) -> None:
    known = _NAMES[parts.function]
    if name.word not in known:
        cursor.source.fail(
            name.start,
            f"{parts.function} has no argument {name.value}",
            nearest(name.word, known, "arguments"),
            name.end,
        )
    if name.word == "MODEL":
        _model(cursor, parts)
    elif name.word == "CONFIG":
        _config(cursor, parts)
    elif name.word == "ARGS":
        _descriptor(cursor, parts)
    elif name.word == "PROMPT":
        parts.prompt = parse_expression(cursor)
    elif name.word == "LABELS":
        _labels(cursor, parts)
    elif name.word == "INSTRUCTION":
        _instruction(cursor, parts, parse_expression(cursor))
    elif cursor.now.word == "TABLE":
        _table(cursor, parts, query)
    else:
        parts.arguments.append(parse_expression(cursor))


def _positional_argument(cursor: Cursor, parts: _Parts, query: QueryParser | None) -> None:
    if is_map(cursor):
        _config(cursor, parts)
    elif parts.has_config:
        cursor.fail("MAP[…] is the last argument", "put it at the end")
    elif cursor.now.word == "TABLE" and parts.function == "ML_PREDICT":
        _table(cursor, parts, query)
    elif cursor.now.word == "DESCRIPTOR":
        _descriptor(cursor, parts)
    elif parts.model is None and (parts.function not in AGGREGATE_CALLS or _is_model(cursor)):
        _model(cursor, parts)
    elif parts.function == "AI_CLASSIFY" and cursor.now.word == "ARRAY":
        _labels(cursor, parts)
    # The input comes before the instruction.
    elif parts.function == "AI_COMPLETE" and parts.arguments and parts.prompt is None:
        parts.prompt = parse_expression(cursor)
    else:
        parts.arguments.append(parse_expression(cursor))


def _is_model(cursor: Cursor) -> bool:
    """Whether `MODEL m` is at the cursor."""
    return cursor.now.word == "MODEL" and cursor.ahead().kind in ("name", "quoted")


def _model(cursor: Cursor, parts: _Parts) -> None:
    if parts.model is not None:
        cursor.fail("the model is named twice", "name it once")
    parts.model_start = cursor.now.start
    after = cursor.ahead()
    if _is_model(cursor):
        cursor.take()
        parts.model_start = cursor.now.start
        parts.model = cursor.need_path("the model's name")
    # A text alone is a name; if anything else follows it, it begins an expression.
    elif cursor.now.kind == "string" and after.value in (",", ")"):
        parts.model = cursor.take().value
    else:
        parts.model = parse_expression(cursor)


def _config(cursor: Cursor, parts: _Parts) -> None:
    if not is_map(cursor):
        cursor.fail("CONFIG has to be a MAP", "write MAP['batch.size', '50']")
    if parts.has_config:
        cursor.fail("there are two MAPs of options", "write one MAP")
    parts.has_config = True
    parts.config = parse_map(cursor)


def _descriptor(cursor: Cursor, parts: _Parts) -> None:
    cursor.need_words("DESCRIPTOR", where="here")
    cursor.need_op("(", "after DESCRIPTOR")
    parts.descriptor += cursor.take_names("a column's name")
    cursor.need_op(")", "at the end of DESCRIPTOR")


def _table(cursor: Cursor, parts: _Parts, query: QueryParser | None) -> None:
    parts.table_start = cursor.take().start
    # A call among SELECT's items asks about its own row, and not about those of a table.
    if query is None:
        cursor.source.fail(
            parts.table_start,
            "a call among a SELECT's items takes no TABLE",
            "write FROM ML_PREDICT(TABLE t, …), or ML_PREDICT('m', column) here",
        )
    if parts.table is not None or parts.query is not None:
        cursor.source.fail(parts.table_start, "there are two tables", "name one")
    if cursor.is_op("("):
        parts.query = query(cursor)
        return
    parts.table_start = cursor.now.start
    parts.table = cursor.need_path("the table's name")


def _labels(cursor: Cursor, parts: _Parts) -> None:
    cursor.need_words("ARRAY", where="here")
    cursor.need_op("[", "after ARRAY")
    cursor.parse_list(lambda: _label(cursor, parts))
    cursor.need_op("]", "at the end of ARRAY")


def _label(cursor: Cursor, parts: _Parts) -> None:
    token = cursor.need_string("a label")
    if token.value in parts.labels or not token.value.strip():
        cursor.source.fail(token.start, "this label is empty or twice there", "take it out")
    parts.labels.append(token.value)


def _instruction(cursor: Cursor, parts: _Parts, given: Expression) -> None:
    text = literal_text(given.tree)
    if text is None or not text.strip():
        cursor.source.fail(
            given.start,
            f"the instruction of {parts.function} has to be a text in single quotes",
            _FORMS[parts.function],
            given.end,
        )
    parts.instruction = text


def _sort_arguments(cursor: Cursor, parts: _Parts) -> None:
    """Tells the positional arguments apart: `AI_AGG(text, 'instruction')`, perhaps with the model
    before them.
    """
    wants_instruction = parts.function == "AI_AGG" and parts.instruction is None
    if parts.model is None and len(parts.arguments) == 2 + wants_instruction:
        named = parts.arguments.pop(0)
        parts.model_start = named.start
        parts.model = literal_text(named.tree) or named
    if wants_instruction and len(parts.arguments) == 2:
        _instruction(cursor, parts, parts.arguments.pop())


def _build_call(cursor: Cursor, parts: _Parts, end: int) -> Call:
    def fail(why: str) -> NoReturn:
        cursor.source.fail(parts.start, f"{parts.function} {why}", _FORMS[parts.function], end)

    of_table = parts.table is not None or parts.query is not None
    if parts.function in AGGREGATE_CALLS:
        _sort_arguments(cursor, parts)
        if parts.model is not None and not isinstance(parts.model, str):
            fail("takes one model by its name")
        if parts.function == "AI_AGG" and parts.instruction is None:
            fail("takes one input" if len(parts.arguments) > 1 else "needs an instruction")
    elif parts.model is None:
        fail("names no model")
    if of_table and not parts.descriptor:
        fail("over a table needs the columns that it asks about")
    if of_table and parts.arguments:
        fail("over a table takes its columns in DESCRIPTOR")
    if parts.descriptor and not of_table:
        fail("with DESCRIPTOR needs a table")
    if not of_table and not parts.arguments:
        fail("needs a column to ask about")
    if parts.function != "ML_PREDICT" and len(parts.arguments) != 1:
        fail("takes one input")
    if parts.function == "AI_CLASSIFY" and not parts.labels:
        fail("needs LABELS")
    if of_table and not isinstance(parts.model, str):
        fail("over a table takes one model by its name")
    return Call(
        parts.function,
        parts.model,
        parts.start,
        end,
        parts.model_start,
        tuple(parts.arguments),
        parts.table,
        parts.table_start,
        parts.query,
        tuple(parts.descriptor),
        tuple(parts.config),
        parts.prompt,
        tuple(parts.labels),
        parts.instruction,
    )
