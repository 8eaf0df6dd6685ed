"""Staging stores: named objects in a local folder or under `gs://`, `s3://` or `az://`, created at
most once each.

    store = open_store("gs://bucket/staging")
    store.create("log/1", b"mine")        # True for one process in the world
    store.get("log/1")                    # b"mine"

Only operations that every store has are used: create-if-absent, whole writes, reads of ranges,
lists, and deletes of objects that nobody needs any more. No rename, no compare-and-swap, no append:
object stores lack some of these, and GCS emulators ignore others.

Each store is one file with `protocols.Store`'s methods, and a row in `STORES`. Another package adds
one by an entry point in the group `beam_llm.stores`, named like the scheme.
`testing.contracts.StoreContract` has the tests that a store has to pass.

    local, gcs, s3, azure     the stores
    objects, names            what those of objects share; which names an object can have
"""

from __future__ import annotations

import contextlib
import filecmp
import importlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, cast

from beam_llm.errors import LedgerError, UsageError
from beam_llm.leftovers import scratch_folder
from beam_llm.protocols import Store
from beam_llm.stores.names import folder_of, is_name

# Not Beam's FileSystems: their `create` and `rename` replace an existing object, so two creators of
# one name would both win.
STORES = {
    "": "beam_llm.stores.local:LocalStore",
    "file": "beam_llm.stores.local:LocalStore",
    "gs": "beam_llm.stores.gcs:GcsStore",
    "s3": "beam_llm.stores.s3:S3Store",
    "az": "beam_llm.stores.azure:AzureStore",
}
"""Scheme of a location → the store's class, which is called with the location."""

ENTRY_POINTS = "beam_llm.stores"
LOCATIONS = "a local folder, gs://bucket/path, s3://bucket/path or az://container/path"

# A probe costs four requests, so a process makes one per location.
_probed: set[str] = set()


def open_store(location: str, *, probe: bool = True) -> Store:
    """The store at `location`: a local folder (made if absent), `gs://bucket/path`,
    `s3://bucket/path` or `az://container/path`.

    Any worker can call it, without preparation.

    Args:
      probe: test, once per process and location, that creates are exclusive.

    Raises:
      UsageError: there is no store for such a location.
      LedgerError: the location can't be written, or its create is not atomic (two creators of one
        name would both win).
    """
    store = store_at(location)
    if probe and location not in _probed:
        probe_create(store)
        _probed.add(location)
    return store


def store_at(location: str) -> Store:
    """The store at `location`, without making, probing or contacting anything.

    Raises:
      UsageError: there is no store for such a location.
      LedgerError: a local location is not a folder, or not safe to keep anything in.
    """
    scheme, separator, _ = location.partition("://")
    store: Store = _store_class(scheme if separator else "", location)(location)
    return store


def absolute(location: str) -> str:
    """The same location, independent of the process's working folder and home."""
    scheme, separator, _ = location.rpartition("://")
    return f"{scheme}{separator}{folder_of(location)}" if scheme in ("", "file") else location


def _store_class(scheme: str, location: str) -> Callable[[str], Any]:
    if scheme in STORES:
        module, _, name = STORES[scheme].partition(":")
        return cast(Callable[[str], Any], getattr(importlib.import_module(module), name))
    for entry in metadata.entry_points(group=ENTRY_POINTS, name=scheme):
        return cast(Callable[[str], Any], entry.load())
    raise UsageError(
        f"staging_location is {location!r}: there is no store for {scheme}://; use {LOCATIONS}"
    )


def probe_create(store: Store) -> None:
    """Checks that, of two creates of one name, the second is refused and the first one's bytes
    stay.

    Some S3 and GCS look-alikes accept a write's condition and ignore it, so that every creator
    wins.

    Raises:
      LedgerError: the location can't be used, or its creates are not exclusive.
    """
    # Several workers may probe one location at once, so each probe has a name of its own.
    name = f"probe/{uuid.uuid4().hex}"
    try:
        first, second = store.create(name, b"first"), store.create(name, b"second")
        kept = store.get(name)
        store.delete(name)
    except (LedgerError, UsageError):
        raise
    # Stores raise what their client library raises; a user needs to see which location failed.
    except Exception as error:
        raise LedgerError(f"staging location {store.location!r} can't be used: {error}") from error
    if not (first and not second and kept == b"first"):
        raise LedgerError(
            f"staging location {store.location!r} has no atomic create: "
            "a second creator of one object was let through, "
            f"so a job could be paid twice; use {LOCATIONS}"
        )


def valid_names(store: Store, prefix: str) -> list[str]:
    """The listed objects that this package may have written: foreign files beside them may have any
    name."""
    return [name for name in store.list(prefix) if is_name(name)]


@contextlib.contextmanager
def local_copy(store: Store, name: str) -> Iterator[str]:
    """A local path with the object's bytes: the object itself, or a temporary copy of a remote one.

    Raises:
      LedgerError: there is no such object.
    """
    path = store.path_of(name)
    if path is not None:
        if not path.is_file():
            raise missing(store, name)
        yield str(path)
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
        # A store's `get_file` removes it where there is no such object.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def holds(store: Store, name: str, path: str) -> bool:
    """Whether the object is there with the local file's bytes.

    For a remote object only checks that it exists, since it is named by its content.
    """
    stored = store.path_of(name)
    if stored is None:
        # Reading an empty range tells whether the object exists, without transferring it.
        return store.read(name, 0, 0) is not None
    try:
        return filecmp.cmp(stored, path, shallow=False)
    except FileNotFoundError:
        return False


def missing(store: Store, name: str) -> LedgerError:
    """The error for a required object that doesn't exist."""
    return LedgerError(
        f"staging location {store.location!r}: {name} is missing; "
        "it was deleted, or the location is another one"
    )
