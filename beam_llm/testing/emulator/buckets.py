"""Buckets on the emulator's own server, for jobs whose files are in a cloud's: the small part of
Cloud Storage's and of S3's APIs that they need, and no key is asked for.

    os.environ.update(emulator.buckets_environment)   # gs:// and s3:// lead here now
    LLMPredict("vertex:…", mode="batch_api", provider_options={"bucket": "gs://any/path", …}, …)

A bucket needs no making: whatever is named is there. Creates are exclusive where they ask for it
(`ifGenerationMatch=0`, `If-None-Match: *`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from aiohttp import web

from beam_llm import stores
from beam_llm.testing.emulator import gcs, s3

_END = "~"
"""Of a file's name, so that an object and a folder may have one name."""


class Objects(Protocol):
    """What a job's files are read and written by; `protocols.Store` has it, and more."""

    def get_file(self, name: str, path: str) -> bool: ...
    def put_file(self, name: str, path: str) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...


class Buckets:
    """Objects as files below a folder, bucket by bucket.

    Args:
      url: gives the server's own address.
    """

    def __init__(self, folder: Path, url: Callable[[], str]) -> None:
        self._folder, self._url = folder, url
        self._uploads = gcs.Uploads()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer to a request for objects; None where it is for none."""
        path = request.raw_path.partition("?")[0]
        if path.startswith(f"{gcs.PREFIX}/"):
            return await gcs.answer(self, self._uploads, request, path.removeprefix(gcs.PREFIX))
        if path.startswith(f"{s3.PREFIX}/"):
            return await s3.answer(self, request, path.removeprefix(s3.PREFIX))
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
        return _Prefix(self, bucket, f"{prefix}/" if prefix else "")

    # Objects

    def path(self, bucket: str, name: str) -> Path:
        """Where an object's bytes are, or would be."""
        return self._folder / _in_path(bucket) / f"{'/'.join(map(_in_path, name.split('/')))}{_END}"

    def put(self, bucket: str, name: str, data: bytes) -> None:
        path = self.path(bucket, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{os.getpid()}.{id(data)}")
        part.write_bytes(data)
        os.replace(part, path)

    def get(self, bucket: str, name: str) -> bytes | None:
        try:
            return self.path(bucket, name).read_bytes()
        except FileNotFoundError:
            return None

    def delete(self, bucket: str, name: str) -> bool:
        """Whether there was one."""
        try:
            self.path(bucket, name).unlink()
        except FileNotFoundError:
            return False
        return True

    def names(self, bucket: str, prefix: str, start: str = "") -> list[str]:
        """Sorted by their bytes, from `start` on."""
        root = self._folder / _in_path(bucket)
        found = (_name_of(path.relative_to(root)) for path in _files(root))
        chosen = (name for name in found if name.startswith(prefix) and name >= start)
        return sorted(chosen, key=str.encode)


class _Prefix:
    """The part of a bucket that is below a path."""

    def __init__(self, buckets: Buckets, bucket: str, prefix: str) -> None:
        self._buckets, self._bucket, self._prefix = buckets, bucket, prefix

    def get_file(self, name: str, path: str) -> bool:
        found = self._buckets.path(self._bucket, self._prefix + name)
        if found.exists():
            shutil.copyfile(found, path)
        return found.exists()

    def put_file(self, name: str, path: str) -> None:
        self.put(name, Path(path).read_bytes())

    def put(self, name: str, data: bytes) -> None:
        self._buckets.put(self._bucket, self._prefix + name, data)


def environment(url: str) -> Mapping[str, str]:
    """Variables that lead clients of `gs://` and `s3://` to the emulator at `url`."""
    return {
        "STORAGE_EMULATOR_HOST": f"{url}{gcs.PREFIX}",
        "AWS_ENDPOINT_URL_S3": f"{url}{s3.PREFIX}",
    }


def _in_path(part: str) -> str:
    """A part of a name as a file's: whatever is in it, it leads nowhere else."""
    return quote(part, safe="").replace(".", "%2E") or "%"


def _name_of(path: Path) -> str:
    parts = ("" if part == "%" else unquote(part) for part in str(path)[: -len(_END)].split("/"))
    return "/".join(parts)


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if name.endswith(_END))
