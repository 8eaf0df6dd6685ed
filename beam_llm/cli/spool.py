"""Answers of a running `predict`, kept beside the output until all are there: what was paid for outlives a Ctrl-C, a kill, a lost network.

A folder `OUT.partial-<name>/` holds one file per bundle, one line per answer, each with its record's ordinal (0-based, over all inputs)
and the digest of its content. The name hashes the question and the inputs' names, so the same command again finds its own answers. An
answer belongs to the record of its digest, wherever that is by now; the ordinal only tells equal records apart. Lines may repeat (a
bundle tried twice) or be cut (a kill): repeats are the same question's answers, and a cut line is no answer.

The folder is its user's alone: made with mode 0700, and refused where it is somebody else's, for answers in it would be believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
import uuid
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import orjson

from beam_llm.cli.files import each_digest, is_special
from beam_llm.cli.records import DIGEST_BYTES, is_remote, json_bytes, open_bytes
from beam_llm.errors import LLMError

_log = logging.getLogger("beam_llm")
_FLUSH_SECONDS = 0.2
_NOWHERE = -1
_SUPERUSER = 0

Check = Callable[[Any], Any]
"""Makes an answer's JSON what it has to be by now, or raises ValueError."""


class Kept(NamedTuple):
    """How one record ended, as the spool holds it.

    Attributes:
      value: in JSON form.
      digest: of the record, in hex.
    """

    ordinal: int
    value: Any
    kind: str | None
    error: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    reused: bool = False
    digest: str = ""


def folder_for(output: str, question: bytes, inputs: Iterable[str], *, here: bool = True) -> str:
    """The spool's folder: beside the output; where that is stdout, a pipe or remote, in the temporary folder.

    Args:
      question: everything that shapes an answer (a task's fingerprint).
      inputs: their names.
      here: the workers are on this machine; else a remote output's spool has to be where they can write, beside it.
    """
    name = hashlib.sha256(b"\0".join([question, *(name.encode("utf-8", "surrogateescape") for name in inputs)])).hexdigest()[:12]
    aside = output == "-" or (here and is_remote(output)) or is_special(output)
    base = os.path.join(tempfile.gettempdir(), f"beam-llm-{os.getuid()}") if aside else output
    return f"{base}.partial-{name}"


