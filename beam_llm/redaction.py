"""Keeps API keys, and characters that garble a terminal, out of foreign texts that are shown,
logged or stored.

A server may repeat a key anywhere: in its sentence, an error's code, an id. So a finished text is
searched, not one field of it. The key is found completely or in pieces, in any case, with anything
between its letters, and encoded for a URL, as base64 or in hexadecimal:

    redactor = redactor_of("sk-1234567890abcdef")
    redactor("Incorrect API key provided: sk-12345678…")      # Incorrect API key provided: [key]…
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Iterable

from beam_llm.errors import printable

MASK = "[key]"

MOST_READ = 4_000
"""Characters of a text that are searched and kept: it is cut first, so that the time of the search
is bounded.
"""

_PIECE = 10
"""This many consecutive letters and digits of a key count as the key (half of a short one). Fewer
would match ordinary words where a key consists of words.
"""

_WORD_PIECE = 8
"""The same for a key without digits that reads like words, as people use for their own servers:
half of `not-needed` or `lm-studio` is in "needed" and in "audio".
"""

_WORDS_IN_ANSWER = 12
"""This many consecutive letters of such a key are removed from an answer. Answers are data: a reply
about students has to come through, whatever the key is.
"""

_ENCODED_PIECE = 14
"""The same for the encoded forms, whose letters carry less information."""

_SECRET_LENGTH = 8
"""A key with fewer letters and digits is what people give servers without keys (`none`, `EMPTY`,
`test`): only the word itself is removed, and none shorter than four characters.
"""


_MOST_NAMES = 1_000


class Redactor:
    """Removes one key, and whatever looks like another key, from texts. Linear in the length of the
    text.

    Args:
      secret: the key in use; None where there is none.
    """

    def __init__(self, secret: str | None):
        secret = secret or ""
        letters = _letters_and_digits(secret)
        self._word = re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)") if len(secret) >= 4 else None
        self._pieces: list[tuple[int, frozenset[str]]] = []
        self._needles: tuple[str, ...] = ()
        self._own_needles: tuple[str, ...] = ()
        self._clean_names: set[str] = set()
        self._half = 0
        self._halves: frozenset[str] = frozenset()
        if len(letters) < _SECRET_LENGTH:
            return
        encoded = _encodings(secret)
        own = min(_PIECE, _least_in_half(secret))
        if _reads_like_words(secret):
            own = max(own, _WORD_PIECE)
        self._pieces = [
            (own, _windows([letters], own)),
            (_ENCODED_PIECE, _windows(map(_letters_and_digits, encoded), _ENCODED_PIECE)),
        ]
        own_needles = _needles(secret)
        # `touches` searches by `in`, which is case-sensitive, so both cases are listed.
        cased = [needle for form in (secret.lower(), secret.upper()) for needle in _needles(form)]
        others = [needle for form in encoded for needle in _needles(form)]
        self._needles = tuple(dict.fromkeys([*own_needles, *cased, *others]))
        self._half = len(secret) // 2
        # If a key has digits elsewhere, a half of letters is not a word that anybody has chosen.
        spared = _WORDS_IN_ANSWER if _reads_like_words(secret) else _WORD_PIECE
        self._halves = frozenset(
            half
            for half in _windows([secret], self._half)
            if not _reads_like_words(half) or len(_letters_and_digits(half)) >= spared
        )
        # For a key of words, only the complete key is looked for in answers.
        self._own_needles = own_needles if self._halves else (secret,)

    def __call__(self, text: str) -> str:
        """The text, cut to `MOST_READ` characters, with `[key]` for keys and escapes for characters
        that don't print.
        """
        # Cut first: the time of the search depends on the length, and the text is foreign.
        text = text[:MOST_READ]
        if self._word is not None:
            text = self._word.sub(MASK, text)
        for size, pieces in self._pieces:
            text = _mask_pieces(text, size, pieces)
        return printable(" ".join(_without_shapes(text).split()))

    def touches(self, text: str) -> bool:
        """Whether half of the key or more is in the text, plain or encoded. Quick: for ids and
        names, one a reply.
        """
        return any(map(text.__contains__, self._needles))

    def touches_plainly(self, text: str) -> bool:
        """Whether half of the key may be in the text as it is; for the text and the id of every
        reply.
        """
        for needle in self._own_needles:  # noqa: SIM110  # a third of the time of any()
            if needle in text:
                return True
        return False

    def leaves(self, name: str) -> bool:
        """Whether a name needs no change; for the few that are in every reply: the model's, the
        tier's.
        """
        if name in self._clean_names:
            return True
        is_clean = self.identifier(name) == name
        if is_clean and len(self._clean_names) < _MOST_NAMES:
            self._clean_names.add(name)
        return is_clean

    def in_answer(self, text: str) -> str:
        """A model's text. It is data, so only the plain key, or a plain half of it, is removed."""
        if not self._half or not self.touches(text):
            return text
        if self._word is not None:
            text = self._word.sub(MASK, text)
        size = self._half
        starts = [i for i in range(len(text) - size + 1) if text[i : i + size] in self._halves]
        return _replace_spans(text, [(start, start + size) for start in starts])

    def identifier(self, text: str, most: int = 200) -> str:
        """A server's id or name: shortened, printable, and without the key."""
        text = text[:most]
        return self(text) if not text.isprintable() or self.touches(text) else text


@functools.lru_cache(maxsize=64)
def redactor_of(secret: str | None) -> Redactor:
    """The redactor for a key, cached."""
    return Redactor(secret)


