"""Feeds a file of result lines, of any size, to a ResultReader: in blocks where lines are alike,
one by one otherwise."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO

from beam_llm.results.alike_lines import AlikeLines
from beam_llm.results.result_reader import ResultReader

_READ_BYTES = 1 << 20


def read_results(reader: ResultReader, path: str) -> None:
    """Feeds all lines of the file to the reader."""
    alike = AlikeLines.of(reader)
    for block in result_blocks(path, reader.most_bytes):
        if alike is None or not alike.read(block):
            for line in io.BytesIO(block):
                reader.read_line(line)


def result_blocks(path: str, most_bytes: int) -> Iterator[bytes]:
    """Yields the lines of a result file, which end at b"\\n" and nowhere else: many complete lines
    at a time, or a single line that is cut off or too long. Of a line that is too long, only its
    beginning is given."""
    with open(path, "rb", buffering=_READ_BYTES) as file:
        start, size = 0, min(_READ_BYTES, most_bytes)
        while block := file.read(size):
            end = block.rfind(b"\n") + 1
            if not end:
                yield from _one_line(file, start, most_bytes)
            else:
                yield block[:end]
                file.seek(start + end)
            start = file.tell()


def _one_line(file: IO[bytes], start: int, most_bytes: int) -> Iterator[bytes]:
    """Yields the line that begins at `start`, or only its beginning where it is too long."""
    file.seek(start)
    line = file.readline(most_bytes)
    yield line
    while len(line) == most_bytes and not line.endswith(b"\n"):
        line = file.readline(most_bytes)
