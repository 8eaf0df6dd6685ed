"""Control calls answered by a test itself, where a server would say too little, or too much work."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any

import pytest

from beam_llm.providers import http


class Canned:
    """Stands where control calls go out, and answers each with `reply`.

        canned = Canned(monkeypatch, {"data": []})
        canned.reply = lambda url: {"data": [], "has_more": "after" not in url}

    Attributes:
      reply: what is answered as JSON, or a function of the address that gives it.
      urls: what was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reply: Any = None):
        self.reply: Any | Callable[[str], Any] = reply
        self.urls: list[str] = []
        monkeypatch.setattr(http, "call", self._call)

    def _call(
        self, method: str, url: str, headers: Any, *, into: IO[bytes] | None = None, **_: Any
    ) -> http.Answer:
        self.urls.append(url)
        body = json.dumps(self.reply(url) if callable(self.reply) else self.reply).encode()
        if into is None:
            return http.Answer(200, {}, body)
        into.write(body)
        return http.Answer(200, {}, b"")
