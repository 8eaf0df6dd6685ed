"""The text of a file that `beam-llm run` runs."""

from __future__ import annotations

from beam_llm.errors import UsageError

MOST_BYTES = 1_000_000
"""Of a file of statements or steps: larger ones are data."""


def text_of(path: str) -> str:
    """What the file says.

    Raises:
      UsageError: it can't be read, is too large, or not text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path!r} can't be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path!r} has more than {MOST_BYTES:,} bytes: rows belong into tables")
    try:
        # Windows' editors begin a file with a mark, which is not a part of its first statement.
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path!r} is not text in UTF-8 (byte {error.start + 1:,}): save it as UTF-8"
        ) from None
