"""Addresses of a project's models and jobs at Vertex AI."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urlencode

from beam_llm.config import Settings

GLOBAL = "global"
_ENDPOINTS = {
    GLOBAL: "https://aiplatform.googleapis.com",
    "us": "https://aiplatform.us.rep.googleapis.com",
    "eu": "https://aiplatform.eu.rep.googleapis.com",
}
"""Hosts of locations that are more than one region; a region's host begins with its name.

Jobs over Cloud Storage take `global`, too (GoogleCloudPlatform/generative-ai#2391, 2025-10).
Source: Vertex AI, "Deployments and endpoints", read 2026-11.
"""


class Place(NamedTuple):
    """Where the API is.

    Attributes:
      base_url: without a version.
      parent: `projects/…/locations/…`.
      key_reference: where a token is kept, if the user named one; for error messages.
    """

    base_url: str
    parent: str
    key_reference: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings name."""
        options = settings.provider_options or {}
        region = str(options.get("region") or GLOBAL)
        default = _ENDPOINTS.get(region, f"https://{region}-aiplatform.googleapis.com")
        # An address copied from Google's pages has a version, one from the emulator's has none.
        base = (settings.base_url or default).rstrip("/").removesuffix("/v1")
        project = quote(str(options.get("project", "")), safe=":")
        return cls(base, f"projects/{project}/locations/{quote(region)}", settings.api_key)

    def model(self, model: str) -> str:
        """A model's full name; a tuned one has its own (`projects/…`)."""
        if model.startswith("projects/"):
            return quote(model)
        return f"{self.parent}/publishers/google/models/{quote(model, safe='@')}"

    def live_url(self, model: str, verb: str) -> str:
        """The address of a model's `verb`, such as `generateContent`."""
        return f"{self.base_url}/v1/{self.model(model)}:{verb}"

    def jobs_url(self, **query: str) -> str:
        """The address of the list of batch jobs."""
        jobs = f"{self.base_url}/v1/{self.parent}/batchPredictionJobs"
        return jobs + (f"?{urlencode(query)}" if query else "")
