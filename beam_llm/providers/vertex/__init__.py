"""Vertex AI: Gemini with Google's own credentials, in a project and a region; batches over `gs://`.

    LLMPredict(
        "vertex:gemini-2.5-flash",
        "Is it spam? {{ text }}",
        provider_options={"project": "my-project", "region": "global"},
    )

credentials.py  tokens of Google's credentials
place.py        addresses
live.py         authentication of live calls
batches.py      batch prediction jobs
job_objects.py  a job as Vertex AI shows it
objects.py      a job's input and results in a bucket
forms.py        how requests are written there
embed.py        the module that takes the place of this one where vectors are wanted
embed_wire.py   requests and replies of embeddings

Other requests and replies are Gemini's: see `providers/gemini/`. In place of Google's own
credentials `api_key` may refer to an access token, or be `none` for an emulator.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import EmbeddingModule, MediaLimits
from beam_llm.providers import images
from beam_llm.providers.checks import check_names, refuse_plain_http
from beam_llm.providers.gemini import check_request
from beam_llm.providers.gemini.schema import gemini_schema
from beam_llm.providers.gemini.wire import encode_body
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.vertex.place import Place
from beam_llm.values import Request, Schema

if TYPE_CHECKING:
    from beam_llm.providers.gemini.live import GeminiChat, GoogleCalls
    from beam_llm.providers.vertex.batches import JobSpec, VertexBatches
    from beam_llm.providers.vertex.credentials import FixedToken, Tokens

OPTIONS = ("project", "region", "bucket")
_TIER_HEADER = "X-Vertex-AI-LLM-Shared-Request-Type"
"""The header by which a live call asks to be served cheaper and later, or first.

Source: Vertex AI, "Flex PayGo" and "Priority PayGo", read 2026-11."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what Vertex AI does not have, or do not name the
    project or the bucket.
    """
    check_names(settings, OPTIONS)
    check_request(settings)
    check_place(settings)


def check_place(settings: Settings) -> None:
    """Raises UsageError where the project, region or bucket for jobs is missing or malformed."""
    options = settings.provider_options or {}
    if not options.get("project"):
        raise UsageError(
            "provider_options has no 'project': write provider_options={'project': '…'}, or "
            "set GOOGLE_CLOUD_PROJECT"
        )
    # They become parts of a host and of a path, so they must not contain a slash or an `@`.
    for name in ("project", "region"):
        if not re.fullmatch(r"[a-zA-Z0-9.:-]{1,100}", str(options.get(name, "global"))):
            raise UsageError(
                f"provider_options has {name!r}: {options[name]!r}: it has to be a name of "
                "letters, digits and dashes"
            )
    refuse_plain_http(settings)
    if settings.mode == "batch_api":
        bucket_of(settings)


def bucket_of(settings: Settings) -> str:
    """Where the input and the results of jobs go: `gs://bucket/path`.

    Raises:
      UsageError: the settings name no bucket.
    """
    named = (settings.provider_options or {}).get("bucket")
    # The staging location will do where it is a bucket: one less thing to set up.
    location = str(named or settings.staging_location or "")
    if re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,221}(/[^?#\s]*)?", location):
        return location.rstrip("/")
    problem = f"provider_options has 'bucket': {named!r}" if named else "there is no bucket"
    raise UsageError(
        f"{problem}: vertex: keeps the input and the results of batch jobs in Cloud Storage; write "
        "provider_options={'bucket': 'gs://bucket/path'}, or use a staging_location in gs://"
    )


def preload() -> None:
    """Imports what `connect` needs."""
    importlib.import_module("beam_llm.providers.vertex.live")
    importlib.import_module("google.auth")


@functools.lru_cache(maxsize=1)
def default_tokens() -> Tokens:
    """The tokens that all clients of the process share, since a token lasts an hour."""
    from beam_llm.providers.vertex.credentials import Tokens

    return Tokens()


def _tokens_of(settings: Settings) -> Tokens | FixedToken:
    """The token that `api_key` refers to; tokens of Google's own credentials if it isn't given."""
    from beam_llm.providers.vertex.credentials import FixedToken

    if settings.api_key is None:
        return default_tokens()
    return FixedToken(resolve_key(settings.api_key))


def connect(settings: Settings) -> GeminiChat:
    """A client for live calls; see `providers.connect`."""
    # Imported here: its HTTP client takes a fifth of a second. See `preload`.
    from beam_llm.providers.gemini.live import GeminiChat

    # On Vertex AI the tier is a header; it refuses the field of the body.
    tier = settings.service_tier
    headers = {_TIER_HEADER: tier} if tier in ("flex", "priority") else {}
    return GeminiChat(calls_of(settings, "generateContent", headers))


def calls_of(
    settings: Settings, verb: str, headers: Mapping[str, str] | None = None
) -> GoogleCalls:
    """Live calls of models by `verb`, such as `generateContent`."""
    from beam_llm.providers.errors import ErrorContext
    from beam_llm.providers.gemini.live import GoogleCalls
    from beam_llm.providers.http import Bounds
    from beam_llm.providers.vertex.live import TokenAccess

    # Checked again, after `check`: no client may send credentials in the clear.
    refuse_plain_http(settings)
    place = Place.of(settings)
    context = ErrorContext(None, place.key_reference, settings.log_data)
    access = TokenAccess(_tokens_of(settings), context)
    return GoogleCalls(
        lambda model: place.live_url(model, verb), access, headers or {}, Bounds.of(settings)
    )


def connect_batch(settings: Settings) -> VertexBatches:
    """A client for batch prediction jobs; see `providers.connect_batch`."""
    from beam_llm.providers.vertex.batches import COMPLETION_JOBS

    return batches_of(settings, COMPLETION_JOBS)


def batches_of(settings: Settings, spec: JobSpec) -> VertexBatches:
    """A client for jobs that are written and read as `spec` says."""
    from beam_llm.providers.http import Bounds
    from beam_llm.providers.vertex.batches import VertexBatches
    from beam_llm.stores import store_at

    # See `calls_of`.
    refuse_plain_http(settings)
    return VertexBatches(
        Place.of(settings),
        settings.model_name,
        store_at(f"{bucket_of(settings)}/vertex"),
        _tokens_of(settings),
        spec=spec,
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def embedding_module() -> EmbeddingModule:
    """The module that takes the place of this one where vectors are wanted."""
    from beam_llm.providers.vertex import embed

    return embed


def enforced_schema(schema: Schema) -> Schema | None:
    """The schema as Gemini enforces it; None where it can't. See `protocols.SchemaDialect`."""
    return gemini_schema(schema)


def media_limits(settings: Settings) -> MediaLimits | None:
    """Which images the model takes; None where it is known to take none."""
    tokens = images.by_model(images.GEMINI_TOKENS, settings.model_name)
    return images.limits_of(settings, images.VERTEX_IMAGES._replace(tokens=tokens))


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    return encode_body(request)
