"""How the emulated model reads a prompt: which records are in it, and in what shape it has to
answer.

This is written from what prompts say, not from the code that writes them: the point is that the two
agree.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from beam_llm.testing.emulator.pictures import PICTURE, words_of

# The ways in which a prompt numbers its records: `Input 1: …`, XML, and lists as people write them.
# A user's own template may use any of them.
_INPUT = re.compile(r"^[ \t]*Input (\d+):[ ]?", re.MULTILINE)
_XML_INPUT = re.compile(r'<input index="(\d+)"[^>]*>(.*?)</input>', re.DOTALL)
_NUMBERED = re.compile(r"^[ \t]*\[?(\d+)[.):\]|][ \t]?", re.MULTILINE)
_MEMBER = re.compile(r"^(?:Record (\d+)|Part (\d+) \(([\d,]+) records?\)): ", re.MULTILINE)
_CHILD = re.compile(r"<([A-Za-z_][\w.-]*)>(.*?)</\1>", re.DOTALL)
_DELIMITED = re.compile(r"\b1\s?\||(?:index|number)>?\s?\|", re.IGNORECASE)
_WORD_LIST = re.compile(
    r"\b(?:one of|either)(?: the following| these)?:?\s+([^\n]+)", re.IGNORECASE
)
_REPLY_WORDS = re.compile(r"\n\n(?=(?:Reply|Answer|Respond) with\b)")
# Anchored at the beginning of a line: otherwise a long line takes quadratic time.
_INLINE_SCHEMA = re.compile(r"^[^\n]*\bJSON schema:\s*(?=\{)", re.MULTILINE)
_CARE = re.compile(r"\n\nAnswer with care, [^\n]*\Z")
"""The sentence that the package puts at the end of a prompt when it asks again. It is about the
first reply, and not part of the record."""
_VERBS = (
    "classify|rate|score|label|judge|decide|summari[sz]e|translate|extract|give|tell|answer|say|"
    "name|list|find|read|write|count|describe|explain|detect|identify|determine|assess|evaluate|"
    "grade|tag|categori[sz]e|predict|guess|return|reply|analy[sz]e|you are|"
    "is|are|does|do|what|which|how|who|why"
)
_ASKS = re.compile(rf"(?:please )?(?:{_VERBS})\b|.*(?:\?$|\b(?:following|below)\b)", re.IGNORECASE)
_THIS = re.compile(r"[^\n]*\b(?:this|the|following)(?: \w+){0,3}: ")


@dataclass(frozen=True, slots=True)
class Question:
    """What a prompt asks.

    Attributes:
      texts: the records' texts in the order of their numbers 1…n.
      indexed: whether the answers carry numbers.
      shape: `json`, `xml`, `delimited` or, for one record without a schema, `text`.
      schema: the schema of ONE answer; None where any text will do.
      root: the schema of the whole reply, where one is given.
      hint: the text of the instruction.
      index_field, list_path, value_field: names in the reply. An empty `list_path` means a bare
        array; `value_field` None means that an object answer's fields stand beside the index.
      keyed: whether the reply is one object with each answer under its number.
      first: the number of the first record, where answers are a list.
      covers: how many records the one answer is over; None where each text has its own.
    """

    texts: tuple[str, ...]
    indexed: bool
    shape: str
    schema: Mapping[str, Any] | None
    root: Mapping[str, Any] | None
    hint: str
    index_field: str = "index"
    list_path: tuple[str, ...] = ()
    value_field: str | None = "value"
    keyed: bool = False
    first: int = 1
    covers: int | None = None


def read_question(body: Mapping[str, Any]) -> Question:
    """Reads what a chat-completions body asks. It never fails: a prompt that it can't interpret is
    one record.
    """
    system, user = _prompt_texts(body.get("messages") or ())
    system, described = _extract_schema(system)
    root = _strict_schema(body.get("response_format")) or described
    reduced = _read_reduce_prompt(system, user, root)
    if reduced is not None:
        return reduced
    # Where a schema has no room for several answers, numbers in the text are the record's own.
    may_be_many = (
        root is None or _answer_list(root, root) is not None or _keyed_answer(root) is not None
    )
    found = _find_inputs(user) if may_be_many else None
    if found is not None:
        question = _read_many(found[0], f"{system}\n{found[1]}", root)
        if question is not None:
            return question
    if root is not None:
        listed = _listed_inputs(user)
        packed = _read_many_by_schema(listed[0], system, root) if listed is not None else None
        if listed is not None and packed is not None:
            return replace(packed, first=listed[1])
        instruction, text = split_single(user)
        return Question((text,), False, "json", root, root, f"{system}\n{instruction}")
    prompt, words = _without_reply_words(user)
    instruction, text = split_single(prompt)
    schema = _spoken_answer(words)
    if schema is None:
        return Question((text,), False, "text", None, None, f"{system}\n{instruction}")
    return Question((text,), False, "json", schema, schema, f"{system}\n{instruction}")


def _read_reduce_prompt(system: str, user: str, root: Mapping[str, Any] | None) -> Question | None:
    """Reads a prompt that asks for one answer over all its records, or over partial answers; None
    for any other.
    """
    marks = list(_MEMBER.finditer(user))
    if not marks or "one answer over" not in user[: marks[0].start()].lower():
        return None
    prompt, words = _without_reply_words(user)
    lines = [prompt[mark.end() :].partition("\n")[0] for mark in marks if mark.end() <= len(prompt)]
    texts = tuple(_json_text(line) or line for line in lines)
    covers = sum(int(mark[3].replace(",", "")) if mark[3] else 1 for mark in marks)
    schema = root or _spoken_answer(words)
    hint = f"{system}\n{user[: marks[0].start()]}"
    shape = "text" if schema is None else "json"
    return Question(texts, False, shape, schema, schema, hint, covers=covers)


def split_single(user: str) -> tuple[str, str]:
    """The instruction and the record of a prompt for one record.

    The record follows the first line that ends in a colon, or else words such as `… this review: `,
    or else a first line that asks for something. A prompt that asks for nothing is itself the
    record.
    """
    # The most reliable sign first.
    colon = user.find(":\n")
    if colon >= 0:
        return user[: colon + 1], user[colon + 2 :]
    if _ASKS.match(user.partition("\n")[0]) is None:
        return "", user
    named = _THIS.match(user)
    if named is not None:
        return user[: named.end()].rstrip(), user[named.end() :]
    first, line_break, rest = user.partition("\n")
    return (first, rest) if line_break else ("", user)


def _spoken_answer(words: str) -> Mapping[str, Any] | None:
    """The schema of a reply to one record, from the words at the end of its prompt."""
    schema = spoken_schema(words)
    # An answer that is not an object is requested inside one, as `{"value": …}`.
    named = None if schema is None else re.search(r'\bThe "(\w+)" follows', words)
    if schema is None or named is None:
        return schema
    return {
        "type": "object",
        "properties": {named[1]: schema},
        "required": [named[1]],
        "$defs": schema.get("$defs", {}),
    }


def _without_reply_words(text: str) -> tuple[str, str]:
    """Splits a prompt from the paragraph at its end on how to reply."""
    places = [match.start() for match in _REPLY_WORDS.finditer(text)]
    return (text[: places[-1]], text[places[-1] :]) if places else (text, "")


def _prompt_texts(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """All system text and the last user text; of content parts, the text ones."""
    system, user = [], ""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(_part_text(part) for part in content if isinstance(part, dict))
        content = content if isinstance(content, str) else ""
        if message.get("role") in ("system", "developer"):
            system.append(content)
        elif message.get("role") == "user":
            user = content  # in a session, the last turn is the question
    return "\n".join(system), _CARE.sub("", user)


def _part_text(part: Mapping[str, Any]) -> str:
    if part.get("type") == "image_url":
        return words_of(part["image_url"]["url"])
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _extract_schema(system: str) -> tuple[str, Mapping[str, Any] | None]:
    """Splits the schema of the whole reply from the system text in which it is written out."""
    # By a decoder, not by matching braces, which may also occur inside strings.
    for match in _INLINE_SCHEMA.finditer(system):
        try:
            schema, end = json.JSONDecoder().raw_decode(system, match.end())
        except ValueError:
            continue
        return system[: match.start()] + system[end:], schema
    return system, None


def _strict_schema(response_format: Any) -> Mapping[str, Any] | None:
    if isinstance(response_format, dict) and response_format.get("type") == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
        return schema if isinstance(schema, dict) else None
    return None


def _find_inputs(user: str) -> tuple[tuple[str, ...], str] | None:
    """The records' texts, and the words around them; None where no records are marked."""
    user, after = (
        _without_reply_words(user)
        if _REPLY_WORDS.search(user) and not _marks_end(user)
        else (user, "")
    )
    if "<input index=" in user:
        run = _consecutive(_tagged_inputs(user))
        if run:
            return tuple(text for _, text, _ in run), user[: run[0][2]] + after
    for mark, is_input in ((_INPUT, True), (_NUMBERED, False)):
        run = _consecutive(_marked_inputs(user, mark))
        # A single "1." may begin a record; a single `Input 1:` is this package's mark.
        if run and (is_input or len(run) > 1):
            return tuple(text for _, text, _ in run), user[: run[0][2]] + after
    return None


