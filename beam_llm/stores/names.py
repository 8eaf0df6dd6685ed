"""Which names an object may have (paths that are valid in any store and don't lead out of it), and
the folder of a local location.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# No segment begins with a dot: that rules out `..`, and reserves `.tmp` for the local store.
_SEGMENT = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_\-.=]*")


def is_name(name: str) -> bool:
    """Whether `name` is a relative path of plain segments, none of them hidden."""
    return all(_SEGMENT.fullmatch(segment) for segment in name.split("/"))


def valid_name(name: str) -> str:
    """`name` itself.

    Raises:
      ValueError: it could leave the staging location or name a hidden file.
    """
    if is_name(name):
        return name
    raise ValueError(
        f"{name!r} can't name a staging object: "
        "relative, segments of letters, digits, '_', '-', '.', '='"
    )


def folder_of(location: str) -> Path:
    """The folder that a local location names, with or without `file://`, from the root on."""
    # Not `Path.expanduser`, which raises for a user that doesn't exist: `~x` is a name then.
    return Path(os.path.expanduser(location.removeprefix("file://"))).absolute()
