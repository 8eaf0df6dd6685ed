"""A staging store that is a prefix of a Google Cloud Storage bucket."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from beam_llm.errors import UsageError
from beam_llm.stores.names import valid_name

_BYTES = "application/octet-stream"


class GcsStore:
    """`gs://bucket/path`: creates carry `if_generation_match=0`.

    `STORAGE_EMULATOR_HOST` is honoured.

    Raises:
      UsageError: the location names no bucket.
    """

    def __init__(self, location: str):
        self.location = location
        bucket, _, prefix = location.removeprefix("gs://").strip("/").partition("/")
        if not bucket:
            raise UsageError(
                f"staging_location is {location!r}: the bucket is missing; write gs://bucket/path"
            )
        self._bucket_name = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._made: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.location,))

    @property
    def _bucket(self) -> Any:
        """The bucket, with a client made at first use, since a store is pickled by its location
        only."""
        with self._lock:
            if self._made is None:
                self._made = _client().bucket(self._bucket_name)
            return self._made

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + valid_name(name))

    def create(self, name: str, data: bytes) -> bool:
        """Whether this call has created the object.

        The library repeats an upload whose answer was lost, and then even the winner gets a 412. So
        each create puts a nonce into the object's metadata, which is read back to see who won.
        """
        from google.api_core.exceptions import PreconditionFailed
        from google.cloud.storage.exceptions import InvalidResponse

        blob, nonce = self._blob(name), uuid.uuid4().hex
        blob.metadata = {"creator": nonce}
        try:
            blob.upload_from_string(data, content_type=_BYTES, if_generation_match=0)
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
        self._blob(name).upload_from_string(data, content_type=_BYTES)

    def put_file(self, name: str, path: str) -> None:
        self._blob(name).upload_from_filename(path, content_type=_BYTES)

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
            # Otherwise an empty or partial file would be taken for the object.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return False
        return True

    def read(self, name: str, start: int, end: int) -> bytes | None:
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        blob = self._blob(name)
        if end <= start:  # which HTTP can't ask for
            return b"" if blob.exists() else None
        try:
            data: bytes = blob.download_as_bytes(start=start, end=end - 1)
        except NotFound:
            return None
        except RequestRangeNotSatisfiable:  # it begins behind the end
            return b""
        return data

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

    def path_of(self, name: str) -> None:
        """Objects of a bucket are not local files."""

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Nothing: an interrupted upload is not an object, and the bucket drops it after a week."""
        return ()


def _client() -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    # An emulator asks for no credentials, and must not be sent real ones.
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    else:
        client = storage.Client()
    # From 3.11 on, each client requests its bucket's metadata in a thread, for traces, even without
    # tracing. That needs a permission (storage.buckets.get) that reading and writing objects does
    # not.
    client._bucket_metadata_cache = None
    return client
