"""Addresses of the Gemini API, and the header that carries the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from beam_llm.config import Settings

VERSION = "v1beta"
"""The version of the API that has batches, and JSON Schema for replies."""


class Place(NamedTuple):
    """Where the API is.

    Attributes:
      base_url: without a version; the paths are appended to it.
      key_reference: where the key is kept, for error messages.
    """

    base_url: str
    key_reference: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings name."""
        base = re.sub(r"/v1(beta)?$", "", (settings.base_url or "").rstrip("/"))
        return cls(base, settings.api_key)

    def url(self, path: str, **query: str) -> str:
        """The address of a path of the API."""
        return f"{self.base_url}/{VERSION}/{path}" + (f"?{urlencode(query)}" if query else "")

    def upload_url(self) -> str:
        """Where the upload of a file begins."""
        return f"{self.base_url}/upload/{VERSION}/files"

    def download_url(self, file: str) -> str:
        """Where a file's bytes are."""
        return f"{self.base_url}/download/{VERSION}/{file}:download?alt=media"

    def same_origin(self, url: str) -> str | None:
        """The address that the server gave for an upload, moved to this origin, since the key is
        sent along. None if it is not an address.
        """
        try:
            named = urlsplit(url)
        except ValueError:
            return None
        if not re.fullmatch(r"/[!-~]*", named.path) or not re.fullmatch(r"[!-~]*", named.query):
            return None
        origin = urlsplit(self.base_url)
        return named._replace(scheme=origin.scheme, netloc=origin.netloc, fragment="").geturl()


def model_path(model: str) -> str:
    """`gemini-2.5-flash` → `models/gemini-2.5-flash`; a name with a collection keeps it."""
    collection, _, name = model.rpartition("/")
    return f"{quote(collection or 'models')}/{quote(name, safe='')}"


def headers(key: str | None) -> Mapping[str, str]:
    """The header that carries the key."""
    return {} if key is None else {"x-goog-api-key": key}