class SpoolFile:
    """One bundle's file. Local files are flushed every 0.2 s; an object store has it when it is closed.

    Args:
      definition: names the code that made the answers' JSON (`definition_of`).
    """

    def __init__(self, folder: str, definition: str = ""):
        self._file = _create(folder, f"answers-{definition}-{uuid.uuid4().hex}.jsonl")
        self._flushed = time.monotonic()

    def add(self, kept: Kept, fields: Mapping[str, Any] | None = None) -> None:
        """Args:
        fields: of the record, where they can't be had again from an input file.
        """
        self._file.write(spool_line(kept) if fields is None else json_bytes([*kept, fields]) + b"\n")
        if (now := time.monotonic()) - self._flushed > _FLUSH_SECONDS:
            self._flushed = now
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def spool_line(kept: Kept) -> bytes:
    try:
        return orjson.dumps(list(kept), default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half a character
        return json_bytes(list(kept)) + b"\n"


class Spool:
    """The folder as its command sees it.

    Raises:
      LLMError: the folder is somebody else's, or another process is at work on the same output with the same question.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._lock: IO[bytes] | None = None
        self._owner: int | None = None
        if not is_remote(folder):
            self._owner = _own(folder)
            self._lock = _locked(os.path.join(folder, "lock"))

    def note_inputs(self, digests: bytes) -> bytes | None:
        """Remembers what the records are now; returns what they were when this was last called on the folder, if ever."""
        names = sorted(_named(self.folder, ".digests", self._owner))
        before = None
        if names:
            with open_bytes(names[-1]) as file:
                before = file.read()
        if before != digests:
            self._write_digests(digests)
        return before

    def _write_digests(self, digests: bytes) -> None:
        name = f"inputs-{time.time_ns():020d}.digests"
        with _create(self.folder, name if is_remote(self.folder) else f"{name}.new") as file:
            file.write(digests)
        if not is_remote(self.folder):
            os.replace(os.path.join(self.folder, f"{name}.new"), os.path.join(self.folder, name))

    def answers(self, digests: bytes, definition: str = "", check: Check | None = None) -> SpoolIndex:
        """Each record's best answer; reads all files once. Use it in a `with` block.

        Args:
          digests: of the records, as `Survey` has them.
          definition: of the present output type; answers made by another one are passed through `check`.
        """
        index = SpoolIndex(digests)
        for path in sorted(_named(self.folder, ".jsonl", self._owner)):
            is_present = os.path.basename(path).split("-")[1] == definition
            with open_bytes(path) as file:
                index.take_in(file, None if is_present else check)
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
        if os.path.isdir(self.folder) and not any(os.path.getsize(path) for path in _named(self.folder, ".jsonl")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        self._lock = None


def _own(folder: str) -> int:
    """Makes sure that the folder is there and this user's alone; returns the owner that files made by this user have there.

    Who makes a folder of this name first, in a temporary folder that all users share, could put answers of their own into it. The owner
    is compared with that of a new file: a mounted share may show one owner for everything, who is not the process's user.

    Raises:
      LLMError: it is somebody else's, or not a folder.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    try:
        descriptor, probe = tempfile.mkstemp(dir=folder) if stat.S_ISDIR(found.st_mode) else (-1, "")
    except PermissionError:
        descriptor, probe = -1, ""
    if descriptor >= 0:
        owner = os.fstat(descriptor).st_uid
        os.close(descriptor)
        os.unlink(probe)
        if owner == found.st_uid:
            if found.st_mode & 0o077:
                with contextlib.suppress(PermissionError):
                    os.chmod(folder, 0o700)
            return owner
    raise LLMError(
        f"{folder} is not a folder of yours, so no answers are kept in it and none in it are believed: "
        "remove it, or name another output or temporary folder (TMPDIR)"
    )


def _locked(path: str) -> IO[bytes]:
    import fcntl

    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb")  # held open for as long as the command runs
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
    return os.fdopen(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _named(folder: str, suffix: str, owner: int | None = None) -> list[str]:
    """Files in the folder whose names end so.

    Args:
      owner: of a local folder: files of anybody else but him and the superuser are left out.
    """
    if is_remote(folder):
        from apache_beam.io.filesystems import FileSystems

        return [found.path for found in FileSystems.match([f"{folder}/*{suffix}"])[0].metadata_list]
    with os.scandir(folder) as entries:
        return [
            entry.path
            for entry in entries
            if entry.name.endswith(suffix)
            and entry.is_file(follow_symlinks=False)
            and (owner is None or entry.stat(follow_symlinks=False).st_uid in (owner, _SUPERUSER))
        ]


class SpoolIndex:
    """Record → answer: the answers in one temporary file, and 9 bytes a record in memory, whatever the answers' size.

    Args:
      digests: of the records, 16 bytes each.

    Attributes:
      unfit: answers that the present output type refuses; their records count as not answered.
    """

    def __init__(self, digests: bytes):
        records = len(digests) // DIGEST_BYTES
        self._file = tempfile.TemporaryFile(prefix="beam-llm-")  # noqa: SIM115 - closed by __exit__
        self._end = 0
        self._digests = digests
        self._ordinals_of: dict[bytes, tuple[deque[int], deque[int]]] | None = None
        self._offset_of = array("q", [_NOWHERE]) * records
        self._good = bytearray(records)
        self.unfit = 0

    def __enter__(self) -> SpoolIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take_in(self, lines: Iterable[bytes], check: Check | None = None) -> None:
        """A spool file's answers: a value is never replaced by an error, and an answer goes to no record but its own."""
        for line in lines:
            kept = _parse(line)
            if kept is None or (ordinal := self._ordinal(kept)) is None or (kept.error is not None and self._good[ordinal]):
                continue
            if check is not None and kept.error is None:
                try:
                    line = spool_line(kept._replace(value=check(kept.value)))
                except ValueError:
                    self.unfit += 1
                    continue
            self._file.write(line)
            self._offset_of[ordinal] = self._end
            self._end += len(line)
            self._good[ordinal] = kept.error is None

    def _ordinal(self, kept: Kept) -> int | None:
        """The record that an answer belongs to: the one in its old place, where that is the same still, else an equal one elsewhere."""
        digest = bytes.fromhex(kept.digest)
        start = kept.ordinal * DIGEST_BYTES
        is_there = 0 <= kept.ordinal < len(self._good) and self._digests[start : start + DIGEST_BYTES] == digest
        # Once records were found in other places, this one may have got the answer of an equal one: then this answer is that one's.
        if is_there and not (self._good[kept.ordinal] and self._ordinals_of is not None):
            return kept.ordinal
        queues = self._equal_records(digest)
        if queues is None:
            return None
        if kept.error is None:
            queue = queues[0]
            while queue and self._good[queue[0]]:
                queue.popleft()
        else:
            queue = queues[1]
            while queue and self._offset_of[queue[0]] != _NOWHERE:
                queue.popleft()
        return queue[0] if queue else None

    def _equal_records(self, digest: bytes) -> tuple[deque[int], deque[int]] | None:
        """Ordinals of the records of a digest, twice: the first to be cut to those without a value, the other to those without a line."""
        if self._ordinals_of is None:  # only where a record is not where it was
            self._ordinals_of = defaultdict(lambda: (deque(), deque()))
            for ordinal, one in enumerate(each_digest(self._digests)):
                for queue in self._ordinals_of[one]:
                    queue.append(ordinal)
        return self._ordinals_of.get(digest)

    def done(self) -> bytes:
        """One byte per record: 1 where it has a value and needn't be asked again."""
        return bytes(self._good)

    def missing(self) -> int:
        """Records without any line, good or bad."""
        return self._offset_of.count(_NOWHERE)

    def kept(self) -> Iterator[Kept]:
        """One per record, by ordinal. Call it where none is missing."""
        for ordinal, offset in enumerate(self._offset_of):
            self._file.seek(offset)
            yield Kept(*orjson.loads(self._file.readline()))._replace(ordinal=ordinal)


def _parse(line: bytes) -> Kept | None:
    if not line.endswith(b"\n"):
        return None
    try:
        kept = Kept(*orjson.loads(line))
        bytes.fromhex(kept.digest)
    except (ValueError, TypeError):
        return None
    return kept if type(kept.ordinal) is int else None


def records_in(folder: str) -> Iterator[tuple[Kept, dict[str, Any]]]:
    """Answers that a local folder keeps with their records' fields, by ordinal; those with the same one as they came."""
    places: list[tuple[int, int]] = []
    with tempfile.TemporaryFile(prefix="beam-llm-") as together:
        for path in sorted(_named(folder, ".jsonl"), key=os.path.getmtime):
            with open(path, "rb") as lines:
                for line in lines:
                    places.append((orjson.loads(line)[0], together.tell()))
                    together.write(line)
        for _, offset in sorted(places):
            together.seek(offset)
            *kept, fields = orjson.loads(together.readline())
            yield Kept(*kept), fields
