"""How many tokens a text has, in three grades: a bound that costs nothing, an estimate that costs a
microsecond, and, with an extra, an exact count.

    utf8_bytes       a bound: no vocabulary makes more tokens than bytes  ~0.1 µs
    estimate_tokens  words, digits, punctuation, scripts, weighted        ~1 µs + 5 ns a character
    exact_tokens     the model's own vocabulary, with `beam_llm[tokens]`  ~30 ns a character

The weights were fitted by least squares with a heavy penalty for under-counting, against
o200k_base, over prose in 30 languages, source code, JSON, URLs, logs, tables, ids, base64, digits
and emoji (November 2026). `tests/test_tokens.py` holds the estimate to its promise: never more than
10 % below the truth.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable

from beam_llm.caps import utf8_bytes
from beam_llm.provider_table import OLDER_VOCABULARY

_UNBROKEN = b"a" * 16
"""Hardly ever a word of prose, except in German: more likely a key, a sequence or an encoding, with
about half a token for each letter."""


def rough_tokens(text: str, up_to_bytes: int) -> int:
    """The bound for texts up to a size, the estimate for longer ones."""
    size = utf8_bytes(text)
    return size if size <= up_to_bytes else estimate_tokens(text)


class SampledTokens:
    """Counts tokens of many texts in a row, where their sum matters, in a third of the time.

    The first 64 texts and then one in eight are estimated; the others are counted by their bytes,
    at the rate of those before them. Which ones are estimated depends only on their place, and
    never coincides with a period that the texts may have (multiples of the golden ratio).

    Args:
      up_to_bytes: longer texts are always estimated.
    """

    _ALL = 64
    _STRIDE, _MASK, _ONE_IN_EIGHT = 0x9E3779B1, 2**32 - 1, 2**29

    def __init__(self, up_to_bytes: int):
        self._up_to_bytes = up_to_bytes
        self.restart()

    def restart(self) -> None:
        """Forgets all texts so far, so that equal texts in equal order are counted equally."""
        self._seen = 0
        self._per_byte = 0.0

    def __call__(self, text: str) -> int:
        size = utf8_bytes(text)
        self._seen = seen = self._seen + 1
        if (
            seen > self._ALL
            and size <= self._up_to_bytes
            and seen * self._STRIDE & self._MASK >= self._ONE_IN_EIGHT
        ):
            return int(size * self._per_byte) + 1
        tokens = estimate_tokens(text)
        if size:
            self._per_byte += (tokens / size - self._per_byte) * (0.125 if seen > 8 else 1 / seen)
        return tokens


def estimate_tokens(text: str) -> int:
    """Input tokens of the text: an upper estimate, at most 10 % below the true count and usually
    about 25 % above it."""
    if not text.isascii():
        return _estimate_any_script(text.encode("utf-8", "surrogatepass"))
    data = text.encode()
    count = data.translate(_ASCII_CLASSES).count
    # A word with the space before it is one token, a long word is several; a run of digits is one
    # for each three digits.
    tokens = 1.0 + 0.95 * count(b".a") + 1.15 * count(b"aaaaaa") + 4.0 * count(_UNBROKEN)
    if not data.islower():
        tokens += 2.0 * data.translate(_CASES).count(b"aA")
    digits = count(b"0")
    if digits:
        tokens += 0.37 * digits + 2.1 * count(b".0") + 1.7 * count(b"0a")
    tokens += 0.49 * count(b".") - 0.37 * data.count(b" ") + 1.36 * count(b"\n")
    return min(int(tokens), len(data))


def _estimate_any_script(data: bytes) -> int:
    """The estimate for all scripts, in UTF-8: every lead byte names its script, and a script has
    its price per character."""
    count = data.translate(_SCRIPT_CLASSES).count
    tokens = 1.0 + 1.22 * count(b" a") + 0.85 * count(b"aaaaaa") + 4.0 * count(_UNBROKEN)
    tokens += 0.36 * count(b"0") + 3.6 * count(b" 0") + 1.65 * count(b"0a")
    tokens += (
        0.05 * count(b".")
        + 2.5 * count(b".a")
        + 1.15 * count(b".0")
        + 0.6 * count(b" .")
        + 1.0 * count(b"\n")
    )
    tokens += 1.9 * data.translate(_CASES).count(b"aA")
    count = data.translate(_LEADS, _NOT_LEADS).count
    for script, price in _SCRIPT_PRICES:
        tokens += price * count(script)
    if b"\xe1" in data:
        tokens += 1.7 * len(_HARDLY_KNOWN.findall(data))
    return min(int(tokens), len(data))


def _translation_table(classes: Iterable[tuple[Iterable[int], bytes]], rest: bytes) -> bytes:
    """A table for `bytes.translate` from each byte value to its class."""
    table = bytearray(rest * 256)
    for values, name in classes:
        for value in values:
            table[value] = name[0]
    return bytes(table)


_LETTERS = (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))
_ASCII = [(_LETTERS, b"a"), (range(ord("0"), ord("9") + 1), b"0"), (b"\r\n\t", b"\n")]
_ASCII_CLASSES = _translation_table([*_ASCII, (b" ", b".")], b".")
_CASES = _translation_table(
    [(range(ord("a"), ord("z") + 1), b"a"), (range(ord("A"), ord("Z") + 1), b"A")], b"."
)
# In UTF-8, accented Latin (lead bytes up to CC, and E1 for Vietnamese) and all continuation bytes
# continue a word.
_SCRIPT_CLASSES = _translation_table(
    [(range(128), b"."), *_ASCII, (b" ", b" "), ((*range(0x80, 0xCD), 0xE1), b"a")], b"x"
)

_SCRIPTS: dict[str, tuple[Iterable[int], float]] = {
    "signs: § © °": ((0xC2,), 1.5),
    "accented latin": (range(0xC3, 0xCD), 1.45),
    "greek": (range(0xCD, 0xD0), 0.6),
    "cyrillic": (range(0xD0, 0xD4), 0.52),
    "hebrew, armenian": (range(0xD4, 0xD8), 0.64),
    "arabic": (range(0xD8, 0xE0), 0.43),
    "indic, thai": ((0xE0,), 0.67),
    "vietnamese, georgian, burmese": ((0xE1,), 0.76),
    "typographic": ((0xE2,), 2.25),
    "kana": ((0xE3,), 0.95),
    "han": (range(0xE4, 0xEA), 1.22),
    "hangul": (range(0xEA, 0xEE), 1.0),
    "full width": ((0xEE, 0xEF), 1.1),
    "emoji": (range(0xF0, 0xF5), 2.45),
}
_LEADS = _translation_table(
    [(values, bytes([i])) for i, (values, _) in enumerate(_SCRIPTS.values())], b"\xff"
)
_SCRIPT_PRICES = [(bytes([i]), price) for i, (_, price) in enumerate(_SCRIPTS.values())]
_NOT_LEADS = bytes(range(0xC2))
_HARDLY_KNOWN = re.compile(rb"\xe1[\x84-\xb7]")
"""Ethiopic, Khmer, Cherokee and others, for which o200k_base has little more than the bytes."""


def exact_tokens(text: str, model: str = "") -> int | None:
    """Tokens of the text in the model's own vocabulary; None where the extra `tokens` is not
    installed, or refuses so long a text.

    Args:
      model: as the provider names it; one that the table below does not know is counted with
        o200k_base, the newest.
    """
    encode = encoder_of(_vocabulary(model))
    try:
        return None if encode is None else len(encode(text))
    except ValueError:  # bpe-openai 0.1.4 takes less than a million characters
        return None


def count_tokens(text: str, model: str = "") -> int:
    """Exact where that is possible, else estimated."""
    exact = exact_tokens(text, model)
    return estimate_tokens(text) if exact is None else exact


def _vocabulary(model: str) -> str:
    return "cl100k_base" if _OLDER_MODELS.match(model) else "o200k_base"


_OLDER_MODELS = re.compile(OLDER_VOCABULARY)


@functools.cache
def encoder_of(vocabulary: str) -> Callable[[str], list[int]] | None:
    """Loads the vocabulary once per process (0.2 s, 150 MB); None where there is none to load."""
    with warnings.catch_warnings():
        # bpe-openai 0.1.4 opens its files in a way that Python 3.11 calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import bpe_openai
        except ImportError:
            return None
        return bpe_openai.get_encoding(vocabulary).encode_ordinary  # type: ignore[no-any-return]
