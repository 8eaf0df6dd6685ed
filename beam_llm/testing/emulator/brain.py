"""What the emulated model answers: meaningful values that follow the schema. The same text always
gets the same answer.

Sentiment is scored by VADER (C. J. Hutto and E. Gilbert, ICWSM 2014), which the extra `demo`
installs; without it, and for questions that are not about sentiment, an answer is derived from a
checksum of the text.
"""

from __future__ import annotations

import hashlib
import html
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.pictures import PICTURE, colour_names
from beam_llm.testing.emulator.reading import Question, resolve, spoken_choice
from beam_llm.testing.emulator.spoken_rules import text_matching, with_spoken_rules

# A schema is turned into a function once, and the function is called for each record: a job has one
# schema and a million records.
Filler = Callable[[str], Any]

_WORD = re.compile(r"[^\W\d_][\w'-]*")
_SENTIMENT = re.compile(
    r"sentiment|polarity|positive|negative|mood|tone|satisf|opinion|stars?\b|rat(?:e|ing)\b|scor",
    re.IGNORECASE,
)
_COUNT = re.compile(r"(?:number_of_|num_)?records|(?:record_)?count", re.IGNORECASE)
_SCORE = re.compile(r"scor|rating|stars?\b|sentiment|polarity|compound|valence", re.IGNORECASE)
# Recursive schemas never end by themselves; below this depth, only required fields are filled in.
_MAX_DEPTH = 6


