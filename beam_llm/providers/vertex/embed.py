"""Vertex AI's embeddings (a `protocols.EmbeddingModule`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.providers.checks import check_names
from beam_llm.providers.gemini.embed import check_request, embed_limits
from beam_llm.providers.gemini.embed_wire import OPTIONS as EMBED_OPTIONS
from beam_llm.providers.vertex import OPTIONS, batches_of, calls_of, check_place
from beam_llm.providers.vertex.embed_wire import job_wire_of, parameters_of, uses_predict, wire_of
from beam_llm.values import Request

if TYPE_CHECKING:
    from beam_llm.providers.gemini.embeddings import GoogleEmbeddings
    from beam_llm.providers.vertex.batches import VertexBatches

__all__ = ["check", "connect", "connect_batch", "embed_limits", "encode"]


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what Vertex AI does not have, or do not name the
    project or the bucket.
    """
    check_names(settings, (*OPTIONS, *EMBED_OPTIONS))
    check_request(settings)
    if settings.mode == "batch_api" and not uses_predict(settings.model_name):
        raise UsageError(
            f"mode is 'batch_api' but vertex: has batch jobs only for gemini-embedding-001 and "
            f"text-embedding-…, not for {settings.model_name}; use mode='online', or gemini:"
        )
    check_place(settings)


def connect(settings: Settings) -> GoogleEmbeddings:
    """A client for live calls; see `providers.connect`."""
    from beam_llm.providers.gemini.embeddings import GoogleEmbeddings

    wire = wire_of(settings)
    return GoogleEmbeddings(calls_of(settings, wire.verb), wire)


def connect_batch(settings: Settings) -> VertexBatches:
    """A client for batch prediction jobs; see `providers.connect_batch`."""
    from beam_llm.providers.vertex.batches import MOST_TEXTS, JobSpec
    from beam_llm.providers.vertex.forms import TEXTS

    parameters = parameters_of(settings.dimensions)
    return batches_of(settings, JobSpec(job_wire_of(settings), TEXTS, parameters, MOST_TEXTS))


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request; see `providers.encode`."""
    return wire_of(settings).encode(request)
