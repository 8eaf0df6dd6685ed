"""How the emulated model reads a prompt: which records are in it, and in what shape it is to answer.

Written from what a prompt says, not from the code that writes prompts: that two readings agree is the point.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_INPUT = re.compile(r"^[ \t]*Input (\d+):[ ]?", re.MULTILINE)
_XML_INPUT = re.compile(r'<input index="(\d+)"[^>]*>(.*?)</input>', re.DOTALL)
_NUMBERED = re.compile(r"^[ \t]*\[?(\d+)[.):\]|][ \t]?", re.MULTILINE)
_CHILD = re.compile(r"<([A-Za-z_][\w.-]*)>(.*?)</\1>", re.DOTALL)
_DELIMITED = re.compile(r"\b1\s?\||(?:index|number)>?\s?\|", re.IGNORECASE)
_WORD_LIST = re.compile(
    r"(?:one of|either|exactly one of)[:\s]+((?:[\"'`]?[\w -]+?[\"'`]?\s*(?:,|\bor\b|/|\|)\s*)+[\"'`]?[\w-]+[\"'`]?)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, understood.

    Attributes:
      texts: the records' texts in the order of their numbers 1…n.
      indexed: whether the answers carry numbers.
      shape: `json`, `xml`, `delimited` or, for one record without a schema, `text`.
      schema: of ONE answer, or None where any text will do.
      root: with a strict schema, the whole reply's schema.
      hint: the instruction's words.
      index_field, list_field, value_field: names in a JSON reply; `list_field` None is a bare array; `value_field` None
        puts an object answer's fields beside the index.
    """

    texts: tuple[str, ...]
    indexed: bool
    shape: str
    schema: Mapping[str, Any] | None
    root: Mapping[str, Any] | None
    hint: str
    index_field: str = "index"
    list_field: str | None = None
    value_field: str | None = "value"


def read_question(body: Mapping[str, Any]) -> Question:
    """Understands a chat-completions body. Never fails: a prompt it can't make out is one record."""
    system, user = _words(body.get("messages") or ())
    root = _strict_schema(body.get("response_format"))
    found = _find_inputs(user)
    if found is not None:
        question = _many(found[0], f"{system}\n{found[1]}", root)
        if question is not None:
            return question
    instruction, text = split_single(user)
    if root is not None:
        return Question((text,), False, "json", root, root, f"{system}\n{instruction}")
    return Question((text,), False, "text", None, None, f"{system}\n{instruction}")


def split_single(user: str) -> tuple[str, str]:
    """Instruction and record of a prompt for one record: the record follows the first line that ends in a colon,
    else the first line; a prompt of one line is the record itself."""
    colon = user.find(":\n")
    if colon >= 0:
        return user[: colon + 1], user[colon + 2 :]
    first, line_break, rest = user.partition("\n")
    return (first, rest) if line_break else ("", user)


