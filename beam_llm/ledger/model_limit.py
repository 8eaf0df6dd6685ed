"""What a ledger has learned about a model's limit on the tokens of all queued jobs together. Jobs
that the queue refuses teach it; later plans cut their jobs by it.

    limits/<digest of host and model>   one `Limit`, replaced when more is known
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from beam_llm.ledger.journal import Document, read
from beam_llm.protocols import Store

LIMIT_SECONDS = 7 * 86_400.0
"""How long a limit is believed: organizations are moved to higher tiers, and the ledger isn't
told."""


@dataclass(frozen=True)
class Limit(Document):
    """What is known about a model's limit.

    Attributes:
      host, model: whose limit it is; for people, since the object's name is a digest.
      stated: by the provider.
      found: by trying, while that stated limit held.
      too_large: (job, tokens, records) of the last line that was given up as too large. A line of
        the same job with at least as many of both is given up untried.
    """

    host: str
    model: str
    at: float
    stated: int | None = None
    found: int | None = None
    too_large: tuple[str, int, int] | None = None


class ModelLimit:
    """One model's limit in a ledger.

    limit = ModelLimit(store, "api.openai.com", "openai:gpt-4.1-mini")
    limit.note(now, stated=2_000_000)
    limit.tokens(now)  # 2_000_000, for a week
    """

    def __init__(self, store: Store, host: str, model: str):
        self._store, self._host, self._model = store, host, model
        self._name = f"limits/{hashlib.sha256(f'{host} {model}'.encode()).hexdigest()[:32]}"

    def read(self) -> Limit | None:
        """All that is known, however old."""
        return read(self._store, self._name, Limit)

    def tokens(self, now: float) -> int | None:
        """The most estimated tokens that one job of this model may have; None where no limit is
        known."""
        limit = self.read()
        if limit is None or now - limit.at > LIMIT_SECONDS:
            return None
        return min((tokens for tokens in (limit.stated, limit.found) if tokens), default=None)

    def note(self, now: float, **news: int | tuple[str, int, int] | None) -> bool:
        """Records what was learned; returns whether anything was written.

        Args:
          news: fields of `Limit`. A limit that was found under another stated limit is dropped.
        """
        before = self.read()
        limit = replace(before or Limit(self._host, self._model, now), **news)  # type: ignore[arg-type]
        if before is not None and limit.stated != before.stated:
            limit = replace(limit, found=None)
        # An unchanged limit is written again once a day, so that one that is still met stays
        # believed.
        if limit == before and now - before.at <= LIMIT_SECONDS / 7:
            return False
        self._store.put(self._name, replace(limit, at=now).dumps())
        return True
