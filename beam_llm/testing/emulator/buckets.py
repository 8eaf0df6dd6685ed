"""Buckets on the emulator's own server, for jobs whose files are in a cloud's: the small part of
Cloud Storage's and of S3's APIs that they need, or a staging store. No key is asked for.

    os.environ.update(emulator.buckets_environment)   # gs:// and s3:// lead here now
    LLMPredict("vertex:…", mode="batch_api", provider_options={"bucket": "gs://any/path", …}, …)

A bucket needs no making: whatever is named is there. Creates are exclusive where they ask for it
(`ifGenerationMatch=0`, `If-None-Match: *`).
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
    """What a job's files are read and written by; `protocols.Store` has it, and more."""

    def get_file(self, name: str, path: str) -> bool: ...
    def put_file(self, name: str, path: str) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...


class Buckets:
    """What answers requests for objects, and what the emulator's own jobs read and write.

    Args:
      url: gives the server's own address.
    """

    def __init__(self, folder: Path, url: Callable[[], str]) -> None:
        self.objects, self._url = ObjectFiles(folder), url
        self._uploads = gcs.Uploads()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer to a request for objects; None where it is for none."""
        path = request.raw_path.partition("?")[0]
        if path.startswith(f"{gcs.PREFIX}/"):
            return await gcs.answer(
                self.objects, self._uploads, request, path.removeprefix(gcs.PREFIX)
            )
        if path.startswith(f"{s3.PREFIX}/"):
            return await s3.answer(self.objects, request, path.removeprefix(s3.PREFIX))
        return None

    def store_at(self, location: str) -> Objects:
        """`gs://bucket/path` or `s3://bucket/path`, here where the environment leads its clients
        here, else where it leads them.
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
    """Variables that lead clients of `gs://` and `s3://` to the emulator at `url`."""
    return {
        "STORAGE_EMULATOR_HOST": f"{url}{gcs.PREFIX}",
        "AWS_ENDPOINT_URL_S3": f"{url}{s3.PREFIX}",
    }
