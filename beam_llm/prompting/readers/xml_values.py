"""XML elements as the JSON values that a schema describes: XML itself has no numbers, no lists, and
no members of a union."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import orjson

from beam_llm.prompting.fitting import Fit, dereference, fit, kinds_of, words_of
from beam_llm.prompting.readers.matching import is_same_json

Schema = Mapping[str, Any]
Root = dict[str, Any]

# Levels of unions: a union may contain itself.
_MOST_UNIONS = 20
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def xml_value(element: ElementTree.Element, schema: Schema, root: Root) -> Any:
    """An element as the JSON value that `schema` describes; text stays text where the schema gives
    no other type.

    Args:
      root: where the schema's references lead.

    Raises:
      ValueError: where one of the schema's fields is written twice with different values.
    """
    members = list(_members(schema, root))
    return (
        _value_of_children(element, members, root)
        if len(element)
        else _value_of_text("".join(element.itertext()), members, root)
    )


def _members(schema: Schema, root: Root, depth: int = 0) -> Iterator[Schema]:
    """The schemas that the value may have: the members of unions, one for each type."""
    schema = dereference(schema, root)
    inner = [member for word in ("anyOf", "oneOf") for member in schema.get(word, ())]
    if inner and depth < _MOST_UNIONS:
        for member in inner:
            yield from _members(member, root, depth + 1)
    elif isinstance(schema.get("type"), list):
        yield from ({**schema, "type": kind} for kind in kinds_of(schema))
    else:
        yield schema


def _value_of_children(element: ElementTree.Element, members: list[Schema], root: Root) -> Any:
    objects = [
        member
        for member in members
        if member.get("type", "object") == "object" and not words_of(member)
    ]
    array = next((member for member in members if member.get("type") == "array"), None)
    if array is not None and (not objects or all(child.tag == "item" for child in element)):
        first, others = array.get("prefixItems", []), _schema_in(array, "items")
        return [
            xml_value(child, first[place] if place < len(first) else others, root)
            for place, child in enumerate(element)
        ]
    if not objects:
        # One element around all of the text is a name that the model gave it; several are markup.
        is_markup = len(element) > 1 or any(map(str.strip, _texts_around(element)))
        if is_markup and any(map(_takes_any_text, members)):
            return _text_with_markup(element)
        return "".join(element.itertext())
    chosen = next((one for one in objects if _fits_member(element, one, root)), objects[0])
    fields, others = chosen.get("properties", {}), _schema_in(chosen, "additionalProperties")
    value: dict[str, Any] = {}
    for child in element:
        one = xml_value(child, fields.get(child.tag, others), root)
        if child.tag in fields and child.tag in value and not is_same_json(value[child.tag], one):
            raise ValueError(f"the field {child.tag} is written twice")
        value[child.tag] = one
    return value


def _texts_around(element: ElementTree.Element) -> list[str]:
    """The element's own texts: before, between and after its child elements."""
    return [element.text or "", *(child.tail or "" for child in element)]


def _text_with_markup(element: ElementTree.Element) -> str:
    """A text as the model wrote it, including elements that it has not escaped: they are part of
    the answer.
    """
    parts = [element.text or ""]
    for child in element:
        names = "".join(f' {name}="{value}"' for name, value in child.items())
        inner = _text_with_markup(child)
        ends = f"{names}>{inner}</{child.tag}>" if inner else f"{names}/>"
        parts += (f"<{child.tag}{ends}", child.tail or "")
    return "".join(parts)


def _schema_in(schema: Schema, word: str) -> Schema:
    """The schema under a keyword whose value may also be a boolean."""
    found = schema.get(word)
    return found if isinstance(found, Mapping) else {}


def _fits_member(element: ElementTree.Element, member: Schema, root: Root) -> bool:
    """Whether an object has the fields and the fixed words of this member. It looks no deeper,
    which would take for ever in a recursive union."""
    texts = {child.tag: "".join(child.itertext()) for child in element if not len(child)}
    tags = {child.tag for child in element}
    if not tags.issuperset(member.get("required", ())):
        return False
    fields = {tag: dereference(member.get("properties", {}).get(tag, {}), root) for tag in texts}
    words = {tag: words_of(field) for tag, field in fields.items()}
    return all(
        not words[tag] or _fixed_word(text, words[tag]) is not _NONE for tag, text in texts.items()
    )


_NONE = object()


def _fixed_word(text: str, words: list[Any]) -> Any:
    """The fixed word that the text spells; an exact string goes before a number."""
    exact = [word for word in words if isinstance(word, str) and word in (text, text.strip())]
    written = [
        word
        for word in words
        if not isinstance(word, str) and orjson.dumps(word).decode() == text.strip().lower()
    ]
    return next(iter([*exact, *written]), _NONE)


def _value_of_text(text: str, members: list[Schema], root: Root) -> Any:
    """A text as the first member that it can be. Members that take any text come last, except that
    they take an empty text first."""
    if not text.strip() and any(map(_takes_any_text, members)):
        return text
    for member in sorted(members, key=_takes_any_text):
        value = _value_as_member(text, member, root)
        if value is not _NONE:
            return value
    return text


def _takes_any_text(member: Schema) -> bool:
    return member.get("type", "string") == "string" and not words_of(member)


def _value_as_member(text: str, member: Schema, root: Root) -> Any:
    kind, words = member.get("type", "string"), words_of(member)
    if words:
        return _fixed_word(text, words)
    if kind == "string":
        return text
    if not text.strip() and kind in ("array", "null"):
        return [] if kind == "array" else None
    try:
        value = orjson.loads(text.strip().lower() if kind == "boolean" else text)
    except ValueError:
        return _NONE
    is_kind = type(value) in _TYPES.get(kind, ())
    return value if is_kind and fit(value, member, root) is Fit.GOOD else _NONE
