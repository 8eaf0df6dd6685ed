"""Keeps the answers of a running `predict` beside the output until all are there: what was paid for
survives a Ctrl-C, a kill, a lost network.

A folder `OUT.partial-<name>/` holds one file per bundle, one line per answer, each with its
record's ordinal (0-based, over all inputs) and the digest of its content. The name hashes the
question and the inputs' names, so the same command finds its answers again. An answer belongs to
the record with its digest, wherever that is by now; the ordinal only distinguishes equal records.
Lines may repeat (a bundle tried twice) or be cut (a kill): repeats answer the same question, and a
cut line is not an answer.

The folder belongs to its user alone: it is created with mode 0700, and refused where it is somebody
else's, since answers in it would be trusted.
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
from collections.abc import Iterable, Iterator
from typing import IO, Any

import orjson

from beam_llm.cli.files import remote
from beam_llm.cli.files.records import is_remote, open_bytes
from beam_llm.cli.files.sources import is_special
from beam_llm.cli.files.survey import changes_between
from beam_llm.cli.spool_index import SpoolIndex
from beam_llm.cli.stored import Check, StoredAnswer, encode_answer, parse_line
from beam_llm.errors import LLMError

_log = logging.getLogger("beam_llm")


# A kill can lose this much of a local spool: such records are asked, and paid for, again.
_FLUSH_SECONDS = 0.2


_SUPERUSER = 0
_KEPT = "ended-with-errors"


def folder_for(output: str, question: bytes, inputs: Iterable[str], *, here: bool = True) -> str:
    """The spool's folder: beside the output; where that is stdout, a pipe or remote, in the
    temporary folder.

    Args:
      question: everything that shapes an answer (a task's fingerprint).
      inputs: the names of the inputs.
      here: the workers are on this machine; otherwise a remote output's spool has to be beside the
        output, where the workers can write.
    """
    name = hashlib.sha256(
        b"\0".join([question, *(name.encode("utf-8", "surrogateescape") for name in inputs)])
    ).hexdigest()[:12]
    aside = output == "-" or (here and is_remote(output)) or is_special(output)
    # By user: all users share the temporary folder, and so its names.
    base = os.path.join(tempfile.gettempdir(), f"beam-llm-{os.getuid()}") if aside else output
    return f"{base}.partial-{name}"


class SpoolFile:
    """One bundle's file. A local file is flushed every 0.2 s; an object store shows it only when it
    is closed.

    Args:
      definition: names the code that made the answers' JSON (`definition_of`).
    """

    def __init__(self, folder: str, definition: str = ""):
        self._file = _create(folder, f"answers-{definition}-{uuid.uuid4().hex}.jsonl")
        self._flushed = time.monotonic()

    def add(self, answer: StoredAnswer) -> None:
        """Writes how a record ended."""
        self._file.write(encode_answer(answer))
        if (now := time.monotonic()) - self._flushed > _FLUSH_SECONDS:
            self._flushed = now
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class Spool:
    """The folder as its command sees it.

    Raises:
      LLMError: the folder is somebody else's, or another process is at work on the same output with
        the same question.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._lock: IO[bytes] | None = None
        self._owner: int | None = None
        if not is_remote(folder):
            self._owner = _claim(folder)
            self._lock = _lock_file(os.path.join(folder, "lock"))

    def note_inputs(self, digests: bytes) -> str:
        """Stores what the records are now; returns in words how they differ from those of an
        earlier run: empty where they are the same, or there was no earlier run.
        """
        names = sorted(_files_ending_in(self.folder, ".digests", self._owner))
        before = None
        if names:
            with open_bytes(names[-1]) as file:
                before = file.read()
        if before != digests:
            self._write_digests(digests)
        return "" if before is None else changes_between(before, digests)

    def _write_digests(self, digests: bytes) -> None:
        # Of fixed width, so that names sort by time.
        name = f"inputs-{time.time_ns():020d}.digests"
        # A file cut by a kill would pass for fewer records, so it gets its name when complete.
        with _create(self.folder, name if is_remote(self.folder) else f"{name}.new") as file:
            file.write(digests)
        if not is_remote(self.folder):
            os.replace(os.path.join(self.folder, f"{name}.new"), os.path.join(self.folder, name))

    def answers(
        self, digests: bytes, definition: str = "", check: Check | None = None
    ) -> SpoolIndex:
        """Each record's best answer; reads all files once. Use it in a `with` block.

        Args:
          digests: of the records, as `Survey` has them.
          definition: of the present output type; answers made by another one are passed through
            `check`.
        """
        index = SpoolIndex(digests)
        for path in sorted(_files_ending_in(self.folder, ".jsonl", self._owner)):
            is_present = os.path.basename(path).split("-")[1] == definition
            with open_bytes(path) as file:
                index.add_lines(file, None if is_present else check)
        return index

    def clear(self) -> None:
        """Removes all answers: those of records without a place are useless in another run."""
        from apache_beam.io.filesystems import FileSystems

        FileSystems.delete(_files_ending_in(self.folder, ".jsonl", self._owner))

    def lines(self) -> Iterator[StoredAnswer]:
        """All answers of records that had no place in an input, as `write_once` stored them."""
        for path in sorted(_files_ending_in(self.folder, ".jsonl", self._owner)):
            with open_bytes(path) as file:
                for line in file:
                    if (answer := parse_line(line)) is not None:
                        yield answer

    def keep(self) -> None:
        """Marks its answers as those of a finished output with errors among them, so that they stay
        for `--retry-errors`.
        """
        if not is_marked_kept(self.folder):
            _create(self.folder, _KEPT).close()

    def remove(self) -> None:
        """Removes the folder with all that is in it: the output is written."""
        if is_remote(self.folder):
            from apache_beam.io.filesystems import FileSystems

            try:
                found = FileSystems.match([f"{self.folder}/*"])[0].metadata_list
                FileSystems.delete([one.path for one in found])
            except Exception as error:  # of any kind: what counts is that the output is written
                _log.warning("%s could not be removed: %s", self.folder, error)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Releases the folder, and removes it where it has no answers."""
        if self._lock is None:
            return
        if os.path.isdir(self.folder) and not (
            is_marked_kept(self.folder)
            or any(os.path.getsize(path) for path in _files_ending_in(self.folder, ".jsonl"))
        ):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        self._lock = None


def is_marked_kept(folder: str) -> bool:
    """Whether the folder has the answers of a finished output with errors among them."""
    path = f"{folder}/{_KEPT}"
    if not is_remote(folder):
        return os.path.isfile(path)
    return remote.exists(path)


def holds_answers(folder: str) -> bool:
    """Whether the folder exists, and has answers or is marked as that of a finished output."""
    if not is_remote(folder) and not os.path.isdir(folder):
        return False
    return is_marked_kept(folder) or bool(_files_ending_in(folder, ".jsonl"))


def records_in(folder: str) -> Iterator[tuple[StoredAnswer, dict[str, Any]]]:
    """The answers in a folder with their records' fields, by ordinal; those with the same ordinal
    in any order.
    """
    places: list[tuple[int, int]] = []
    with tempfile.TemporaryFile(prefix="beam-llm-") as together:
        for path in sorted(_files_ending_in(folder, ".jsonl")):
            with open_bytes(path) as lines:
                for line in lines:
                    places.append((orjson.loads(line)[0], together.tell()))
                    together.write(line)
        for _, offset in sorted(places):
            together.seek(offset)
            *values, fields = orjson.loads(together.readline())
            yield StoredAnswer(*values), fields


def _claim(folder: str) -> int:
    """Makes sure that the folder exists and belongs to this user alone; returns the owner of files
    that this user creates there.

    In a temporary folder that all users share, another user could create a folder of this name
    first, and put answers into it. The owner is compared with that of a new file, since a mounted
    share may show one owner for everything, who is not the process's user.

    Raises:
      LLMError: it is somebody else's, or not a folder, or can't be created.
    """
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise LLMError(
            f"the folder {folder!r}, which keeps answers until the output is written, can't be "
            f"created: {error.strerror}: name an output, or a temporary folder (TMPDIR), that can "
            "be written"
        ) from None
    # Links are not followed: one may lead into a folder that others can write to.
    found = os.lstat(folder)
    try:
        descriptor, probe = (
            tempfile.mkstemp(dir=folder) if stat.S_ISDIR(found.st_mode) else (-1, "")
        )
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
        f"{folder} is not a folder of yours, so answers are neither written to it nor read from "
        "it: remove it, or name another output or temporary folder (TMPDIR)"
    )


def _lock_file(path: str) -> IO[bytes]:
    import fcntl

    # Held open while the command runs; the lock ends with it, however the command ends.
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LLMError(
            "the same command is running already on this output: wait for it to end"
        ) from None
    return file


def _create(folder: str, name: str) -> IO[bytes]:
    if is_remote(folder):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        return FileSystems.create(
            f"{folder}/{name}", compression_type=CompressionTypes.UNCOMPRESSED
        )
    return os.fdopen(
        # O_EXCL: nothing that somebody has put there under this name is written into.
        os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
        "wb",
    )


def _files_ending_in(folder: str, suffix: str, owner: int | None = None) -> list[str]:
    """Files in the folder whose names end with `suffix`.

    Args:
      owner: in a local folder, only files of this user and of the superuser are returned.
    """
    if is_remote(folder):
        return remote.matches(f"{folder}/*{suffix}")
    with os.scandir(folder) as entries:
        return [
            entry.path
            for entry in entries
            if entry.name.endswith(suffix)
            and entry.is_file(follow_symlinks=False)
            and (owner is None or entry.stat(follow_symlinks=False).st_uid in (owner, _SUPERUSER))
        ]
