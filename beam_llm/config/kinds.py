"""Checks for each kind of option value (numbers, choices, references to keys, outputs, …), given as
a Python value or as text. Errors name the value, the rule and the fix.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from beam_llm.config.table import OPTIONS, RESPONSE_FORMATS
from beam_llm.errors import UsageError


def check_value(name: str, value: Any) -> Any:
    """Returns an option's value, checked and converted as its row in the table requires.

    Raises:
      UsageError: names the option, its value, the rule and the fix.
    """
    option = OPTIONS[name]
    if value is None and name != "output":
        return option.default
    return _KINDS[option.metadata["kind"]](name, value, option.metadata)


def option_error(name: str, value: Any, rule: str, fix: str) -> UsageError:
    return UsageError(f"{name} is {shortened(value)}: {rule}; {fix}")


def shortened(value: Any) -> str:
    # A prompt may be megabytes long.
    shown = repr(value)
    return shown if len(shown) <= 200 else shown[:199] + "…"


def _number(
    name: str, value: Any, rule: Mapping[str, Any], convert: Callable[[Any], Any], noun: str
) -> Any:
    if isinstance(value, str) and value in rule.get("also", ()):
        return value
    try:
        # True equals 1 in Python, so `batch_size=True` would pass as a size.
        if isinstance(value, bool):
            raise ValueError("a boolean")
        number = convert(value)
    except (TypeError, ValueError, OverflowError):
        also = "".join(f" or {word!r}" for word in rule.get("also", ()))
        raise option_error(
            name, value, f"it has to be {noun}{also}", f"try {_example(name)}"
        ) from None
    least, most = rule["least"], rule.get("most", _MOST)
    if not least <= number <= most:
        is_small = number < least and most == _MOST
        bounds = f"at least {least:,}" if is_small else f"between {least:,} and {most:,}"
        raise option_error(name, value, f"it has to be {bounds}", f"try {_example(name)}")
    return number


# Beam's display data can't hold a larger number, and its timers not a much larger one.
_MOST = 2**63 - 1


def _example(name: str) -> str:
    default, least = OPTIONS[name].default, OPTIONS[name].metadata.get("least") or 1
    return f"{name}={default if default is not None else least if least > 0 else 1}"


def _to_integer(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("not whole")
    return int(value)


def _to_float(value: Any) -> float:
    # No bound catches NaN, which is neither below nor above anything.
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError("not finite")
    return number


def _int(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    return _number(name, value, rule, _to_integer, "a whole number")


def _float(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    return _number(name, value, rule, _to_float, "a number")


def _bool(name: str, value: Any, rule: Mapping[str, Any]) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise option_error(name, value, "it has to be true or false", f"try {name}=True")


def _text(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    # `staging_location=tmp_path` is what tests and notebooks write.
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if not isinstance(value, str):
        raise option_error(
            name, value, f"it has to be a string, not {type(value).__name__}", f"write {name}='…'"
        )
    # Checked here, not in a worker's request hours later.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where = (
            f"character {error.start + 1:,} is half of one (a lone surrogate), which can't be sent"
        )
        raise option_error(
            name, value, where, "take it out, or write text.encode('utf-8', 'replace').decode()"
        ) from None
    return value


def _words(name: str, value: Any, rule: Mapping[str, Any]) -> str | None:
    """A text that becomes a message; a blank one counts as none, since some providers refuse it."""
    text = _text(name, value, rule)
    return text if text.strip() else None


def _field(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    text = _text(name, value, rule)
    if not text.strip():
        raise option_error(name, value, "it has to be the name of a field", f"leave {name} out")
    return text


def _choice(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    if value in rule["choices"]:
        return str(value)
    near = difflib.get_close_matches(str(value), rule["choices"], n=1)
    raise option_error(
        name,
        value,
        f"it has to be one of {', '.join(rule['choices'])}",
        f"try {near[0] if near else rule['choices'][0]!r}",
    )


# Recognizes references, not keys, which have no common form.
_REFERENCE = re.compile(r"env:[A-Za-z_]\w*|file:.+|gcp-secret:projects/.+|none")


def _secret(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    """Only references may be part of the graph. The value itself is never put into the message,
    since it may be a key.
    """
    if isinstance(value, str):
        wrapped = re.fullmatch(r"\$\{([A-Za-z_]\w*)\}", value)
        reference = f"env:{wrapped[1]}" if wrapped else value
        if _REFERENCE.fullmatch(reference):
            return reference
    raise UsageError(
        f"{name} holds a literal value: keys are given by reference, so that none is stored "
        "in the pipeline; put the key into an environment variable and write 'env:NAME' or "
        "'${NAME}' (or 'file:PATH', 'gcp-secret:projects/…'; 'none' for servers without keys)"
    )


def _json(name: str, value: Any, rule: Mapping[str, Any]) -> Mapping[str, Any]:
    # A wrong value is not put into the message: headers and parameters of a server may be keys.
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{name} is a text of {len(value):,} characters that is not JSON ({error}): "
                f"it has to be a JSON object; write {name}='{{\"…\": …}}'"
            ) from None
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{name} is a value of type {type(value).__name__}: it has to be a mapping; "
            f"write {name}={{…}}"
        )
    # A copy, so that later changes by the caller don't change the pipeline.
    return dict(value)


def _format(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    """A built-in format, or a parser by dotted name or as a function."""
    if isinstance(value, str) and value in RESPONSE_FORMATS:
        return value
    if callable(value):
        _refuse_other_callables(name, value, value)
        # It is identified by its name when known answers are looked up.
        if not hasattr(value, "__qualname__"):
            raise option_error(
                name,
                value,
                "a parser has to have a name, which partials and callable objects don't have",
                "wrap it in a function",
            )
        return value
    if isinstance(value, str) and "." in value:
        _refuse_other_callables(name, value, load_dotted(name, value))
        return value
    near = difflib.get_close_matches(str(value), RESPONSE_FORMATS, n=1)
    raise option_error(
        name,
        value,
        f"it has to be one of {', '.join(RESPONSE_FORMATS)} or the dotted name of a parser",
        f"try {near[0] if near else 'json'!r}",
    )


def _refuse_other_callables(name: str, value: Any, found: Any) -> None:
    """Refuses objects that can't be called with a reply and a count: every reply would be paid for,
    and none could be read."""
    # Elsewhere `response_format=Review` gives the type of an answer, and a class is callable.
    if isinstance(found, type) or typing.get_origin(found) is not None:
        raise option_error(
            name, value, "it is a type, not a parser of replies", "write output=… for it"
        )
    try:
        # Looks at the callable's own signature: a decorator may wrap a function of the text alone.
        inspect.signature(found, follow_wrapped=False).bind("", 1)
    except TypeError as error:
        raise option_error(
            name,
            value,
            f"it can't be called with a reply's text and its number of records ({error})",
            "write a function of both",
        ) from None
    except ValueError:  # a builtin that doesn't say what it takes
        pass


def load_dotted(name: str, dotted: str) -> Callable[..., Any]:
    """Imports and returns the object that `package.module.name` names.

    Raises:
      UsageError: there is no such module or object, or it can't be called.
    """
    module, _, attribute = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module runs when it is imported, and may raise anything
        raise option_error(
            name,
            dotted,
            f"it can't be imported ({type(error).__name__}: {error})",
            "name a function as package.module.function",
        ) from None
    if not callable(found):
        raise option_error(
            name, dotted, "it is not a function", "name a function as package.module.function"
        )
    return found  # type: ignore[no-any-return]


_OUTPUT_WORDS = {"string": str, "integer": int, "number": float, "boolean": bool}


def _output(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        members = ", ".join(map(repr, value))
        raise option_error(name, value, "words are not a type", f"write {name}=Literal[{members}]")
    # Types and schemas are checked in `prompting.output_types`, which can read them.
    if not isinstance(value, str):
        return value
    if value in _OUTPUT_WORDS:
        return _OUTPUT_WORDS[value]
    if value.startswith("enum:"):
        return Literal[_members(name, value)]
    if value.lstrip().startswith("{"):
        return _json(name, value, rule)
    raise option_error(
        name,
        value,
        "it has to be string, integer, number, boolean, enum:a|b|c or a JSON schema",
        _output_advice(value),
    )


def _output_advice(value: str) -> str:
    """What to write instead of a word that is not an output type; likeliest mistake first."""
    word = value.strip().lower()
    # As Python names it, since `output` also takes Python's types.
    near = [name for name, kind in _OUTPUT_WORDS.items() if kind.__name__ == word]
    near = near or difflib.get_close_matches(word, _OUTPUT_WORDS, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if "|" in word:
        return f"did you mean {'enum:' + value.strip()!r}?"
    if word.startswith(("list", "array")):
        return 'write {"type": "array", "items": {"type": "string"}}'
    return "try 'enum:positive|negative|neutral'"


def _members(name: str, value: str) -> tuple[str, ...]:
    fix = "write enum:positive|negative|neutral"
    members = tuple(member.strip() for member in value[len("enum:") :].split("|"))
    if not any(members):
        raise option_error(name, value, "an enum needs members", fix)
    if not all(members):
        raise option_error(name, value, f"member {members.index('') + 1} of the enum is empty", fix)
    repeated = next((member for member in members if members.count(member) > 1), None)
    if repeated is not None:
        raise option_error(name, value, f"the enum has the member {repeated!r} twice", fix)
    return members


def _names(name: str, value: Any, rule: Mapping[str, Any]) -> tuple[str, ...]:
    """A tuple of names, from a list or from a text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise option_error(name, value, "it has to be a list of names", f"write {name}=['…', '…']")
    names = tuple(part.strip() for part in parts)
    # An error: `media=[""]`, from a variable that is not set, would ask without any image.
    if "" in names:
        which = f"name {names.index('') + 1} of {len(names)} is blank"
        raise option_error(name, value, which, f"write a name there, or leave {name} out")
    return names


_KINDS: dict[str, Callable[[str, Any, Mapping[str, Any]], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "text": _text,
    "words": _words,
    "field": _field,
    "choice": _choice,
    "secret": _secret,
    "json": _json,
    "format": _format,
    "output": _output,
    "names": _names,
}