class Brain:
    """Answers records. It has no state except caches, so any thread may use it.

    Args:
      fast: takes labels from a checksum instead of the scorer, in constant time, for benchmarks.
      reads: how many records of a prompt it reads with care. Its answers to the records after them
        are valid but wrong, like those of a weak model that is asked too much at once.
    """

    def __init__(self, fast: bool = False, reads: int | None = None) -> None:
        self._reads = reads
        self._compound: Callable[[str], float] = _checksum_compound if fast else compound
        self._fillers: dict[tuple[bytes, bool], Filler] = {}

    def values(self, question: Question) -> list[Any]:
        """One answer per record; an object answer that has an index comes without it."""
        fill = self._filler(question)
        return [fill(text) for text in _texts_to_answer(question)]

    def reply(self, question: Question, faults: tuple[Fault, ...] = ()) -> str:
        """The reply's text, with the faults that concern its answers or its form."""
        values = self.values(question)
        if any(fault.kind == "line_conflicting" for fault in faults):
            # Another answer to the same line, which the client must not use instead of the first.
            values = [
                self.other_value(question, text, value)
                for text, value in zip(_texts_to_answer(question), values, strict=True)
            ]
        if self._reads is not None and question.indexed:
            values = self._misread_after(question, values, self._reads)
        if question.indexed:
            entries = list(enumerate(values, 1))
            for fault in faults:
                entries = _apply_fault(entries, fault, question, self)
            text = _indexed_text(question, entries)
        else:
            text = _single_text(question, values[0], faults)
        # Last, because these faults concern the text, not its answers.
        for fault in faults:
            text = _distort(text, fault)
        return text

    def _misread_after(self, question: Question, values: list[Any], reads: int) -> list[Any]:
        unread = zip(question.texts[reads:], values[reads:], strict=True)
        return values[:reads] + [self.other_value(question, *each) for each in unread]

    def other_value(self, question: Question, text: str, value: Any) -> Any:
        """A valid answer to the record other than `value`, where the schema allows one."""
        # Words that change a sentiment, then some that change a checksum: one of them will do.
        fill = self._filler(question)
        tries = (
            fill(opposite + text)
            for opposite in (
                "terrible awful horrible ",
                "wonderful excellent love ",
                "x ",
                "y ",
                "z ",
                "1 ",
            )
        )
        return next((found for found in tries if found != value), value)

    def _filler(self, question: Question) -> Filler:
        sentiment = _SENTIMENT.search(question.hint) is not None
        choice = spoken_choice(question.hint)
        key = (
            orjson.dumps(
                [
                    question.schema,
                    question.index_field if question.indexed and question.root else None,
                    choice,
                    question.covers is not None,
                ]
            ),
            sentiment,
        )
        filler = self._fillers.get(key)
        if filler is None:
            # Emptied, not evicted one by one: no test has so many schemas, but a long run may.
            if len(self._fillers) > 512:
                self._fillers.clear()
            filler = self._fillers[key] = self._build(question, sentiment)
        return filler

    def _build(self, question: Question, sentiment: bool) -> Filler:
        schema = question.schema
        choice = spoken_choice(question.hint)
        if schema is None:
            return (
                self._enum(list(choice["enum"]), "value")
                if choice
                else extract
                if question.covers is not None
                else self._label
                if sentiment
                else extract
            )
        root = schema if question.indexed else (question.root or schema)
        if question.keyed:
            return self.filler(_prefer_choice(choice, schema), schema, "value", sentiment)
        if question.indexed and question.root is not None:
            rest = {
                name: part
                for name, part in schema["properties"].items()
                if name != question.index_field
            }
            # An answer with a single field is filled in as a bare value, and put under the field's
            # name beside the index later.
            if list(rest) == [question.value_field]:
                part = _prefer_choice(choice, rest[question.value_field])
                return self.filler(part, root, str(question.value_field), sentiment)
            schema = {**schema, "properties": rest}
        return self.filler(schema, root, "value", sentiment)

    def _label(self, text: str) -> str:
        # VADER's own thresholds (Hutto and Gilbert).
        score = self._compound(text)
        return "positive" if score >= 0.05 else "negative" if score <= -0.05 else "neutral"

    def filler(
        self,
        schema: Mapping[str, Any],
        root: Mapping[str, Any],
        name: str,
        sentiment: bool,
        depth: int = 0,
    ) -> Filler:
        """A function from a record's text to an instance of the schema.

        Args:
          name: the field's name, from which its meaning is taken.
          sentiment: whether the instruction asks for sentiment; applies to unnamed fields.
        """
        schema = with_spoken_rules(_simplify(schema, root, depth))
        if "const" in schema:
            return lambda text: schema["const"]
        if schema.get("enum"):
            return self._enum(list(schema["enum"]), name)
        kind = schema.get("type")
        means_sentiment = _SCORE.search(name) is not None or (
            sentiment and name in ("value", "answer", "result")
        )
        if kind == "object" or "properties" in schema:
            return self._object(schema, root, sentiment, depth)
        if kind == "array":
            return self._array(schema, root, name, sentiment, depth)
        if kind in ("integer", "number"):
            return self._number(schema, name, kind == "integer", means_sentiment)
        if kind == "boolean":
            positive = (
                re.search(r"positive|recommend|good|happy|satisf", name, re.IGNORECASE) is not None
                or means_sentiment
            )
            return (
                (lambda text: self._compound(text) >= 0.05)
                if positive
                else (lambda text: hash_of(text, name) % 2 == 0)
            )
        if kind == "null":
            return lambda text: None
        return self._string(schema, name, means_sentiment)

    def _enum(self, members: list[Any], name: str) -> Filler:
        # In any case, since enums are written `POSITIVE` or `Positive`; answered as written.
        by_word = {str(member).lower(): member for member in members}
        if "positive" in by_word and "negative" in by_word:
            return lambda text: self._sentiment_member(text, by_word)
        return lambda text: (
            _by_picture(text, by_word) or members[hash_of(text, name) % len(members)]
        )

    def _sentiment_member(self, text: str, by_word: Mapping[str, Any]) -> Any:
        label = self._label(text)
        if label in by_word:
            return by_word[label]
        if "mixed" in by_word:
            return by_word["mixed"]
        return by_word["positive" if self._compound(text) >= 0 else "negative"]

    def _object(
        self, schema: Mapping[str, Any], root: Mapping[str, Any], sentiment: bool, depth: int
    ) -> Filler:
        fields = [
            (name, self.filler(part, root, name, sentiment, depth + 1))
            for name, part in schema.get("properties", {}).items()
            if depth < _MAX_DEPTH or name in schema.get("required", ())
        ]
        if not fields and isinstance(schema.get("additionalProperties"), dict):
            fill_any = self.filler(
                schema["additionalProperties"], root, "value", sentiment, depth + 1
            )
            least = schema.get("minProperties", 0)
            most = min(max(2, least), schema.get("maxProperties", 2))
            return lambda text: {
                word: fill_any(word) for word in _pad_words(words_of(text)[:most], least, text)
            }
        return lambda text: {name: fill(text) for name, fill in fields}

    def _array(
        self,
        schema: Mapping[str, Any],
        root: Mapping[str, Any],
        name: str,
        sentiment: bool,
        depth: int,
    ) -> Filler:
        if "prefixItems" in schema:
            members = [
                self.filler(member, root, f"{name} {place}", sentiment, depth + 1)
                for place, member in enumerate(schema["prefixItems"], start=1)
            ]
            return lambda text: [fill_member(text) for fill_member in members]
        least = schema.get("minItems", 0)
        most = max(least, min(schema.get("maxItems", 3), least + 3))
        if depth >= _MAX_DEPTH:
            most = least
        if "items" not in schema or most == 0:
            return lambda text: []
        items = _simplify(schema["items"], root, depth)
        if items.get("type") == "string" and not items.get("enum"):
            return lambda text: _pad_words(words_of(text)[:most], least, text)
        fill = self.filler(items, root, name, sentiment, depth + 1)
        # Several items about one text: each is filled in from the text and another number.
        return lambda text: [
            fill(text if place == 0 else f"{text} {place + 1}")
            for place in range(max(least, min(most, 1 + hash_of(text, name) % 3)))
        ]

    def _number(
        self, schema: Mapping[str, Any], name: str, is_integer: bool, sentiment: bool
    ) -> Filler:
        least, most = _bounds(schema, is_integer)
        if is_integer and _COUNT.fullmatch(name):
            return _leading_number
        # "Rate it" without a range means stars, and a score means -1 … 1.
        stars = sentiment and is_integer and least is None and most is None
        if stars:
            least, most = 1, 5
        elif sentiment and least is None and most is None:
            least, most = -1.0, 1.0
        low = least if least is not None else min(0, most if most is not None else 0)
        high = most if most is not None else low + 100
        share = (
            self._sentiment_share
            if sentiment
            else lambda text: hash_of(text, name) % 10_001 / 10_000
        )
        if is_integer:
            step = schema.get("multipleOf", 1)
            return lambda text: int(
                min(high, max(low, round((low + (high - low) * share(text)) / step) * step))
            )
        return lambda text: round(min(high, max(low, low + (high - low) * share(text))), 4)

    def _sentiment_share(self, text: str) -> float:
        return (self._compound(text) + 1) / 2

    def _string(self, schema: Mapping[str, Any], name: str, sentiment: bool) -> Filler:
        formatted = _FORMATS.get(schema.get("format", ""))
        if formatted is not None:
            return lambda text: formatted(hash_of(text, name))
        least = schema.get("minLength", 0)
        most = schema.get("maxLength", max(200, least))
        if pattern := schema.get("pattern"):
            return lambda text: _text_like(pattern, text, least, most, hash_of(text, name))
        if sentiment and name in ("value", "answer", "result", "sentiment", "label", "polarity"):
            return self._label
        if re.search(r"reason|why|explan|evidence|because", name, re.IGNORECASE):
            return lambda text: _fit_length(f'says "{self.strongest(text)}"', least, most)
        return lambda text: _fit_length(extract(text), least, most)

    def strongest(self, text: str) -> str:
        """The word of the text with the strongest sentiment."""
        words = words_of(text)
        return max(words, key=lambda word: abs(_valence(word.lower())), default=text.strip()[:20])


