"""Fields that hold images: read from an element, and put beside the texts of a prompt.

one record    the prompt's text, then its images n records     each record's line, then its images,
each under a line that names its record:
              Input 3: "…"
              Input 3, photo: [image]
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from beam_llm.caps import Caps
from beam_llm.config import Settings
from beam_llm.errors import PromptError, UsageError, lacks_field
from beam_llm.prompting.batching import AUTO_RECORDS
from beam_llm.prompting.image_files import ENDINGS, WORDS, kind_of, size_of
from beam_llm.prompting.templates import ELEMENT
from beam_llm.prompting.text import is_missing
from beam_llm.protocols import MediaLimits
from beam_llm.values import Media, Record

FRAME_BYTES = 250
"""Bytes around an image's data in a request: an upper bound for all providers."""

LABEL_TOKENS = 10
"""What `Input 12, photo:` and the delimiters of its image add to a prompt."""

MOST_URI_CHARACTERS = 8_192

_DATA_URL = re.compile(r"\s*data:([^,;]{0,100})((?:;[^,;]{0,100}){0,9}),", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z0-9]+://[!#-;=?-\[\]_a-z~]+", re.IGNORECASE)
"""The characters that an address may have, by RFC 3986; all others have to be percent-encoded."""

PlacedText = tuple[str, tuple[tuple[int, Media], ...]]
"""A text and the images in it, each with the number of characters before it."""


class MediaFields:
    """The compiled option `media`: finds a record's images, and says how many a prompt may hold.

        fields = MediaFields(settings("openai:gpt-4.1-mini", media=["photo"]), limits)
        fields.read({"photo": open("cat.png", "rb").read()}, None)  # (Media("photo", "image/png"),)

    Args:
      limits: what the provider takes.

    Raises:
      UsageError: prompts of this many records would have more images than the provider takes.
    """

    def __init__(self, settings: Settings, limits: MediaLimits):
        assert settings.media
        self._names, self._limits = tuple(settings.media), limits
        self._provider = settings.provider
        self._most_records = most_records(settings, limits)
        records = min(self._most_records or 1, _records_per_prompt(settings))
        self._most_images = None if limits.images is None else limits.images // records

    def read(self, fields: Mapping[str, Any], element: Any) -> tuple[Media, ...]:
        """The images of an element, in the order in which the option names their fields.

        Raises:
          PromptError: a field is missing, or holds something that is not an image that the provider
            takes.
        """
        found: list[Media] = []
        for name in self._names:
            value = element if name == ELEMENT else fields.get(name, _MISSING)
            if value is _MISSING:
                raise PromptError(lacks_field("media", name, fields))
            found += [self._read_image(name, one) for one in _field_values(value)]
        if self._most_images is not None and len(found) > self._most_images:
            raise PromptError(
                f"the element has {len(found):,} images; {self._provider}: takes "
                f"{self._limits.images:,} a request, which leaves {self._most_images:,} to each "
                "record: make batch_size smaller"
            )
        return tuple(found)

    def mask_images(self, fields: Mapping[str, Any], element: Any) -> tuple[Mapping[str, Any], Any]:
        """Fields and element as a template sees them: an image is its field's name in brackets."""
        hidden: dict[str, Any] = dict(fields)
        for name in self._names:
            if name in hidden:
                hidden[name] = f"[{name}]" if _field_values(hidden[name]) else None
        if ELEMENT in self._names:
            return hidden, f"[{ELEMENT}]"
        return hidden, hidden if fields else element

    def tokens(self, media: Sequence[Media]) -> int:
        """Input tokens of the images, an upper estimate."""
        return sum(
            [LABEL_TOKENS + self._limits.tokens(*size_of(_first_bytes(one))) for one in media]
        )

    def narrow_caps(self, caps: Caps) -> Caps:
        """The caps, narrowed to the images that the provider takes in one request."""
        records = min(caps.records, self._most_records or caps.records)
        sizes = [size for size in (caps.bytes, self._limits.request_bytes) if size is not None]
        return caps._replace(records=records, bytes=min(sizes, default=None))

    def place_after_text(self, text: str, record: Record, suffix: str) -> PlacedText:
        """A record's text followed by its images; with several fields, each under its field's name.

        Args:
          suffix: text to add after them.
        """
        places = []
        for one in record.media:
            if len(self._names) > 1:
                text += f"\n{one.name}:"
            places.append((len(text), one))
        return text + suffix, tuple(places)

    def place_after_lines(
        self, prefix: str, lines: Sequence[str], records: Sequence[Record]
    ) -> PlacedText:
        """The lines of several records, each followed by its images. Each image has the label of
        its record before it.
        """
        pieces, length, places = [prefix], len(prefix), []
        for index, (line, record) in enumerate(zip(lines, records, strict=True), 1):
            line = line if index == 1 else f"\n{line}"
            pieces.append(line)
            length += len(line)
            for one in record.media:
                label = f"\nInput {index}, {one.name}:"
                pieces.append(label)
                length += len(label)
                places.append((length, one))
        return "".join(pieces), tuple(places)

    def _read_image(self, name: str, value: Any) -> Media:
        if isinstance(value, str):
            data_url = _DATA_URL.match(value)
            if data_url is None:
                return self._read_address(name, str(value))
            return self._read_data(name, _decode_data_url(name, value, data_url))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._read_data(name, bytes(value))
        raise PromptError(
            f"{name!r} holds a value of type {type(value).__name__}, which is not an image: "
            f"{self._allowed}"
        )

    def _read_data(self, name: str, data: bytes) -> Media:
        kind, most = kind_of(data), self._limits.image_bytes
        if kind not in self._limits.kinds:
            what = f"a {WORDS[kind]} file" if kind in WORDS else "not an image that is known here"
            raise PromptError(f"{name!r} holds {len(data):,} bytes, {what}: {self._allowed}")
        if most is not None and len(data) > most:
            raise PromptError(
                f"{name!r} holds an image of {len(data):,} bytes: {self._provider}: takes "
                f"{most:,}; make it smaller"
            )
        return Media(name, kind, base64.b64encode(data).decode())

    def _read_address(self, name: str, value: str) -> Media:
        scheme = value.partition("://")[0].lower()
        if scheme not in self._limits.schemes or not _is_address(value):
            raise PromptError(
                f"{name!r} holds a text of {len(value):,} characters, which is not an image: "
                f"{self._allowed}"
            )
        ending = urlsplit(value).path.rpartition(".")[2].lower()
        kind = ENDINGS.get(ending, "")
        if self._limits.names_kinds and kind not in self._limits.kinds:
            raise PromptError(
                f"{name!r} holds an address that does not end in a kind of image (.png, .jpg), "
                f"and {self._provider}: needs to know the kind: give the image's bytes"
            )
        return Media(name, kind, uri=value)

    @property
    def _allowed(self) -> str:
        kinds = ", ".join(WORDS[kind] for kind in self._limits.kinds)
        schemes = " or ".join(f"{scheme}://" for scheme in self._limits.schemes)
        ways = [f"bytes ({kinds}), a data: URL with base64"] if kinds else []
        ways += [f"an address with {schemes}"] if schemes else []
        return f"it has to be {', '.join(ways)}, a list of these, or None"


