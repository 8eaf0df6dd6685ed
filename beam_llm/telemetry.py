"""Spans of calls and batch jobs by OpenTelemetry (extra `otel`), with the option `tracing`.

One span per request, and one per job from its creation to its end, by the semantic conventions for
generative AI. No span contains texts of prompts, records or replies.

They go to the tracer provider that the process has: set one up where the workers are, as with any
other program (`opentelemetry-instrument`, or `trace.set_tracer_provider(…)`); without one they go
nowhere.

Source: OpenTelemetry semantic conventions for generative client AI spans, 1.38 (development),
read 2026-11.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from beam_llm import events
from beam_llm.errors import UsageError

_PROVIDER_NAMES = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""The conventions' name of a provider, where it differs from ours."""

_NANOSECONDS = 1_000_000_000

_NAMES = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "seed": "gen_ai.request.seed",
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "error": "error.type",
    "records": "beam_llm.records",
    "requests": "beam_llm.requests",
    "again": "beam_llm.again",
    "job": "beam_llm.job",
    "job_id": "beam_llm.job.id",
    "ended": "beam_llm.job.ended",
    "answered": "beam_llm.answered",
    "failed": "beam_llm.failed",
    "cost_usd": "beam_llm.cost_usd",
}
"""Facts → attributes; None is left out."""


def check_tracing() -> None:
    """Raises UsageError where OpenTelemetry is not installed."""
    if importlib.util.find_spec("opentelemetry") is None:
        raise UsageError(
            "tracing is True but OpenTelemetry is not installed: pip install 'beam-llm[otel]'"
        )


def begin() -> None:
    """From now on this process makes spans of traced events; harmless to repeat."""
    if _on_event not in events.TRACERS:
        events.TRACERS.append(_on_event)


def _on_event(event: str, facts: dict[str, Any]) -> None:
    _SPANS[event](facts)


def _trace_call(facts: Mapping[str, Any]) -> None:
    """One request: `seconds` ago it was sent, now it has a reply or an `error`."""
    end = time.time_ns()
    start = end - int(facts["seconds"] * _NANOSECONDS)
    _span(f"{_operation(facts)} {facts['model']}", facts, start, end)


def _trace_job(facts: Mapping[str, Any]) -> None:
    """One batch job, from `created_at` to `ended_at`, in seconds since the epoch."""
    start, end = (int(facts[name] * _NANOSECONDS) for name in ("created_at", "ended_at"))
    _span(f"batch {facts['model']}", facts, min(start, end), end)


_SPANS: dict[str, Callable[[Mapping[str, Any]], None]] = {"call": _trace_call, "job": _trace_job}


def _span(name: str, facts: Mapping[str, Any], start: int, end: int) -> None:
    from opentelemetry import trace

    span = trace.get_tracer("beam_llm").start_span(
        name, kind=trace.SpanKind.CLIENT, start_time=start, attributes=attributes_of(facts)
    )
    if facts.get("error"):
        span.set_status(trace.Status(trace.StatusCode.ERROR))
    span.end(end_time=end)


def _operation(facts: Mapping[str, Any]) -> str:
    """OpenTelemetry's name for what the model does."""
    return "embeddings" if facts.get("task") == "embed" else "chat"


def attributes_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a call's or a job's span."""
    provider = str(facts["provider"])
    found: dict[str, Any] = {
        "gen_ai.operation.name": _operation(facts),
        "gen_ai.provider.name": _PROVIDER_NAMES.get(provider, provider),
    }
    for name, attribute in _NAMES.items():
        if facts.get(name) not in (None, ""):
            found[attribute] = facts[name]
    if facts.get("finish_reason"):
        found["gen_ai.response.finish_reasons"] = [facts["finish_reason"]]
    try:
        address = urlsplit(str(facts.get("base_url") or ""))
        found |= {"server.address": address.hostname} if address.hostname else {}
        found |= {"server.port": address.port} if address.port is not None else {}
    except ValueError:  # no such port
        pass
    return found
