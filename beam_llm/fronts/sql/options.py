"""Options in SQL: `WITH ('k' = 'v')`, `MAP['k', 'v']`, and the names of other engines' options.

One table translates other engines' options; those that mean nothing here are accepted with a
notice. Source: Flink 2.1 and Flink CDC documentation, Confluent Cloud SQL reference, read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from beam_llm.config import OPTIONS, key_of
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.syntax import Option
from beam_llm.fronts.sql.tokens import Cursor


def parse_with(cursor: Cursor, after: str) -> list[Option]:
    """Parses `('k' = 'v', …)`, with each key once."""
    cursor.need_op("(", f"after {after}")
    options: list[Option] = []
    while not cursor.is_op(")"):
        key = cursor.need_string("an option's name")
        cursor.need_op("=", "after an option's name")
        options.append(_option(cursor, key.value, key.start, options))
        if not cursor.take_op(","):
            break
    cursor.need_op(")", "at the end of the options")
    return options


def is_map(cursor: Cursor) -> bool:
    """Whether a MAP of options is at the cursor."""
    return cursor.now.word == "MAP" and cursor.ahead().value in ("[", "(")


def parse_map(cursor: Cursor) -> list[Option]:
    """Parses `MAP['k', 'v', …]`, with each key once."""
    cursor.take()
    if cursor.is_op("("):
        cursor.fail("MAP has its pairs in brackets", "write MAP['batch.size', '50']")
    cursor.take()
    options: list[Option] = []
    while not cursor.is_op("]"):
        key = cursor.need_string("an option's name")
        cursor.need_op(",", "between an option and its value")
        options.append(_option(cursor, key.value, key.start, options))
        if not cursor.take_op(","):
            break
    cursor.need_op("]", "at the end of MAP")
    return options


def _option(cursor: Cursor, key: str, start: int, before: list[Option]) -> Option:
    if any(key == other.key for other in before):
        cursor.source.fail(start, f"the option {key!r} is given twice", "take one of them out")
    token = cursor.now
    if token.kind == "number" or token.word in ("TRUE", "FALSE"):
        cursor.take()
        return Option(key, token.value, start, token.start)
    return Option(
        key,
        cursor.need_string("an option's value").value,
        start,
        cursor.tokens[cursor.at - 1].start,
    )


class ResolvedOptions(NamedTuple):
    """Options under this package's keys, with their places, and notices about those left out."""

    values: dict[str, str]
    places: dict[str, Option]
    notices: tuple[str, ...]


# `task` is left out: the function that calls a model determines what the model does.
_KEYS = {name.replace("_", ""): key_of(name) for name in OPTIONS if name != "task"}
_ALIASES = {
    "modelname": "model",
    "maxtokens": "max.output.tokens",
    "retrynum": "max.retries",
    "retrycount": "max.retries",
    "maxconcurrentoperations": "max.concurrency",
    "maxparallelism": "max.concurrency",
    "dimension": "dimensions",
}
_PROVIDERS = {"openai-compat": "openai", "openai-compatible": "openai", "bailian": "openai"}
_MEANINGLESS = {
    "async": "calls are always made side by side",
    "asyncenabled": "calls are always made side by side",
    "outputmode": "each answer comes back with its own row",
    "task": "what a model does is said by the function that calls it",
    "retryfallbackstrategy": "an error is in its row",
    "contextoverflowaction": "a record that is too large is an error in its row",
    "maxcontextsize": "a model's window is known, or 'context.window'",
    "n": "one answer is asked for",
    "stop": "give it in 'extra.body'",
    "presencepenalty": "give it in 'extra.body'",
    "topp": "give it in 'extra.body'",
}
_REFUSED = {
    "output.field": "an answer's column is named by AS",
    "outputfield": "an answer's column is named by AS",
    "instruction": "it is AI_AGG's last argument",
    "groupby": "the query's GROUP BY says it",
}


