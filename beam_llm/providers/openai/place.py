"""Where an API of this dialect is, how it wants its key, and which hosts are OpenAI's own.

| | OpenAI and compatible | Azure |
|---|---|---|
| address | `{base_url}/chat/completions` | `{endpoint}/openai/v1/…` (1) |
| key | `Authorization: Bearer` | `api-key` |

(1) with `api_version`: `{endpoint}/openai/deployments/{deployment}/…`
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.servers import ANY, OPENAI, Server, server_of


class Place(NamedTuple):
    """Where an API is: addresses and how it wants the key.

    Attributes:
      live_url: full address of live calls: chat completions, or embeddings.
      base_url: the address that the paths of files and batches are appended to.
      line_url: the `url` of a line in a batch file.
      key_reference: where the key is kept, for error messages.
      server: the row of this provider.
      embeds: embeddings are requested.
    """

    live_url: str
    base_url: str
    line_url: str
    azure: bool
    api_version: str | None
    key_reference: str | None = None
    server: Server = OPENAI
    embeds: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings name."""
        place = cls._of(settings)
        return place._replace(
            key_reference=settings.api_key,
            server=server_of(settings, place.host),
            embeds=settings.task == "embed",
        )

    @classmethod
    def _of(cls, settings: Settings) -> Place:
        route = "/embeddings" if settings.task == "embed" else "/chat/completions"
        base = (settings.base_url or "").rstrip("/")
        if settings.provider != "azure":
            path = server_of(settings).path
            # The address may be given with the API's path or without it.
            base = base.removesuffix(path) + path if path else base
            return cls(f"{base}{route}", base, f"/v1{route}", False, None)
        # Likewise Azure's: with `/openai`, `/openai/v1` or neither.
        endpoint = re.sub(r"/openai(/v1)?$", "", base)
        if settings.api_version is None:
            return cls(
                f"{endpoint}/openai/v1{route}", f"{endpoint}/openai/v1", f"/v1{route}", True, None
            )
        deployment = f"{endpoint}/openai/deployments/{quote(settings.model_name, safe='')}"
        live_url = f"{deployment}{route}?api-version={quote(settings.api_version)}"
        return cls(live_url, f"{endpoint}/openai", route, True, settings.api_version)

    def url(self, path: str, **query: str) -> str:
        """The address of a path of the files and batches API."""
        if self.api_version is not None:
            query["api-version"] = self.api_version
        return f"{self.base_url}{path}" + (f"?{urlencode(query)}" if query else "")

    @property
    def host(self) -> str:
        """The server's host name."""
        return urlsplit(self.live_url).hostname or ""

    def context(self, key: str | None, log_data: bool) -> ErrorContext:
        """What messages about this place must not contain, and what they should."""
        is_bare = self.server is ANY and "/v1" not in self.base_url
        hint = "most servers want /v1 at the end of base_url" if is_bare else None
        return ErrorContext(key, self.key_reference, log_data, hint)

    def headers(self, key: str | None) -> dict[str, str]:
        """The key as this place wants it, and OpenAI's organization and project, where the
        environment names them as for its SDK.
        """
        named = (
            {}
            if key is None
            else {"api-key": key}
            if self.azure
            else {"Authorization": f"Bearer {key}"}
        )
        if self.server is OPENAI:
            for header, variable in (
                ("OpenAI-Organization", "OPENAI_ORG_ID"),
                ("OpenAI-Project", "OPENAI_PROJECT_ID"),
            ):
                if os.environ.get(variable):
                    named[header] = os.environ[variable]
        return named


# Without /v1 it may be a gateway's own path: `https://host/embeddings` for one of its servers.
_ROUTE = re.compile(r"/chat/completions$|(?<=/v1)/(completions|embeddings|responses|batches)$")

_AZURE_ROUTE = re.compile(r"/openai/deployments(/.*)?$|(?<=\.azure\.com)/models(/.*)?$")

_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")


def check_address(settings: Settings, place: Place) -> None:
    """Raises UsageError for an address or a version with which no call can succeed."""
    given, is_azure = settings.base_url or "", settings.provider == "azure"
    route = (is_azure and _AZURE_ROUTE.search(given)) or _ROUTE.search(given)
    if route:
        raise UsageError(
            f"base_url is {given!r}: it ends before {route[0]!r}; write "
            f"base_url={given[: route.start()]!r}"
        )
    version = settings.api_version
    if is_azure and version is not None and not _VERSION.fullmatch(version):
        raise UsageError(
            f"api_version is {version!r}: Azure's are dates, such as '2024-10-21'; leave it out "
            "for the v1 API"
        )
    usual = PROVIDERS[settings.provider].base_url
    if usual is None:
        return
    own, found = urlsplit(usual), urlsplit(place.base_url)
    if found.hostname == own.hostname and "v1" in own.path and "v1" not in found.path:
        raise UsageError(
            f"base_url is {given!r}: {settings.provider}: is at {usual!r}; write that, or leave it "
            "out"
        )


known_dialects: dict[tuple[str, str], Dialect] = {}


def dialect_of(place: Place, model: str) -> Dialect:
    """What this process knows of the endpoint; shared by all clients, so that a refusal teaches
    each of them.
    """
    return known_dialects.setdefault(
        (place.live_url, model), Dialect.of(model, place.server, is_live=True)
    )
