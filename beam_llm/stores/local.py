"""A staging store that is a folder: of one machine, or of several that mount it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from beam_llm.errors import LedgerError
from beam_llm.leftovers import lock_file, lock_if_free
from beam_llm.stores.names import folder_of, is_name, valid_name

# A sweep may remove a new file before it is locked. If that seems to happen every time, there are
# no locks.
_LOCK_TRIES = 3
_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""A folder of objects is not an object itself, and an object is not a folder."""


class LocalStore:
    """A folder, in which no object is ever seen half-written.

    Objects are written aside, synced, then linked (create) or renamed (put) into place.

    Its folders and files are accessible by the user only (0700, 0600), since they hold prompts and
    answers.

    Args:
      location: the folder, with or without `file://`; made at the first write.

    Raises:
      LedgerError: the location is not a folder; it belongs to another user, or anybody may write
        into it: its answers could be forged.
    """

    def __init__(self, location: str):
        self.location = location
        self._root = folder_of(location)
        self._aside = f"{self._root}/.tmp"
        self._check_folder()
        self._check_owner()

    def _check_folder(self) -> None:
        # The folder may not exist yet; then the nearest one above it has to be a folder.
        there = next(path for path in (self._root, *self._root.parents) if os.path.lexists(path))
        if not os.path.isdir(there):
            raise LedgerError(
                f"staging location {self.location!r} can't be used: {str(there)!r} is not a folder"
            )

    def _check_owner(self) -> None:
        try:
            found = os.stat(self._root)
        except OSError:  # not there yet
            return
        # Root is trusted: it could forge answers in any folder.
        if found.st_uid not in (os.geteuid(), 0):
            raise LedgerError(
                f"staging location {self.location!r} belongs to another user (uid {found.st_uid}), "
                "who could forge answers in it: name a folder of your own"
            )
        # The sticky bit of /tmp protects our files, but others could make our folders first.
        if found.st_mode & stat.S_IWOTH:
            raise LedgerError(
                f"staging location {self.location!r} can be written by anybody: "
                "name a folder of your own, such as one in it, or chmod o-w"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.location,))

    def path_of(self, name: str) -> Path:
        """Where the object lies, or would."""
        return Path(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{valid_name(name)}"

    def create(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        with self._write_aside(data) as aside:
            _make_folder(os.path.dirname(target))
            try:
                # Not O_EXCL on the name itself: readers would see an incomplete object.
                os.link(aside, target)
            except FileExistsError:
                return False
            except OSError as error:
                raise LedgerError(
                    f"staging location {self.location!r}: "
                    "its file system can't create a file atomically "
                    f"by hard link ({error}); use another folder or gs://"
                ) from error
        _sync_folder(target)
        return True

    def put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        with self._write_aside(data) as aside:
            _rename(aside, target)

    def put_file(self, name: str, path: str) -> None:
        target = self._path(name)
        with open(path, "rb") as source, self._file_aside() as (aside, file):
            shutil.copyfileobj(source, file, 1 << 20)
            _sync(file)
            _rename(aside, target)

    @contextlib.contextmanager
    def _write_aside(self, data: bytes) -> Iterator[str]:
        with self._file_aside() as (aside, file):
            file.write(data)
            _sync(file)
            yield aside

    @contextlib.contextmanager
    def _file_aside(self) -> Iterator[tuple[str, IO[bytes]]]:
        """A new private file, locked while it is written, so that `sweep` sees that its writer is
        alive.

        Raises:
          LedgerError: it can't be written, as on a full disk.
        """
        try:
            path, descriptor = self._new_aside()
            with open(descriptor, "wb") as file:  # closing it, last of all, lets go of the lock
                try:
                    yield path, file
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
        except OSError as error:
            raise LedgerError(
                f"staging location {self.location!r} can't be written: {error.strerror or error}"
            ) from error

    def _new_aside(self) -> tuple[str, int]:
        """Path and descriptor of a new private file, locked where the file system has locks.

        Only written through the descriptor: opening it by name could make a second file, readable
        by all, if it was swept before it was locked.
        """
        _make_folder(self._aside)
        for _ in range(_LOCK_TRIES):
            path = f"{self._aside}/{os.getpid()}-{uuid.uuid4().hex}"
            descriptor = lock_file(path)
            if descriptor is not None:
                return path, descriptor
        # The file system has no locks, and so no sweeps either.
        path = f"{self._aside}/{os.getpid()}-{uuid.uuid4().hex}"
        return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def get(self, name: str) -> bytes | None:
        try:
            with open(self._path(name), "rb") as source:
                return source.read()
        except _NO_SUCH_FILE:
            return None

    def get_file(self, name: str, path: str) -> bool:
        try:
            shutil.copyfile(self._path(name), path)
        except _NO_SUCH_FILE:
            return False
        return True

    def read(self, name: str, start: int, end: int) -> bytes | None:
        try:
            with open(self._path(name), "rb") as source:
                source.seek(start)
                return source.read(max(end - start, 0))
        except _NO_SUCH_FILE:
            return None

    def list(self, prefix: str, start_after: str = "") -> Sequence[str]:
        folder = prefix.rpartition("/")[0]
        if folder and not is_name(folder):  # `../`, say: no object's name begins so
            return []
        names = (
            name for name in self._walk(folder) if name.startswith(prefix) and name > start_after
        )
        return sorted(names)

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(self._root / folder))
        except _NO_SUCH_FILE:
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            # `.tmp` holds files in the making, and no object's name begins with a dot.
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(name)
            else:
                yield name

    def delete(self, name: str) -> None:
        with contextlib.suppress(*_NO_SUCH_FILE):
            os.unlink(self._path(name))

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Paths of the files that killed processes were writing."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._aside) as entries:
            for entry in entries:
                # Its writer may finish, or another sweep may remove it, at any moment.
                with contextlib.suppress(OSError), lock_if_free(entry.path) as is_dead:
                    if is_dead:
                        found.append(entry.path)
                        if not dry_run:
                            os.unlink(entry.path)
        return found


def _rename(aside: str, target: str) -> None:
    _make_folder(os.path.dirname(target))
    os.replace(aside, target)
    _sync_folder(target)


def _make_folder(path: str) -> None:
    """Makes the folder, and those above it, private."""
    # Step by step, because os.makedirs gives its mode to the last folder only.
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    """A new name survives a power cut only once its folder is synced too."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