def resolve_options(source: SourceText, options: Iterable[Option], where: str) -> ResolvedOptions:
    """The options under this package's keys.

    Args:
      where: `a model` or `a call`, for messages.

    Raises:
      SqlError: an unknown key, with the nearest known one; or a key that is given twice, in two
        spellings.
    """
    values: dict[str, str] = {}
    places: dict[str, Option] = {}
    notices: list[str] = []
    for option in options:
        # `batch.size`, `batch-size` and `batch_size` are one option, as everywhere in this package.
        folded = re.sub(r"[._-]", "", option.key.strip()).lower()
        if folded in _REFUSED:
            source.fail(
                option.start, f"{option.key!r} is not an option of {where}", _REFUSED[folded]
            )
        if folded in _MEANINGLESS:
            notices.append(
                f"{source.place(option.start)}: {option.key!r} means nothing here: "
                f"{_MEANINGLESS[folded]}"
            )
            continue
        for key, value in _translate(source, option, folded, notices).items():
            if key in values:
                source.fail(
                    option.start, f"the option {key!r} is given twice here", "take one of them out"
                )
            values[key] = value
            places[key] = option
    return ResolvedOptions(values, places, tuple(notices))


def _translate(
    source: SourceText, option: Option, folded: str, notices: list[str]
) -> Mapping[str, str]:
    """One option under this package's key. Some options of other engines need a function."""
    special = _SPECIAL.get(folded)
    if special is not None:
        return special(source, option, notices)
    key = "provider" if folded == "provider" else _ALIASES.get(folded) or _KEYS.get(folded)
    if key is None:
        known = [*_KEYS.values(), "provider"]
        source.fail(
            option.start, f"unknown option {option.key!r}", nearest(option.key, known, "options")
        )
    value = option.value
    if key == "provider":
        value = _PROVIDERS.get(value.lower(), value)
    # Other engines' options take any number; ours is refused later, with its rule.
    elif key == "max.retries" and folded != "maxretries" and value.isdecimal() and int(value) > 20:
        notices.append(
            f"{source.place(option.start)}: {option.key!r} is {value}: 20 tries are made at most"
        )
        value = "20"
    return {key: value}


def _endpoint(source: SourceText, option: Option, notices: list[str]) -> Mapping[str, str]:
    """Flink's `endpoint` is a full address; a base URL is the part before the route."""
    return {"base.url": re.sub(r"/(chat/completions|embeddings)/?$", "", option.value)}


def _timeout(source: SourceText, option: Option, notices: list[str]) -> Mapping[str, str]:
    found = re.fullmatch(r"\s*(\d{1,9})\s*(ms|s|sec|seconds?|m|min|minutes?)?\s*", option.value)
    if found is None:
        source.fail(option.value_start, f"{option.key!r} is not a time", "write '60 s'")
    # A bare number is seconds in Confluent's `client_timeout`, milliseconds in `timeout`.
    usual = "s" if "client" in option.key.lower() else "ms"
    # `m` and `mi` are minutes, `ms` is not.
    unit = (found[2] or usual)[0:2]
    factor = 1 if unit == "ms" else 1_000 if unit.startswith("s") else 60_000
    return {"request.timeout.ms": str(int(found[1]) * factor)}


def _response_format(source: SourceText, option: Option, notices: list[str]) -> Mapping[str, str]:
    """Flink's `text` and `json_object` tell the server the form; here OUTPUT determines it."""
    if option.value.lower() in ("text", "json_object", "json_schema"):
        notices.append(
            f"{source.place(option.start)}: {option.key!r}={option.value!r} means nothing here: "
            "the form of a reply follows from OUTPUT"
        )
        return {}
    return {"response.format": option.value}


def _strategy(source: SourceText, option: Option, notices: list[str]) -> Mapping[str, str]:
    known = {"RETRY": "raise", "FAILOVER": "raise", "IGNORE": "record"}
    if option.value.upper() not in known:
        source.fail(
            option.value_start,
            f"{option.key!r} is {option.value!r}",
            nearest(option.value.upper(), known, "strategies"),
        )
    return {"on.abort": known[option.value.upper()]}


_SPECIAL = {
    "endpoint": _endpoint,
    "timeout": _timeout,
    "clienttimeout": _timeout,
    "responseformat": _response_format,
    "errorhandlingstrategy": _strategy,
}
