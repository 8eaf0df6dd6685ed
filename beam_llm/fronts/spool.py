"""Answers of a running `predict`, kept beside the output until all are there: what was paid for outlives a Ctrl-C, a kill, a lost network.

A folder `OUT.partial-<name>/` holds one file per bundle, one line per answer, each with its record's ordinal (0-based, over all inputs).
The name hashes the question and the inputs, so the same command again finds its own answers and another command never does. Lines may
repeat (a bundle tried twice) or be cut (a kill): repeats are the same question's answers, and a cut line is no answer.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import orjson

from beam_llm.errors import LLMError
from beam_llm.fronts.files import is_remote, open_bytes

_log = logging.getLogger("beam_llm")
_FLUSH_SECONDS = 0.2
_NOWHERE = -1


class Kept(NamedTuple):
    """One record's end, as the spool holds it. `value` is in JSON form."""

    ordinal: int
    value: Any
    kind: str | None
    error: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    reused: bool = False


def folder_for(output: str, question: bytes, identities: Iterable[str], *, here: bool = True) -> str:
    """The spool's folder: beside the output; where that is stdout or remote, in the temporary folder.

    Args:
      here: the workers are on this machine; else a remote output's spool has to be where they can write, beside it.
      question: everything that shapes an answer (a task's fingerprint).
      identities: of the inputs; a changed file has other ordinals.
    """
    name = hashlib.sha256(b"\0".join([question, *(identity.encode() for identity in identities)])).hexdigest()[:12]
    base = os.path.join(tempfile.gettempdir(), f"beam-llm-{os.getuid()}") if output == "-" or (here and is_remote(output)) else output
    return f"{base}.partial-{name}"


class SpoolFile:
    """One bundle's file. Local files are flushed every 0.2 s; an object store has it when it is closed."""

    def __init__(self, folder: str):
        self._file = _create(folder, f"answers-{uuid.uuid4().hex}.jsonl")
        self._flushed = time.monotonic()

    def add(self, kept: Kept, fields: Mapping[str, Any] | None = None) -> None:
        """Args:
        fields: of the record, where they can't be had again from an input file.
        """
        line = list(kept) if fields is None else [*kept, fields]
        self._file.write(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n")
        if (now := time.monotonic()) - self._flushed > _FLUSH_SECONDS:
            self._flushed = now
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class Spool:
    """The folder as its command sees it.

    Raises:
      LLMError: another process is at work on the same output with the same question.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._lock: IO[bytes] | None = None
        if not is_remote(folder):
            os.makedirs(folder, exist_ok=True)
            self._lock = _locked(os.path.join(folder, "lock"))

    def answers(self, records: int) -> SpoolIndex:
        """Each record's best answer; reads all files once. Use it in a `with` block."""
        index = SpoolIndex(records)
        for path in sorted(_files_in(self.folder)):
            with open_bytes(path) as file:
                index.take_in(file)
        return index

    def remove(self) -> None:
        """All of it: the output is written."""
        if is_remote(self.folder):
            from apache_beam.io.filesystems import FileSystems

            try:
                FileSystems.delete([found.path for found in FileSystems.match([f"{self.folder}/*"])[0].metadata_list])
            except Exception as error:  # whatever a file system raises: the output is written, and that is what counts
                _log.warning("%s could not be removed: %s", self.folder, error)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Lets go of the folder; one that holds no answer goes too."""
        if self._lock is None:
            return
        if os.path.isdir(self.folder) and not any(os.path.getsize(path) for path in _files_in(self.folder)):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        self._lock = None


def _locked(path: str) -> IO[bytes]:
    import fcntl

    file = open(path, "ab")  # noqa: SIM115 - held open for as long as the command runs
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LLMError("the same command is running already on this output: wait for it to end") from None
    return file


def _create(folder: str, name: str) -> IO[bytes]:
    if is_remote(folder):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        return FileSystems.create(f"{folder}/{name}", compression_type=CompressionTypes.UNCOMPRESSED)
    return open(os.path.join(folder, name), "ab")


def _files_in(folder: str) -> list[str]:
    if not is_remote(folder):
        return [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".jsonl")]
    from apache_beam.io.filesystems import FileSystems

    return [found.path for found in FileSystems.match([f"{folder}/*.jsonl"])[0].metadata_list]


class SpoolIndex:
    """Ordinal → answer: the answers in one temporary file, and 9 bytes a record in memory, whatever the answers' size.

    Args:
      records: how many ordinals there are.
    """

    def __init__(self, records: int):
        self._file = tempfile.TemporaryFile(prefix="beam-llm-")  # noqa: SIM115 - closed by __exit__
        self._end = 0
        self._offset_of = array("q", [_NOWHERE]) * records
        self._good = bytearray(records)

    def __enter__(self) -> SpoolIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take_in(self, lines: Iterable[bytes]) -> None:
        """A spool file's answers: a value is never replaced by an error."""
        for line in lines:
            kept = _parse(line)
            if kept is None or not 0 <= kept.ordinal < len(self._good) or (kept.error is not None and self._good[kept.ordinal]):
                continue
            self._file.write(line)
            self._offset_of[kept.ordinal] = self._end
            self._end += len(line)
            self._good[kept.ordinal] = kept.error is None

    def done(self) -> bytes:
        """One byte per record: 1 where it has a value and needn't be asked again."""
        return bytes(self._good)

    def missing(self) -> int:
        """Records without any line, good or bad."""
        return self._offset_of.count(_NOWHERE)

    def kept(self) -> Iterator[Kept]:
        """One per record, by ordinal. Call it where none is missing."""
        for offset in self._offset_of:
            self._file.seek(offset)
            yield Kept(*orjson.loads(self._file.readline()))


def _parse(line: bytes) -> Kept | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return Kept(*orjson.loads(line))
    except (ValueError, TypeError):
        return None


def records_in(folder: str) -> Iterator[tuple[Kept, dict[str, Any]]]:
    """Answers that a local folder keeps with their records' fields, by ordinal; those with the same one as they came."""
    places: list[tuple[int, int]] = []
    with tempfile.TemporaryFile(prefix="beam-llm-") as together:
        for path in sorted(_files_in(folder), key=os.path.getmtime):
            with open(path, "rb") as lines:
                for line in lines:
                    places.append((orjson.loads(line)[0], together.tell()))
                    together.write(line)
        for _, offset in sorted(places):
            together.seek(offset)
            *kept, fields = orjson.loads(together.readline())
            yield Kept(*kept), fields