def _listed_inputs(user: str) -> tuple[tuple[str, ...], int] | None:
    """The texts and the number of the first one, of a prompt that is JSON such as `{"messages":
    [{"id": 0, "body": "…"}]}`, under any names.
    """
    if not user.startswith("{"):
        return None
    try:
        lists = list(json.loads(user).values())
    except ValueError:
        return None
    if len(lists) != 1 or not isinstance(lists[0], list) or not lists[0]:
        return None
    pairs = [tuple(each.values()) if isinstance(each, dict) else () for each in lists[0]]
    if any(len(pair) != 2 or type(pair[0]) is not int for pair in pairs):
        return None
    first = pairs[0][0]
    if [number for number, _ in pairs] != list(range(first, first + len(pairs))):
        return None
    return tuple(str(text) for _, text in pairs), first


def _marks_end(user: str) -> bool:
    """Whether records come last, after any words on how to reply."""
    last = user.rstrip().rpartition("\n")[2]
    return _INPUT.match(last) is not None or last.endswith("</input>")


def _tagged_inputs(user: str) -> list[tuple[int, str, int]]:
    """(number, text, position) of every `<input>`, with the pictures that follow it."""
    tags = list(_XML_INPUT.finditer(user))
    ends = [*(match.start() for match in tags[1:]), len(user)]
    return [
        (int(match[1]), _with_pictures(_xml_text(match[2]), user[match.end() : end]), match.start())
        for match, end in zip(tags, ends, strict=False)  # without tags there is an end all the same
    ]


