"""Where the API is, and the headers of each call."""

from __future__ import annotations

from typing import NamedTuple

from beam_llm.config import Settings
from beam_llm.providers.anthropic.dialect import Dialect

VERSION = "2023-06-01"
"""The version of the API that calls name. The next one, 2026-10-21, has no temperature for any
model, and nothing new that this package uses.

Source: Anthropic's guide "Migrating to API version 2026-10-21", read 2026-11.
"""


class Place(NamedTuple):
    """Where the API is.

    Attributes:
      base_url: the address that paths are appended to; ends with the version, `/v1`.
      key_reference: where the key is kept, for error messages.
    """

    base_url: str
    key_reference: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings name."""
        base = (settings.base_url or "").rstrip("/")
        # ANTHROPIC_BASE_URL is given without `/v1` for Anthropic's SDK, with it for many proxies.
        return cls(base if base.endswith("/v1") else f"{base}/v1", settings.api_key)

    def url(self, path: str) -> str:
        """The address of a path."""
        return self.base_url + path

    def headers(self, key: str | None) -> dict[str, str]:
        """The headers of every call."""
        named = {} if key is None else {"x-api-key": key}
        return {"anthropic-version": VERSION, **named}


# By model as well: at one address some models support schemas, and others don't.
known_dialects: dict[tuple[str, str], Dialect] = {}


def dialect_of(place: Place, model: str) -> Dialect:
    """What this process knows of the endpoint; shared by all clients, so that a refusal teaches
    each of them.
    """
    return known_dialects.setdefault((place.base_url, model), Dialect.of(model))
