"""Staging stores: named objects in a local folder or under `gs://`, each created at most once where that is asked for.

Only what every store can do atomically is used: create-if-absent, whole writes, reads of ranges, lists, and deletes of things
nobody needs any more. No rename, no compare-and-swap, no append (GCS emulators ignore half of those; object stores lack them).
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from beam_llm.errors import LedgerError, UsageError
from beam_llm.leftovers import lock_file, scratch_folder, unlocked
from beam_llm.protocols import Store

_SEGMENT = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_\-.=]*")


def open_store(location: str, *, probe: bool = True) -> Store:
    """The store at `location`: a local folder (made if absent) or `gs://bucket/path`. For workers: nothing of it is needed before.

    Args:
      probe: try once per process and location whether an exclusive create is one.

    Raises:
      UsageError: there is no store for such a location.
      LedgerError: the location can't be written, or has no atomic create (two creators of one name would both win).
    """
    store = store_at(location)
    if probe and location not in _probed:
        _probe(store, location)
        _probed.add(location)
    return store


_probed: set[str] = set()


def store_at(location: str) -> Store:
    """The same, untouched: nothing is made, tried or asked for."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        return LocalStore(location)
    if scheme == "gs":
        return GcsStore(location)
    if scheme == "file":
        return LocalStore(location.removeprefix("file://"))
    if scheme in ("s3", "az"):
        raise UsageError(
            f"staging_location is {location!r}: {scheme}:// needs the objectstore extra (not in this version); use a local folder or gs://bucket/path"
        )
    raise UsageError(f"staging_location is {location!r}: there is no store for {scheme}://; use a local folder or gs://bucket/path")


def _probe(store: Store, location: str) -> None:
    """A store may pretend: some S3 and GCS look-alikes let every creator win. So see before trusting."""
    name = f"probe/{uuid.uuid4().hex}"
    try:
        first, second = store.create(name, b"first"), store.create(name, b"second")
        kept = store.get(name)
        store.delete(name)
    except LedgerError:
        raise
    except Exception as error:
        raise LedgerError(f"staging location {location!r} can't be used: {error}") from error
    if not (first and not second and kept == b"first"):
        raise LedgerError(
            f"staging location {location!r} has no atomic create: a second creator of one object was let through, "
            "so a job could be paid twice; use a local disk or gs://"
        )


def checked_name(name: str) -> str:
    """`name` itself, where it is a relative path of plain segments.

    Raises:
      ValueError: it could leave the staging location or name a hidden file.
    """
    if all(_SEGMENT.fullmatch(segment) for segment in name.split("/")):
        return name
    raise ValueError(f"{name!r} can't name a staging object: relative, segments of letters, digits, '_', '-', '.', '='")