def _with_pictures(text: str, after: str) -> str:
    """A record's text, with the pictures that follow it."""
    return "\n".join([text, *(found[0] for found in PICTURE.finditer(after))])


def _marked_inputs(user: str, mark: re.Pattern[str]) -> list[tuple[int, str, int]]:
    """(number, text, position) of every mark. The text is the JSON on the mark's line, or else
    everything up to the next mark.
    """
    marks = list(mark.finditer(user))
    found = []
    for place, match in enumerate(marks):
        end = marks[place + 1].start() if place + 1 < len(marks) else len(user)
        line_end = user.find("\n", match.end())
        line = user[match.end() : line_end if line_end >= 0 else len(user)]
        # As JSON, a text is on one line, whatever it holds; otherwise it ends at the next mark.
        text = _json_text(line)
        if text is not None and line_end >= 0:
            text = _with_pictures(text, user[line_end:end])
        found.append(
            (
                int(match[1]),
                text if text is not None else user[match.end() : end].strip("\n"),
                match.start(),
            )
        )
    return found


def _consecutive(found: list[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """The entries that are numbered 1, 2, 3, … in order."""
    # A number out of order is part of a text, such as "2." inside the first record.
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


def _read_many(
    texts: tuple[str, ...], hint: str, root: Mapping[str, Any] | None
) -> Question | None:
    # A schema leaves no choice; words are tried from the most specific to the most general.
    if root is not None:
        return _read_many_by_schema(texts, hint, root)
    tag = re.search(r'<answer (\w+)="1">', hint)
    if tag is not None:
        return Question(texts, True, "xml", spoken_schema(hint), None, hint, tag[1])
    if _DELIMITED.search(hint):
        return Question(texts, True, "delimited", spoken_schema(hint), None, hint)
    if re.search(r'\{"1": ', hint):
        schema = spoken_schema(hint)
        packed = _read_many_by_schema(texts, hint, schema) if schema is not None else None
        return packed or Question(texts, True, "json", schema, None, hint, keyed=True)
    named = re.search(r'\{\s*"(\w+)":\s*(?:1|<?int)', hint)
    if named is None and "index" not in hint.lower():
        return None
    return _read_many_in_words(texts, hint, named[1] if named else "index")


def _read_many_by_schema(
    texts: tuple[str, ...], hint: str, root: Mapping[str, Any]
) -> Question | None:
    keyed = _keyed_answer(root)
    if keyed is not None:
        return Question(
            _cut_to_bounds(texts, len(root["properties"]), len(root["properties"])),
            True,
            "json",
            keyed,
            root,
            hint,
            keyed=True,
        )
    place = _answer_list(root, root)
    if place is None:
        return None
    list_path, items = place
    texts = _cut_to_bounds(texts, *_bounds_of(root, list_path))
    index_field = _index_name(items)
    others = [name for name in items["properties"] if name != index_field]
    return Question(
        texts,
        True,
        "json",
        items,
        root,
        hint,
        index_field or "index",
        list_path,
        others[0] if len(others) == 1 else None,
    )


def _cut_to_bounds(texts: tuple[str, ...], least: int, most: int | None) -> tuple[str, ...]:
    """As many texts as the schema asks answers for: a grammar stops after the most answers, and
    makes the model write at least the fewest.
    """
    return texts[:most] + ("",) * (least - len(texts))


def _bounds_of(root: Mapping[str, Any], list_path: tuple[str, ...]) -> tuple[int, int | None]:
    array: Mapping[str, Any] = root
    for name in list_path:
        array = array["properties"][name]
    return array.get("minItems", 0), array.get("maxItems")


def _keyed_answer(root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of one answer, if the reply is an object with a key for each of 1…n; else None."""
    properties = root.get("properties")
    if not isinstance(properties, dict) or list(properties) != [
        str(index) for index in range(1, len(properties) + 1)
    ]:
        return None
    # Keys such as "1" and "2" may be a user's own fields; a reply's keys all have the same type.
    kinds = list(properties.values())
    if not kinds or any(kind != kinds[0] for kind in kinds) or not isinstance(kinds[0], dict):
        return None
    return {**resolve(kinds[0], root), "$defs": root.get("$defs", {})}


def _read_many_in_words(texts: tuple[str, ...], hint: str, index_field: str) -> Question:
    """Reads how a JSON reply is requested in words: by an example's fields, or by a schema written
    in the prompt.
    """
    schema = spoken_schema(hint)
    packed = _read_many_by_schema(texts, hint, schema) if schema is not None else None
    if packed is not None:
        return packed
    name = re.escape(index_field)
    example = re.search(rf'\{{\s*"{name}":\s*1\s*,\s*"(\w+)":', hint)
    around = re.search(rf'((?:\{{\s*"\w+":\s*)*)\[\s*\{{\s*"{name}"', hint)
    list_path = tuple(re.findall(r'"(\w+)"', around[1])) if around else ()
    value_field = example[1] if example else "value"
    is_flat = schema is not None and value_field in schema.get("properties", {})
    return Question(
        texts,
        True,
        "json",
        schema,
        None,
        hint,
        index_field,
        list_path,
        None if is_flat else value_field,
    )


def _answer_list(
    schema: Mapping[str, Any], root: Mapping[str, Any]
) -> tuple[tuple[str, ...], Mapping[str, Any]] | None:
    """(names that lead to the array of answers, schema of its items with the root's `$defs`); None
    where there is no such array.
    """
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        items = resolve(schema["items"], root)
        return (
            ((), {**items, "$defs": root.get("$defs", {})})
            if _index_name(items) is not None
            else None
        )
    for name, part in schema.get("properties", {}).items():
        found = _answer_list(part, root) if isinstance(part, dict) else None
        if found is not None:
            return (name, *found[0]), found[1]
    return None


def _index_name(items: Mapping[str, Any]) -> str | None:
    properties = items.get("properties", {})
    if "index" in properties:
        return "index"
    return next(
        (
            name
            for name, schema in properties.items()
            if isinstance(schema, dict) and schema.get("type") == "integer"
        ),
        None,
    )


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follows local `$ref`s."""
    # Bounded: a definition may refer to itself, directly or in a circle.
    seen = 0
    while "$ref" in schema and seen < 32:
        target: Any = root
        for part in schema["$ref"].lstrip("#/").split("/"):
            target = target.get(part, {})
        schema, seen = target, seen + 1
    return schema


@lru_cache(maxsize=256)
def spoken_schema(words: str) -> Mapping[str, Any] | None:
    """The schema of one answer as the words of a prompt give it: a JSON schema that is written out,
    words to choose from, or a type; the last of these counts.
    """
    found = [
        _spoken_json(words),
        _spoken_words(words),
        *(_spoken_type(words, pattern, kind) for pattern, kind in _TYPES),
    ]
    # The last one counts, since the instruction on the reply comes after the task.
    return max(found, key=lambda place: place[0])[1]


@lru_cache(maxsize=256)
def spoken_choice(words: str) -> Mapping[str, Any] | None:
    """`… one of: good, bad` in an instruction, as a schema."""
    return _spoken_words(words)[1]


_TYPES = (
    (r"\ban integer\b", "integer"),
    (r"\b(?:answer|value) is a number\b", "number"),
    (r"\btrue or false\b", "boolean"),
)
_Spoken = tuple[int, Mapping[str, Any] | None]


def _spoken_json(words: str) -> _Spoken:
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", words):
        try:
            value, _ = decoder.raw_decode(words, match.start())
        except ValueError:
            continue
        if isinstance(value, dict) and any(
            word in value for word in ("type", "properties", "enum", "anyOf", "$ref")
        ):
            return match.start(), value
    return -1, None


def _spoken_words(words: str) -> _Spoken:
    matches = list(_WORD_LIST.finditer(words))
    if not matches:
        return -1, None
    listed = matches[-1][1]
    quoted = ["".join(found) for found in re.findall(r"\"([^\"]+)\"|'([^']+)'|`([^`]+)`", listed)]
    sentence = re.split(r"[.;](?:\s|$)", listed.rpartition(": ")[2] or listed)[0]
    bare = [
        word.strip(" :")
        for word in re.split(r",(?:\s*(?:and|or)\b)?|\bor\b|/|\|", sentence)
        if word.strip(" :")
    ]
    members = quoted or bare
    return (matches[-1].start(), {"enum": members}) if len(members) > 1 or quoted else (-1, None)


def _spoken_type(words: str, pattern: str, kind: str) -> _Spoken:
    matches = list(re.finditer(pattern, words))
    return (matches[-1].start(), {"type": kind}) if matches else (-1, None)
