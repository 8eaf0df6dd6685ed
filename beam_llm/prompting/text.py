"""Values, texts and records as a prompt shows them: one spelling each, the same in every
process."""

from __future__ import annotations

import base64
import dataclasses
import enum
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import jinja2
import orjson

_JSON_OPTIONS = (
    orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_SUBCLASS
)


class NotAValue(TypeError):
    """A value that no prompt can show; the message names its type, and nothing of its content."""


def show(value: Any) -> Any:
    """A value as a prompt shows it: a string as it is, a missing value as an empty text, everything
    else as compact JSON.

    Jinja's `finalize`: an undefined variable passes through, so that StrictUndefined can refuse it.

    Raises:
      TypeError: for a value with no JSON form, which would be shown as an address in memory.
    """
    if isinstance(value, enum.Enum):
        return show(value.value)
    if isinstance(value, (str, jinja2.Undefined)):
        return value
    if type(value) is int:
        return str(value)
    if is_missing(value):
        return ""
    if (isinstance(value, float) or type(value).__name__ in _FLOATS) and math.isinf(value):
        return json.dumps(float(value))  # `Infinity`; orjson writes null
    text = _json_of(value)
    # A date, a Decimal: a string in JSON, and shown as one.
    return orjson.loads(text) if text.startswith('"') else text


def is_missing(value: Any) -> bool:
    """Whether the value is None, or what pandas and numpy use in its place."""
    if value is None:
        return True
    kind = type(value).__name__
    if isinstance(value, float) or kind in _MAY_BE_NAN:
        return bool(value != value)
    return kind in _MISSING_IN_PANDAS


# By name, as pandas and numpy may not be installed.
_MISSING_IN_PANDAS = ("NAType", "NaTType")
_FLOATS = ("float32", "float16")
_MAY_BE_NAN = (*_FLOATS, "datetime64", "timedelta64")


def plain(value: Any) -> Any:
    """The value in JSON's types: rows become dicts, timestamps strings."""
    if value is None or type(value) is bool:
        return value
    if type(value) is str:
        return clean(value)
    if type(value) is int:
        return _json_integer(value)
    try:
        return orjson.loads(_fast_json(value))
    except TypeError:
        return json.loads(
            clean(_standard_json(value)), parse_int=lambda digits: _json_integer(int(digits))
        )


def _json_integer(value: int) -> int | str:
    # orjson can't write a larger one, and so the ledger can't hold it.
    return value if -(2**63) <= value < 2**64 else str(value)


def _json_of(value: Any) -> str:
    try:
        return _fast_json(value).decode()
    except TypeError:
        return _standard_json(value)


def _fast_json(value: Any) -> bytes:
    """The value as compact JSON.

    Raises:
      TypeError: for what only `_standard_json` can write: lone surrogates, ints beyond 64 bits, and
        an iterator, which is used up when the writer gives up later.
    """
    return orjson.dumps(value, default=_lasting_substitute, option=_JSON_OPTIONS)


def _lasting_substitute(value: Any) -> Any:
    if isinstance(value, Iterator):
        raise NotAValue("an iterator can be read only once")
    return _json_substitute(value)


