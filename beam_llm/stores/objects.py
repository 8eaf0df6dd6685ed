"""The base of staging stores in buckets: `s3.py` and `azure.py` open the bucket, obstore talks to
it.

obstore's own errors are never raised: their texts hold whole addresses, which on Azure may carry a
token. The errors raised name the object, and the server's status and error code.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from beam_llm.errors import LLMError, UsageError
from beam_llm.stores.names import is_name, valid_name

PART_BYTES = 8 << 20
"""Size of a part of an upload or a download: a few parts are in memory at once, whatever the
object's size."""
PARTS_AT_ONCE = 4
# How often a download begins anew when its object is replaced meanwhile.
_READ_TRIES = 5
CLIENT = {"timeout": timedelta(seconds=300), "connect_timeout": timedelta(seconds=10)}
"""Of one request; a large object is several."""
RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=120)}

T = TypeVar("T")


class ObjectStoreError(LLMError):
    """An object could not be read or written: the message names it, and what the server said."""


class ObjectStore(ABC):
    """A prefix of a bucket, by obstore. Subclasses say how the bucket is opened.

    Attributes:
      bucket, prefix: of the location; the prefix without slashes at its ends, perhaps empty.

    Raises:
      UsageError: the location names no bucket, or obstore is not installed.
    """

    scheme = ""
    noun = "bucket"

    def __init__(self, location: str):
        self.location = location
        self.bucket, _, prefix = location.removeprefix(f"{self.scheme}://").partition("/")
        self.prefix = prefix.strip("/")
        if not self.bucket:
            raise UsageError(
                f"staging_location is {location!r}: the {self.noun} is missing; "
                f"write {self.scheme}://{self.noun}/path"
            )
        if self.prefix and not is_name(self.prefix):
            raise UsageError(
                f"staging_location is {location!r}: a path is of segments of letters, digits, "
                "'_', '-', '.' and '='; write "
                f"{self.scheme}://{self.bucket}/staging"
            )
        self._sdk = sdk(location)
        self._lock = threading.Lock()
        self._opened: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.location,))

    @abstractmethod
    def _open(self) -> Any:
        """obstore's store of the bucket, with `prefix` before every name."""

    @property
    def _store(self) -> Any:
        """obstore's store, made at first use, since this object is pickled by its location only."""
        with self._lock:
            if self._opened is None:
                with self._translate_errors("opened", ""):
                    self._opened = self._open()
            return self._opened

    @contextlib.contextmanager
    def _translate_errors(self, verb: str, name: str) -> Iterator[None]:
        """Translates obstore's errors, except those that are answers (no such object, object
        exists)."""
        known = self._sdk.exceptions
        try:
            yield
        except (known.AlreadyExistsError, known.PreconditionError):
            raise
        except self._missing as error:
            # Where the whole bucket is gone, nothing is known about the object.
            if _code_of(error) in _NO_BUCKET:
                raise self._store_error(verb, name, error) from None
            raise
        except known.BaseError as error:
            raise self._store_error(verb, name, error) from None

    def _store_error(self, verb: str, name: str, error: BaseException) -> ObjectStoreError:
        place = f"{self.location.rstrip('/')}/{name}".rstrip("/")
        return ObjectStoreError(f"{place} can't be {verb}: {reason_of(error)}")

    def create(self, name: str, data: bytes) -> bool:
        """Whether this call has created the object.

        obstore repeats a put whose answer was lost, and then even the winner is told that the
        object exists. So each create puts a nonce into the object's metadata, which is read back to
        see who won.
        """
        known, nonce = self._sdk.exceptions, uuid.uuid4().hex
        path = valid_name(name)
        try:
            with self._translate_errors("created", name):
                # One request: multipart uploads can't be conditional (arrow-rs-object-store#289).
                self._sdk.put(self._store, path, data, mode="create", attributes={"creator": nonce})
        except (known.AlreadyExistsError, known.PreconditionError):
            return self._creator(name) == nonce
        return True

    def _creator(self, name: str) -> str | None:
        with self._translate_errors("looked at", name):
            try:
                found = self._sdk.get(self._store, name, options={"head": True})
            except self._missing:
                return None
        creator: str | None = found.attributes.get("creator")
        return creator

    @property
    def _missing(self) -> tuple[type[BaseException], ...]:
        return (FileNotFoundError, self._sdk.exceptions.NotFoundError)

    def put(self, name: str, data: bytes) -> None:
        path = valid_name(name)
        with self._translate_errors("written", name):
            # In one request, which a kill can't interrupt half-way; parts of an unfinished upload
            # would stay, and be billed.
            self._sdk.put(self._store, path, data, use_multipart=False)

    def put_file(self, name: str, path: str) -> None:
        target = valid_name(name)
        with open(path, "rb") as source, self._translate_errors("written", name):
            self._sdk.put(
                self._store,
                target,
                source,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def get(self, name: str) -> bytes | None:
        path = valid_name(name)
        try:
            with self._translate_errors("read", name):
                return bytes(self._sdk.get(self._store, path).bytes())
        except self._missing:
            return None

    def get_file(self, name: str, path: str) -> bool:
        source = valid_name(name)
        try:
            self._download(source, path)
        except self._missing:
            # Removes what was read before the object vanished, so that nobody takes it for the
            # object.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return False
        return True

    def _download(self, name: str, path: str) -> None:
        """Downloads the parts of one version of the object; begins anew where another version has
        replaced it."""
        for _ in range(_READ_TRIES):
            with self._translate_errors("read", name):
                meta = self._sdk.head(self._store, name)
            with open(path, "wb") as file, contextlib.suppress(_Replaced):
                for start in range(0, meta["size"], PART_BYTES):
                    end = min(start + PART_BYTES, meta["size"])
                    file.write(self._part(name, start, end, meta["e_tag"]))
                return
        raise ObjectStoreError(f"{self.location}/{name} can't be read: it changes all the time")

    def _part(self, name: str, start: int, end: int, e_tag: str | None) -> bytes:
        options: dict[str, Any] = {"range": (start, end)}
        if e_tag is not None:
            # Otherwise one file could have parts of two versions.
            options["if_match"] = e_tag
        try:
            with self._translate_errors("read", name):
                return bytes(self._sdk.get(self._store, name, options=options).bytes())
        except self._sdk.exceptions.PreconditionError:
            raise _Replaced from None

    def read(self, name: str, start: int, end: int) -> bytes | None:
        path = valid_name(name)
        try:
            if end <= start:  # which HTTP can't ask for
                return b"" if self._size(path) is not None else None
            return bytes(self._sdk.get_range(self._store, path, start=start, end=end))
        except self._missing as error:
            if _code_of(error) in _NO_BUCKET:  # as `_translate_errors` has it
                raise self._store_error("read", name, error) from None
            return None
        except self._sdk.exceptions.BaseError as error:
            # obstore has no error of its own for a range that begins after the end: the size tells.
            size = self._size(path)
            if size is not None and size <= start:  # it begins behind the end
                return b""
            raise self._store_error("read", name, error) from None

    def _size(self, name: str) -> int | None:
        try:
            with self._translate_errors("looked at", name):
                size: int = self._sdk.head(self._store, name)["size"]
        except self._missing:
            return None
        return size

    def list(self, prefix: str, start_after: str = "") -> Iterable[str]:
        """Names that begin with the prefix. obstore lists by whole segments, so its last one is
        looked at here."""
        folder = prefix.rpartition("/")[0]
        if folder and not is_name(folder):  # `../`, say: no object's name begins so
            return
        for page in self._pages(folder, start_after):
            for found in page:
                name = found["path"]
                if name.startswith(prefix) and name > start_after:
                    yield name

    def _pages(self, folder: str, start_after: str) -> Iterator[Sequence[Any]]:
        with self._translate_errors("listed", folder):
            pages = self._sdk.list(
                self._store, folder or None, offset=start_after or None, chunk_size=1_000
            )
        while True:
            # obstore requests a page when it is read, so errors are raised here.
            with self._translate_errors("listed", folder):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def delete(self, name: str) -> None:
        path = valid_name(name)
        with contextlib.suppress(*self._missing), self._translate_errors("deleted", name):
            self._sdk.delete(self._store, path)

    def path_of(self, name: str) -> None:  # noqa: B027  # meant for all: not abstract
        """Objects of a bucket are not local files."""

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Nothing, where the server forgets by itself what was never completed."""
        return ()


class _Replaced(Exception):
    """The object was replaced while it was read."""


_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "ResourceNotFound")
# Words of S3 or obstore where the region is wrong or not set.
_OTHER_REGION = re.compile(r"configured region|PermanentRedirect|AuthorizationHeaderMalformed")
# An error's text may quote a whole reply; only this much of it is searched.
_MOST_READ = 20_000


def _code_of(error: BaseException) -> str:
    found = _CODE.search(str(error)[:_MOST_READ])
    return found[1] if found else ""


def reason_of(error: BaseException) -> str:
    """The server's status and error code, never a sentence or an address."""
    text = str(error)[:_MOST_READ]
    if _OTHER_REGION.search(text):
        return "the bucket is in another region, or none is set: export AWS_REGION"
    status = _STATUS.search(text)
    if status is None:
        return f"no answer, or none that can be read ({type(error).__name__})"
    return f"HTTP {status[1]} {_code_of(error)}".rstrip()


def sdk(location: str) -> Any:
    """The module obstore. Raises UsageError where it is not installed."""
    try:
        import obstore
    except ImportError:
        raise UsageError(
            f"staging_location is {location!r}: it needs obstore; "
            "pip install 'beam-llm[objectstore]', or use a local folder or gs://bucket/path"
        ) from None
    return obstore


def call_hiding_errors(call: Callable[[], T], location: str) -> T:
    """Calls a library that looks for credentials. Its errors may quote one, so only their class is
    named."""
    try:
        return call()
    except Exception as error:
        raise ObjectStoreError(
            f"{location}: no usable credentials ({type(error).__name__})"
        ) from None
