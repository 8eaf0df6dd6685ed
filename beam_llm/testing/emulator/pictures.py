"""What the emulated model sees of an image: its kind, its size and, for a PNG, the colour in its
corner. It answers by that colour, so that a test can tell which image an answer is about.

    [picture #ff0000 2x2 png]          for data
    [picture https://host/cat.png]     for an address: nothing is fetched

Images of all dialects become OpenAI's content parts, which are then replaced by such words.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

PICTURE = re.compile(r"\[picture ([^\]\s]+)[^\]]*\]")
"""The words that stand for a picture in the prompt that the model reads."""

MOST_TOKENS = 1_000
_DATA_URL = re.compile(r"data:(image/[a-z+.-]+);base64,")
_PALETTE = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
}


class Picture(NamedTuple):
    """What the model sees of an image.

    Attributes:
      colour: the colour of the pixel in its upper left corner, `#rrggbb`; empty where it is not
        known.
    """

    kind: str
    width: int = 0
    height: int = 0
    colour: str = ""
    digest: str = ""

    @property
    def words(self) -> str:
        named = self.colour or self.digest
        return f"[picture {named} {self.width}x{self.height} {self.kind.removeprefix('image/')}]"


def picture_of(data: bytes) -> Picture | None:
    """The picture in these bytes; None where there is none, or only a damaged PNG."""
    digest = f"{zlib.crc32(data):08x}"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data, digest)
    if data.startswith(b"\xff\xd8\xff"):
        return Picture("image/jpeg", digest=digest)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Picture("image/webp", digest=digest)
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        return Picture("image/gif", width, height, digest=digest)
    return None


def _png(data: bytes, digest: str) -> Picture | None:
    width = height = depth = kind = 0
    pixels = b""
    for name, chunk in _chunks(data):
        if name == b"IHDR" and len(chunk) == 13:
            width, height, depth, kind = struct.unpack_from(">IIBB", chunk)
        if name == b"IDAT":
            pixels += chunk
        if name == b"IEND":
            break
    else:  # it is cut off
        return None
    try:
        # The first pixel of the first row is stored unchanged, whatever the filter.
        corner = zlib.decompressobj().decompress(pixels, 4)[1:4]
    except zlib.error:
        return None
    if not width or not height:
        return None
    has_rgb = depth == 8 and kind in (2, 6) and len(corner) == 3
    return Picture("image/png", width, height, f"#{corner.hex()}" if has_rgb else "", digest)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, chunk = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if checksum != struct.pack(">I", zlib.crc32(name + chunk)):
            return
        yield name, chunk
        at += 12 + length


def decode_base64(text: Any) -> bytes | None:
    """The bytes that a base64 text encodes; None where it is not base64."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, TypeError):
        return None


# Content parts
# --------------------------------------------------------------------------------------------------


def image_part(kind: str, data: str) -> dict[str, Any]:
    """An image as OpenAI's content part."""
    return part_of_address(f"data:{kind};base64,{data}")


def part_of_address(url: str) -> dict[str, Any]:
    """An image at an address, as OpenAI's content part."""
    return {"type": "image_url", "image_url": {"url": url}}


def join_parts(parts: Iterable[str | dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Joins texts into one; with images among them, into OpenAI's list of content parts."""
    found: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, str):
            found.append(part)
        elif found and found[-1]["type"] == "text":
            found[-1] = {"type": "text", "text": found[-1]["text"] + part}
        else:
            found.append({"type": "text", "text": part})
    if not found:
        return ""
    return found[0]["text"] if len(found) == 1 and found[0]["type"] == "text" else found


def urls_in(messages: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """Yields the message, the place and the address of each image in the messages, whose shape must
    have been checked.
    """
    for number, message in enumerate(messages):
        content = message.get("content")
        for at, part in enumerate(content if isinstance(content, list) else ()):
            if part.get("type") == "image_url":
                place = f"messages[{number}].content[{at}].image_url"
                yield message, place, part["image_url"]["url"]


def words_of(url: str) -> str:
    """The words that stand for an image in the prompt."""
    picture = _picture_of(url)
    return picture.words if picture is not None else f"[picture {url}]"


def tokens_of_image(url: str) -> int:
    """An image's tokens: one for each square of 32 pixels; the maximum for an address."""
    picture = _picture_of(url)
    if picture is None or not picture.width:
        return MOST_TOKENS
    return min(MOST_TOKENS, math.ceil(picture.width / 32) * math.ceil(picture.height / 32))


def _picture_of(url: str) -> Picture | None:
    match = _DATA_URL.match(url)
    data = decode_base64(url[match.end() :]) if match is not None else None
    return picture_of(data) if data is not None else None


def colour_names(text: str) -> list[str]:
    """What a prompt's pictures show, in order: the names of colours, or else what identifies the
    picture.
    """
    return [_colour_name(found) for found in PICTURE.findall(text)]


def _colour_name(found: str) -> str:
    if not re.fullmatch(r"#[0-9a-f]{6}", found):
        return found
    rgb = bytes.fromhex(found[1:])
    return min(
        _PALETTE,
        key=lambda name: sum((a - b) ** 2 for a, b in zip(rgb, _PALETTE[name], strict=True)),
    )


# Refused images
# --------------------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """Why a body's images are refused: OpenAI's message, the place and the error code."""

    message: str
    place: str
    code: str


def refusal(
    messages: Iterable[Mapping[str, Any]],
    most: int = 500,
    kinds: tuple[str, ...] = ("image/png", "image/jpeg", "image/gif", "image/webp"),
) -> Refusal | None:
    """OpenAI's error about images that it refuses; None where it accepts them.

    Args:
      most: the most images of a request.

    Source: its messages as public repositories quote them, read 2026-11.
    """
    found = list(urls_in(messages))
    if len(found) > most:
        why = f"Too many images in request. Max is {most}, but got {len(found)}."
        return Refusal(why, "messages", "max_images_per_request")
    for message, place, url in found:
        if message["role"] != "user":
            why = (
                f"Invalid '{place.partition('.')[0]}'. Image URLs are only allowed for messages "
                f"with role 'user', but this message with role '{message['role']}' contains an "
                "image URL."
            )
            return Refusal(why, place, "invalid_value")
        if (refused := _check_url(url, place, kinds)) is not None:
            return refused
    return None


def _check_url(url: str, place: str, kinds: tuple[str, ...]) -> Refusal | None:
    if re.match(r"(https?|gs)://[^/\s]", url):
        return None
    match = _DATA_URL.match(url)
    if match is None:
        message = (
            f"Invalid '{place}'. Expected a valid URL, but got a value with an invalid format."
        )
        return Refusal(message, place, "invalid_value")
    data = decode_base64(url[match.end() :])
    if data is None:
        return Refusal("Invalid base64 image_url.", place, "invalid_base64")
    picture = picture_of(data)
    if picture is None or picture.kind not in kinds or picture.kind != match[1]:
        named = [kind.removeprefix("image/") for kind in kinds]
        message = (
            "You uploaded an unsupported image. Please make sure your image has of one the "
            f"following formats: {named}."
        )
        return Refusal(message, place, "invalid_image_format")
    return None
