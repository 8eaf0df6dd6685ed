"""Small JSON files, written so that a killed emulator leaves either the old or the new one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson


def write_json(path: Path, data: Any) -> None:
    """Writes another file first, then renames it."""
    # With the process's id: a killed emulator may still be writing when its successor does.
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_bytes(orjson.dumps(data))
    os.replace(aside, path)


def read_json(path: Path) -> Any:
    """The file's content; None where there is no file."""
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
