"""Spans of calls and batch jobs, with OpenTelemetry's own SDK and its in-memory exporter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from beam_llm import LLMPredict, events, telemetry
from beam_llm.errors import UsageError
from beam_llm.telemetry import attributes_of
from beam_llm.testing import Emulator, Fault, plugin

trace = pytest.importorskip("opentelemetry.trace", reason="needs the extra otel")
sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator

MODEL = "openai:gpt-4.1-mini"
TEXTS = [f"secret text {number}, wonderful" for number in range(10)]


@pytest.fixture(scope="module")
def exporter() -> Any:
    """The process can have one tracer provider only."""
    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


@pytest.fixture
def spans(exporter: Any) -> Iterator[Callable[[], list[Any]]]:
    exporter.clear()
    yield lambda: list(exporter.get_finished_spans())
    exporter.clear()


def run(**options: Any) -> None:
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create(TEXTS, reshuffle=False)
            | LLMPredict(
                MODEL, "Mood of: {{ element }}", output="enum:positive|negative", **options
            )
        )


def test_nothing_is_traced_unless_it_is_asked_for(
    llm_emulator: Emulator, spans: Callable[[], list[Any]]
) -> None:
    run(batch_size=5)
    assert spans() == []


def test_each_call_is_a_span_by_the_conventions_and_without_texts(
    llm_emulator: Emulator, spans: Callable[[], list[Any]]
) -> None:
    run(batch_size=5, tracing=True, temperature=0.5, seed=7)
    found = spans()
    assert [span.name for span in found] == ["chat gpt-4.1-mini"] * 2
    attributes = dict(found[0].attributes)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "openai"
    assert attributes["gen_ai.request.model"] == "gpt-4.1-mini"
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.seed"] == 7
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert attributes["gen_ai.usage.output_tokens"] > 0
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes["gen_ai.response.id"]
    assert attributes["beam_llm.records"] == 5
    assert attributes["server.address"] == "127.0.0.1"
    assert attributes["server.port"] == llm_emulator.port
    assert found[0].kind is trace.SpanKind.CLIENT
    assert found[0].end_time > found[0].start_time
    assert "secret text" not in "".join(span.to_json() for span in found)


def test_a_try_that_failed_is_a_span_of_its_own_with_its_kind(
    start_emulator: Callable[..., Emulator],
    spans: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = start_emulator(faults=[Fault("rate_limit", times=1)])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    run(batch_size=10, tracing=True)
    first, second = spans()
    assert first.attributes["error.type"] == "rate_limited"
    assert first.status.status_code is trace.StatusCode.ERROR
    assert second.attributes["beam_llm.again"] == 1
    assert second.status.is_ok or second.status.status_code is trace.StatusCode.UNSET
    assert "error.type" not in second.attributes


def test_each_batch_job_is_a_span_from_its_creation_to_its_end(
    llm_emulator: Emulator, spans: Callable[[], list[Any]], tmp_path: Path
) -> None:
    options = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    run(batch_size=5, tracing=True, **options)
    (span,) = spans()
    assert span.name == "batch gpt-4.1-mini"
    attributes = dict(span.attributes)
    assert attributes["beam_llm.job"] == "1"
    assert attributes["beam_llm.job.id"].startswith("batch_")
    assert attributes["beam_llm.job.ended"] == "completed"
    assert attributes["beam_llm.requests"] == 2
    assert attributes["beam_llm.answered"] == 10
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert attributes["beam_llm.cost_usd"] > 0
    assert span.end_time >= span.start_time
    run(batch_size=5, tracing=True, **options)
    assert len(spans()) == 1  # known answers are no job


def test_a_tracer_that_fails_fails_no_record(
    llm_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(event: str, facts: dict[str, Any]) -> None:
        raise RuntimeError("no collector")

    monkeypatch.setattr(events, "TRACERS", [fails])
    monkeypatch.setattr(telemetry, "begin", lambda: None)
    run(batch_size=5, tracing=True)
    assert llm_emulator.calls == 2


def test_without_opentelemetry_tracing_is_refused_when_the_pipeline_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "opentelemetry" else find(name, *rest),
    )
    with pytest.raises(UsageError, match=r"beam-llm\[otel\]"):
        LLMPredict(MODEL, "{{ element }}", tracing=True)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai", "openai"),
        ("anthropic", "anthropic"),
        ("vertex", "gcp.vertex_ai"),
        ("xai", "x_ai"),
        ("groq", "groq"),
    ],
)
def test_providers_have_their_names_of_the_conventions(provider: str, name: str) -> None:
    facts = {"provider": provider, "model": "m", "base_url": "http://host:99999999/v1"}
    assert attributes_of(facts) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": name,
        "gen_ai.request.model": "m",
        "server.address": "host",
    }