# Scoring is most of the work of an answer, and many benchmarks ask about the same reviews again.
@lru_cache(maxsize=1 << 17)
def compound(text: str) -> float:
    """VADER's compound score, -1 … 1; derived from a checksum where VADER is not installed."""
    analyzer = _analyzer()
    return (
        _checksum_compound(text)
        if analyzer is None
        else float(analyzer.polarity_scores(text)["compound"])
    )


def knows_sentiment() -> bool:
    """Whether labels are meaningful, that is, whether VADER is installed."""
    return _analyzer() is not None


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    """VADER, or None without the extra `demo`."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        return None
    return SentimentIntensityAnalyzer()


def _valence(word: str) -> float:
    analyzer = _analyzer()
    return _checksum_compound(word) if analyzer is None else float(analyzer.lexicon.get(word, 0.0))


def _checksum_compound(text: str) -> float:
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % 2001 / 1000 - 1


def _prefer_choice(
    choice: Mapping[str, Any] | None, schema: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The choice that the instruction gives, if the schema asks for any text; else the schema."""
    is_text = schema.get("type") == "string" and "enum" not in schema
    return choice if choice and is_text else schema


def _texts_to_answer(question: Question) -> Sequence[str]:
    """The text that each answer is drawn from."""
    return question.texts if question.covers is None else (_over_all(question),)


def _over_all(question: Question) -> str:
    """The text that one answer over several records is drawn from: how many they are, their most
    frequent words, and all of their texts.
    """
    text = "\n".join(question.texts)
    words = Counter(word.lower() for word in _WORD.findall(text) if len(word) > 4)
    for word in ("record", "records", "often"):  # of earlier answers
        del words[word]
    most = ", ".join(word for word, _ in sorted(words.items(), key=_most_first)[:3])
    return f"{question.covers} records, most often {most}\n{text}"