def _standard_json(value: Any) -> str:
    """The value as `_fast_json` would write it, by Python's own writer. What an iterator or a
    method of the value raises gets out."""
    try:
        return json.dumps(_json_tree(value), ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise NotAValue("a value is nested too deeply, or contains itself") from None


def _json_tree(value: Any) -> Any:
    """The value in types that `json.dumps` writes as orjson does."""
    if type(value) in (str, int):
        return value
    if isinstance(value, enum.Enum):
        return _json_tree(value.value)
    if type(value) is dict:
        return {_json_key(key): _json_tree(member) for key, member in value.items()}
    if type(value) in (list, tuple):
        return [_json_tree(member) for member in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _json_tree(getattr(value, name)) for name in names if name[0] != "_"}
    try:
        return orjson.loads(orjson.dumps(value, option=_JSON_OPTIONS))
    except TypeError:
        return _json_tree(_json_substitute(value))


def _json_key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        return _json_key(key.value)
    if type(key) in (str, int):
        return str(key)
    name: str = next(iter(orjson.loads(orjson.dumps({key: None}, option=_JSON_OPTIONS))))
    return name


def _json_substitute(value: Any) -> Any:
    """A substitute for a value that JSON can't write. Types are recognized by their methods, so
    that neither Beam nor pydantic is imported here.
    """
    if inspect.isroutine(value) or isinstance(value, type):
        raise NotAValue(
            f"{value.__qualname__} is a method or a class, not a value, "
            "and the element has no field of that name"
        )
    if is_missing(value):  # pandas' NA and NaT, inside an element
        return None
    # The last one is for Beam's Timestamp, whose `str` is `Timestamp(1790000000)`.
    for method in ("model_dump", "as_dict", "_asdict", "to_dict", "to_rfc3339"):
        if callable(found := getattr(value, method, None)):
            return found()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        # A set's order differs from process to process.
        return sorted(value, key=repr)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_text(bytes(value))
    # Subclasses of str and of numbers, which orjson passes on (OPT_PASSTHROUGH_SUBCLASS).
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, float)):
        return value.__int__() if isinstance(value, int) else value.__float__()
    if isinstance(value, Iterable):
        return list(value)
    kind: Any = type(value)
    if kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__:
        return str(value)
    raise NotAValue(f"a value of type {type(value).__name__} has no JSON form")


def _bytes_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


def clean(text: str) -> str:
    """The text as valid UTF-8: lone surrogates, which JSON can't write and no provider accepts,
    become U+FFFD.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def clean_json(value: Any) -> Any:
    """The JSON value with all its texts as valid UTF-8; see `clean`."""
    if isinstance(value, dict):
        return {clean_json(name): clean_json(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(clean_json, value))
    return clean(value) if isinstance(value, str) else value


def request_json(body: Mapping[str, Any]) -> bytes:
    """A request's body as JSON with all its texts as valid UTF-8."""
    try:
        return orjson.dumps(body)
    except TypeError:  # lone surrogates are rare, so they are looked for only after a failure
        return orjson.dumps(clean_json(body))


def quote(text: str) -> str:
    """A JSON string on one line: every character that some reader treats as a line break is
    escaped.
    """
    quoted = orjson.dumps(text).decode()
    return quoted if quoted.isascii() else _one_line(quoted)


def one_line(value: Any) -> str:
    """A JSON value as JSON on one line, as valid UTF-8."""
    return quote(clean(value)) if isinstance(value, str) else _one_line(clean(_json_of(value)))


def _one_line(quoted: str) -> str:
    for mark, escape in (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085")):
        if mark in quoted:
            quoted = quoted.replace(mark, escape)
    return quoted


_UNXML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def xml_text(text: str) -> str:
    """The text as XML character data; characters that XML can't represent become U+FFFD."""
    return _UNXML.sub(
        "\ufffd", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


def json_envelope(names: Sequence[str]) -> Callable[[int, Sequence[str]], str]:
    """`Input 1: "…"` for one varying part, `Input 1: {"title": "…", "text": "…"}` for several."""
    if len(names) == 1:
        return lambda index, inputs: f"Input {index}: {quote(inputs[0])}"
    keys = [f"{quote(name)}: " for name in names]

    def envelope(index: int, inputs: Sequence[str]) -> str:
        parts = [key + quote(text) for key, text in zip(keys, inputs, strict=True)]
        return f"Input {index}: {{{', '.join(parts)}}}"

    return envelope


def xml_envelope(names: Sequence[str]) -> Callable[[int, Sequence[str]], str]:
    """`<input index="1">…</input>`, with an element per varying part where there are several."""
    if len(names) == 1:
        return lambda index, inputs: f'<input index="{index}">{xml_text(inputs[0])}</input>'
    tags = [re.sub(r"[^\w-]|^(?=[\d-])", "_", name, flags=re.ASCII) for name in names]

    def envelope(index: int, inputs: Sequence[str]) -> str:
        parts = "".join(
            f"<{tag}>{xml_text(text)}</{tag}>" for tag, text in zip(tags, inputs, strict=True)
        )
        return f'<input index="{index}">{parts}</input>'

    return envelope
