"""Objects of the emulator's buckets, as files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

_END = "~"
"""The end of a file's name, so that an object and a folder may have the same name."""


class ObjectFiles:
    """Objects as files below a folder, a subfolder for each bucket. Buckets need no creation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, bucket: str, name: str) -> Path:
        """The file in which an object's bytes are, or would be."""
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
        """Removes an object; returns whether there was one."""
        try:
            self.path(bucket, name).unlink()
        except FileNotFoundError:
            return False
        return True

    def names(self, bucket: str, prefix: str, start: str = "") -> list[str]:
        """The names of objects, sorted by their bytes, from `start` on."""
        root = self._folder / _in_path(bucket)
        found = (_name_of(path.relative_to(root)) for path in _files(root))
        chosen = (name for name in found if name.startswith(prefix) and name >= start)
        return sorted(chosen, key=str.encode)


def _in_path(part: str) -> str:
    """A part of a name, escaped to be a file's name, so that it can't leave its folder."""
    return quote(part, safe="").replace(".", "%2E") or "%"


def _name_of(path: Path) -> str:
    parts = ("" if part == "%" else unquote(part) for part in str(path)[: -len(_END)].split("/"))
    return "/".join(parts)


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if name.endswith(_END))