def _words(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """All system text and the last user text; of content parts, the text ones."""
    system, user = [], ""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
        content = content if isinstance(content, str) else ""
        if message.get("role") in ("system", "developer"):
            system.append(content)
        elif message.get("role") == "user":
            user = content
    return "\n".join(system), user


def _strict_schema(response_format: Any) -> Mapping[str, Any] | None:
    if isinstance(response_format, dict) and response_format.get("type") == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
        return schema if isinstance(schema, dict) else None
    return None


def _find_inputs(user: str) -> tuple[tuple[str, ...], str, bool] | None:
    """(texts, instruction before them, whether the marks were our `Input`s), or None."""
    if "<input index=" in user:
        tagged = [(int(match[1]), _xml_text(match[2]), match.start()) for match in _XML_INPUT.finditer(user)]
        run = _run(tagged)
        if run:
            return tuple(text for _, text, _ in run), user[: run[0][2]], True
    for mark, ours in ((_INPUT, True), (_NUMBERED, False)):
        run = _run(_marked(user, mark))
        if run and (ours or len(run) > 1):
            return tuple(text for _, text, _ in run), user[: run[0][2]], ours
    return None


def _marked(user: str, mark: re.Pattern[str]) -> list[tuple[int, str, int]]:
    """(number, text, position) of every mark; a text is the JSON on its line, else all up to the next mark."""
    marks = list(mark.finditer(user))
    found = []
    for place, match in enumerate(marks):
        end = marks[place + 1].start() if place + 1 < len(marks) else len(user)
        line_end = user.find("\n", match.end())
        line = user[match.end() : line_end if line_end >= 0 else len(user)]
        text = _json_text(line)
        found.append((int(match[1]), text if text is not None else user[match.end() : end].strip("\n"), match.start()))
    return found


def _run(found: list[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """Those numbered 1, 2, 3, … in order."""
    run: list[tuple[int, str, int]] = []
    for entry in found:
        if entry[0] == len(run) + 1:
            run.append(entry)
    return run


def _json_text(line: str) -> str | None:
    line = line.strip()
    if not line.startswith(('"', "{")):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, str) else "\n".join(str(part) for part in value.values())


def _xml_text(content: str) -> str:
    children = _CHILD.findall(content)
    if children:
        return "\n".join(html.unescape(text) for _, text in children)
    return html.unescape(content)


def _many(texts: tuple[str, ...], hint: str, root: Mapping[str, Any] | None) -> Question | None:
    if root is not None:
        place = _answer_list(root)
        if place is None:
            return None
        list_field, items = place
        index_field = _index_name(items)
        if index_field is None:
            return None
        others = [name for name in items.get("properties", {}) if name != index_field]
        alone = others[0] if len(others) == 1 else None
        return Question(texts, True, "json", items, root, hint, index_field, list_field, alone)
    if "<answer" in hint:
        return Question(texts, True, "xml", spoken_schema(hint), None, hint)
    if _DELIMITED.search(hint):
        return Question(texts, True, "delimited", spoken_schema(hint), None, hint)
    named = re.search(r'\{\s*"(\w+)":\s*(?:1|<?int)', hint)
    if named is None and "index" not in hint.lower():
        return None
    return _many_in_words(texts, hint, named[1] if named else "index")


def _many_in_words(texts: tuple[str, ...], hint: str, index_field: str) -> Question:
    """A JSON reply asked for in words: the example's fields, or a schema written into the prompt."""
    schema = spoken_schema(hint)
    place = _answer_list(schema) if schema else None
    if place is not None and schema is not None:
        return Question(texts, True, "json", place[1], schema, hint, _index_name(place[1]) or index_field, place[0], None)
    name = re.escape(index_field)
    example = re.search(rf'\{{\s*"{name}":\s*1\s*,\s*"(\w+)":', hint)
    list_field = re.search(rf'\{{\s*"(\w+)":\s*\[\s*\{{\s*"{name}"', hint)
    value_field = example[1] if example else "value"
    return Question(texts, True, "json", schema, None, hint, index_field, list_field[1] if list_field else None, value_field)


def _answer_list(root: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]] | None:
    """(name of the array or None for a root array, schema of its items with the root's `$defs`)."""
    defs = root.get("$defs")
    candidates: list[tuple[str | None, Any]] = [(None, root)] if root.get("type") == "array" else list(root.get("properties", {}).items())
    for name, schema in candidates:
        if isinstance(schema, dict) and schema.get("type") == "array" and isinstance(schema.get("items"), dict):
            items = resolve(schema["items"], root)
            if _index_name(items) is not None:
                return name, {**items, "$defs": defs} if defs else items
    return None


def _index_name(items: Mapping[str, Any]) -> str | None:
    properties = items.get("properties", {})
    if "index" in properties:
        return "index"
    return next((name for name, schema in properties.items() if isinstance(schema, dict) and schema.get("type") == "integer"), None)


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follows local `$ref`s."""
    seen = 0
    while "$ref" in schema and seen < 32:
        target: Any = root
        for part in schema["$ref"].lstrip("#/").split("/"):
            target = target.get(part, {})
        schema, seen = target, seen + 1
    return schema


@lru_cache(maxsize=256)
def spoken_schema(hint: str) -> Mapping[str, Any] | None:
    """What the words of an instruction say of one answer: a JSON schema written out, or a list of words to choose from."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", hint):
        try:
            value, _ = decoder.raw_decode(hint, match.start())
        except ValueError:
            continue
        if isinstance(value, dict) and any(word in value for word in ("type", "properties", "enum", "anyOf", "$ref")):
            return value
    words = _WORD_LIST.search(hint)
    if words:
        return {"enum": [word.strip(" \"'`") for word in re.split(r",|\bor\b|/|\|", words[1]) if word.strip(" \"'`")]}
    for pattern, kind in (
        (r"\b(integer|whole number)\b", "integer"),
        (r"\bnumber\b(?! of| the)", "number"),
        (r"\btrue or false\b", "boolean"),
    ):
        if re.search(pattern, hint):
            return {"type": kind}
    return None
