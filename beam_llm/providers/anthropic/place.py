"""Where the API is, and what each call says of itself."""

from __future__ import annotations

from typing import NamedTuple

from beam_llm.config import Settings
from beam_llm.providers.anthropic.dialect import Dialect

VERSION = "2023-06-01"
"""The version of the API that is asked for. The next one, 2026-10-21, has no temperature for any
model, and nothing more that we use.

Source: Anthropic's guide "Migrating to API version 2026-10-21", read 2026-11.
"""


class Place(NamedTuple):
    """Where the API is.

    Attributes:
      base_url: what paths are put behind; ends with the version, `/v1`.
      key_reference: where the key is kept, for error messages.
    """

    base_url: str
    key_reference: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """Where the settings say that Anthropic is."""
        base = (settings.base_url or "").rstrip("/")
        # ANTHROPIC_BASE_URL is given without `/v1` for Anthropic's SDK, with it for many proxies.
        return cls(base if base.endswith("/v1") else f"{base}/v1", settings.api_key)

    def url(self, path: str) -> str:
        """The address of a path."""
        return self.base_url + path

    def headers(self, key: str | None) -> dict[str, str]:
        """What every call is sent with."""
        named = {} if key is None else {"x-api-key": key}
        return {"anthropic-version": VERSION, **named}


# By model as well: behind one address some models take a schema, and others don't.
known_dialects: dict[tuple[str, str], Dialect] = {}


def dialect_of(place: Place, model: str) -> Dialect:
    """What this process knows of the endpoint's ways; shared, so that a refusal is learned from
    once.
    """
    return known_dialects.setdefault((place.base_url, model), Dialect.of(model))
