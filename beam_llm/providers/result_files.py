"""Streams the result files of a job into one local file: complete lines first, cut ones last."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from beam_llm.errors import CallError, Kind, Rejected, Retryable
from beam_llm.providers.control import ControlCalls
from beam_llm.providers.typed import loads

_MOST_CUT_BYTES = 1 << 16
"""Bytes that are kept of a cut line: nobody reads it, it only shows that something is missing."""


def fetch_files(
    control: ControlCalls, files: Iterable[tuple[str, str]], seconds: float, path: Path
) -> None:
    """Writes all files into one at `path`, and checks their lengths where the server declares them.

    Args:
      files: for each the name, for error messages, and the address.
      seconds: the time for each, including its repetitions.

    Raises:
      CallError: a file can't be read, or is not complete; what can be read is at `path`.
    """
    failed: CallError | None = None
    cut = b""
    with open(path, "w+b") as file:
        for name, url in files:
            start = file.seek(0, os.SEEK_END)
            try:
                _fetch_file(control, name, url, seconds, file, start)
            except CallError as error:
                failed = failed or error
                # Half a file would pass for a complete one with fewer lines.
                file.truncate(start)
                continue
            cut += remove_cut_line(file, start, control.reply_bytes)
        file.seek(0, os.SEEK_END)
        file.write(cut)
    if failed is not None:
        raise failed


def _fetch_file(
    control: ControlCalls, name: str, url: str, seconds: float, file: IO[bytes], start: int
) -> None:
    """Writes one result file behind `start`."""

    def once(seconds: float) -> None:
        file.seek(start)
        file.truncate()
        answer = control.call("GET", url, seconds, missing=Rejected, into=file)
        length = answer.headers.get("content-length")
        encoded = answer.headers.get("content-encoding", "identity")
        written = file.tell() - start
        # For a compressed body the header counts the compressed bytes, which can't be compared.
        if length is not None and encoded == "identity" and length != str(written):
            raise Retryable(
                Kind.UNAVAILABLE, f"file {name!r} was cut: {written:,} of {length[:20]} bytes"
            )

    control.harmless(once, seconds)


def remove_cut_line(file: IO[bytes], start: int, most_bytes: int) -> bytes:
    """Removes and returns a cut line at a file's end, since another file's lines may follow. A
    complete line that only lacks its newline gets one.

    Args:
      start: where the part to check begins.
      most_bytes: of a line; a longer one is not checked.
    """
    end = at = file.seek(0, os.SEEK_END)
    newline = -1
    while at > start and newline < 0:
        step = min(at - start, 1 << 20)
        at -= step
        file.seek(at)
        newline = file.read(step).rfind(b"\n")
    begin = at + newline + 1 if newline >= 0 else start
    file.seek(begin)
    line = file.read(min(end - begin, most_bytes))
    if is_complete_line(line):
        file.write(b"\n")
        return b""
    file.truncate(begin)
    return line[:_MOST_CUT_BYTES]


def is_complete_line(line: bytes) -> bool:
    """Whether a last line without its newline is a complete JSON object."""
    try:
        return isinstance(loads(line), dict)
    except ValueError:
        return False
