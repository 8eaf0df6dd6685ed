"""Bodies of requests held to their shape: the types, ranges and words that an API takes.

A dialect declares what it takes as msgspec structs; `misfit` says what is wrong with a body, and
the dialect makes a sentence of its own of it, for each API has another one:

    class Ask(msgspec.Struct):
        model: str
        temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None

    misfit({"model": 5}, Ask)  # Misfit(place="model", rule="type", expected="str", found="int")

Without it a faulty field would go unnoticed, as few of them change what the emulated model answers,
or would end in an exception of the emulator's: a 500, which a client tries again, in place of the
400 that it must not try again.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

Kind = Literal["string", "number", "integer", "boolean", "object", "array", "null"]
Whole = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class SchemaNode(msgspec.Struct, rename={"ref": "$ref", "defs": "$defs"}):
    """A JSON schema that can be read; what its words mean to an API is the dialect's business.

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
      place: of the field, such as `messages[0].role`; empty: the body itself.
      rule: `type`, `missing`, `unknown`, `bound`, or `word` (none of those that may stand there).
      expected: the type (`str`, `int`, `float`, `bool`, `array`, `object`), several with ` | `; or
        the bound, such as `>= 1`.
      found: the type that stands there; of a bound, the one that the bound is of.
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
    """What is wrong with a value that came as JSON; None where it fits."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        return _read(str(error))
    except RecursionError:
        # orjson takes a thousand levels, which is more than are converted.
        return Misfit("", "bound", "fewer levels", "object")
    return None


def _read(sentence: str) -> Misfit:
    """msgspec's sentence, which is all that its error holds."""
    # From the right: a word that was found in the body may itself look like a place.
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


# Sentences that several APIs share

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
    """The sentence of APIs that check bodies by pydantic, as Anthropic's and Mistral's do.

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
