"""Buckets on the emulator's own server, for jobs whose files are in a cloud's buckets: the small
part of Cloud Storage's and S3's APIs that such jobs, or a staging store, need. No key is required.

    os.environ.update(emulator.buckets_environment)   # gs:// and s3:// lead here now
    LLMPredict("vertex:…", mode="batch_api", provider_options={"bucket": "gs://any/path", …}, …)

Buckets need not be created: any bucket that is named exists. Creates are exclusive where the
request says so (`ifGenerationMatch=0`, `If-None-Match: *`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from aiohttp import web

from beam_llm import stores
from beam_llm.testing.emulator import gcs, s3
from beam_llm.testing.emulator.objects import ObjectFiles


class Objects(Protocol):
    """What reading and writing a job's files needs; a part of `protocols.Store`."""

    def get_file(self, name: str, path: str) -> bool: ...
    def put_file(self, name: str, path: str) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...


class Buckets:
    """Answers requests for objects, and gives the emulator's own jobs access to them.

    Args:
      url: returns the server's own address.
    """

    def __init__(self, folder: Path, url: Callable[[], str]) -> None:
        self.objects, self._url = ObjectFiles(folder), url
        self._uploads = gcs.Uploads()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer to a request for an object or a bucket; None for any other request."""
        path = request.raw_path.partition("?")[0]
        if path.startswith(f"{gcs.PREFIX}/"):
            return await gcs.answer(
                self.objects, self._uploads, request, path.removeprefix(gcs.PREFIX)
            )
        if path.startswith(f"{s3.PREFIX}/"):
            return await s3.answer(self.objects, request, path.removeprefix(s3.PREFIX))
        return None

    def store_at(self, location: str) -> Objects:
        """The store at `gs://bucket/path` or `s3://bucket/path`: in this emulator if the
        environment directs clients to it, or else wherever the environment directs them.
        """
        scheme, _, place = location.partition("://")
        here = environment(self._url())
        variable = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL_S3"}.get(scheme)
        if variable is None or os.environ.get(variable) != here[variable]:
            return stores.store_at(location)
        bucket, _, prefix = place.rstrip("/").partition("/")
        return _Prefix(self.objects, bucket, f"{prefix}/" if prefix else "")


class _Prefix:
    """The part of a bucket that is below a path."""

    def __init__(self, objects: ObjectFiles, bucket: str, prefix: str) -> None:
        self._objects, self._bucket, self._prefix = objects, bucket, prefix

    def get_file(self, name: str, path: str) -> bool:
        found = self._objects.path(self._bucket, self._prefix + name)
        if found.exists():
            shutil.copyfile(found, path)
        return found.exists()

    def put_file(self, name: str, path: str) -> None:
        self.put(name, Path(path).read_bytes())

    def put(self, name: str, data: bytes) -> None:
        self._objects.put(self._bucket, self._prefix + name, data)


def environment(url: str) -> Mapping[str, str]:
    """Environment variables that direct clients of `gs://` and `s3://` to the emulator at `url`."""
    return {
        "STORAGE_EMULATOR_HOST": f"{url}{gcs.PREFIX}",
        "AWS_ENDPOINT_URL_S3": f"{url}{s3.PREFIX}",
    }