known_secrets: list[str | None] = [None]
"""Keys that this process has looked up; None stands for whatever looks like a key."""


def remember(secret: str) -> None:
    """From now on `redact` removes this key, whoever calls it."""
    if secret not in known_secrets:
        known_secrets.append(secret)


def redact(text: str) -> str:
    """The text without any key that this process has looked up: for messages whose origin is not
    known.
    """
    for secret in known_secrets:
        text = redactor_of(secret)(text)
    return text


# How the key is found
# --------------------------------------------------------------------------------------------------


def _encodings(secret: str) -> list[str]:
    """The key as it looks inside of a URL, of base64 (where it may start at any of three bits) and
    of hexadecimal.
    """
    data = secret.encode("utf-8", "surrogatepass")
    found = [
        data.hex(),
        "".join(
            c if c.isalnum() else "".join(f"%{byte:02X}" for byte in c.encode()) for c in secret
        ),
    ]
    # Base64 writes three bytes as four letters, so the key has three forms, by where it begins.
    for offset, before in enumerate((0, 2, 3)):
        encoded = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        found.append(
            encoded[before : len(encoded) - 1]
        )  # without the letters that depend on its neighbours
    return [form for form in found if form != secret]


def _needles(form: str) -> tuple[str, str]:
    """Two pieces of the text; every half of it contains one of them."""
    half = len(form) // 2
    size = max(1, (3 * half - len(form) + 1) // 2)
    return form[half - size : half], form[len(form) - half :][:size]


def _least_in_half(secret: str) -> int:
    """The least number of letters and digits in any half of the key, at least four."""
    half = len(secret) // 2
    return max(
        4,
        min(len(_letters_and_digits(secret[i : i + half])) for i in range(len(secret) - half + 1)),
    )


_CASES_MIXED = re.compile("[a-z][A-Z]")


def _reads_like_words(piece: str) -> bool:
    """Whether a key's piece may occur in ordinary text: it has no digit and no capital inside."""
    return not any(map(str.isdigit, piece)) and not _CASES_MIXED.search(piece)


def _letters_and_digits(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def _windows(forms: Iterable[str], size: int) -> frozenset[str]:
    return frozenset(form[i : i + size] for form in forms for i in range(len(form) - size + 1))


def _mask_pieces(text: str, size: int, pieces: frozenset[str]) -> str:
    """The text with every run of letters and digits that is one of the pieces masked, whatever
    stands between its letters.
    """
    where = [i for i, character in enumerate(text) if character.isalnum()]
    # One letter each, also where the lower case has two (`İ`), or the positions would shift.
    letters = "".join([text[i].lower()[0] for i in where])
    spans = [
        (where[i], where[i + size - 1] + 1)
        for i in range(len(letters) - size + 1)
        if letters[i : i + size] in pieces
    ]
    return _replace_spans(text, spans)


def _replace_spans(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with `[key]` for each run of overlapping spans, which are in order."""
    if not spans:
        return text
    parts, done = [], 0
    start, end = spans[0]
    for first, last in [*spans[1:], (len(text) + 1, 0)]:
        if first > end:
            parts += [text[done:start], MASK]
            done, start = end, first
        end = max(end, last) if first <= len(text) else end
    return "".join([*parts, text[done:]])


_SHAPES = re.compile(
    r"\b(?P<sure>(?:sk|pk|rk|gsk|xai|ghp|hf)[-_][\w*.…-]{3,}|AIza[\w-]{10,}|eyJ[\w-]{10,}[\w.-]*)"
    r"|\b(?:key|api)[-_][\w*.…-]{3,}"
    r"|Bearer\s+[^\s,;'\"]{8,}"
)
_WORD = re.compile(r"[^\s'\"]+")


_LOGIN = re.compile(r"(?<=://)[^\s/?#@'\"]{1,400}@")
_QUERY = re.compile(r"(://[^\s?'\"]{1,2000}\?)(?!project=[\w-]+(?:\W|$))[^\s'\"]+")
_PATH = re.compile(r"(?<=://)([^\s/'\"]{1,400}/)([^\s?#'\"]{1,2000})")
_TOKEN = re.compile(r"(?=[A-Za-z]*\d)(?=[a-z\d]*[A-Z])(?=[A-Z\d]*[a-z])[A-Za-z\d]{24,}")


def without_access(text: str) -> str:
    """The text without the parts of addresses that give access: user and password, the query (a
    signed image address has one, say), and anything like a token in the path, such as a Telegram
    bot's. A token of small letters only looks like any other name, and stays.

    Queries in Google's own addresses for switching an API on name only a project, and stay.
    """
    if "://" not in text:
        return text
    text = _QUERY.sub(r"\1…", _LOGIN.sub("…@", text))
    return _PATH.sub(lambda found: found[1] + _TOKEN.sub("…", found[2]), text)


def _without_shapes(text: str) -> str:
    """The text without anything that looks like a key: by its first letters, after `Bearer`, with
    stars in it, or by its place in an address.
    """
    text = without_access(text)
    text = _SHAPES.sub(_mask_if_key, text)
    return (
        _WORD.sub(lambda word: MASK if "***" in word[0] else word[0], text)
        if "***" in text
        else text
    )


def _mask_if_key(found: re.Match[str]) -> str:
    """`api_key` and `key-value` are words; with a digit in it, it may be a key."""
    is_key = (
        found["sure"]
        or found[0].startswith("Bearer")
        or any(map(str.isdigit, found[0]))
        or "*" in found[0]
    )
    return MASK if is_key else found[0]
