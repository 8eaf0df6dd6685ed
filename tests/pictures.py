"""Images for tests: PNGs of one colour, small files of other kinds, and elements that hold them."""

from __future__ import annotations

import struct
import zlib

JPEG = (
    bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffc0000b080010002001011100") + b"\0" * 9
)
"""Of 32 by 16 pixels, as far as its frame's header."""
GIF = b"GIF89a" + struct.pack("<HH", 7, 5) + b"\0\0\0;"
WEBP = b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f" + struct.pack("<I", 8 | 4 << 14) + b"\0" * 9
PDF = b"%PDF-1.7\n"


def png(rgb: tuple[int, int, int] = (255, 0, 0), width: int = 2, height: int = 2) -> bytes:
    """A whole PNG of one colour."""
    rows = (b"\0" + bytes(rgb) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def things(count: int) -> list[dict[str, object]]:
    """Elements whose texts are alike and whose images are not: what tells them apart is seen."""
    return [
        {"n": n, "text": f"a thing of kind {n % 3}", "photo": png((n, 255 - n, 7))}
        for n in range(count)
    ]


def colour_of(element: dict[str, object]) -> str:
    """What the emulated model says of an element's image."""
    n = int(str(element["n"]))
    return f"#{n:02x}{255 - n:02x}07"