def _most_first(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]


def _leading_number(text: str) -> int:
    """The number that a text begins with: of records, where an answer is about several."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else hash_of(text, "count") % 101


def hash_of(text: str, name: str) -> int:
    """A number that depends only on a record's text and on the field it is for."""
    # Not `hash()`, which differs from process to process.
    digest = hashlib.blake2b(
        f"{name}\0{text}".encode("utf-8", "surrogatepass"), digest_size=6
    ).digest()
    return int.from_bytes(digest, "big")


def words_of(text: str) -> list[str]:
    """The text's words, each once, in order."""
    return list(dict.fromkeys(_WORD.findall(text)))


def _by_picture(text: str, by_word: Mapping[str, Any]) -> Any:
    """The enum member that names the colour of a picture in the text; None where none does."""
    return next((by_word[name] for name in colour_names(text) if name in by_word), None)


def extract(text: str) -> str:
    """A short answer drawn from the text: what its pictures show, or else its first words."""
    pictures = PICTURE.findall(text)
    if pictures:
        return " ".join(pictures)[:80]
    return " ".join(text.split()[:6])[:80] or "(nothing to say)"


_FORMATS: dict[str, Callable[[int], str]] = {
    "date": lambda number: f"20{number % 30:02d}-{number % 12 + 1:02d}-{number % 28 + 1:02d}",
    "date-time": lambda number: (
        f"20{number % 30:02d}-{number % 12 + 1:02d}-{number % 28 + 1:02d}T{number % 24:02d}:00:00Z"
    ),
    "time": lambda number: f"{number % 24:02d}:{number % 60:02d}:00Z",
    "duration": lambda number: f"P{number % 30 + 1}D",
    "email": lambda number: f"user{number % 10_000}@example.com",
    "uri": lambda number: f"https://example.com/{number % 10_000}",
    "uuid": lambda number: f"00000000-0000-4000-8000-{number % 10**12:012d}",
    "hostname": lambda number: f"host{number % 10_000}.example.com",
    "ipv4": lambda number: f"192.0.2.{number % 256}",
    "ipv6": lambda number: f"2001:db8::{number % 65_536:x}",
}


