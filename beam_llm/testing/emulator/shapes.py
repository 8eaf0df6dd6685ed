"""Checks the shape of requests' bodies: the types, ranges and words that an API accepts.

A dialect declares what it accepts as msgspec structs. `misfit` says what is wrong with a body, and
the dialect turns that into its own API's message:

    class Ask(msgspec.Struct):
        model: str
        temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None

    misfit({"model": 5}, Ask)  # Misfit(place="model", rule="type", expected="str", found="int")

Without these checks a faulty field would go unnoticed, since few fields change what the emulated
model answers, or it would raise an exception in the emulator: a 500, which clients try again, in
place of a 400, which they must not try again.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

Kind = Literal["string", "number", "integer", "boolean", "object", "array", "null"]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class SchemaNode(msgspec.Struct, rename={"ref": "$ref", "defs": "$defs"}):
    """A well-formed JSON schema. Which of its keywords an API supports is up to the dialect.

    A field may be left out, but not be null.
    """

    type: Kind | Annotated[list[Kind], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    properties: dict[str, SchemaNode] | UnsetType = UNSET
    required: list[str] | UnsetType = UNSET
    items: SchemaNode | bool | UnsetType = UNSET
    enum: Annotated[list[Any], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    anyOf: list[SchemaNode] | UnsetType = UNSET
    oneOf: list[SchemaNode] | UnsetType = UNSET
    allOf: list[SchemaNode] | UnsetType = UNSET
    additionalProperties: SchemaNode | bool | UnsetType = UNSET
    description: str | UnsetType = UNSET
    minItems: int | UnsetType = UNSET
    maxItems: int | UnsetType = UNSET
    minimum: float | UnsetType = UNSET
    maximum: float | UnsetType = UNSET
    ref: str | UnsetType = UNSET
    defs: dict[str, SchemaNode] | UnsetType = UNSET


class Misfit(NamedTuple):
    """What is wrong with a body.

    Attributes:
      place: the place of the field, such as `messages[0].role`; empty for the body itself.
      rule: the broken rule: `type`, `missing`, `unknown`, `bound`, or `word` (a value that is not
        one of those allowed).
      expected: the expected type (`str`, `int`, `float`, `bool`, `array`, `object`), or several
        joined by ` | `; or the bound, such as `>= 1`.
      found: the type that was found; for a bound, the type to which the bound applies.
    """

    place: str
    rule: str
    expected: str = ""
    found: str = ""

    @property
    def dotted(self) -> str:
        """The place as pydantic writes it: `messages.0.role`."""
        return re.sub(r"\[([^\]]*)\]", r".\1", self.place)


def misfit(value: Any, shape: Any) -> Misfit | None:
    """What is wrong with a value that came as JSON; None where it has the shape."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        return _read(str(error))
    except RecursionError:
        # orjson reads a thousand levels, which is more than can be converted.
        return Misfit("", "bound", "fewer levels", "object")
    return None


def _read(sentence: str) -> Misfit:
    """Reads msgspec's message, which is all that its error holds."""
    # Matched from the right: a word from the body may itself look like a place.
    found = re.fullmatch(r"(.*?)(?: - at `\$\.?([^`]*)`)?", sentence, re.DOTALL)
    assert found is not None
    problem, place = found[1], found[2] or ""
    quoted = re.findall(r"`([^`]*)`", problem)
    if problem.startswith("Object"):
        rule = "missing" if "missing" in problem else "unknown"
        return Misfit(f"{place}.{quoted[0]}".lstrip("."), rule)
    if problem.startswith("Invalid"):
        return Misfit(place, "word")
    expected = quoted[0].removesuffix(" | null")
    if len(quoted) > 1:
        return Misfit(place, "type", expected, quoted[1])
    bound = problem.rpartition("` ")[2].replace("of length ", "")
    return Misfit(place, "bound", bound.removesuffix(".0"), expected)


# Messages that several APIs share

_NOUNS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "array": "list",
    "object": "dictionary",
}
_BOUNDS = {
    ">=": "greater than or equal to",
    "<=": "less than or equal to",
    ">": "greater than",
    "<": "less than",
}


def by_pydantic(wrong: Misfit) -> str:
    """The message of APIs that check bodies with pydantic, as Anthropic's and Mistral's do.

    Source: pydantic's "Validation errors", read 2026-11.
    """
    match wrong.rule:
        case "missing":
            return "Field required"
        case "unknown":
            return "Extra inputs are not permitted"
        case "word":
            return "Input should be one of the values that are allowed here"
        case "bound":
            sign, _, limit = wrong.expected.partition(" ")
            if wrong.found == "array":
                return f"List should have a length {_BOUNDS.get(sign, sign)} {limit}"
            return f"Input should be {_BOUNDS.get(sign, sign)} {limit}"
    nouns = [_NOUNS.get(name, name) for name in wrong.expected.split(" | ")]
    return f"Input should be a valid {' or '.join(nouns)}"
