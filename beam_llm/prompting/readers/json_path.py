"""`response_path` for JSON: where in a reply the answers are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from beam_llm.errors import UsageError


def _path_error(path: str, why: str) -> UsageError:
    return UsageError(
        f"response_path is {path!r}: it is not a JSONPath ({why}); write '$[*]' or '$.results[*]'"
    )


_SIMPLE_PATH = re.compile(r"\$((?:\.[A-Za-z_]\w*)*)(\[\*\])?")


def json_path(path: str) -> Callable[[Any], list[Any]]:
    """JSON value → the values at `path`, a JSONPath (RFC 9535).

    Raises:
      UsageError: where `path` is not a JSONPath.
    """
    keys = simple_path(path)
    if keys is not None:
        return lambda data: _follow_path(data, keys, path.endswith("[*]"))
    import jsonpath_rfc9535 as jsonpath

    if not path.startswith("$"):
        raise _path_error(path, "it has to start with $")
    try:
        compiled = jsonpath.compile(path)
    except jsonpath.JSONPathError as error:
        raise _path_error(path, str(error).splitlines()[0]) from None

    def select(data: Any) -> list[Any]:
        try:
            return list(compiled.find(data).values())
        except (jsonpath.JSONPathError, RecursionError):
            return []

    return select


def simple_path(path: str) -> list[str] | None:
    """The keys that lead to the array, where the path consists of keys only: `$.a.b[*]` →
    `["a", "b"]`; else None."""
    found = _SIMPLE_PATH.fullmatch(path)
    return [key for key in found[1].split(".") if key] if found else None


def _follow_path(data: Any, keys: Sequence[str], is_each: bool) -> list[Any]:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return []
        data = data[key]
    if not is_each:
        return [data]
    if isinstance(data, dict):
        return list(data.values())
    return list(data) if isinstance(data, list) else []