def _simplify(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """The schema without references and choices: of alternatives, the first that isn't null (deep
    in a recursion: null, if allowed).
    """
    schema = resolve(schema, root)
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            choices = [resolve(choice, root) for choice in schema[word]]
            nulls = [choice for choice in choices if choice.get("type") == "null"]
            others = [choice for choice in choices if choice.get("type") != "null"]
            return _simplify(
                nulls[0] if nulls and (depth >= _MAX_DEPTH or not others) else others[0],
                root,
                depth,
            )
    kind = schema.get("type")
    if isinstance(kind, list):
        return {**schema, "type": next((word for word in kind if word != "null"), "null")}
    return schema


def _bounds(schema: Mapping[str, Any], is_integer: bool) -> tuple[float | None, float | None]:
    """Inclusive bounds; exclusive ones are moved inwards."""
    # By a thousandth, since numbers are rounded to four digits when they are written.
    inwards = 1 if is_integer else 1e-3
    least, most = schema.get("minimum"), schema.get("maximum")
    if schema.get("exclusiveMinimum") is not None:
        least = schema["exclusiveMinimum"] + inwards
    if schema.get("exclusiveMaximum") is not None:
        most = schema["exclusiveMaximum"] - inwards
    return least, most


def _pad_words(words: list[str], least: int, text: str) -> list[str]:
    return words + [f"{extract(text)} {place}" for place in range(len(words), least)]


def _fit_length(text: str, least: int, most: int) -> str:
    return text[:most].ljust(least, ".")


def _text_like(pattern: str, text: str, least: int, most: int, seed: int) -> str:
    matching = text_matching(pattern, least, most, seed)
    return _fit_length(extract(text), least, most) if matching is None else matching


def _apply_fault(
    entries: list[tuple[Any, Any]], fault: Fault, question: Question, brain: Brain
) -> list[tuple[Any, Any]]:
    """The answers as a fault changes them. A fault that names a text affects the records that
    match; any other, one of the records.
    """
    kind = fault.kind
    if kind == "shuffled":
        return sorted(entries, key=lambda entry: hash_of(str(entry[0]), "shuffle"))
    if kind == "zero_based":
        return [(index - 1, value) for index, value in entries]
    if kind == "string_index":
        return [(str(index), value) for index, value in entries]
    if kind == "unknown_index":
        # Far enough behind the last index that no shift of the indices explains it.
        return [*entries, (len(question.texts) + 7, entries[0][1])] if entries else entries
    if kind not in ("missing", "duplicate", "conflicting", "invalid_value"):
        return entries
    victims = _victims(fault, question)
    if kind == "missing":
        return [entry for entry in entries if entry[0] not in victims]
    if kind == "invalid_value":
        return [
            (index, {"not": ["what", "was", "asked"]} if index in victims else value)
            for index, value in entries
        ]
    again = [(index, value) for index, value in entries if index in victims]
    if kind == "conflicting":
        again = [
            (index, brain.other_value(question, question.texts[index - 1], value))
            for index, value in again
        ]
    return [*entries, *again]


def _victims(fault: Fault, question: Question) -> set[int]:
    # Chosen by the texts, not by a random generator: the same prompt loses the same answer again.
    if fault.reads_text:
        return {index for index, text in enumerate(question.texts, 1) if fault.matches(text)}
    return {1 + hash_of("\0".join(question.texts), fault.kind) % len(question.texts)}


def _indexed_text(question: Question, entries: list[tuple[Any, Any]]) -> str:
    if question.shape == "xml":
        name = question.index_field
        lines = [
            f'<answer {name}="{index}">{_xml(value, question.hint)}</answer>'
            for index, value in entries
        ]
        return "<answers>\n" + "\n".join(lines) + "\n</answers>"
    if question.shape == "delimited":
        return "\n".join(f"{index}|{_plain(value)}" for index, value in entries)
    if question.keyed:  # written by hand: a server that enforces nothing may write a key twice
        return (
            "{"
            + ",".join(f'"{index}":{orjson.dumps(value).decode()}' for index, value in entries)
            + "}"
        )
    answers = [_entry(question, _number(question, index), value) for index, value in entries]
    reply: Any = answers
    for name in reversed(question.list_path):
        reply = {name: reply}
    return orjson.dumps(reply).decode()


def _number(question: Question, index: Any) -> Any:
    """The record's own number; an index that a fault has turned into a text stays as it is."""
    return index + question.first - 1 if isinstance(index, int) else index


def _entry(question: Question, index: Any, value: Any) -> dict[str, Any]:
    schema = question.schema or {}
    flat = (
        isinstance(value, dict)
        and question.value_field not in schema.get("properties", {})
        and question.index_field not in value
    )
    if flat and (question.value_field is None or "properties" in schema):
        return {question.index_field: index, **value}
    return {question.index_field: index, question.value_field or "value": value}


def _xml(value: Any, hint: str) -> str:
    """An answer inside its element: its fields as elements where the prompt's example does so, else
    text or JSON.
    """
    if isinstance(value, dict) and value and all(f"<{name}>" in hint for name in value):
        return "".join(f"<{name}>{_xml_field(part)}</{name}>" for name, part in value.items())
    return _xml_field(value)


def _xml_field(value: Any) -> str:
    if isinstance(value, list):
        return "".join(f"<item>{_xml_field(part)}</item>" for part in value)
    return html.escape(_plain(value), quote=False)


def _plain(value: Any) -> str:
    """An answer on one line: text as it is, anything else as JSON."""
    return " ".join(value.split()) if isinstance(value, str) else orjson.dumps(value).decode()


def _single_text(question: Question, value: Any, faults: tuple[Fault, ...]) -> str:
    kinds = {fault.kind for fault in faults}
    if question.shape == "text":
        return str(value)
    if "missing" in kinds:
        return "{}"
    if "invalid_value" in kinds:
        value = (
            {name: {"not": ["what", "was", "asked"]} for name in value}
            if isinstance(value, dict)
            else {"not": "asked"}
        )
    return orjson.dumps(value).decode()


def _distort(text: str, fault: Fault) -> str:
    """The reply's text as a fault of its form changes it."""
    if fault.kind == "malformed_json":
        # Broken in two ways, so that closing its brackets does not turn it into JSON.
        return text[: len(text) * 2 // 3].replace('":', '" ', 1) + " ...]]"
    if fault.kind == "truncated":
        return text[: max(1, len(text) * 3 // 5)]
    if fault.kind == "prose":
        return f"Sure! Here is what I found:\n\n{text}\n\nLet me know if you need anything else."
    if fault.kind == "fence":
        return f"```json\n{text}\n```"
    return text