class LocalStore:
    """A folder. Objects are written aside, fsynced, then linked (create) or renamed (put) into place: never seen half-written.

    What it makes there is the user's own (0700, 0600): it holds prompts and answers.

    Raises:
      LedgerError: the folder belongs to another user, or anybody may write into it: its answers could be forged.
    """

    def __init__(self, location: str):
        self.location = location
        self._root = Path(location).expanduser().absolute()
        self._aside = self._root / ".tmp"
        self._check_owner()

    def _check_owner(self) -> None:
        try:
            found = os.stat(self._root)
        except OSError:  # not there yet
            return
        if found.st_uid not in (os.geteuid(), 0):
            raise LedgerError(
                f"staging location {self.location!r} belongs to another user (uid {found.st_uid}), who could forge answers in it: "
                "name a folder of your own"
            )
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise LedgerError(f"staging location {self.location!r} can be written by anybody: chmod o-w, or name another folder")

    def check(self) -> None:
        """Looks whether the folder is one, or can become one; writes nothing.

        Raises:
          LedgerError: something else is in its place.
        """
        there = next(path for path in (self._root, *self._root.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise LedgerError(f"staging location {self.location!r} can't be used: {str(there)!r} is not a folder")

    def __reduce__(self) -> tuple[Any, ...]:
        return (LocalStore, (self.location,))

    def path_of(self, name: str) -> str:
        """Where the object lies; the file may be read in place."""
        return str(self._root / checked_name(name))

    def create(self, name: str, data: bytes) -> bool:
        with self._written(data) as aside:
            return self._linked(aside, self.path_of(name))

    def _linked(self, aside: str, target: str) -> bool:
        self._make_parent(target)
        try:
            os.link(aside, target)
        except FileExistsError:
            return False
        except OSError as error:
            raise LedgerError(
                f"staging location {self.location!r}: its file system can't create a file atomically "
                f"by hard link ({error}); use another folder or gs://"
            ) from error
        _sync_folder(target)
        return True

    def put(self, name: str, data: bytes) -> None:
        with self._written(data) as aside:
            self._renamed(aside, name)

    def put_file(self, name: str, path: str) -> None:
        with self._new_aside() as aside:
            shutil.copyfile(path, aside)
            with open(aside, "rb") as target:
                _sync(target)
            self._renamed(aside, name)

    def _renamed(self, aside: str, name: str) -> None:
        target = self.path_of(name)
        self._make_parent(target)
        os.replace(aside, target)
        _sync_folder(target)

    def _make_parent(self, target: str) -> None:
        _make_folder(os.path.dirname(target))

    @contextlib.contextmanager
    def _new_aside(self) -> Iterator[str]:
        """A new private file, locked while it is written, so that `leftovers` tells it from those of killed processes."""
        _make_folder(str(self._aside))
        aside = str(self._aside / f"{os.getpid()}-{uuid.uuid4().hex}")
        lock = lock_file(aside)
        try:
            yield aside
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            if lock is not None:
                os.close(lock)

    def leftovers(self) -> list[str]:
        """Paths of files that killed processes were writing."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._aside) as entries:
            for entry in entries:
                with contextlib.suppress(OSError), unlocked(entry.path) as is_dead:
                    if is_dead:
                        found.append(entry.path)
        return found

    @contextlib.contextmanager
    def _written(self, data: bytes) -> Iterator[str]:
        with self._new_aside() as aside:
            with open(aside, "wb") as target:
                target.write(data)
                _sync(target)
            yield aside

    def get(self, name: str) -> bytes | None:
        try:
            with open(self.path_of(name), "rb") as source:
                return source.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def get_file(self, name: str, path: str) -> bool:
        try:
            shutil.copyfile(self.path_of(name), path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list(self, prefix: str, start_after: str = "") -> Iterable[str]:
        folder = prefix.rpartition("/")[0]
        names = (name for name in self._walk(folder) if name.startswith(prefix) and name > start_after)
        return sorted(names)

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(name)
            else:
                yield name

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.path_of(name))


def _make_folder(path: str) -> None:
    """Makes the folder, and those above it, private."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    """A new name survives a power cut only once its folder is synced too."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class GcsStore:
    """A prefix of a Google Cloud Storage bucket. Creates carry `if_generation_match=0`; `STORAGE_EMULATOR_HOST` is honoured."""

    def __init__(self, location: str):
        self.location = location
        bucket, _, prefix = location.removeprefix("gs://").strip("/").partition("/")
        if not bucket:
            raise UsageError(f"staging_location is {location!r}: the bucket is missing; write gs://bucket/path")
        self._bucket_name = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._made: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (GcsStore, (self.location,))

    @property
    def _bucket(self) -> Any:
        """One client per store object, made at first use: a store travels by its location only."""
        with self._lock:
            if self._made is None:
                self._made = _client().bucket(self._bucket_name)
            return self._made

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + checked_name(name))

    def create(self, name: str, data: bytes) -> bool:
        """The library repeats an upload whose answer was lost, and then the true winner gets the 412. So each create carries
        a nonce of its own in the object's metadata, which is read back to see who won."""
        from google.api_core.exceptions import PreconditionFailed
        from google.cloud.storage.exceptions import InvalidResponse

        blob, nonce = self._blob(name), uuid.uuid4().hex
        blob.metadata = {"creator": nonce}
        try:
            blob.upload_from_string(data, content_type="application/octet-stream", if_generation_match=0)
        except PreconditionFailed:
            return self._creator(name) == nonce
        except InvalidResponse as error:  # what a resumable upload that lost raises instead
            if getattr(error.response, "status_code", None) != 412:
                raise
            return self._creator(name) == nonce
        return True

    def _creator(self, name: str) -> str | None:
        found = self._bucket.get_blob(self._prefix + name)
        return (found.metadata or {}).get("creator") if found is not None else None

    def put(self, name: str, data: bytes) -> None:
        self._blob(name).upload_from_string(data, content_type="application/octet-stream")

    def put_file(self, name: str, path: str) -> None:
        self._blob(name).upload_from_filename(path, content_type="application/octet-stream")

    def get(self, name: str) -> bytes | None:
        from google.api_core.exceptions import NotFound

        try:
            data: bytes = self._blob(name).download_as_bytes()
        except NotFound:
            return None
        return data

    def get_file(self, name: str, path: str) -> bool:
        from google.api_core.exceptions import NotFound

        try:
            self._blob(name).download_to_filename(path)
        except NotFound:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return False
        return True

    def list(self, prefix: str, start_after: str = "") -> Iterable[str]:
        first = self._prefix + start_after if start_after else None
        for blob in self._bucket.list_blobs(prefix=self._prefix + prefix, start_offset=first):
            name = blob.name[len(self._prefix) :]
            if name > start_after:  # start_offset itself is included by GCS
                yield name

    def delete(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            self._blob(name).delete()


def _client() -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    return storage.Client()


@contextlib.contextmanager
def local_copy(store: Store, name: str) -> Iterator[str]:
    """A local path with the object's bytes: the object itself where it is local, else a temporary copy.

    Raises:
      LedgerError: there is no such object.
    """
    if isinstance(store, LocalStore):
        path = store.path_of(name)
        if not os.path.exists(path):
            raise missing(store, name)
        yield path
        return
    with temporary_file() as copy:
        if not store.get_file(name, copy):
            raise missing(store, name)
        yield copy


@contextlib.contextmanager
def temporary_file() -> Iterator[str]:
    """A path for a local file that is gone afterwards."""
    descriptor, path = tempfile.mkstemp(dir=scratch_folder())
    os.close(descriptor)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def holds(store: Store, name: str, path: str) -> bool:
    """Whether the object is there with the local file's bytes; of a remote one only whether it is there."""
    if isinstance(store, LocalStore):
        try:
            return filecmp.cmp(store.path_of(name), path, shallow=False)
        except FileNotFoundError:
            return False
    return name in set(store.list(name))


def missing(store: Store, name: str) -> LedgerError:
    return LedgerError(
        f"staging location {getattr(store, 'location', '?')!r}: {name} is missing; it was deleted, or the location is another one"
    )
