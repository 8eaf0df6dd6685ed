"""Files of lines as bytes: unpacked where they are gzip, refused where they are not text in
UTF-8.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from beam_llm.cli.files.records import DataError, Source, open_bytes

LINE_BYTES = 1 << 26
"""The longest line. No model reads a thousandth of it; without a bound a gzipped gigabyte of
nothing would fill the memory.
"""


_GZIP = b"\x1f\x8b"


# Recognized, since "not JSON in line 1" would not say what to do.
_NOT_TEXT = {
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


@contextmanager
def open_text(source: Source) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where they are gzip, whatever the file's name says."""
    with open_bytes(source.path) as raw:
        # By content: a name may lie, and a pipe has none.
        file: Any = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
        head = file.peek(8)[:8]
        for magic, what in _NOT_TEXT.items():
            if head.startswith(magic):
                raise DataError(
                    f"{source}: this is {what}, not {source.format} in UTF-8: convert it first"
                )
        yield (
            io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20)
            if head.startswith(_GZIP)
            else file
        )


def damage_error(source: Source, line: int, error: Exception) -> DataError:
    """The error of a gzip file that is damaged or cut."""
    # Where it ends before the first line is complete, no line was counted.
    return DataError(
        f"{source}:{max(line, 1)}: the gzip data is damaged or cut in or after this line: {error}: "
        "get the file again (gzip -t FILE checks it)"
    )