_MISSING = object()


def _field_values(value: Any) -> Sequence[Any]:
    """The values of a field: one, several, or none."""
    # CSV has an empty text where there is no value.
    value = _unwrap_bytes(value)
    if is_missing(value) or (isinstance(value, str) and not value):
        return ()
    if isinstance(value, (list, tuple)):
        return [one for one in map(_unwrap_bytes, value) if not is_missing(one)]
    return (value,)


def _unwrap_bytes(value: Any) -> Any:
    """The bytes out of `{"bytes": …, "path": …}`, the form of images in Hugging Face's parquet
    files.
    """
    is_wrapped = isinstance(value, Mapping) and "bytes" in value and value.keys() <= _WRAPPING
    return value["bytes"] if is_wrapped else value


_WRAPPING = frozenset({"bytes", "path"})


def _decode_data_url(name: str, value: str, data_url: re.Match[str]) -> bytes:
    try:
        if "base64" not in data_url[2].lower().split(";"):
            raise ValueError("without base64")
        return _decode_base64(value[data_url.end() :])
    except ValueError:  # also for characters beyond ASCII
        raise PromptError(
            f"{name!r} holds a data: URL whose data is not base64: write data:image/png;base64,…"
        ) from None


def _decode_base64(text: str) -> bytes:
    """Decodes base64 in a URL as browsers do: also in lines, percent-encoded, or without padding.

    Source: WHATWG Infra, "forgiving-base64 decode", read 2026-11.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        text = "".join(unquote(text, errors="strict").split()).rstrip("=")
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)


def _is_address(value: str) -> bool:
    if len(value) > MOST_URI_CHARACTERS or not _ADDRESS.fullmatch(value):
        return False
    try:
        return bool(urlsplit(value).hostname)
    except ValueError:  # half of an IPv6 address
        return False


def _first_bytes(media: Media) -> bytes:
    # A photo's header, with its thumbnails, takes a few dozen kilobytes.
    return binascii.a2b_base64(media.data[:_HEADER_CHARACTERS])


_HEADER_CHARACTERS = 4 * 65_536
"""Characters of base64 in which the size is looked up; a multiple of four."""


def _records_per_prompt(settings: Settings) -> int:
    return AUTO_RECORDS if settings.batch_size == "auto" else settings.batch_size


def most_records(settings: Settings, limits: MediaLimits) -> int | None:
    """How many records of one image per field a request holds; None where no limit is known.

    Raises:
      UsageError: prompts of this many records would have more images than the provider takes.
    """
    if limits.images is None or not settings.media:
        return None
    most = limits.images // len(settings.media)
    if not most or (settings.batch_size != "auto" and settings.batch_size > most):
        raise UsageError(
            f"batch_size is {settings.batch_size!r} and media names {len(settings.media)} "
            f"field(s): {settings.provider}: takes {limits.images:,} images a request; write "
            f"batch_size={max(most, 1)}"
        )
    return most


def media_of(settings: Settings, limits: MediaLimits | None) -> MediaFields | None:
    """The fields that hold images; None where the settings name none.

    Args:
      limits: what the provider takes; None: no images.

    Raises:
      UsageError: images can't be sent with these settings.
    """
    if not settings.media:
        return None
    if limits is None:
        raise UsageError(
            f"media is {list(settings.media)}: {settings.model} takes no images; leave it out, or "
            "use a model that sees"
        )
    if settings.batch_prompt_template is not None:
        raise UsageError(
            "media and batch_prompt_template are both given, but a batch template has no place for "
            "images: leave one of them out"
        )
    return MediaFields(settings, limits)
