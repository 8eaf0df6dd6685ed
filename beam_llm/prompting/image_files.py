"""An image's kind, width and height from its first bytes. Nothing is decoded."""

from __future__ import annotations

import struct

PNG, JPEG, WEBP, GIF = "image/png", "image/jpeg", "image/webp", "image/gif"

WORDS = {
    PNG: "PNG",
    JPEG: "JPEG",
    WEBP: "WebP",
    GIF: "GIF",
    "image/heic": "HEIC",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/svg+xml": "SVG",
    "application/pdf": "PDF",
}
"""MIME type → what people call it."""

ENDINGS = {"png": PNG, "jpg": JPEG, "jpeg": JPEG, "webp": WEBP, "gif": GIF}
"""A file name's ending → the kind that it promises."""

# The last five are known so that an error can name them; no provider's row has them.
_MAGIC = (
    (PNG, 0, b"\x89PNG\r\n\x1a\n"),
    (JPEG, 0, b"\xff\xd8\xff"),
    (GIF, 0, b"GIF87a"),
    (GIF, 0, b"GIF89a"),
    (WEBP, 8, b"WEBP"),
    ("application/pdf", 0, b"%PDF-"),
    ("image/heic", 4, b"ftyphei"),
    ("image/bmp", 0, b"BM"),
    ("image/tiff", 0, b"II*\0"),
    ("image/tiff", 0, b"MM\0*"),
    ("image/svg+xml", 0, b"<svg"),
)

_MOST_SEGMENTS = 1_000
"""Segments of a JPEG to read before its frame: cameras write a few dozen."""


def kind_of(data: bytes) -> str | None:
    """The MIME type of a file, by its first bytes; None where it is not known."""
    kind = next((kind for kind, at, magic in _MAGIC if data.startswith(magic, at)), None)
    # A WebP is one of several files that begin with RIFF and their length.
    return None if kind == WEBP and not data.startswith(b"RIFF") else kind


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height in pixels; zeros where the file is truncated or doesn't give them."""
    read = _SIZES.get(kind_of(data) or "")
    try:
        return read(data) if read is not None else (0, 0)
    except (struct.error, IndexError):
        return 0, 0


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp(data: bytes) -> tuple[int, int]:
    form = data[12:16]
    if form == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if form == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        # A frame's header, whatever its coding; C4, C8 and CC are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


_SIZES = {PNG: _png, JPEG: _jpeg, WEBP: _webp, GIF: _gif}
